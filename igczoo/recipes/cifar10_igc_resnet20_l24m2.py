"""IGC-L24M2+Ident., depth 20, on CIFAR-10."""
from . import Recipe

RECIPE = Recipe(
    model='igc_resnet20_l24m2',
    input_size=32,
    mean=(125.307, 122.950, 113.865),   # the authors' constants (train_model.py)
    std=(62.993, 62.089, 66.705),
    epochs=22,
    batch_size=128,
    lr=0.3,
    warmup_epochs=3,
    momentum=0.9,
    weight_decay=3e-4,
    label_smoothing=0.05,
    crop_padding=4,
    flip=True,
)
