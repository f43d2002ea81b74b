"""ResNet-18 of regular convolutions, the twin that the paper compares its ImageNet nets with, on Tiny-ImageNet-200 by the IGC recipe.

    igczoo train tinyimagenet_regconv18 --data DATA --bf16

The schedule is that of the first 12 epochs that igcnet18.tinyimagenet was trained by, whose first five had the rates of 14 epochs.
Cost: 1.2 hours on two cores of an AMD EPYC (Zen 4) that other work shared;
the quickest epochs took 257 seconds at 40 pixels, 364 at 64, 673 at 96.
Result: 47.39 % top-1 on the 10,000 validation images after the last epoch, where igcnet18 has 48.37 %.
"""
from dataclasses import replace

from .tinyimagenet_igcnet18 import RECIPE as IGC_RECIPE

RECIPE = replace(IGC_RECIPE, model='igc_regconv18_c64', epochs=12, growth=((0.4, 40), (0.9, 64)))
