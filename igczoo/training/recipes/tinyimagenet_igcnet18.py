"""IGC-L100M2+Ident., depth 18, on Tiny-ImageNet-200, shown at 40, 64 and at last 96 pixels.

    igczoo train tinyimagenet_igcnet18 --data DATA --bf16

Cost: 4.8 hours on two cores of an AMD EPYC (Zen 4) that other work shared;
the quickest epochs took 299 seconds at 40 pixels, 463 at 64, 1047 at 96.
On glibc, MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment spares the page faults.
Result: 54.53 % top-1 on the 10,000 validation images, by a run whose length was changed on the way, as its card says.
"""
from . import Recipe

RECIPE = Recipe(
    model='igcnet18',
    num_classes=200,
    stored_size=64,
    input_size=96,
    growth=((0.23, 40), (0.61, 64)),
    mean=(122.460, 114.257, 101.363),   # measured on the 100,000 training images, grey ones as RGB
    std=(70.491, 68.560, 71.805),
    epochs=21,
    batch_size=128,
    lr=0.2,
    warmup_epochs=1,
    momentum=0.9,
    weight_decay=5e-4,
    label_smoothing=0.1,
    crop_padding=0,
    min_area=0.35,
    flip=True,
)
