"""The primary convolution in planar order: channel-wise convolutions from planes to planes, for which libraries have fast kernels.

Planar order is `[m][l]`: the channels are m planes, each of one channel from each of L primary partitions.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ['convolve_planes']


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
    M, m, k, _, L = weight.shape
    padding, dtype, autocast = dilation * (k // 2), x.dtype, torch.is_autocast_enabled(x.device.type)
    if k == 1:
        x, stride = x[:, :, ::stride, ::stride], 1
    if stride > 1 and autocast:     # oneDNN's bfloat16 gradient of these is up to 90 times slower than its float32 one
        x, autocast = x.to(weight.dtype), False
    elif x.requires_grad and min(x.shape[2:]) < k:      # and that of the kernels 10 times where the map is smaller than they are
        x, padding = F.pad(x, (padding,) * 4), 0
    total = None
    with torch.autocast(x.device.type, enabled=autocast):
        for r in range(m):      # input plane (j + r) mod m goes to output plane j
            kernels = torch.stack([weight[j, (j + r) % m] for j in range(M)]).permute(0, 3, 1, 2).reshape(M * L, 1, k, k)
            y = F.conv2d(_rotated_planes(x, m, M, r), kernels, None, stride, padding, dilation, M * L)
            total = y if total is None else total + y
    return total.to(dtype)


def _rotated_planes(x: Tensor, m: int, M: int, r: int) -> Tensor:
    """(N, m * L, H, W) -> (N, M * L, H, W): plane (j + r) mod m at place j, in channels_last memory."""
    if m == M and r == 0:
        return x
    planes = x.permute(0, 2, 3, 1).unflatten(3, (m, -1))                        # (N, H, W, m, L)
    if m == M:
        planes = planes.roll(-r, 3)
    else:
        planes = planes.expand(-1, -1, -1, M, -1) if m == 1 else planes[..., [(j + r) % m for j in range(M)], :]
    return planes.flatten(3).permute(0, 3, 1, 2)                                # (N, H, W, M * L) -> (N, M * L, H, W)
