"""IGCV3-D a quarter as wide, on CIFAR-10.

    igczoo train cifar10_igcv3_025 --data DATA --bf16

Cost: 1.9 hours on one core of an AMD EPYC (Zen 4) that other work shared (OMP_NUM_THREADS=1); the quickest epochs took 69 seconds
at 16 pixels, 150 at 24 and 250 at 32. On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment
spares the page faults.
Result: 82.90 % top-1 on the 10,000 test images.
"""
from . import Recipe

RECIPE = Recipe(
    model='igcv3_025_cifar',
    input_size=32,
    growth=((.8, 16), (.93, 24)),
    mean=(125.307, 122.950, 113.865),   # the authors' constants (train_model.py)
    std=(62.993, 62.089, 66.705),
    epochs=60,
    batch_size=256,
    lr=0.4,
    warmup_epochs=3,
    momentum=0.9,
    weight_decay=3e-4,
    label_smoothing=0.05,
    crop_padding=2,
    flip=True,
)
