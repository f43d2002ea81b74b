"""IGCV2's units as an operator of torch: on a CPU fused in the kernel (sparse.h), else in torch's own operations.

A unit is a channel-wise convolution, products of g groups of K channels with interleaves between them, a bias and a ReLU. BatchNorm is
folded into the weights:

    depthwise   (k, k, C)       kernel row and column, channel
    between     (D, g, K, K)    of each product but the last: input channel, output channel; D may be 0
    last        (g, K, O / g)
    bias        (O,)

The kernel takes what `takes` says; all else, and every gradient, is computed by `torch_sparse_units`, which defines what the operator
means.
"""
import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from ...nets.layers import interleave
from . import _differentiate, _has_pixels, _is_transformed, _nhwc, takes
from .chain import run_chain

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


def sparse_units(x: Tensor, units: Sequence[SparseUnit]) -> Tensor:
    """Units one after another, in one operator that takes a few images at a time through as many of them as the cache serves.

    Args:
        x: (N, C, H, W), in the network's order of channels.
        units: at least one.

    Returns:
        (N, O, H', W') of the last unit, of the type of x, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    return torch_sparse_units(x, units) if _is_transformed() else _sparse_units(x, *_pack(units))


@torch.library.custom_op('igczoo::sparse_units', mutates_args=(), schema='(Tensor x, Tensor[] tensors, int[] numbers) -> Tensor')
def _sparse_units(x: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    units = _unpack(tensors, numbers)
    shapes = _shapes(x.shape, units)
    given, x = x, x.to(tensors[0].dtype)        # autocast may have made it of another type
    if not takes(x, *tensors) or not _has_pixels(x):
        return torch_sparse_units(given, units)
    out = torch.empty(shapes[-1], dtype=x.dtype, memory_format=torch.channels_last)
    _run(out, _nhwc(x), units, [x.shape, *shapes[:-1]])
    return out.to(given.dtype)


@_sparse_units.register_fake
def _(x, tensors, numbers):
    shape = _shapes(x.shape, _unpack(tensors, numbers))[-1]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_differentiate(_sparse_units, lambda x, tensors, numbers: torch_sparse_units(x, _unpack(tensors, numbers)))


def _pack(units: Sequence[SparseUnit]) -> tuple[list[Tensor], list[int]]:
    """What of the units an operator can take."""
    return ([tensor for unit in units for tensor in unit[:4]], [int(number) for unit in units for number in unit[4:]])


def _unpack(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[SparseUnit]:
    """The units of which `_pack` made these."""
    return [SparseUnit(*tensors[4 * i:4 * i + 4], numbers[3 * i], numbers[3 * i + 1], bool(numbers[3 * i + 2]))
            for i in range(len(numbers) // 3)]


def _shapes(x_shape, units: Sequence[SparseUnit]) -> list[tuple[int, ...]]:
    """The shape of each unit's output, once its arguments are known to fit: the kernel reads what they say without looking back."""
    if not units:
        raise ValueError('sparse_units: there is no unit; give at least one')
    shapes, shape = [], tuple(x_shape)
    for number, unit in enumerate(units, 1):
        shapes.append(shape := _shape(f'sparse_units, unit {number}', shape, unit))
    return shapes


def _shape(name: str, x_shape: tuple[int, ...], unit: SparseUnit) -> tuple[int, ...]:
    found = [tuple(tensor.shape) for tensor in unit[:4]]
    if len(x_shape) != 4 or list(map(len, found)) != [3, 4, 3, 1] or found[0][0] != found[0][1] or found[0][0] % 2 == 0:
        raise ValueError(f'{name}: x is {tuple(x_shape)}, depthwise {found[0]}, between {found[1]} and last {found[2]}; they must be '
                         f'(N, C, H, W), (k, k, C), k odd, (D, g, K, K) and (g, K, O / g)')
    k, depth, (g, K, outputs) = found[0][0], found[1][0], found[2]
    fitting = [(k, k, g * K), (depth, g, K, K), (g, K, outputs), (g * outputs,)]
    if x_shape[1] != g * K or found != fitting:
        raise ValueError(f'{name}: x has {x_shape[1]} channels, and the weights and bias are {found}; they must be {g * K} and {fitting}')
    if unit.stride < 1 or unit.dilation < 1:
        raise ValueError(f'{name}: stride is {unit.stride} and dilation {unit.dilation}; they must be positive')
    shape = x_shape[0], g * outputs, -(-x_shape[2] // unit.stride), -(-x_shape[3] // unit.stride)
    if unit.residual and shape != x_shape:
        raise ValueError(f"{name}: x is {x_shape} and the output {shape}; a residual unit's must be the same")
    return shape


@register_flop_formula(torch.ops.igczoo.sparse_units, get_raw=True)
def _flops(x, tensors, numbers, *args, out_val=None, **kwargs) -> int:
    units = _unpack(tensors, numbers)
    return sum(2 * shape[0] * shape[2] * shape[3] * sum(tensor.numel() for tensor in unit[:3])
               for unit, shape in zip(units, _shapes(x.shape, units), strict=True))


class _Unit(ctypes.Structure):
    """A unit as sparse.h has it."""
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ('depthwise', 'between', 'last', 'bias')),
        *((name, ctypes.c_int64) for name in (
            'out_channels', 'groups', 'channels', 'depth', 'residual', 'height', 'width', 'kernel', 'stride', 'dilation')),
    ]


def _run(out: Tensor, x: Tensor, units: Sequence[SparseUnit], shapes: Sequence[tuple[int, ...]]) -> None:
    """Write the last unit's output to ``out``; ``shapes`` are those of the units' inputs."""
    rows, tensors = [], []              # these live until the call is over
    for unit, (_, _, H, W) in zip(units, shapes, strict=True):
        parts = [tensor.contiguous() for tensor in unit[:4]]
        g, K, _ = unit.last.shape
        rows.append(_Unit(*(tensor.data_ptr() for tensor in parts), len(unit.bias), g, K, len(unit.between), unit.residual, H, W,
                          len(unit.depthwise), unit.stride, unit.dilation))
        tensors += parts
    run_chain('sparse', out, x, rows)
