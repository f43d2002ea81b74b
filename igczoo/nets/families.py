"""Every family's variants in one table: from a name to a net, and to what timm must know of it."""
from typing import Any

from . import igcnet, igcv2, igcv3
from .net import Net, Paper, Printed

__all__ = ['NETS', 'VARIANTS', 'build', 'net_and_arguments', 'out_indices', 'paper', 'printed', 'timm_cfg']

NETS: dict[Any, type[Net]] = {igcnet: igcnet.IGCNet, igcv2: igcv2.IGCV2, igcv3: igcv3.IGCV3}     # family -> its class
VARIANTS = {variant: family for family in NETS for variant in family.VARIANTS}


def net_and_arguments(variant: str) -> tuple[type[Net], dict[str, Any]]:
    """The class of a variant, and the arguments that make it."""
    family = VARIANTS[variant]
    return NETS[family], family.VARIANTS[variant]


def build(variant: str, **kwargs) -> Net:
    """The net of a variant, without weights; ``kwargs`` are further arguments of its class."""
    net, arguments = net_and_arguments(variant)
    return net(**(arguments | kwargs))


def timm_cfg(variant: str, input_size: tuple[int, int, int] | None = None, **kwargs) -> dict[str, Any]:
    """What timm must know of a variant; the input size decides the size of the last map."""
    return VARIANTS[variant].timm_cfg(variant, input_size, **kwargs)


def out_indices(variant: str) -> tuple[int, ...]:
    """Which entries of `feature_info` are a backbone's feature maps, unless its user names others."""
    return VARIANTS[variant].out_indices(variant)


def paper(variant: str) -> Paper:
    """Where the variant's family was published."""
    return VARIANTS[variant].PAPER


def printed(variant: str) -> Printed | None:
    """What others print of a variant that has no weights."""
    return VARIANTS[variant].PRINTED.get(variant)
