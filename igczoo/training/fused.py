"""Blocks of IGC units in training on a CPU: forward and backward in as few passes over memory as there can be, by compiled kernels.

A map of a large batch does not stay in the cache, and a step of training takes as long as it reads and writes maps. So a block goes through
some images at a time (CHUNK_BYTES of a map): what lies between a unit's convolutions stays in the cache, in both directions, and is
computed anew in the backward pass. Kept for that are the block's input and output, and of each unit its map before normalisation. The
products with wide matrices are torch's; all else are loops of `deployment/kernels/training.cpp`, compiled on first use, for float32,
bfloat16 and float64. Sums are float32, of many rows float64, and do not depend on the number of threads.

All is in planar order, `[m][l]` (see planar.py), maps (N, H, W, C) in memory.
"""
from __future__ import annotations

import ctypes
import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..deployment.kernels import build

__all__ = ['Unit', 'block', 'storage', 'why_not']

NUMBERS = {torch.float32: 'float', torch.bfloat16: 'bfloat16', torch.float64: 'double'}     # as the source calls them
SOURCE = build.SOURCE.with_name('training.cpp')
NARROW = 64     # channels of a plane, up to which a kernel here multiplies faster than torch's libraries
CHUNK_BYTES = 2 * 1024 ** 2
BOUNDS = {nn.ReLU: (0., math.inf), nn.ReLU6: (0., 6.)}      # the activations there are kernels for


class Unit(NamedTuple):
    """Convolution and normalisation, by modules' parameters in planar order."""
    primary: Tensor | None      # (M, m, k, k, L): output plane, input plane, kernel row and column, channel; None: a regular convolution
    secondary: Tensor | None    # (M, L, L): plane, output channel, input channel; None where there is none, as in a projection. Of a
                                # regular convolution (1, C, k * k * c): output channel; kernel row and column, input channel
    weight: Tensor              # (M * L,), of the normalisation
    bias: Tensor                # likewise
    bn: nn.BatchNorm2d          # its statistics, in primary order
    stride: int                 # of the primary convolution, pixels
    dilation: int               # likewise; 1 where there is a stride


def storage(x: Tensor) -> torch.dtype | None:
    """The type in which maps are kept where a net is given x, or None where there is no kernel for that."""
    if not x.is_cpu or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return None
    dtype = torch.get_autocast_dtype('cpu') if torch.is_autocast_enabled('cpu') else x.dtype
    return dtype if dtype in NUMBERS and _library(dtype)[0] else None


def why_not(dtype: torch.dtype = torch.float32) -> str:
    """Why there is no kernel for this type, in one line; '' where there is one."""
    library, reason = _library(dtype)
    return '' if library else reason


def block(x: Tensor, units: Sequence[Unit], shortcut: Unit | bool, act: type[nn.Module], dtype: torch.dtype) -> Tensor:
    """The units with an activation after each; before the last activation the shortcut is added.

    Args:
        x: (N, m * L, H, W).
        units: at least one.
        shortcut: a projection of x, or whether x itself is added.
        act: of BOUNDS.
        dtype: what `storage` says.

    Returns:
        (N, M * L, H', W') of this dtype, in channels_last memory.
    """
    projection = [shortcut] if isinstance(shortcut, Unit) else []
    parameters = [tensor for unit in (*units, *projection) for tensor in unit[:4]]
    plan = _Plan([unit[4:] for unit in (*units, *projection)], bool(projection), bool(shortcut), BOUNDS[act])
    with torch.autocast('cpu', enabled=False):
        return _Block.apply(x.to(dtype), plan, *parameters)


# A block, forward and backward --------------------------------------------------------------------------------------------------------

class _Plan(NamedTuple):
    """What is not a tensor of a block; its units, the projection the last of them."""
    units: list[tuple[nn.BatchNorm2d, int, int]]
    projected: bool
    shortcut: bool
    bounds: tuple[float, float]

    def of(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Unit], Unit | None]:
        """The units and the projection, by their parameters; weights of convolutions of this type."""
        units = []
        for number, unit in enumerate(self.units):
            primary, secondary, weight, bias = parameters[4 * number:4 * number + 4]
            secondary = secondary if secondary is None else secondary.to(dtype)
            primary = primary if primary is None else primary.to(dtype).contiguous()
            units.append(Unit(primary, secondary, weight, bias, *unit))
        return (units[:-1], units[-1]) if self.projected else (units, None)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, plan: _Plan, *parameters: Tensor | None) -> Tensor:
        x = _rows(x)
        units, projection = plan.of(parameters, x.dtype)
        source, norm, maps, norms = x, None, [], []
        for unit in units:
            source, norm = _convolve(source, norm, plan.bounds, unit)
            maps.append(source)
            norms.append(norm)
        affine, residual, scale = norm.affine, x if plan.shortcut else None, None
        if projection:
            residual, norm = _convolve(x, None, plan.bounds, projection)
            norms.append(norm)
            scale = norm.affine[0]
            affine = torch.stack([affine[0], affine[1] + norm.affine[1]])
        out = _normalise(maps[-1], affine, plan.bounds, residual, scale)
        ctx.plan, ctx.norms = plan, norms
        ctx.save_for_backward(x, out, residual if projection else None, *maps, *parameters)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError('a block by kernels has no second derivatives (create_graph=True); use PlanarIGCNet(net, kernels=False)')
        (x, out, projected, *maps), norms, bounds = ctx.saved_tensors, ctx.norms, ctx.plan.bounds
        grad_out = _rows(grad_out.to(x.dtype))
        depth = len(ctx.plan.units) - ctx.plan.projected
        units, projection = ctx.plan.of(maps[depth:], x.dtype)
        sums = _sum(norms[depth - 1], grad_out, out, maps[depth - 1], bounds, projected, norms[-1].mean)
        of_projection = _Gradients(projection, norms[-1], sums[::2], projected) if projection else None
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad, activated, grads = grad_out, out, []
        for u in reversed(range(depth)):
            y, source = maps[u], maps[u - 1] if u else x
            found, grad_source = _Gradients(units[u], norms[u], sums, y), torch.empty_like(source) if u else grad_x
            sums = torch.zeros(2, source.shape[3], dtype=torch.float64)
            for part in _chunks(source, y):
                z = _normalise(source[part], norms[u - 1].affine, bounds) if u else x[part]
                grad_z = None if grad_source is None else grad_source[part]
                found.add(z, found.before(grad[part], activated if activated is None else activated[part], y[part], bounds), grad_z)
                if u:
                    _sum(norms[u - 1], grad_z, None, source[part], bounds, sums=sums)
                elif projection:
                    grad_of_x = grad_z if grad_z is None else torch.empty_like(grad_z)
                    of_projection.add(z, of_projection.before(grad_out[part], out[part], projected[part], bounds), grad_of_x)
                    grad_z if grad_z is None else grad_z.add_(grad_of_x)
                elif ctx.plan.shortcut and grad_z is not None:
                    _run(x.dtype, 'igc_add_gradient', grad_z, grad_out[part], out[part], *bounds, *_size(grad_z))
            grads = [*found.all(), *grads]
            grad, activated = grad_source, None
        if projection:
            grads += of_projection.all()
        grads = [grad if grad is None else grad.to(parameter.dtype) for grad, parameter in zip(grads, maps[depth:], strict=True)]
        return grad_x if grad_x is None else grad_x.permute(0, 3, 1, 2), None, *grads


class _Norm(NamedTuple):
    """The normalisation of C channels that the forward pass has found."""
    affine: Tensor      # (2, C): scale and shift
    mean: Tensor        # (C,)
    inverse: Tensor     # (C,): of the standard deviation, float64
    of_batch: bool      # whether mean and deviation are of the batch itself, and have a gradient


def _convolve(source: Tensor, norm: _Norm | None, bounds: tuple[float, float], unit: Unit) -> tuple[Tensor, _Norm]:
    """A unit's convolutions of a map, normalised and activated where there is a norm, and how the result is to be normalised."""
    M, channels = len(unit.secondary if unit.primary is None else unit.primary), len(unit.weight)
    N, H, W, _ = source.shape
    y = source.new_empty(N, -(-H // unit.stride), -(-W // unit.stride), channels)
    rows, moments = y.numel() // channels, torch.zeros(2, channels, dtype=torch.float64)
    for part in _chunks(source, y):
        z = source[part] if norm is None else _normalise(source[part], norm.affine, bounds)
        p = _inputs(unit, z, y[part])
        if unit.secondary is None:
            y[part] = p
        else:
            _multiply(p, unit.secondary.transpose(1, 2), y[part])
        if unit.bn.training:
            _run(y.dtype, 'igc_moments', moments, part.start * rows // N, y[part], *_size(y[part]))
    mean, variance = _statistics(unit.bn, M, moments, rows)
    inverse = (variance + unit.bn.eps).rsqrt()
    scale = unit.weight.double() * inverse
    affine = torch.stack([scale, unit.bias.double() - mean * scale])
    return y, _Norm(affine.to(_real(y)), mean.to(_real(y)), inverse, unit.bn.training)


def _inputs(unit: Unit, z: Tensor, y: Tensor) -> Tensor:
    """What the matrices multiply, (..., M * L): the primary convolution of z, or the windows that a regular one sees; y is the output."""
    if unit.primary is not None:
        p = torch.empty_like(y)
        _primary('igc_primary', unit, z, p, z, unit.primary)
        return p
    n, H, W, _ = y.shape
    k = math.isqrt(unit.secondary.shape[2] // z.shape[3])
    z = F.pad(z, (0, 0, *[k // 2] * 4))
    (image, row, pixel, _), s, width = z.stride(), unit.stride, k * z.shape[3]
    return z.as_strided((n, H, W, k, width), (image, s * row, s * pixel, row, 1)).reshape(n, H, W, k * width)


def _statistics(bn: nn.BatchNorm2d, M: int, moments: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance to normalise by, in planar order, float64; in training the running ones are kept up."""
    running = [buffer.view(-1, M).t() for buffer in (bn.running_mean, bn.running_var)]      # [l][m] -> [m][l]
    if not bn.training:
        return tuple(buffer.double().flatten() for buffer in running)
    mean, squares = moments
    bn.num_batches_tracked += 1
    momentum = 1 / int(bn.num_batches_tracked) if bn.momentum is None else bn.momentum      # None: the mean over all batches
    for buffer, value in zip(running, (mean, squares / (rows - 1)), strict=True):
        buffer.lerp_(value.view(M, -1).to(buffer.dtype), momentum)
    return mean, squares / rows


class _Gradients:
    """The gradients of a unit's parameters, gathered in chunks.

    Args:
        unit: the unit.
        norm: its normalisation.
        sums: (2, C) over all pixels, of the gradient before the activation, and of that times the deviation from the mean.
        y: the map before normalisation.
    """

    def __init__(self, unit: Unit, norm: _Norm, sums: Tensor, y: Tensor):
        self.unit, self.norm = unit, norm
        self.bias, self.weight = sums[0], sums[1] * norm.inverse
        scale = unit.weight.double() * norm.inverse
        share = scale * norm.of_batch * y.shape[3] / y.numel()
        self.factors = torch.stack([scale, -share * norm.inverse * self.weight, -share * self.bias]).to(_real(y))
        self.primary, self.secondary = (weight if weight is None else torch.zeros_like(weight, dtype=_real(y)) for weight in unit[:2])

    def before(self, grad: Tensor, out: Tensor | None, y: Tensor, bounds: tuple[float, float]) -> Tensor:
        """The gradient before normalisation, of that after the activation, whose value is ``out``, or None for that of y itself."""
        grad_y = torch.empty_like(y)
        _run(y.dtype, 'igc_norm_backward', grad_y, grad, out, y, self.norm.affine, self.norm.mean, self.factors, *bounds, *_size(y))
        return grad_y

    def add(self, z: Tensor, grad_y: Tensor, grad_z: Tensor | None) -> None:
        """Add those of some images, of the unit's input z; write the input's own to ``grad_z``."""
        unit, grad_p = self.unit, grad_y
        if unit.secondary is not None:
            _add_products(grad_y, _inputs(unit, z, grad_y), self.secondary)
        if unit.primary is None:    # of images, whose own gradient nobody wants
            return
        if unit.secondary is not None:
            grad_p = torch.empty_like(grad_y)
            _multiply(grad_y, unit.secondary, grad_p)
        _primary('igc_primary_weight', unit, z, self.primary, grad_p, z)
        if grad_z is not None:
            _primary('igc_primary_input', unit, z, grad_z, grad_p, unit.primary)

    def all(self) -> list[Tensor | None]:
        return [self.primary, self.secondary, self.weight, self.bias]


# Passes over maps ---------------------------------------------------------------------------------------------------------------------

def _normalise(
        y: Tensor, affine: Tensor, bounds: tuple[float, float], residual: Tensor | None = None, residual_scale: Tensor | None = None,
) -> Tensor:
    """Normalised, the residual added, and activated."""
    out = torch.empty_like(y)
    _run(y.dtype, 'igc_normalise', out, y, affine, residual, residual_scale, *bounds, *_size(y))
    return out


def _sum(
        norm: _Norm, grad: Tensor, out: Tensor | None, y: Tensor, bounds: tuple[float, float], other: Tensor | None = None,
        other_mean: Tensor | None = None, sums: Tensor | None = None,
) -> Tensor:
    """Add to sums what `_Gradients` takes, and a third row of the same with the deviations of another map, where there is one."""
    sums = torch.zeros(2 if other is None else 3, y.shape[3], dtype=torch.float64) if sums is None else sums
    _run(y.dtype, 'igc_norm_sums', sums, grad, out, y, norm.affine, norm.mean, other, other_mean, *bounds, *_size(y))
    return sums


def _primary(name: str, unit: Unit, z: Tensor, *tensors: Tensor) -> None:
    """Run a function of the primary convolution of z."""
    M, m, k, _, L = unit.primary.shape
    _run(z.dtype, name, *tensors, (ctypes.c_int64 * 9)(*z.shape[:3], m, M, L, k, unit.stride, unit.dilation))


def _multiply(rows: Tensor, matrices: Tensor, out: Tensor) -> None:
    """Write to ``out`` the rows of each plane times its matrix, of (M, input, output)."""
    M, L, outputs = matrices.shape
    if L == outputs <= NARROW:
        return _run(rows.dtype, 'igc_multiply', out, rows, matrices.to(_real(rows)).contiguous(), rows.numel() // (M * L), M, L)
    for inputs, matrix, results in zip(rows.view(-1, M, L).unbind(1), matrices, out.view(-1, M, outputs).unbind(1), strict=True):
        torch.mm(inputs, matrix, out=results)


def _add_products(grad: Tensor, rows: Tensor, grad_matrices: Tensor) -> None:
    """Add the gradients of the matrices, of (M, output, input)."""
    M, outputs, L = grad_matrices.shape
    if L == outputs <= NARROW:
        return _run(rows.dtype, 'igc_multiply_weight', grad_matrices, grad, rows, rows.numel() // (M * L), M, L)
    for matrix, results, inputs in zip(grad_matrices, grad.view(-1, M, outputs).unbind(1), rows.view(-1, M, L).unbind(1), strict=True):
        matrix.addmm_(results.t(), inputs) if matrix.dtype == rows.dtype else matrix.add_(results.t() @ inputs)


def _chunks(*maps: Tensor) -> Iterator[slice]:
    """Some images at a time."""
    images = len(maps[0])
    step = max(1, CHUNK_BYTES * images // max(y.nbytes for y in maps))
    for start in range(0, images, step):
        yield slice(start, min(images, start + step))


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous()


def _size(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[-1], y.shape[-1]


def _real(y: Tensor) -> torch.dtype:
    """The type of sums."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


@functools.cache
def _library(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    return build.compiled(NUMBERS[dtype], True, SOURCE)


def _run(dtype: torch.dtype, name: str, *arguments) -> None:
    """Call a function of the kernel for maps of this type, on as many threads as torch has."""
    library, _ = _library(dtype)
    getattr(library, name)(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Tensor | float | int | None):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value) if isinstance(value, float) else value
