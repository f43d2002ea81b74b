"""The interleaved group convolution: a primary (spatial) and a secondary (1x1) grouped convolution with a permutation between them."""
import copy
from collections import OrderedDict

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

__all__ = ['ConvNormAct', 'IGConv2d', 'fold_batch_norm', 'interleave']


def interleave(x: Tensor, groups: int) -> Tensor:
    """Deal the channels of ``groups`` equal partitions out in turn: one from each, then the next one from each.

    With 6 channels::

        interleave(0 1 2 | 3 4 5, groups=2)     ->  0 3 | 1 4 | 2 5
        interleave(0 3 | 1 4 | 2 5, groups=3)   ->  0 1 2 | 3 4 5       (the inverse: the other count)

    This is the permutation P of the paper (section 3.1), and `Reorder(branch_factor=groups)` of the authors' src/reorder-inl.h.

    Args:
        x: shape (N, C, H, W), C a multiple of ``groups``.
        groups: how many partitions the channels of x form now.

    Returns:
        Shape (N, C, H, W): output channel ``j * groups + i`` is input channel ``i * (C // groups) + j``.
    """
    n, c, h, w = x.shape
    x = x.view(n, groups, c // groups, h, w)        # (N, G, C/G, H, W)
    return x.transpose(1, 2).reshape(n, c, h, w)    # (N, C/G, G, H, W) -> (N, C, H, W)


class IGConv2d(nn.Module):
    """Interleaved group convolution: x' = P W_d P^T W_p x (Zhang et al., ICCV 2017, section 3, eq. 4).

    With ``primary`` = L partitions and M = out_channels / L:

    * the primary convolution W_p is spatial, in L groups of in_channels / L input and M output channels;
    * the secondary convolution W_d is 1x1, in M groups of L channels, one from every primary partition;
    * both permutations are `interleave`, so the output is in primary order: the M channels of a partition lie together.

    Nothing non-linear stands between the two, so the pair is a regular convolution whose kernel has that structure.
    The extremes are known layers: L = 1 is a regular convolution followed by a scale for each channel; M = 1 (L = out_channels, which
    then divides in_channels) is a channel-wise convolution followed by a regular 1x1 one, as in Xception.

    Args:
        in_channels: a multiple of ``primary``.
        out_channels: a multiple of ``primary``.
        primary: number L of primary partitions.
        kernel_size: of the primary convolution, odd, pixels.
        stride: of the primary convolution, pixels.
        dilation: of the primary convolution, pixels.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: the channels cannot be split into ``primary`` partitions, or a size is not positive or the kernel is even.
    """

    def __init__(
            self,
            in_channels: int,
            out_channels: int,
            primary: int,
            kernel_size: int = 3,
            stride: int = 1,
            dilation: int = 1,
            device=None,
            dtype=None,
    ):
        dd = {'device': device, 'dtype': dtype}
        super().__init__()
        sizes = dict(in_channels=in_channels, out_channels=out_channels, primary=primary, kernel_size=kernel_size, stride=stride,
                     dilation=dilation)
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f'IGConv2d: {name} is {size!r}; it must be a positive integer')
        for name in ('in_channels', 'out_channels'):
            if sizes[name] % primary:
                raise ValueError(f'IGConv2d: {name}={sizes[name]} cannot be split into primary={primary} equal partitions; '
                                 f'it must be a multiple of {primary}')
        if kernel_size % 2 == 0:
            raise ValueError(f'IGConv2d: kernel_size is {kernel_size}; it must be odd, for the padding to keep the map centred')
        self.num_primary = primary
        self.num_secondary = out_channels // primary
        padding = dilation * (kernel_size // 2)
        self.primary = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, dilation, self.num_primary, bias=False, **dd)
        self.secondary = nn.Conv2d(out_channels, out_channels, 1, groups=self.num_secondary, bias=False, **dd)

    def forward(self, x: Tensor) -> Tensor:
        x = self.primary(x)                             # (N, L * M, H, W)
        x = interleave(x, self.num_primary)             # (N, M * L, H, W)
        x = self.secondary(x)
        return interleave(x, self.num_secondary)        # (N, L * M, H, W)

    def extra_repr(self) -> str:
        return f'L={self.num_primary}, M={self.num_secondary}'


class ConvNormAct(nn.Sequential):
    """A convolution, its normalisation and an activation, by the names conv, bn and act."""

    def fuse(self) -> nn.Module:
        """Without the normalisation, in evaluation mode, giving channels_last maps; timm's `reparameterize_model` calls this."""
        conv = fold_batch_norm(self.conv, self.bn).requires_grad_(False).to(memory_format=torch.channels_last)
        return nn.Sequential(OrderedDict(conv=conv, act=self.act))


def fold_batch_norm(conv: nn.Conv2d, bn: nn.Module) -> nn.Conv2d:
    """A convolution equal to ``conv`` and after it ``bn`` as it normalises in evaluation mode, whatever mode it is in.

    ``bn`` may be torch's BatchNorm2d or SyncBatchNorm with running statistics, or torchvision's FrozenBatchNorm2d.
    """
    fused = copy.deepcopy(conv)
    fused.weight, fused.bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias)
    return fused
