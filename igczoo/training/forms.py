"""In which form a net is trained: as it is written, or as a module that computes the same and trains faster."""
from __future__ import annotations

import torch
from torch import nn

from ..nets.igcnet import IGCNet
from ..nets.igcv2 import IGCV2
from ..nets.structure import altered_part, has_own_methods
from .igcv2 import FusedIGCV2
from .igcv3 import FusedIGCV3
from .planar import PlanarIGCNet, has_igc_layers

__all__ = ['as_written', 'planar_by_torch', 'training_form']


def training_form(net: nn.Module, device: torch.device) -> nn.Module:
    """A module that computes what the net does, with its parameters and buffers, and trains faster where there is one; else the net."""
    if device.type != 'cpu' or has_own_methods(net) or altered_part(net):
        return net
    if isinstance(net, IGCNet):
        return PlanarIGCNet(net) if has_igc_layers(net) else net
    return FusedIGCV2(net) if isinstance(net, IGCV2) else FusedIGCV3(net)


def as_written(net: nn.Module, device: torch.device) -> nn.Module:
    """The net itself, on every device."""
    return net


def planar_by_torch(net: nn.Module, device: torch.device) -> nn.Module:
    """Planar order by torch's operators alone, on every device; the net where it has none."""
    return PlanarIGCNet(net, kernels=False) if type(net) is IGCNet and has_igc_layers(net) and not altered_part(net) else net
