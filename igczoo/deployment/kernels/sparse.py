"""IGCV2's units as an operator of torch: on a CPU fused in the kernel (sparse.h), else in torch's own operations.

A unit is a channel-wise convolution, products of g groups of K channels with interleaves between them, a bias and a ReLU. BatchNorm is
folded into the weights:

    depthwise   (k, k, C)       kernel row and column, channel
    between     (D, g, K, K)    of each product but the last: input channel, output channel; D may be 0
    last        (g, K, O / g)
    bias        (O,)

`torch_sparse_units` defines what the operator means.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from ...nets.layers import interleave
from . import _nhwc
from .chain import chain_operator

__all__ = ['SparseUnit', 'sparse_units', 'torch_sparse_units']


class SparseUnit(NamedTuple):
    """relu(last(... between(depthwise(x))) + bias + x), the last x where it is residual."""
    depthwise: Tensor
    between: Tensor
    last: Tensor
    bias: Tensor
    stride: int         # of depthwise, as the dilation
    dilation: int
    residual: bool

    def out_channels(self, name: str, x_shape: tuple[int, ...]) -> int:
        found = [tuple(tensor.shape) for tensor in self[:4]]
        if len(x_shape) != 4 or list(map(len, found)) != [3, 4, 3, 1] or found[0][0] != found[0][1] or found[0][0] % 2 == 0:
            raise ValueError(f'{name}: x is {x_shape}, depthwise {found[0]}, between {found[1]} and last {found[2]}; they must be '
                             f'(N, C, H, W), (k, k, C), k odd, (D, g, K, K) and (g, K, O / g)')
        k, depth, (g, K, outputs) = found[0][0], found[1][0], found[2]
        fitting = [(k, k, g * K), (depth, g, K, K), (g, K, outputs), (g * outputs,)]
        if x_shape[1] != g * K or found != fitting:
            raise ValueError(f'{name}: x has {x_shape[1]} channels, and the weights and bias are {found}; they must be {g * K} and '
                             f'{fitting}')
        return g * outputs

    def multiply_adds(self, before: int, after: int) -> int:
        return after * sum(tensor.numel() for tensor in (self.depthwise, self.between, self.last))

    def sizes(self) -> tuple[int, ...]:
        """out_channels, groups, channels and depth of sparse.h."""
        g, K, _ = self.last.shape
        return len(self.bias), g, K, len(self.between)


def torch_sparse_units(x: Tensor, units: Sequence[SparseUnit]) -> Tensor:
    """What `sparse_units` computes, by torch's own operators, differentiable, for every device and floating dtype."""
    for unit in units:
        k, _, C = unit.depthwise.shape
        g, filters = len(unit.last), unit.depthwise.permute(2, 0, 1)[:, None]
        y = F.conv2d(x.to(filters.dtype), filters, None, unit.stride, unit.dilation * (k // 2), unit.dilation, C)
        for layer, weight in enumerate((*unit.between, unit.last)):
            y = interleave(y, g) if layer > 0 else y                                # (N, C, H', W')
            y = F.conv2d(y, weight.transpose(1, 2).flatten(0, 1)[:, :, None, None], groups=g)
        y = y + unit.bias[:, None, None]
        x = _nhwc(F.relu(y + x if unit.residual else y)).to(x.dtype)
    return x


sparse_units = chain_operator('sparse', SparseUnit, torch_sparse_units)
