"""The primary convolution in planar order: channel-wise convolutions from planes to planes, for which libraries have fast kernels.

Planar order is `[m][l]`: the channels are m planes, each of one channel from each of L primary partitions.
"""
from __future__ import annotations

from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['convolve_planes', 'convolve_rotated', 'rotated_kernels']


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
    return convolve_rotated(x, rotated_kernels(weight), len(weight), stride, dilation)


def rotated_kernels(weight: Tensor) -> Tensor:
    """The weight of `convolve_planes` as (m, M * L, 1, k, k): in row r, input plane (j + r) mod m goes to output plane j."""
    M, m, k, _, L = weight.shape
    rows = [torch.stack([weight[j, (j + r) % m] for j in range(M)]) for r in range(m)]
    return torch.stack(rows).permute(0, 1, 4, 2, 3).reshape(m, M * L, 1, k, k)      # (m, M, k, k, L)


def convolve_rotated(x: Tensor, kernels: Tensor, M: int, stride: int, dilation: int) -> Tensor:
    """`convolve_planes` to M planes with its weight as `rotated_kernels` gives it."""
    k, dtype = kernels.shape[-1], x.dtype
    padding, no_autocast = dilation * (k // 2), nullcontext()
    if k == 1:
        x, stride = x[:, :, ::stride, ::stride], 1
    elif stride > 1 and torch.is_autocast_enabled(x.device.type):
        # oneDNN's bfloat16 gradient of these is up to 90 times slower than its float32 one
        x, no_autocast = x.to(kernels.dtype), torch.autocast(x.device.type, enabled=False)
    elif x.requires_grad and min(x.shape[2:]) < k:
        # likewise that of the kernels 10 times where the map is smaller than they are
        x, padding = F.pad(x, (padding,) * 4), 0
    total = None
    with no_autocast:
        for r, kernel in enumerate(kernels.unbind()):
            y = F.conv2d(_rotated_planes(x, len(kernels), M, r), kernel, None, stride, padding, dilation, len(kernel))
            total = y if total is None else total.add_(y)
    return total.to(dtype)


def _rotated_planes(x: Tensor, m: int, M: int, r: int) -> Tensor:
    """(N, m * L, H, W) -> (N, M * L, H, W): plane (j + r) mod m at place j."""
    L = x.shape[1] // m
    if m == M:
        return x.roll(-r * L, 1) if r else x
    return torch.cat([x] * M if m == 1 else [x.narrow(1, (j + r) % m * L, L) for j in range(M)], 1)
