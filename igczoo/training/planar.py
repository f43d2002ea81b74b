"""IGCNet in planar order: the same network, parameters and gradients, trained faster on a CPU (benchmarks/training.py).

Primary order keeps the M channels of a primary partition together, `[l][m]`; planar order keeps the L channels of a secondary partition
together, `[m][l]`, as M planes of L channels. There the secondary convolution is a plain grouped 1x1 convolution, no interleave around it,
and the primary one a few channel-wise convolutions. The stem and blocks of wide planes go by the compiled kernels of fused.py where there
are some; all else, and all of it elsewhere, by torch's operators. Every tensor is kept in channels_last memory.
"""
from __future__ import annotations

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn

from ..deployment.planes import convolve_planes
from ..nets.igcnet import IGCNet, PlainBlock, Projection, ResidualBlock, Unit
from ..nets.layers import IGConv2d
from ..nets.structure import has_hooks, has_own_hooks
from . import fused

__all__ = ['PlanarIGCNet', 'has_igc_layers']

WIDE_PARTITION = 200    # channels: from here on the secondary convolution is faster as matrix products
LEAST_WIDTH, MOST_PLANES = 8, 16    # channels of a plane, and planes, for which the kernels of fused.py are the faster ones
MERGED_WIDTH = 16   # channels: what a grouped convolution needs in a group to fill a vector register of 16 floats


def has_igc_layers(net: nn.Module) -> bool:
    """Whether there is something for `PlanarIGCNet` in the net: nets of regular convolutions alone have no planar order."""
    return any(isinstance(module, IGConv2d) for module in net.modules())


class PlanarIGCNet(fused.TrainingForm):
    """Computes an `IGCNet` in planar order, forward and backward; see `fused.TrainingForm`.

    Args:
        net: an IGCNet of interleaved group convolutions, otherwise as `fused.TrainingForm` takes it.
        kernels: compute blocks by compiled kernels (fused.py) where there are some for them, compiled on first use; else all by torch.

    Raises:
        ValueError: the net is otherwise.
    """

    def __init__(self, net: IGCNet, kernels: bool = True):
        for name, module in net.named_modules():
            if isinstance(module, Unit) and isinstance(module.conv, nn.Conv2d):
                raise ValueError(f'PlanarIGCNet: {name} is a regular convolution; only IGC nets have a planar order')
        super().__init__(net)
        self.kernels = kernels

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction), in primary order like the net's own."""
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.net.pool(fused.conv_norm_act(x, self.net.stem) if self.kernels else self.net.stem(x))
        primary = x.shape[1]    # in primary order x has as many partitions as channels, each of one channel
        for stage in self.net.stages:
            parts = [stage] if has_own_hooks(stage) else stage
            for block in parts:
                if has_hooks(block):        # it is called as it is, in primary order
                    x = block(_reorder(x, primary, x.shape[1]))
                    primary = x.shape[1]
                    continue
                unit = block.unit1 if isinstance(block, ResidualBlock) else block.unit
                x = _reorder(x, primary, unit.conv.num_primary)
                primary = unit.conv.num_primary
                x = self._block(block, x)
        return self.net.final(_reorder(x, primary, x.shape[1]))

    def _block(self, block: ResidualBlock | PlainBlock, x: Tensor) -> Tensor:
        residual = isinstance(block, ResidualBlock)
        units, act = ([block.unit1, block.unit2], block.act2) if residual else ([block.unit], block.act)
        dtype = fused.kernel_dtype(x) if self.kernels else None
        if dtype is None or not _is_fusible(block, units, act, x):
            return _residual(block, x) if residual else act(_unit(block.unit, x))
        partitions, bounds = units[0].conv.num_primary, fused.BOUNDS[type(act)]
        shortcut = residual and (not isinstance(block.shortcut, Projection) or _fused(block.shortcut, partitions, bounds))
        return fused.block(x, [_fused(unit, partitions, bounds) for unit in units], shortcut, dtype)


def _is_fusible(block: ResidualBlock | PlainBlock, units: list[Unit], act: nn.Module, x: Tensor) -> bool:
    """Whether there are kernels for a block, and they are faster: planes must be wide, and few."""
    conv = units[-1].conv
    acts = [block.act1, act] if isinstance(block, ResidualBlock) else [act]
    return (type(act) in fused.BOUNDS and all(type(one) is type(act) for one in acts)
            and not (block.training and isinstance(getattr(block, 'drop_path', None), DropPath))
            and fused.pixels(x, units[0].conv.primary.stride[0]) > 1
            and conv.num_primary >= LEAST_WIDTH and conv.num_secondary <= MOST_PLANES
            and all(unit.conv.primary.stride[0] == 1 or unit.conv.primary.dilation[0] == 1 for unit in units))


def _fused(unit: Unit | Projection, partitions: int, bounds: tuple[float, float]) -> fused.Unit:
    """The unit's parameters in planar order."""
    conv, secondary = unit.conv, None
    if isinstance(unit, Unit):
        conv, M = unit.conv.primary, unit.conv.num_secondary
        secondary = unit.conv.secondary.weight.view(M, partitions, partitions)
    primary = conv.weight.unflatten(0, (partitions, -1)).permute(1, 2, 3, 4, 0)                 # (L, M, m, k, k) -> (M, m, k, k, L)
    weight, bias = (parameter.view(partitions, -1).t().flatten() for parameter in (unit.bn.weight, unit.bn.bias))     # [l][m] -> [m][l]
    return fused.Unit(primary, secondary, weight, bias, unit.bn, (partitions, -1), (0, 1), bounds, stride=conv.stride[0],
                      dilation=conv.dilation[0])


def _residual(block: ResidualBlock, x: Tensor) -> Tensor:
    y = _unit(block.unit2, block.act1(_unit(block.unit1, x)))
    if isinstance(block.shortcut, Projection):
        primary = block.unit1.conv.num_primary
        x = _batch_norm(block.shortcut.bn, _primary_conv(block.shortcut.conv, x), primary)
    return block.act2(x + block.drop_path(y))


def _unit(unit: Unit, x: Tensor) -> Tensor:
    return _batch_norm(unit.bn, _secondary_conv(unit.conv.secondary, _primary_conv(unit.conv.primary, x)), unit.conv.num_primary)


def _primary_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A convolution in L groups of m input and M output channels, from planar to planar order.

    The rule, by measurement: with up to two planes on either side, channel-wise convolutions; with more, whole groups, as many
    together as fill a vector register, which costs two interleaves.
    """
    partitions, m, M = conv.groups, conv.in_channels // conv.groups, conv.out_channels // conv.groups
    if M <= 2 and m in (1, M):
        weight = conv.weight.unflatten(0, (partitions, M)).permute(1, 2, 3, 4, 0)      # (M, m, k, k, L)
        return convolve_planes(x, weight, conv.stride[0], conv.dilation[0])
    return _by_group(conv, x, partitions, m, M)


def _secondary_conv(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution in M groups of L channels, in planar order.

    The rule, by measurement: wide partitions as a batch of M matrix products, whose gradient oneDNN computes up to twice as fast.
    """
    M, L = conv.groups, conv.out_channels // conv.groups
    if L < WIDE_PARTITION:
        return F.conv2d(x, conv.weight, groups=M)
    n, _, h, w = x.shape
    rows = x.permute(0, 2, 3, 1).reshape(-1, M, L).transpose(0, 1)                          # (M, N*H*W, L)
    y = torch.bmm(rows, conv.weight.view(M, L, L).transpose(1, 2))
    return y.transpose(0, 1).reshape(n, h, w, M * L).permute(0, 3, 1, 2)                    # (M, N*H*W, L) -> (N, M*L, H, W)


def _by_group(conv: nn.Conv2d, x: Tensor, partitions: int, m: int, M: int) -> Tensor:
    """Grouped convolution in primary order; neighbouring groups share one block-diagonal kernel (zeros off the diagonal)."""
    merged = max(k for k in range(1, partitions + 1) if partitions % k == 0 and (k == 1 or k * max(m, M) <= MERGED_WIDTH))
    groups = partitions // merged
    weight = conv.weight.view(groups, merged, M, 1, m, *conv.kernel_size)
    diagonal = torch.eye(merged, dtype=weight.dtype, device=weight.device).view(1, merged, 1, merged, 1, 1, 1)
    weight = (weight * diagonal).reshape(partitions * M, merged * m, *conv.kernel_size).contiguous(memory_format=torch.channels_last)
    y = F.conv2d(_interleave(x, m), weight, None, conv.stride, conv.padding, conv.dilation, groups)
    return _interleave(y, partitions)


def _batch_norm(bn: nn.BatchNorm2d, x: Tensor, primary: int) -> Tensor:
    """Batch normalisation of planar channels by a module that keeps primary order."""
    order = torch.arange(bn.num_features, device=x.device).view(primary, -1).t().flatten()      # [l][m] -> [m][l]
    mean, var = bn.running_mean[order], bn.running_var[order]
    momentum = 1 / (int(bn.num_batches_tracked) + 1) if bn.momentum is None else bn.momentum       # None: the mean over all batches
    y = F.batch_norm(x, mean, var, bn.weight[order], bn.bias[order], bn.training, momentum, bn.eps)
    if bn.training:
        bn.running_mean[order], bn.running_var[order] = mean, var
        bn.num_batches_tracked += 1
    return y


def _reorder(x: Tensor, primary: int, new_primary: int) -> Tensor:
    """Planar order of ``primary`` partitions -> planar order of ``new_primary``; of as many as channels: primary order."""
    if primary == new_primary:
        return x
    return _interleave(_interleave(x, x.shape[1] // primary), new_primary)


def _interleave(x: Tensor, groups: int) -> Tensor:
    """`layers.interleave` that keeps channels_last memory."""
    n, c, h, w = x.shape
    if groups in (1, c):
        return x
    x = x.permute(0, 2, 3, 1).reshape(n, h, w, groups, c // groups)             # (N, H, W, G, C/G)
    return x.transpose(3, 4).reshape(n, h, w, c).permute(0, 3, 1, 2)            # (N, H, W, C/G, G) -> (N, C, H, W)
