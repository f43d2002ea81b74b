"""IGCV3-D a quarter as wide, on CIFAR-10.

    igczoo train cifar10_igcv3_025 --data DATA --bf16

Cost: 1.9 hours on one core of an AMD EPYC (Zen 4) that other work shared (OMP_NUM_THREADS=1); the quickest epochs took 69 seconds
at 16 pixels, 150 at 24 and 250 at 32. On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment
spares the page faults.
Result: 82.90 % top-1 on the 10,000 test images.
"""
from dataclasses import replace

from . import cifar10_igc_resnet20_l24m2

RECIPE = replace(
    cifar10_igc_resnet20_l24m2.RECIPE,
    model='igcv3_025_cifar',
    growth=((.8, 16), (.93, 24)),
    batch_size=256,
    lr=0.4,
)
