"""IGC-L100M2+Ident., depth 18, on Tiny-ImageNet-200, taught by EfficientNet-Lite0 (benchmarks/teacher.py), at 64 pixels, at last 64 to 112.

    igczoo train tinyimagenet_igcnet18_taught --data DATA --teacher TEACHER --bf16

Not trained to its end yet, so there is no result; by labels alone, and 21 epochs, igcnet18 has 54.53 % top-1 (tinyimagenet_igcnet18).
"""
from dataclasses import replace

from .tinyimagenet_igcnet18 import RECIPE as UNTAUGHT

RECIPE = replace(
    UNTAUGHT,
    growth=((0.62, 64),),
    sharpness=4.,
    mixed_sizes=(64, 80, 96, 112),
    epochs=26,
    teacher_windows=6,
    teacher_share=0.7,
    temperature=2.,
)
