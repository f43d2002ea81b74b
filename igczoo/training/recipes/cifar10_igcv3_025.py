"""IGCV3-D a quarter as wide, on CIFAR-10, by the schedule of igc_resnet20_l24m2.

    igczoo train cifar10_igcv3_025 --data DATA --bf16

Cost: 2.6 hours on two cores of an AMD EPYC (Zen 4), pauses included; the quickest epoch took 116 seconds.
On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment spares the page faults.
Result: 86.88 % top-1 on the 10,000 test images.
"""
from dataclasses import replace

from . import cifar10_igc_resnet20_l24m2

RECIPE = replace(cifar10_igc_resnet20_l24m2.RECIPE, model='igcv3_025_cifar')
