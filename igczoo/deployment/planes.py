"""The primary convolution in planar order: channel-wise convolutions from planes to planes, for which libraries have fast kernels.

Planar order is `[m][l]`: the channels are m planes, each of one channel from each of L primary partitions.
"""
from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ['PlaneConv2d', 'convolve_planes']


def convolve_planes(x: Tensor, weight: Tensor, stride: int = 1, dilation: int = 1) -> Tensor:
    """The sum over input planes of each channel convolved with its own kernel, for every output plane.

    Args:
        x: (N, m * L, H, W), planar, best in channels_last memory.
        weight: (M, m, k, k, L) of output plane, input plane, kernel row and column, channel; k odd.
        stride: pixels.
        dilation: pixels; zeros are padded so that the map stays centred.

    Returns:
        (N, M * L, ceil(H / stride), ceil(W / stride)), planar.
    """
    M, k, dtype = len(weight), weight.shape[2], x.dtype
    padding, no_autocast = dilation * (k // 2), nullcontext()
    if k == 1:
        x, stride = x[:, :, ::stride, ::stride], 1
    elif stride > 1 and torch.is_autocast_enabled(x.device.type):
        # oneDNN's bfloat16 gradient of these is up to 90 times slower than its float32 one
        x, no_autocast = x.to(weight.dtype), torch.autocast(x.device.type, enabled=False)
    elif x.requires_grad and min(x.shape[2:]) < k:
        # likewise that of the kernels 10 times where the map is smaller than they are
        x, padding = F.pad(x, (padding,) * 4), 0
    total = None
    with no_autocast:
        for r, kernel in enumerate(_rotated_kernels(weight).unbind()):
            y = F.conv2d(_rotated_planes(x, weight.shape[1], M, r), kernel, None, stride, padding, dilation, len(kernel))
            total = y if total is None else total.add_(y)
    return total.to(dtype)


class PlaneConv2d(nn.Module):
    """`convolve_planes` of constant kernels, in modules and operations that torch.fx, TorchScript and hooks know what to make of.

    Args:
        weight: (M, m, k, k, L), as `convolve_planes` takes it.
        bias: (M, L) or None.
        stride: pixels.
        dilation: pixels.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, stride: int = 1, dilation: int = 1):
        super().__init__()
        self.M, self.m, k, _, self.L = weight.shape
        self.step = stride if k == 1 else 1     # a 1x1 convolution reads every so many pixels only
        options = dict(stride=stride if k > 1 else 1, padding=dilation * (k // 2), dilation=dilation, groups=self.M * self.L,
                       device='meta')
        self.turns = nn.ModuleList()
        for r, kernel in enumerate(_rotated_kernels(weight)):
            conv = nn.Conv2d(self.M * self.L, self.M * self.L, k, bias=bias is not None and r == 0, **options)
            conv.weight = constant(kernel, torch.channels_last)
            conv.bias = constant(bias.flatten()) if conv.bias is not None else None
            self.turns.append(conv)

    def forward(self, x: Tensor) -> Tensor:
        """(N, m * L, H, W) -> (N, M * L, ceil(H / stride), ceil(W / stride)), both planar."""
        if self.step > 1:
            x = x[:, :, ::self.step, ::self.step]
        total = self.turns[0](_rotated_planes(x, self.m, self.M, 0))
        for r, conv in enumerate(self.turns):
            if r > 0:
                total = total + conv(_rotated_planes(x, self.m, self.M, r))
        return total


def constant(values: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> nn.Parameter:
    """What a deployed layer computes with, in one piece of memory, so that no call copies it."""
    return nn.Parameter(values.detach().clone(memory_format=memory_format), requires_grad=False)


def _rotated_kernels(weight: Tensor) -> Tensor:
    """The weight of `convolve_planes` as (m, M * L, 1, k, k): in row r, input plane (j + r) mod m goes to output plane j."""
    M, m, k, _, L = weight.shape
    rows = [torch.stack([weight[j, (j + r) % m] for j in range(M)]) for r in range(m)]
    return torch.stack(rows).permute(0, 1, 4, 2, 3).reshape(m, M * L, 1, k, k)      # (m, M, k, k, L)


def _rotated_planes(x: Tensor, m: int, M: int, r: int) -> Tensor:
    """(N, m * L, H, W) -> (N, M * L, H, W): plane (j + r) mod m at place j."""
    L = x.shape[1] // m
    if m == M:
        return x.roll(-r * L, 1) if r > 0 else x
    if m == 1:
        return torch.cat([x] * M, 1)
    return torch.cat([x.narrow(1, (j + r) % m * L, L) for j in range(M)], 1)
