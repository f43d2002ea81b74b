"""Names -> nets with their cfgs and weights: the entry points timm knows the models by, and those hubconf.py lists.

Importing this file registers the models with timm; `import igczoo` sees to that.
"""
from dataclasses import asdict
from typing import Any

from timm.models import PretrainedCfg, build_model_with_cfg, generate_default_cfgs, register_model, resolve_pretrained_cfg
from torch import nn

from . import deployment  # noqa: F401  gives the nets' stages the method `fuse`
from .checkpoints.card import Card, cards
from .checkpoints.store import NAMESPACE, fetch
from .nets.families import VARIANTS, net_and_arguments, out_indices, timm_cfg
from .nets.igcnet import IGCNet
from .nets.igcv2 import IGCV2
from .nets.igcv3 import IGCV3
from .nets.net import checkpoint_filter_fn


def _card_cfg(card: Card) -> dict[str, Any]:
    source = dict(url=card.origin.url) if card.origin else dict(hf_hub_id=f'{NAMESPACE}/{card.name}')
    labels = {} if isinstance(card.labels, str) else dict(label_names=card.labels)
    return timm_cfg(card.model, **asdict(card.preprocess), num_classes=card.num_classes, license=card.license, description=card.title,
                **source, **labels)


def _default_cfgs() -> dict[str, dict[str, Any]]:
    ours = [card for card in cards().values() if card.model in VARIANTS]
    trained, models = {card.name + '*' * card.default: _card_cfg(card) for card in ours}, {card.model for card in ours}
    return trained | {f'{variant}.untrained': timm_cfg(variant) for variant in VARIANTS if variant not in models}


default_cfgs = generate_default_cfgs(_default_cfgs())


def _create(variant: str, pretrained: bool, pretrained_cfg=None, pretrained_cfg_overlay=None, cache_dir=None, **kwargs) -> nn.Module:
    """Build a variant by timm; weights that a card describes come through the store, which checks every byte."""
    overlay = dict(pretrained_cfg_overlay or {})
    card = _card_of(resolve_pretrained_cfg(variant, pretrained_cfg, overlay)) if pretrained else None
    if card:
        overlay['file'] = str(fetch(card, cache_dir=cache_dir))
    net, arguments = net_and_arguments(variant)
    feature_cfg = dict(out_indices=out_indices(variant), flatten_sequential=True) | kwargs.pop('feature_cfg', {})
    model = build_model_with_cfg(
        net, variant, pretrained, pretrained_cfg, overlay, feature_cfg=feature_cfg, pretrained_filter_fn=checkpoint_filter_fn,
        cache_dir=cache_dir, **(arguments | kwargs))
    if card:
        del model.pretrained_cfg['file']    # where the file lay this time is no fact about the checkpoint
    return model


def _card_of(cfg: PretrainedCfg) -> Card | None:
    """The card behind a cfg, unless its user has named another source of weights."""
    card = cards().get(f'{cfg.architecture}.{cfg.tag}')
    if card is None or cfg.source or cfg.file or cfg.state_dict:
        return None
    registered = default_cfgs[card.model].cfgs[card.tag]
    source, registered_source = ((c.hf_hub_id, c.hf_hub_filename, c.url) for c in (cfg, registered))
    return card if source == registered_source else None


@register_model
def igcnet18(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L100M2+Ident., the best ImageNet net of the paper: 8.64 M parameters, 1.26 G multiply-adds."""
    return _create('igcnet18', pretrained, **kwargs)


@register_model
def igcnet18_l16m16(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L16M16+Ident.: 13.5 M parameters, 2.27 G multiply-adds."""
    return _create('igcnet18_l16m16', pretrained, **kwargs)


@register_model
def igcnet18_l4m32(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L4M32+Ident.: 12.3 M parameters, 1.94 G multiply-adds."""
    return _create('igcnet18_l4m32', pretrained, **kwargs)


@register_model
def igc_regconv18_c64(pretrained: bool = False, **kwargs) -> IGCNet:
    """ResNet-18 of regular convolutions, C = 64, which the paper compares its ImageNet nets with."""
    return _create('igc_regconv18_c64', pretrained, **kwargs)


@register_model
def igc_regconv18_c69(pretrained: bool = False, **kwargs) -> IGCNet:
    """ResNet-18 of regular convolutions, C = 69, likewise."""
    return _create('igc_regconv18_c69', pretrained, **kwargs)


@register_model
def igc_resnet20_l24m2(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L24M2+Ident., depth 20, for 32x32 images."""
    return _create('igc_resnet20_l24m2', pretrained, **kwargs)


@register_model
def igc_resnet38_l24m2(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L24M2+Ident., depth 38, for 32x32 images."""
    return _create('igc_resnet38_l24m2', pretrained, **kwargs)


@register_model
def igc_resnet62_l24m2(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L24M2+Ident., depth 62, for 32x32 images."""
    return _create('igc_resnet62_l24m2', pretrained, **kwargs)


@register_model
def igc_resnet20_l4m8(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L4M8+Ident., depth 20, for 32x32 images."""
    return _create('igc_resnet20_l4m8', pretrained, **kwargs)


@register_model
def igc_plain20_l24m2(pretrained: bool = False, **kwargs) -> IGCNet:
    """IGC-L24M2 without shortcuts, depth 20, for 32x32 images."""
    return _create('igc_plain20_l24m2', pretrained, **kwargs)


@register_model
def igc_regconv20_w16(pretrained: bool = False, **kwargs) -> IGCNet:
    """RegConv-W16+Ident., depth 20: the regular twin of the nets for 32x32 images."""
    return _create('igc_regconv20_w16', pretrained, **kwargs)


@register_model
def igc_regconv20_w18(pretrained: bool = False, **kwargs) -> IGCNet:
    """RegConv-W18+Ident., depth 20, likewise."""
    return _create('igc_regconv20_w18', pretrained, **kwargs)


@register_model
def igcv2_100(pretrained: bool = False, **kwargs) -> IGCV2:
    """IGCV2-1.0 as read from what is printed of it: 5.13 M parameters, 548 M multiply-adds."""
    return _create('igcv2_100', pretrained, **kwargs)


@register_model
def igcv2_050(pretrained: bool = False, **kwargs) -> IGCV2:
    """IGCV2-0.5, likewise: 1.82 M parameters, 152 M multiply-adds."""
    return _create('igcv2_050', pretrained, **kwargs)


@register_model
def igcv2_025(pretrained: bool = False, **kwargs) -> IGCV2:
    """IGCV2-0.25, likewise: 0.73 M parameters, 46 M multiply-adds."""
    return _create('igcv2_025', pretrained, **kwargs)


@register_model
def igcv2_14_c64(pretrained: bool = False, **kwargs) -> IGCV2:
    """IGCV2 of depth 14, 64 channels in the first stage and groups of 8, for 32x32 images."""
    return _create('igcv2_14_c64', pretrained, **kwargs)


@register_model
def igcv2_20_c64(pretrained: bool = False, **kwargs) -> IGCV2:
    """IGCV2 of depth 20, 64 channels in the first stage and groups of 8, for 32x32 images."""
    return _create('igcv2_20_c64', pretrained, **kwargs)


@register_model
def igcv3_100(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D as released: 3.49 M parameters, 313 M multiply-adds."""
    return _create('igcv3_100', pretrained, **kwargs)


@register_model
def igcv3_075(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D 0.75 times as wide: 2.64 M parameters, 190 M multiply-adds."""
    return _create('igcv3_075', pretrained, **kwargs)


@register_model
def igcv3_050(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D half as wide: 1.99 M parameters, 97 M multiply-adds."""
    return _create('igcv3_050', pretrained, **kwargs)


@register_model
def igcv3_025(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D a quarter as wide: 1.53 M parameters, 34 M multiply-adds."""
    return _create('igcv3_025', pretrained, **kwargs)


@register_model
def igcv3_100_cifar(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D for 32x32 images."""
    return _create('igcv3_100_cifar', pretrained, **kwargs)


@register_model
def igcv3_025_cifar(pretrained: bool = False, **kwargs) -> IGCV3:
    """IGCV3-D a quarter as wide, for 32x32 images."""
    return _create('igcv3_025_cifar', pretrained, **kwargs)
