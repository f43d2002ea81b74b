"""IGCV2 of depth 14, C = 64, on CIFAR-10.

    igczoo train cifar10_igcv2_14_c64 --data DATA --bf16

Cost: 1.8 hours on one core of an AMD EPYC (Zen 4) that other work shared (OMP_NUM_THREADS=1); the quickest epochs took 67 seconds
at 16 pixels, 148 at 24 and 261 at 32. On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment
spares the page faults.
Result: 83.51 % top-1 on the 10,000 test images.
"""
from dataclasses import replace

from . import cifar10_igc_resnet20_l24m2

RECIPE = replace(
    cifar10_igc_resnet20_l24m2.RECIPE,
    model='igcv2_14_c64',
    growth=((.8, 16), (.93, 24)),
    batch_size=256,
    lr=0.4,
)
