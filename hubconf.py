"""torch.hub entry points: torch.hub.load('<owner>/<repository>', 'igc_resnet', pretrained=True)."""
from igczoo.nets.igcnet import igc_resnet as _igc_resnet
from igczoo.registry import (  # noqa: F401
    igc_plain20_l24m2,
    igc_regconv18_c64,
    igc_regconv18_c69,
    igc_regconv20_w16,
    igc_regconv20_w18,
    igc_resnet20_l4m8,
    igc_resnet20_l24m2,
    igc_resnet38_l24m2,
    igc_resnet62_l24m2,
    igcnet18,
    igcnet18_l4m32,
    igcnet18_l16m16,
    igcv2_025,
    igcv2_050,
    igcv2_14_c64,
    igcv2_20_c64,
    igcv2_100,
    igcv3_025,
    igcv3_025_cifar,
    igcv3_050,
    igcv3_075,
    igcv3_100,
    igcv3_100_cifar,
)

dependencies = ['torch', 'torchvision', 'timm', 'huggingface_hub', 'safetensors', 'PIL', 'numpy', 'filelock', 'tqdm']


def igc_resnet(depth: int = 20, primary: int = 24, secondary: int = 2, num_classes: int = 10, pretrained: bool = False, **kwargs):
    """An IGC net for 32x32 images: "IGC-L``primary``M``secondary``+Ident." of the paper.

    Args:
        depth: 6n + 2 layers.
        primary: L, partitions of the primary convolutions.
        secondary: M of the first stage.
        num_classes: outputs of the classifier; with ``pretrained``, another number than 10 gives a new classifier.
        pretrained: weights trained on CIFAR-10, for the depths and partitions that have some.
        **kwargs: further arguments of `igczoo.IGCNet`.

    Raises:
        ValueError: no such net, or no weights for it.
    """
    if not pretrained:
        return _igc_resnet(depth, primary, secondary, num_classes, **kwargs)
    import timm

    from igczoo.checkpoints.card import cards
    name = f'igc_resnet{depth}_l{primary}m{secondary}'
    trained = [card.model for card in cards().values() if card.default and card.model.startswith('igc_resnet')]
    if name not in trained:
        raise ValueError(f'{name} has no weights; use pretrained=False, or one of {", ".join(trained)}')
    return timm.create_model(name, pretrained=True, num_classes=num_classes, **kwargs)
