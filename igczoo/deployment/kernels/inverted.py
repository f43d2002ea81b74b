"""IGCV3's inverted units as an operator of torch: on a CPU fused in the kernel (inverted.h), else in torch's own operations.

The expansion has g groups and the projection p. Each of the projection's groups takes an equal part, c channels, of each of the
expansion's, and what lies between is ordered by them, `[p][g][c]`. BatchNorm and the interleave are folded into the weights:

    expand      (p, g, C / g, c)    a group's input channel, output channel; biases (p, g, c)
    depthwise   (p, k, k, g, c)     kernel row and column; biases (p, g, c)
    project     (p, g, c, O / p)    input channel, a group's output channel; biases (p, O / p)

`torch_inverted_units` defines what the operator means.
"""
from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor

from . import _nhwc
from .chain import chain_operator

__all__ = ['InvertedUnit', 'inverted_units', 'torch_inverted_units']


class InvertedUnit(NamedTuple):
    """project(relu6(depthwise(expand(x)))), and x added to it where it is residual."""
    expand: Tensor
    expand_bias: Tensor
    depthwise: Tensor
    depthwise_bias: Tensor
    project: Tensor
    project_bias: Tensor
    stride: int             # of depthwise, as the dilation
    dilation: int
    residual: bool

    def out_channels(self, name: str, x_shape: tuple[int, ...]) -> int:
        found = [tuple(tensor.shape) for tensor in self[:6]]
        if len(x_shape) != 4 or list(map(len, found)) != [4, 3, 5, 3, 4, 2] or found[2][1] != found[2][2] or found[2][1] % 2 == 0:
            raise ValueError(f'{name}: x is {x_shape}, expand {found[0]}, depthwise {found[2]} and project {found[4]}; they must be '
                             f'(N, C, H, W), (p, g, C / g, c), (p, k, k, g, c), k odd, and (p, g, c, O / p)')
        (p, g, inputs, c), k, outputs = found[0], found[2][1], found[4][3]
        fitting = [(p, g, inputs, c), (p, g, c), (p, k, k, g, c), (p, g, c), (p, g, c, outputs), (p, outputs)]
        if not x_shape[1] or x_shape[1] != g * inputs or found != fitting:
            raise ValueError(f'{name}: x has {x_shape[1]} channels, and the weights and biases are {found}; they must be {g * inputs} and '
                             f'{fitting}')
        return p * outputs

    def multiply_adds(self, before: int, after: int) -> int:
        return before * self.expand.numel() + after * (self.depthwise.numel() + self.project.numel())

    def sizes(self) -> tuple[int, ...]:
        """in_channels, out_channels, groups, parts and channels of inverted.h."""
        p, g, inputs, c = self.expand.shape
        return g * inputs, self.project_bias.numel(), g, p, c


def torch_inverted_units(x: Tensor, units: Sequence[InvertedUnit]) -> Tensor:
    """What `inverted_units` computes, by torch's own operators, differentiable, for every device and floating dtype."""
    for unit in units:
        expand, expand_bias, depthwise, depthwise_bias, project, project_bias = unit[:6]
        p, k, _, g, c = depthwise.shape
        y = x.to(expand.dtype)
        matrices = expand.permute(1, 0, 3, 2).flatten(0, 2)[:, :, None, None]       # (g * p * c, C / g, 1, 1)
        y = F.conv2d(y, matrices, expand_bias.transpose(0, 1).flatten(), groups=g)
        y = y.unflatten(1, (g, p, c)).transpose(1, 2).flatten(1, 3)                 # (N, g, p, c, H, W) -> (N, p * g * c, H, W)
        filters = depthwise.permute(0, 3, 4, 1, 2).reshape(-1, 1, k, k)
        y = F.relu6(F.conv2d(y, filters, depthwise_bias.flatten(), unit.stride, unit.dilation * (k // 2), unit.dilation, len(filters)))
        matrices = project.flatten(1, 2).transpose(1, 2).flatten(0, 1)[:, :, None, None]    # (O, g * c, 1, 1)
        y = F.conv2d(y, matrices, project_bias.flatten(), groups=p)
        y = y + x if unit.residual else y
        x = _nhwc(y).to(x.dtype)
    return x


inverted_units = chain_operator('inverted', InvertedUnit, torch_inverted_units)
