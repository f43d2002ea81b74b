"""In which form a net is trained: as it is written, or as a module that computes the same and trains faster."""
from __future__ import annotations

import torch
from torch import nn

from ..nets.igcnet import IGCNet
from ..nets.igcv2 import IGCV2
from ..nets.igcv3 import IGCV3
from .inverted import FusedIGCV3
from .planar import PlanarIGCNet, has_igc_layers
from .sparse import FusedIGCV2

__all__ = ['as_written', 'planar_by_torch', 'training_form']


def training_form(net: nn.Module, device: torch.device) -> nn.Module:
    """A module that computes what the net does, with its parameters and buffers, and trains faster where there is one; else the net."""
    if device.type != 'cpu':
        return net
    if isinstance(net, IGCNet) and has_igc_layers(net):
        return PlanarIGCNet(net)
    forms = {IGCV2: FusedIGCV2, IGCV3: FusedIGCV3}
    return forms[type(net)](net) if type(net) in forms else net


def as_written(net: nn.Module, device: torch.device) -> nn.Module:
    """The net itself, on every device."""
    return net


def planar_by_torch(net: nn.Module, device: torch.device) -> nn.Module:
    """Planar order by torch's operators alone, on every device; the net where it has none."""
    return PlanarIGCNet(net, kernels=False) if isinstance(net, IGCNet) and has_igc_layers(net) else net
