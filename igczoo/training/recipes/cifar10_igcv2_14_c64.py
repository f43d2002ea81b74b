"""IGCV2 of depth 14, C = 64, on CIFAR-10, by the schedule of igc_resnet20_l24m2.

    igczoo train cifar10_igcv2_14_c64 --data DATA --bf16

Cost: the quickest epoch took 103 seconds on two cores of an AMD EPYC (Zen 4), and the whole run, which other work
shared and stopped for, 5.0 hours. On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment spares
the page faults.
Result: 86.67 % top-1 on the 10,000 test images.
"""
from dataclasses import replace

from . import cifar10_igc_resnet20_l24m2

RECIPE = replace(cifar10_igc_resnet20_l24m2.RECIPE, model='igcv2_14_c64')
