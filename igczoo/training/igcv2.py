"""IGCV2 in training on a CPU: the same network, parameters and gradients by the kernels of fused.py, faster (benchmarks/training.py).

The 1x1 convolutions of a unit are one linear map without anything between, so a step multiplies by their product, which is computed from
their weights once for all pixels and differentiated back to them. That multiplies more, and reads and writes maps less.
Units of wide groups, which `SparseConv2d.is_narrow` tells by what inference measured, are computed as written.
"""
from __future__ import annotations

import torch
from torch import Tensor

from ..nets.igcv2 import SparseUnit
from . import fused

__all__ = ['FusedIGCV2']


class FusedIGCV2(fused.FusedNet):
    """Computes an `IGCV2`; see `FusedNet`."""

    def takes(self, unit: SparseUnit, x: Tensor) -> bool:
        return unit.conv.is_narrow() and fused.takes_channelwise(unit.conv.spatial, unit.act, x)

    def compute(self, unit: SparseUnit, x: Tensor, dtype: torch.dtype) -> Tensor:
        conv = unit.conv.spatial
        with torch.autocast('cpu', enabled=False):
            product = unit.conv.product(conv.weight.dtype)[None]                # (1, out, in)
        channelwise = conv.weight.permute(1, 2, 3, 0)[None]                     # (1, 1, 3, 3, C)
        return fused.block(x, [fused.Unit(
            channelwise, product, unit.bn.weight, unit.bn.bias, unit.bn, (1, -1), (0, 1), fused.BOUNDS[type(unit.act)],
            stride=conv.stride[0], dilation=conv.dilation[0])], unit.residual, dtype)
