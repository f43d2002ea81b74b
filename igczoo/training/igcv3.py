"""IGCV3 in training on a CPU: the same network, parameters and gradients by the kernels of fused.py, faster (benchmarks/training.py).

Between a unit's two 1x1 convolutions, both of two groups, maps keep their channels in four planes. A plane holds what one group of the
expansion makes for one group of the projection, so that both convolutions are products with whole planes and no interleave is left:

    expanded    `[from][to][q]`     the order the expansion makes, and its normalisation has
    planes      `[to][from][q]`     the order in memory
    interleaved `[to][q][from]`     the order the channel-wise convolution, its normalisation and the projection have
"""
from __future__ import annotations

import torch
from torch import Tensor

from ..nets.igcv3 import GROUPS, InvertedUnit
from . import fused

__all__ = ['FusedIGCV3']

EXPANSION = tuple((group, to * GROUPS + group) for group in range(GROUPS) for to in range(GROUPS))     # planes from which, and to which


class FusedIGCV3(fused.FusedNet):
    """Computes an `IGCV3`; see `FusedNet`."""

    def takes(self, unit: InvertedUnit, x: Tensor) -> bool:
        return unit.depthwise.in_channels % GROUPS ** 2 == 0 and fused.takes_channelwise(unit.depthwise, unit.act, x)

    def compute(self, unit: InvertedUnit, x: Tensor, dtype: torch.dtype) -> Tensor:
        conv = unit.depthwise
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
            fused.Unit(depthwise.reshape(1, 1, 3, 3, -1), None, *norm2, unit.bn2, interleaved, swap, fused.BOUNDS[type(unit.act)],
                       stride=conv.stride[0], dilation=conv.dilation[0]),
            fused.Unit(None, project, unit.bn3.weight, unit.bn3.bias, unit.bn3, (1, -1), (0, 1), linear),
        ], unit.residual, dtype)
