"""Blocks of IGC units in training on a CPU: forward and backward in as few passes over memory as there can be, by compiled kernels.

A map of a large batch does not stay in the cache, and a step of training takes as long as it reads and writes maps. So a block goes through
some images at a time (CHUNK_BYTES of a map): what lies between units takes little memory, in both directions, and is computed anew in the
backward pass. Smaller chunks would stay in a nearer cache, but each loop over one ends with threads that wait for one another, which on
cores that other work shares took most of the time. Kept for the backward pass are the block's input and output, and of each unit its map
before normalisation and what its primary convolution gives to the secondary one. The products with wide matrices are torch's; all else are
loops of `deployment/kernels/training.cpp`, compiled on first use, for float32, bfloat16 and float64. Sums are float32, of many rows
float64, and do not depend on the number of threads.

Channels are planes, `[m][l]` (see planar.py), and maps (N, H, W, C) in memory.
"""
from __future__ import annotations

import ctypes
import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from torch import Tensor, nn
from torch.autograd import forward_ad

from ..deployment.kernels import build
from ..nets.net import Net
from ..nets.structure import altered_part, has_hooks, has_own_hooks, is_centred

__all__ = ['BOUNDS', 'FusedNet', 'TrainingForm', 'Unit', 'block', 'conv_norm_act', 'kernel_dtype', 'pixels', 'takes_channelwise', 'why_not']

C_TYPES = {torch.float32: 'float', torch.bfloat16: 'bfloat16', torch.float64: 'double'}     # as the source calls them
SOURCE = build.SOURCE.with_name('training.cpp')
NARROW = 128    # channels of a plane; see `_is_narrow`
CHUNK_BYTES = 32 * 1024 ** 2
BOUNDS = {nn.ReLU: (0., math.inf), nn.ReLU6: (0., 6.), None: (-math.inf, math.inf)}     # of activations, and where there is none


class Unit(NamedTuple):
    """Convolution, normalisation and activation. Its parameters come in the order that its map has its channels in."""
    primary: Tensor | None      # (M, m, k, k, L): output plane, input plane, kernel row and column, channel; None where there is none
    secondary: Tensor | None    # (P, outputs, inputs): matrices, from planes to planes; None where there is none. Of a regular
                                # convolution (1, outputs, k * k * c): kernel row and column, input channel
    weight: Tensor              # (C,), of the normalisation
    bias: Tensor                # likewise
    bn: nn.BatchNorm2d          # its statistics,
    split: tuple[int, ...]      # whose channels, viewed in this shape,
    swap: tuple[int, int]       # these two axes change places to be in the map's order
    bounds: tuple[float, float]                     # of the activation
    places: tuple[tuple[int, int], ...] = ()        # of each matrix, the plane it takes and the plane it gives to; (): the plane of its own
    kernel: int = 1             # of a regular convolution, pixels
    stride: int = 1             # likewise, or of the primary convolution
    dilation: int = 1           # of the primary convolution, pixels; 1 where there is a stride


def kernel_dtype(x: Tensor) -> torch.dtype | None:
    """The type in which maps are kept where a net is given x, or None where there is no kernel for that."""
    if (not x.is_cpu or torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
            or forward_ad._current_level >= 0):
        return None
    casts = torch.is_autocast_enabled('cpu') and x.dtype != torch.float64      # which autocast leaves alone
    dtype = torch.get_autocast_dtype('cpu') if casts else x.dtype
    return dtype if dtype in C_TYPES and _library(dtype)[0] else None


def why_not(dtype: torch.dtype = torch.float32) -> str:
    """Why there is no kernel for this type, in one line; '' where there is one."""
    library, reason = _library(dtype)
    return '' if library else reason


def block(x: Tensor, units: Sequence[Unit], shortcut: Unit | bool, dtype: torch.dtype) -> Tensor:
    """The units one after another; before the last one's activation the shortcut is added.

    Args:
        x: (N, m * L, H, W).
        units: at least one.
        shortcut: a projection of x, or whether x itself is added.
        dtype: what `kernel_dtype` says.

    Returns:
        (N, C, H', W') of this dtype, in channels_last memory.
    """
    projection = [shortcut] if isinstance(shortcut, Unit) else []
    parameters = [tensor for unit in (*units, *projection) for tensor in unit[:4]]
    plan = _Plan([unit[4:] for unit in (*units, *projection)], bool(projection), bool(shortcut))
    with torch.autocast('cpu', enabled=False):
        return _Block.apply(x.to(dtype), plan, *parameters)


def conv_norm_act(x: Tensor, module: nn.Module) -> Tensor:
    """A regular convolution ``conv``, normalisation ``bn`` and activation ``act``, by kernels where there are some, else as they are."""
    conv, bn, act, dtype = module.conv, module.bn, type(module.act), kernel_dtype(x)
    k, stride = conv.kernel_size[0], conv.stride[0]
    with_kernels = (act in BOUNDS and type(bn) is nn.BatchNorm2d and _is_complete(bn) and not (k > 1 and x.requires_grad)
                    and is_centred(conv) and conv.bias is None and conv.groups == conv.dilation[0] == 1)
    if dtype is None or has_hooks(module) or not with_kernels or pixels(x, stride) <= 1:
        return module(x)
    matrix = conv.weight.permute(0, 2, 3, 1).reshape(1, conv.out_channels, -1)
    return block(x, [Unit(None, matrix, bn.weight, bn.bias, bn, (1, -1), (0, 1), BOUNDS[act], kernel=k, stride=stride)], False, dtype)


def _is_complete(bn: nn.BatchNorm2d) -> bool:
    """Whether it has parameters and running statistics."""
    return bn.weight is not None and bn.running_mean is not None


def check_net(form: str, net: Net) -> None:
    """Raise ValueError where a form of training cannot compute what the net computes.

    Args:
        form: what it is called.
        net: as a user has made it and may have changed it.
    """
    if net.grad_checkpointing:
        raise ValueError(f'{form}: the net has gradient checkpointing on; turn it off by set_grad_checkpointing(False)')
    for name, module in net.named_modules():
        if name.rpartition('.')[2].rstrip('123') == 'bn' and not (type(module) is nn.BatchNorm2d and _is_complete(module)):
            raise ValueError(f'{form}: {name} is {module}; it must be BatchNorm2d with parameters and running statistics')
    if altered := altered_part(net):
        raise ValueError(f'{form}: {altered}; train the net as it is written')


def pixels(x: Tensor, stride: int) -> int:
    """Of all images after a convolution of this stride; of a single one there are no statistics."""
    return len(x) * math.prod(-(-side // stride) for side in x.shape[2:])


class TrainingForm(nn.Module):
    """Computes a net with the parameters and buffers of the net it is given.

    The wrapped net stays as it is and may be used, saved or averaged at any time; its running statistics are kept up.

    Args:
        net: with BatchNorm2d for its norm layers, no gradient checkpointing, and its parts as they were made. That is looked at now and by
            each ``train()``.

    Raises:
        ValueError: the net is otherwise.
    """

    def __init__(self, net: Net):
        super().__init__()
        check_net(type(self).__name__, net)
        self.net = net

    def train(self, mode: bool = True) -> TrainingForm:
        check_net(type(self).__name__, self.net)
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.net.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction), in the net's own order of channels."""
        raise NotImplementedError


class FusedNet(TrainingForm):
    """Computes a net of a stem, stages of units and a final convolution by kernels; what there are none for by the net's own modules."""

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction)."""
        x = self.net.pool(conv_norm_act(x.contiguous(memory_format=torch.channels_last), self.net.stem))
        for stage in self.net.stages:
            if has_own_hooks(stage):
                x = stage(x)
                continue
            for unit in stage:
                dtype = None if has_hooks(unit) else kernel_dtype(x)
                drops = unit.training and isinstance(unit.drop_path, DropPath)
                x = unit(x) if dtype is None or drops or not self.takes(unit, x) else self.compute(unit, x, dtype)
        return self.net.final(x) if isinstance(self.net.final, nn.Identity) else conv_norm_act(x, self.net.final)

    def takes(self, unit: nn.Module, x: Tensor) -> bool:
        """Whether there are kernels for a unit of a net of this family."""
        raise NotImplementedError

    def compute(self, unit: nn.Module, x: Tensor, dtype: torch.dtype) -> Tensor:
        """The unit by kernels, maps in this type."""
        raise NotImplementedError


def takes_channelwise(conv: nn.Conv2d, act: nn.Module, x: Tensor) -> bool:
    """Whether there are kernels for a channel-wise convolution of x and the activation of its unit."""
    stride = conv.stride[0]
    return type(act) in BOUNDS and (stride == 1 or conv.dilation[0] == 1) and pixels(x, stride) > 1


# A block, forward and backward --------------------------------------------------------------------------------------------------------

class _Plan(NamedTuple):
    """What is not a tensor of a block; its units, the projection the last of them."""
    units: list[tuple]
    projected: bool
    shortcut: bool

    def of(self, parameters: Sequence[Tensor], dtype: torch.dtype) -> tuple[list[Unit], Unit | None]:
        """The units and the projection, by their parameters; weights of convolutions of this type."""
        units = []
        for number, unit in enumerate(self.units):
            primary, secondary, weight, bias = parameters[4 * number:4 * number + 4]
            primary, secondary = (tensor if tensor is None else tensor.to(dtype).contiguous() for tensor in (primary, secondary))
            units.append(Unit(primary, secondary, weight, bias, *unit))
        return (units[:-1], units[-1]) if self.projected else (units, None)


class _Block(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor, plan: _Plan, *parameters: Tensor | None) -> Tensor:
        x = _rows(x)
        units, projection = plan.of(parameters, x.dtype)
        source, norm, maps, norms, filtered = x, None, [], [], []
        for unit in units:
            source, norm, between = _convolve(source, norm, unit)
            maps.append(source)
            norms.append(norm)
            filtered.append(between)
        affine, residual, scale = norm.affine, x if plan.shortcut else None, None
        if projection:
            residual, norm, between = _convolve(x, None, projection)
            norms.append(norm)
            filtered.append(between)
            scale = norm.affine[0]
            affine = torch.stack([affine[0], affine[1] + norm.affine[1]])
        out = _normalise(maps[-1], affine, units[-1].bounds, residual, scale)
        ctx.plan, ctx.norms = plan, norms
        ctx.save_for_backward(x, out, residual if projection else None, *maps, *filtered, *parameters)
        return out.permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx, grad_out: Tensor):
        if torch.is_grad_enabled():
            raise RuntimeError('a block by kernels has no second derivatives (create_graph=True); compute it by the net as written')
        (x, out, projected, *saved), norms = ctx.saved_tensors, ctx.norms
        grad_out = _rows(grad_out.to(x.dtype))
        depth = len(ctx.plan.units) - ctx.plan.projected
        maps, filtered, parameters = saved[:depth], saved[depth:depth + len(norms)], saved[depth + len(norms):]
        units, projection = ctx.plan.of(parameters, x.dtype)
        bounds = units[-1].bounds
        sums = _sum(norms[depth - 1], grad_out, out, maps[depth - 1], bounds, projected, norms[-1].mean)
        of_projection = _Gradients(projection, norms[-1], sums[::2], projected) if projection else None
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad, activated, grads = grad_out, out, []
        for u in reversed(range(depth)):
            y, source = maps[u], maps[u - 1] if u else x
            found, grad_source = _Gradients(units[u], norms[u], sums, y), torch.empty_like(source) if u else grad_x
            sums = torch.zeros(2, source.shape[3], dtype=torch.float64, device='cpu')     # also where another is the default
            for part in _chunks(source, y):
                z = _normalise(source[part], norms[u - 1].affine, norms[u - 1].bounds) if u else x[part]
                grad_z = None if grad_source is None else grad_source[part]
                grad_y = found.before(grad[part], activated if activated is None else activated[part], y[part])
                found.add(z, filtered[u], part, grad_y, grad_z)
                if u:
                    _sum(norms[u - 1], grad_z, None, source[part], norms[u - 1].bounds, sums=sums)
                elif projection:
                    grad_of_x = grad_z if grad_z is None else torch.empty_like(grad_z)
                    grad_y = of_projection.before(grad_out[part], out[part], projected[part])
                    of_projection.add(z, filtered[-1], part, grad_y, grad_of_x)
                    if grad_z is not None:
                        grad_z.add_(grad_of_x)
                elif ctx.plan.shortcut and grad_z is not None:
                    _run(x.dtype, 'igc_add_gradient', grad_z, grad_out[part], out[part], *bounds, *_size(grad_z))
            grads = [*found.all(), *grads]
            grad, activated = grad_source, None
        if projection:
            grads += of_projection.all()
        grads = [grad if grad is None else grad.to(parameter.dtype) for grad, parameter in zip(grads, parameters, strict=True)]
        return grad_x if grad_x is None else grad_x.permute(0, 3, 1, 2), None, *grads


class _Norm(NamedTuple):
    """The normalisation of C channels that the forward pass has found."""
    affine: Tensor      # (2, C): scale and shift
    mean: Tensor        # (C,)
    inverse: Tensor     # (C,): of the standard deviation, float64
    of_batch: bool      # whether mean and deviation are of the batch itself, and have a gradient
    bounds: tuple[float, float]     # of the activation after it


def _convolve(source: Tensor, norm: _Norm | None, unit: Unit) -> tuple[Tensor, _Norm, Tensor | None]:
    """A unit's convolutions of a map, normalised and activated where there is a norm, and how the result is to be normalised.

    The third is what the primary convolution gives to the secondary one, (N, H', W', M * L); None where there are not both.
    """
    N, H, W, _ = source.shape
    y = source.new_empty(N, -(-H // unit.stride), -(-W // unit.stride), len(unit.weight))
    filtered = None
    if unit.primary is not None and unit.secondary is not None:
        filtered = y.new_empty(*y.shape[:3], unit.primary.shape[0] * unit.primary.shape[4])
    (rows, _), moments = _size(y), torch.zeros(2, len(unit.weight), dtype=torch.float64, device='cpu')
    for part in _chunks(source, y):
        z = source[part] if norm is None else _normalise(source[part], norm.affine, norm.bounds)
        if unit.secondary is None:
            _primary('igc_primary', unit, z, y[part], z, unit.primary)
        elif filtered is None:
            _multiply(_windows(unit, z, y[part]), unit, y[part])
        else:
            _primary('igc_primary', unit, z, filtered[part], z, unit.primary)
            _multiply(filtered[part], unit, y[part])
        if unit.bn.training:
            _run(y.dtype, 'igc_moments', moments, part.start * rows // N, y[part], *_size(y[part]))
    mean, variance = _statistics(unit, moments, rows)
    inverse = (variance + unit.bn.eps).rsqrt()
    scale = unit.weight.double() * inverse
    affine = torch.stack([scale, unit.bias.double() - mean * scale])
    return y, _Norm(affine.to(_real(y)), mean.to(_real(y)), inverse, unit.bn.training, unit.bounds), filtered


def _windows(unit: Unit, z: Tensor, y: Tensor) -> Tensor:
    """The windows of z that a regular convolution sees; y is the output."""
    if unit.kernel == unit.stride == 1:
        return z
    n, H, W, _ = y.shape
    z = F.pad(z, (0, 0, *[unit.kernel // 2] * 4))
    (image, row, pixel, _), s, k, width = z.stride(), unit.stride, unit.kernel, unit.kernel * z.shape[3]
    return z.as_strided((n, H, W, k, width), (image, s * row, s * pixel, row, 1)).reshape(n, H, W, k * width).contiguous()


def _statistics(unit: Unit, moments: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """Mean and variance to normalise by, in the map's order, float64; in training the running ones are kept up."""
    bn = unit.bn
    running = [buffer.view(unit.split).transpose(*unit.swap) for buffer in (bn.running_mean, bn.running_var)]
    if not bn.training:
        return tuple(buffer.double().flatten() for buffer in running)
    mean, squares = moments
    bn.num_batches_tracked += 1
    momentum = 1 / int(bn.num_batches_tracked) if bn.momentum is None else bn.momentum      # None: the mean over all batches
    for buffer, value in zip(running, (mean, squares / (rows - 1)), strict=True):
        buffer.lerp_(value.view(buffer.shape).to(buffer.dtype), momentum)
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

    def before(self, grad: Tensor, out: Tensor | None, y: Tensor) -> Tensor:
        """The gradient before normalisation, of that after the activation, whose value is ``out``, or None for that of y itself."""
        grad_y = torch.empty_like(y)
        norm = self.norm
        _run(y.dtype, 'igc_norm_backward', grad_y, grad, out, y, norm.affine, norm.mean, self.factors, *norm.bounds, *_size(y))
        return grad_y

    def add(self, z: Tensor, filtered: Tensor | None, part: slice, grad_y: Tensor, grad_z: Tensor | None) -> None:
        """Add those of a part of the images, of the unit's input z and what `_convolve` has filtered; write the input's to ``grad_z``."""
        unit, grad_p = self.unit, grad_y
        if unit.secondary is not None:
            _add_products(_windows(unit, z, grad_y) if filtered is None else filtered[part], unit, grad_y, self.secondary)
            if filtered is not None:
                grad_p = torch.empty_like(filtered[part])
                _multiply(grad_y, unit, grad_p, back=True)
            elif grad_z is not None:    # not of a larger regular convolution: that is of images, whose own gradient nobody wants
                _multiply(grad_y, unit, grad_z, back=True)
        if unit.primary is not None:
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
    sums = torch.zeros(2 if other is None else 3, y.shape[3], dtype=torch.float64, device='cpu') if sums is None else sums
    _run(y.dtype, 'igc_norm_sums', sums, grad, out, y, norm.affine, norm.mean, other, other_mean, *bounds, *_size(y))
    return sums


def _primary(name: str, unit: Unit, z: Tensor, *tensors: Tensor) -> None:
    """Run a function of the primary convolution of z."""
    M, m, k, _, L = unit.primary.shape
    _run(z.dtype, name, *tensors, (ctypes.c_int64 * 9)(*z.shape[:3], m, M, L, k, unit.stride, unit.dilation))


def _multiply(rows: Tensor, unit: Unit, out: Tensor, back: bool = False) -> None:
    """Write to ``out`` the rows' planes times the unit's matrices; back: from outputs to inputs, sums where a plane has several."""
    matrices = unit.secondary if back else unit.secondary.transpose(1, 2)
    places = [place[::-1] for place in _places(unit)] if back else _places(unit)
    _, inputs, outputs = matrices.shape
    if _is_narrow(inputs, outputs):
        shape = _shape_of_planes(matrices.shape, rows, out, places)
        return _run(rows.dtype, 'igc_multiply', out, rows, matrices.contiguous(), rows.numel() // rows.shape[-1], shape)
    sources, results, written = _planes(rows, inputs), _planes(out, outputs), set()
    for matrix, (source, result) in zip(matrices, places, strict=True):
        if result in written:
            results[result].addmm_(sources[source], matrix)
        else:
            torch.mm(sources[source], matrix, out=results[result])
        written.add(result)


def _add_products(rows: Tensor, unit: Unit, grad: Tensor, grad_matrices: Tensor) -> None:
    """Add the gradients of the matrices that ``rows`` are multiplied by."""
    P, outputs, inputs = grad_matrices.shape
    if _is_narrow(inputs, outputs):
        shape = _shape_of_planes((P, inputs, outputs), rows, grad, _places(unit))
        return _run(rows.dtype, 'igc_multiply_weight', grad_matrices, grad, rows, rows.numel() // rows.shape[-1], shape)
    sources, results = _planes(rows, inputs), _planes(grad, outputs)
    for matrix, (source, result) in zip(grad_matrices, _places(unit), strict=True):
        if matrix.dtype == rows.dtype:
            matrix.addmm_(results[result].t(), sources[source])
        else:
            matrix += results[result].t() @ sources[source]


def _is_narrow(inputs: int, outputs: int) -> bool:
    """Whether a kernel here multiplies by such matrices faster than torch's libraries."""
    return min(inputs, outputs) <= NARROW and max(inputs, outputs) <= 2 * NARROW


def _shape_of_planes(matrices: Sequence[int], rows: Tensor, out: Tensor, places: Sequence[tuple[int, int]]) -> ctypes.Array:
    numbers = (*matrices, rows.shape[-1], out.shape[-1], *itertools.chain.from_iterable(places))
    return (ctypes.c_int64 * len(numbers))(*numbers)


def _places(unit: Unit) -> Sequence[tuple[int, int]]:
    return unit.places or [(plane, plane) for plane in range(len(unit.secondary))]


def _planes(rows: Tensor, width: int) -> tuple[Tensor, ...]:
    """(..., planes * width) -> for each plane (rows, width)."""
    return rows.view(-1, rows.shape[-1] // width, width).unbind(1)


def _chunks(*maps: Tensor) -> Iterator[slice]:
    """Some images at a time."""
    images = len(maps[0])
    step = max(1, CHUNK_BYTES * images // max(y.nbytes for y in maps))
    for start in range(0, images, step):
        yield slice(start, min(images, start + step))


def _rows(x: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, H, W, C), contiguous."""
    return x.permute(0, 2, 3, 1).contiguous().resolve_neg()


def _size(y: Tensor) -> tuple[int, int]:
    return y.numel() // y.shape[-1], y.shape[-1]


def _real(y: Tensor) -> torch.dtype:
    """The type of sums."""
    return torch.float64 if y.dtype == torch.float64 else torch.float32


@functools.cache
def _library(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    return build.compiled(C_TYPES[dtype], True, SOURCE)


def _run(dtype: torch.dtype, name: str, *arguments) -> None:
    """Call a function of the kernel for maps of this type, on as many threads as torch has."""
    library, _ = _library(dtype)
    getattr(library, name)(*map(_argument, arguments), ctypes.c_int64(torch.get_num_threads()))


def _argument(value: Tensor | float | int | None):
    if isinstance(value, Tensor):
        return ctypes.c_void_p(value.data_ptr())
    return ctypes.c_int64(value) if isinstance(value, int) else ctypes.c_double(value) if isinstance(value, float) else value
