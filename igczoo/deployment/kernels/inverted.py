"""IGCV3's inverted units as an operator of torch: on a CPU fused in the kernel (inverted.h), else in torch's own operations.

The expansion has g groups and the projection p. Each of the projection's groups takes an equal part, c channels, of each of the
expansion's, and what lies between is ordered by them, `[p][g][c]`. BatchNorm and the interleave are folded into the weights:

    expand      (p, g, C / g, c)    a group's input channel, output channel; biases (p, g, c)
    depthwise   (p, k, k, g, c)     kernel row and column; biases (p, g, c)
    project     (p, g, c, O / p)    input channel, a group's output channel; biases (p, O / p)

The kernel takes what `takes` says; all else, and every gradient, is computed by `torch_inverted_units`, which defines what the operator
means.
"""
import ctypes
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import _differentiate, _has_pixels, _is_transformed, _nhwc, takes
from .chain import run_chain

__all__ = ['InvertedUnit', 'inverted_units', 'torch_inverted_units']


class InvertedUnit(NamedTuple):
    """project(relu6(depthwise(expand(x)))), and x added to it where it is residual."""
    expand: tuple[Tensor, Tensor]       # weight and bias
    depthwise: tuple[Tensor, Tensor]
    project: tuple[Tensor, Tensor]
    stride: int                         # of depthwise, as the dilation
    dilation: int
    residual: bool


def torch_inverted_units(x: Tensor, units: Sequence[InvertedUnit]) -> Tensor:
    """What `inverted_units` computes, by torch's own operators, differentiable, for every device and floating dtype."""
    for unit in units:
        (expand, expand_bias), (depthwise, depthwise_bias), (project, project_bias) = unit.expand, unit.depthwise, unit.project
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


def inverted_units(x: Tensor, units: Sequence[InvertedUnit]) -> Tensor:
    """Inverted units one after another, in one operator that takes a few images at a time through as many of them as the cache serves.

    Args:
        x: (N, C, H, W), of channels as the first unit's expansion takes them.
        units: at least one.

    Returns:
        (N, O, H', W') of the last unit, of the type of x, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    return torch_inverted_units(x, units) if _is_transformed() else _inverted_units(x, *_pack(units))


@torch.library.custom_op('igczoo::inverted_units', mutates_args=(), schema='(Tensor x, Tensor[] tensors, int[] numbers) -> Tensor')
def _inverted_units(x: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    units = _unpack(tensors, numbers)
    shapes = _shapes(x.shape, units)
    given, x = x, x.to(tensors[0].dtype)        # autocast may have made it of another type
    if not takes(x, *tensors) or not _has_pixels(x):
        return torch_inverted_units(given, units)
    out = torch.empty(shapes[-1], dtype=x.dtype, memory_format=torch.channels_last)
    _run(out, _nhwc(x), units, [x.shape, *shapes[:-1]])
    return out.to(given.dtype)


@_inverted_units.register_fake
def _(x, tensors, numbers):
    shape = _shapes(x.shape, _unpack(tensors, numbers))[-1]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


_differentiate(_inverted_units, lambda x, tensors, numbers: torch_inverted_units(x, _unpack(tensors, numbers)))


def _pack(units: Sequence[InvertedUnit]) -> tuple[list[Tensor], list[int]]:
    """What of the units an operator can take."""
    tensors = [tensor for unit in units for tensor in (*unit.expand, *unit.depthwise, *unit.project)]
    return tensors, [number for unit in units for number in (unit.stride, unit.dilation, int(unit.residual))]


def _unpack(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[InvertedUnit]:
    """The units of which `_pack` made these."""
    return [InvertedUnit(tuple(tensors[6 * i:6 * i + 2]), tuple(tensors[6 * i + 2:6 * i + 4]), tuple(tensors[6 * i + 4:6 * i + 6]),
                         numbers[3 * i], numbers[3 * i + 1], bool(numbers[3 * i + 2])) for i in range(len(numbers) // 3)]


def _shapes(x_shape, units: Sequence[InvertedUnit]) -> list[tuple[int, ...]]:
    """The shape of each unit's output, once its arguments are known to fit: the kernel reads what they say without looking back."""
    if not units:
        raise ValueError('inverted_units: there is no unit; give at least one')
    shapes, shape = [], tuple(x_shape)
    for number, unit in enumerate(units, 1):
        shapes.append(shape := _shape(f'inverted_units, unit {number}', shape, unit))
    return shapes


def _shape(name: str, x_shape: tuple[int, ...], unit: InvertedUnit) -> tuple[int, ...]:
    found = [tuple(tensor.shape) for tensor in (*unit.expand, *unit.depthwise, *unit.project)]
    if len(x_shape) != 4 or list(map(len, found)) != [4, 3, 5, 3, 4, 2] or found[2][1] != found[2][2] or found[2][1] % 2 == 0:
        raise ValueError(f'{name}: x is {tuple(x_shape)}, expand {found[0]}, depthwise {found[2]} and project {found[4]}; they must be '
                         f'(N, C, H, W), (p, g, C / g, c), (p, k, k, g, c), k odd, and (p, g, c, O / p)')
    (p, g, inputs, c), k, outputs = found[0], found[2][1], found[4][3]
    fitting = [(p, g, inputs, c), (p, g, c), (p, k, k, g, c), (p, g, c), (p, g, c, outputs), (p, outputs)]
    if x_shape[1] != g * inputs or found != fitting:
        raise ValueError(f'{name}: x has {x_shape[1]} channels, and the weights and biases are {found}; they must be {g * inputs} and '
                         f'{fitting}')
    if unit.stride < 1 or unit.dilation < 1:
        raise ValueError(f'{name}: stride is {unit.stride} and dilation {unit.dilation}; they must be positive')
    shape = x_shape[0], p * outputs, -(-x_shape[2] // unit.stride), -(-x_shape[3] // unit.stride)
    if unit.residual and shape != x_shape:
        raise ValueError(f"{name}: x is {x_shape} and the output {shape}; a residual unit's must be the same")
    return shape


@register_flop_formula(torch.ops.igczoo.inverted_units, get_raw=True)
def _flops(x, tensors, numbers, *args, out_val=None, **kwargs) -> int:
    units, flops, inputs = _unpack(tensors, numbers), 0, tuple(x.shape)
    for unit, shape in zip(units, _shapes(x.shape, units), strict=True):
        before, after = inputs[0] * inputs[2] * inputs[3], shape[0] * shape[2] * shape[3]
        flops += 2 * (before * unit.expand[0].numel() + after * (unit.depthwise[0].numel() + unit.project[0].numel()))
        inputs = shape
    return flops


class _Unit(ctypes.Structure):
    """A unit as inverted.h has it."""
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            'expand', 'expand_bias', 'depthwise', 'depthwise_bias', 'project', 'project_bias')),
        *((name, ctypes.c_int64) for name in (
            'in_channels', 'out_channels', 'groups', 'parts', 'channels', 'residual', 'height', 'width', 'kernel', 'stride', 'dilation')),
    ]


def _run(out: Tensor, x: Tensor, units: Sequence[InvertedUnit], shapes: Sequence[tuple[int, ...]]) -> None:
    """Write the last unit's output to ``out``; ``shapes`` are those of the units' inputs."""
    rows, tensors = [], []              # these live until the call is over
    for unit, (_, channels, H, W) in zip(units, shapes, strict=True):
        parts = [tensor.contiguous() for tensor in (*unit.expand, *unit.depthwise, *unit.project)]
        p, k, _, g, c = unit.depthwise[0].shape
        rows.append(_Unit(*(tensor.data_ptr() for tensor in parts), channels, unit.project[1].numel(), g, p, c, unit.residual, H, W, k,
                          unit.stride, unit.dilation))
        tensors += parts
    run_chain('inverted', out, x, rows)
