"""The exact forms of an interleaved group convolution with its normalisation folded in, one small module each, and which serves where.

A form computes what `IGConv2d` and the BatchNorm after it compute in evaluation mode. It takes and gives channels in one of two orders:

* primary order `[l][m]`, as in the network: the M channels of a primary partition lie together;
* planar order `[m][l]`: the L channels of a secondary partition lie together, as one of M planes. The secondary convolution of a plane is
  then a regular 1x1 convolution and the primary one a sum of channel-wise convolutions: no interleave is left.
"""
from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..nets.layers import interleave
from . import kernels
from .kernel_layer import KernelLayer
from .planes import PlaneConv2d, constant

__all__ = ['FORMS', 'Folded', 'Fused', 'forms_of', 'is_planar']


@dataclass
class Folded:
    """An IGC layer of L primary and M secondary partitions, with a bias; m channels of its input lie in a primary partition."""
    primary: Tensor     # (M, m, k, k, L): from input plane i to output plane j, the kernel of each channel
    secondary: Tensor   # (M, L, L): of each plane, [input][output]
    bias: Tensor        # (M, L)
    stride: int
    dilation: int

    @property
    def planar(self) -> bool:
        """Whether it is computed in planar order."""
        M, L = self.bias.shape
        return is_planar(L, M)

    @property
    def geometry(self) -> dict[str, int]:
        return dict(stride=self.stride, padding=self.dilation * (self.primary.shape[2] // 2), dilation=self.dilation)


def is_planar(primary: int, secondary: int) -> bool:
    """Whether a layer of so many primary and secondary partitions is computed in planar order: its planes are wider than many."""
    return secondary < primary


class Planar(nn.Module):
    """Channel-wise convolutions, and a regular 1x1 convolution for each plane. In planar order."""

    def __init__(self, layer: Folded):
        super().__init__()
        M, L = layer.bias.shape
        self.primary = PlaneConv2d(layer.primary, None, layer.stride, layer.dilation)
        self.secondary = _conv(layer.secondary.transpose(1, 2).reshape(M * L, L, 1, 1), layer.bias, groups=M)

    def forward(self, x: Tensor) -> Tensor:
        return self.secondary(self.primary(x))


class Fused(KernelLayer):
    """Both convolutions in one kernel on a CPU in float32 and bfloat16, elsewhere as `Planar`. In planar order."""

    def __init__(self, layer: Folded):
        super().__init__()
        self.stride, self.dilation = layer.stride, layer.dilation
        self.primary, self.secondary, self.bias = map(constant, (layer.primary, layer.secondary, layer.bias))

    def forward(self, x: Tensor) -> Tensor:
        return kernels.unit(x, self.primary, self.secondary, self.bias, None, False, self.stride, self.dilation)


class Mixed(nn.Module):
    """The primary convolution in groups, the secondary as one regular 1x1 convolution with zeros. In primary order."""

    def __init__(self, layer: Folded):
        super().__init__()
        self.primary = _conv(_primary_kernel(layer), None, groups=layer.bias.shape[1], **layer.geometry)
        diagonal = torch.eye(len(layer.bias), dtype=layer.bias.dtype, device=layer.bias.device)
        secondary = torch.einsum('jlo,ij->ojli', layer.secondary, diagonal).flatten(2).flatten(0, 1)[:, :, None, None]
        self.secondary = _conv(secondary, layer.bias.t())

    def forward(self, x: Tensor) -> Tensor:
        return self.secondary(self.primary(x))


class Grouped(nn.Module):
    """Both convolutions in groups with an interleave before and after the secondary, as the paper draws it. In primary order."""

    def __init__(self, layer: Folded):
        super().__init__()
        self.M, self.L = layer.bias.shape
        self.primary = _conv(_primary_kernel(layer), None, groups=self.L, **layer.geometry)
        self.secondary = _conv(layer.secondary.transpose(1, 2).flatten(0, 1)[:, :, None, None], layer.bias, groups=self.M)

    def forward(self, x: Tensor) -> Tensor:
        x = interleave(self.primary(x), self.L)             # (N, M * L, H, W)
        return interleave(self.secondary(x), self.M)        # (N, L * M, H, W)


class Dense(nn.Module):
    """One regular convolution with the product of both kernels. In primary order where the layer's is, else in planar order."""

    def __init__(self, layer: Folded):
        super().__init__()
        planar = torch.einsum('jlo,jihwl->joilhw', layer.secondary, layer.primary)              # (M, L, m, L, k, k)
        kernel, bias = (planar, layer.bias) if layer.planar else (planar.permute(1, 0, 3, 2, 4, 5), layer.bias.t())
        self.conv = _conv(kernel.flatten(2, 3).flatten(0, 1), bias, **layer.geometry)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def _primary_kernel(layer: Folded) -> Tensor:
    return layer.primary.permute(4, 0, 1, 2, 3).flatten(0, 1)       # (L, M, m, k, k) -> (L * M, m, k, k)


def _conv(weight: Tensor, bias: Tensor | None, groups: int = 1, **geometry: int) -> nn.Conv2d:
    out_channels, in_channels, k, _ = weight.shape
    conv = nn.Conv2d(in_channels * groups, out_channels, k, groups=groups, bias=bias is not None, device='meta', **geometry)
    conv.weight, conv.bias = constant(weight, torch.channels_last), None if bias is None else constant(bias.flatten())
    return conv


FORMS: dict[str, type[nn.Module]] = {'fused': Fused, 'planar': Planar, 'mixed': Mixed, 'grouped': Grouped, 'dense': Dense}


def forms_of(layer: Folded, portable: bool = False) -> list[str]:
    """The names of the forms a layer can take, all in the same order of channels; first the one that is most likely the fastest.

    The rule for that: in planar order the fused kernel if there is one and PyTorch does not outrun it, otherwise planes; in primary order
    whichever of the regular forms multiplies less.

    Args:
        layer: the layer.
        portable: only those of PyTorch's own operations.
    """
    if layer.planar:
        fused = not portable and kernels.load(build=False, dtype=layer.primary.dtype) and kernels.takes(layer.primary)
        if not fused:
            return ['planar', 'dense']
        return ['planar', 'fused', 'dense'] if kernels.is_outrun(layer.primary.dtype) else ['fused', 'planar', 'dense']
    M, m, k, _, L = layer.primary.shape
    mixed, dense = L * M * (m * k * k + L * M), L * M * L * m * k * k
    return ['dense', 'mixed', 'grouped'] if dense <= mixed else ['mixed', 'dense', 'grouped']
