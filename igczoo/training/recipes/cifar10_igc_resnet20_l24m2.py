"""IGC-L24M2+Ident., depth 20, on CIFAR-10.

    igczoo train cifar10_igc_resnet20_l24m2 --data DATA --bf16

Cost: 4.7 hours on two cores of an AMD EPYC (Zen 4) that other work shared; the quickest epoch took 202 seconds.
On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment spares the page faults.
Result: 88.25 % top-1 on the 10,000 test images, by a run that was lengthened on the way to these values, as its card says.
With a GPU: the same with --epochs 200; not run yet.
"""
from . import Recipe

RECIPE = Recipe(
    model='igc_resnet20_l24m2',
    input_size=32,
    mean=(125.307, 122.950, 113.865),   # the authors' constants (train_model.py)
    std=(62.993, 62.089, 66.705),
    epochs=60,
    batch_size=128,
    lr=0.3,
    warmup_epochs=3,
    momentum=0.9,
    weight_decay=3e-4,
    label_smoothing=0.05,
    crop_padding=2,
    flip=True,
)
