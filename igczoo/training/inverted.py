"""IGCV3 in training on a CPU: the same network, parameters and gradients by the kernels of fused.py, faster (benchmarks/training.py).

Between a unit's two 1x1 convolutions, both of two groups, maps keep their channels in four planes. A plane holds what one group of the
expansion makes for one group of the projection, so that both convolutions are products with whole planes and no interleave is left:

    expanded    `[from][to][q]`     the order the expansion makes, and its normalisation has
    planes      `[to][from][q]`     the order in memory
    interleaved `[to][q][from]`     the order the channel-wise convolution, its normalisation and the projection have
"""
from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..nets.igcv3 import GROUPS, IGCV3, InvertedUnit
from . import fused

__all__ = ['FusedIGCV3']

EXPANSION = tuple((group, to * GROUPS + group) for group in range(GROUPS) for to in range(GROUPS))     # planes from which, and to which


class FusedIGCV3(nn.Module):
    """Computes an `IGCV3`, forward and backward, with the parameters and buffers of the net it is given.

    The wrapped net stays as it is and may be used, saved or averaged at any time; its running statistics are kept up. What there are no
    kernels for is computed by the net's own modules.

    Args:
        net: an IGCV3 with BatchNorm2d for its norm layers and no gradient checkpointing.

    Raises:
        ValueError: the net has another norm layer, or gradient checkpointing.
    """

    def __init__(self, net: IGCV3):
        super().__init__()
        for name, module in net.named_modules():
            if name.rpartition('.')[2] in ('bn', 'bn1', 'bn2', 'bn3') and type(module) is not nn.BatchNorm2d:
                raise ValueError(f'FusedIGCV3: {name} is {type(module).__name__}; it must be BatchNorm2d')
        if net.grad_checkpointing:
            raise ValueError('FusedIGCV3: the net has gradient checkpointing on; turn it off by set_grad_checkpointing(False)')
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.net.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction)."""
        x = self.net.pool(fused.conv_norm_act(x.contiguous(memory_format=torch.channels_last), self.net.stem))
        for stage in self.net.stages:
            for unit in stage:
                x = _unit(unit, x)
        return self.net.final(x) if isinstance(self.net.final, nn.Identity) else fused.conv_norm_act(x, self.net.final)


def _unit(unit: InvertedUnit, x: Tensor) -> Tensor:
    conv, act, dtype = unit.depthwise, type(unit.act), fused.storage(x)
    drops = unit.training and isinstance(unit.drop_path, DropPath)
    with_kernels = act in fused.BOUNDS and (conv.stride[0] == 1 or conv.dilation[0] == 1) and conv.in_channels % GROUPS ** 2 == 0
    if dtype is None or drops or not with_kernels or fused.pixels(x, conv.stride[0]) == 1:
        return unit(x)
    halves, q = (GROUPS, GROUPS, -1), conv.in_channels // GROUPS ** 2
    expand = unit.expand.weight.view(GROUPS ** 2, q, -1)                                        # [from, to], output, input
    depthwise = conv.weight.view(GROUPS, q, GROUPS, 3, 3).permute(3, 4, 0, 2, 1)                # [to][q][from] -> [to][from][q]
    project = unit.project.weight.view(GROUPS, -1, q, GROUPS).transpose(2, 3).flatten(2)        # likewise, of each output
    interleaved, swap = (GROUPS, q, GROUPS), (1, 2)
    norm1 = [parameter.view(halves).transpose(0, 1).flatten() for parameter in (unit.bn1.weight, unit.bn1.bias)]
    norm2 = [parameter.view(interleaved).transpose(*swap).flatten() for parameter in (unit.bn2.weight, unit.bn2.bias)]
    linear = fused.BOUNDS[None]
    return fused.block(x, [
        fused.Unit(None, expand, *norm1, unit.bn1, halves, (0, 1), linear, EXPANSION),
        fused.Unit(depthwise.reshape(1, 1, 3, 3, -1), None, *norm2, unit.bn2, interleaved, swap, fused.BOUNDS[act],
                   stride=conv.stride[0], dilation=conv.dilation[0]),
        fused.Unit(None, project, unit.bn3.weight, unit.bn3.bias, unit.bn3, (1, -1), (0, 1), linear),
    ], unit.residual, dtype)
