"""Units one after another as an operator of torch: on a CPU in the kernel (chain.h), else as their reference computes them."""
from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import CHUNK_BYTES, _differentiate, _has_pixels, _is_transformed, _kernels, _nhwc, takes

__all__ = ['Unit', 'chain_operator', 'pack', 'unpack']

NUMBERS = 3     # those that a unit ends in


class Unit(Protocol):
    """What the kinds of units have in common, named tuples of tensors and of these three numbers at the end."""
    depthwise: Tensor       # the second size is its kernel's
    stride: int             # of depthwise, as the dilation
    dilation: int
    residual: bool          # whether x is added

    def out_channels(self, name: str, x_shape: tuple[int, ...]) -> int:
        """Of the output for an x of this shape; a ValueError that begins with ``name`` where the unit's tensors do not fit it."""

    def multiply_adds(self, before: int, after: int) -> int:
        """For so many pixels, of all images, before and after the depthwise convolution."""

    def sizes(self) -> tuple[int, ...]:
        """What the kernel's struct has between the tensors and ``residual``."""


def chain_operator(
        kind: str, unit_type: type[Unit], reference: Callable[[Tensor, Sequence[Unit]], Tensor],
) -> Callable[[Tensor, Sequence[Unit]], Tensor]:
    """Register `igczoo::<kind>_units` with torch; returns the function that calls it.

    The kernel takes what `takes` says; all else, and every gradient, is computed by the reference, which defines what the operator means.

    Args:
        kind: 'inverted' or 'sparse', as the kernel calls it.
        reference: by torch's own operators, differentiable.
    """
    name = f'{kind}_units'

    @torch.library.custom_op(f'igczoo::{name}', mutates_args=(), schema='(Tensor x, Tensor[] tensors, int[] numbers) -> Tensor')
    def operator(x: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
        units = unpack(unit_type, tensors, numbers)
        shapes = _shapes(name, x.shape, units)
        given, x = x, x.to(tensors[0].dtype)        # autocast may have made it of another type
        if not takes(x, *tensors) or not _has_pixels(x):
            return reference(given, units)
        out = torch.empty(shapes[-1], dtype=x.dtype, memory_format=torch.channels_last)
        _run(kind, out, _nhwc(x), units, [x.shape, *shapes[:-1]])
        return out.to(given.dtype)

    @operator.register_fake
    def _(x, tensors, numbers):
        shape = _shapes(name, x.shape, unpack(unit_type, tensors, numbers))[-1]
        return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)

    _differentiate(operator, lambda x, tensors, numbers: reference(x, unpack(unit_type, tensors, numbers)))

    @register_flop_formula(getattr(torch.ops.igczoo, name), get_raw=True)
    def _(x, tensors, numbers, *args, out_val=None, **kwargs) -> int:
        units, shape, flops = unpack(unit_type, tensors, numbers), x.shape, 0
        for unit, out_shape in zip(units, _shapes(name, x.shape, units), strict=True):
            before, after = (N * H * W for N, _, H, W in (shape, out_shape))
            flops, shape = flops + 2 * unit.multiply_adds(before, after), out_shape
        return flops

    def compute(x: Tensor, units: Sequence[Unit]) -> Tensor:
        """Units one after another, in one operator that takes a few images at a time through as many of them as the cache serves.

        Args:
            x: (N, C, H, W), of channels as the first unit takes them.
            units: at least one.

        Returns:
            (N, O, H', W') of the last unit, of the type of x, in channels_last memory.

        Raises:
            ValueError: shapes that do not fit together.
        """
        return reference(x, units) if _is_transformed() else operator(x, *pack(units))

    return compute


def pack(units: Sequence[Unit]) -> tuple[list[Tensor], list[int]]:
    """What of the units an operator can take."""
    fields = [tuple(unit) for unit in units]    # torch.compile of PyTorch 2.6 cannot cut a named tuple
    return [tensor for unit in fields for tensor in unit[:-NUMBERS]], [int(number) for unit in fields for number in unit[-NUMBERS:]]


def unpack(unit_type: type[Unit], tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Unit]:
    """The units of which `pack` made these."""
    rest = iter(tensors)
    return [unit_type(*islice(rest, len(unit_type._fields) - NUMBERS), stride, dilation, bool(residual))
            for stride, dilation, residual in zip(*[iter(numbers)] * NUMBERS, strict=True)]


def _run(kind: str, out: Tensor, x: Tensor, units: Sequence[Unit], shapes: Sequence[tuple[int, ...]]) -> None:
    """Write the last unit's output to ``out``; maps are in channels_last memory, and ``shapes`` are those of the units' inputs."""
    words, tensors = [], []             # these live until the call is over
    for unit, (_, _, H, W) in zip(units, shapes, strict=True):
        parts = [tensor.contiguous() for tensor in unit[:-NUMBERS]]
        pointers, kernel_size = (part.data_ptr() for part in parts), unit.depthwise.shape[1]
        words += [*pointers, *unit.sizes(), unit.residual, H, W, kernel_size, unit.stride, unit.dilation]
        tensors += parts
    if out.numel():
        kernel, work = _kernels[x.dtype], ((ctypes.c_int64 * len(words))(*words), len(units), len(x), CHUNK_BYTES)
        room = torch.empty(getattr(kernel, f'igc_{kind}_room')(*work), dtype=x.dtype)
        getattr(kernel, f'igc_{kind}_units')(out.data_ptr(), x.data_ptr(), room.data_ptr(), *work, torch.get_num_threads())


def _shapes(name: str, x_shape: Sequence[int], units: Sequence[Unit]) -> list[tuple[int, ...]]:
    """The shape of each unit's output, once its arguments are known to fit: the kernel reads what they say without looking back."""
    if not units:
        raise ValueError(f'{name}: there is no unit; give at least one')
    shapes, shape = [], tuple(x_shape)
    for number, unit in enumerate(units, 1):
        shapes.append(shape := _out_shape(f'{name}, unit {number}', shape, unit))
    return shapes


def _out_shape(name: str, x_shape: tuple[int, ...], unit: Unit) -> tuple[int, ...]:
    channels = unit.out_channels(name, x_shape)
    if unit.stride < 1 or unit.dilation < 1:
        raise ValueError(f'{name}: stride is {unit.stride} and dilation {unit.dilation}; they must be positive')
    shape = x_shape[0], channels, -(-x_shape[2] // unit.stride), -(-x_shape[3] // unit.stride)
    if unit.residual and shape != x_shape:
        raise ValueError(f"{name}: x is {x_shape} and the output {shape}; a residual unit's must be the same")
    return shape
