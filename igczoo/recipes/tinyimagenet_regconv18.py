"""ResNet-18 of regular convolutions, the twin that the paper compares its ImageNet nets with, on Tiny-ImageNet-200 by the IGC recipe.

    igczoo train tinyimagenet_regconv18 --data DATA --bf16

Cost: not run yet.
Result: top-1 on the 10,000 validation images: not run yet.
"""
from dataclasses import replace

from .tinyimagenet_igcnet18 import RECIPE as IGC_RECIPE

RECIPE = replace(IGC_RECIPE, model='igc_regconv18_c64', epochs=12, growth=((0.4, 40), (0.9, 64)))
