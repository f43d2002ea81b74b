"""IGCV3-D a quarter as wide, on CIFAR-10.

    igczoo train cifar10_igcv3_025 --data DATA --bf16
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
