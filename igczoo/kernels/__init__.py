"""IGC units of a deployed net as operators of torch: on a CPU fused in one kernel (unit.cpp), compiled where it runs; else in torch's own.

Tensors are in planar order, the C = m * L channels of a pixel as m planes of L channels, `[m][l]` (see planes.py), and what an operator
returns is in channels_last memory. BatchNorm is folded into the weights:

    primary     (M, m, k, k, L)   output plane, input plane, kernel row and column, channel: M x m channel-wise convolutions
    secondary   (M, L, L)         plane, input channel, output channel: one matrix a plane
    bias        (M, L)
    projection  (M, m, L)         output plane, input plane, channel: the 1x1 shortcut where width or stride changes
    stem        (7, 7, c, C)      kernel row and column, channel of the image, channel of the stem

The kernel takes float32 on a CPU, once `load` has returned True; everything else, and every gradient, is computed by `torch_unit`,
`torch_residual_block` and `torch_stem`, which define what the operators mean.
"""
import ctypes
import functools
import hashlib
import math
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from ..planes import convolve_planes

__all__ = ['load', 'residual_block', 'stem', 'takes', 'torch_residual_block', 'torch_stem', 'torch_unit', 'unit', 'why_not']

CHUNK_BYTES = 2 * 1024 ** 2     # of the map between the two units of a block: what stays in the cache until the second has read it


# The operators in torch ---------------------------------------------------------------------------------------------------------------

def torch_unit(
        x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = True, stride: int = 1,
        dilation: int = 1,
) -> Tensor:
    """What `unit` computes, by torch's own operators, differentiable, for every device and floating dtype."""
    M, _, _, _, L = primary.shape
    y = convolve_planes(x, primary, stride, dilation)
    matrices = secondary.transpose(1, 2).reshape(M * L, L, 1, 1)
    y = F.conv2d(y, matrices, bias.flatten(), groups=M)
    y = y if residual is None else y + residual
    return _nhwc(F.relu(y) if relu else y)


def torch_residual_block(
        x: Tensor, primary1: Tensor, secondary1: Tensor, bias1: Tensor, primary2: Tensor, secondary2: Tensor, bias2: Tensor,
        projection: Tensor | None = None, projection_bias: Tensor | None = None, stride: int = 1, dilation1: int = 1, dilation2: int = 1,
) -> Tensor:
    """What `residual_block` computes, likewise."""
    y = torch_unit(x, primary1, secondary1, bias1, None, True, stride, dilation1)
    if projection is not None:
        M, m, L = projection.shape
        x = convolve_planes(x, projection.view(M, m, 1, 1, L), stride) + projection_bias.view(M * L, 1, 1)
    return torch_unit(y, primary2, secondary2, bias2, x, True, 1, dilation2)


def torch_stem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `stem` computes, likewise."""
    y = F.conv2d(_nhwc(x), weight.permute(3, 2, 0, 1), bias, stride=2, padding=3)
    return _nhwc(F.max_pool2d(F.relu(y), 3, 2, 1))


def _nhwc(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


# The operators ------------------------------------------------------------------------------------------------------------------------

@torch.library.custom_op('igczoo::unit', mutates_args=())
def unit(
        x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = True, stride: int = 1,
        dilation: int = 1,
) -> Tensor:
    """One IGC unit: relu?(secondary(primary(x)) + bias + residual?), zero padding dilation * (k // 2).

    Args:
        x: (N, m * L, H, W).
        primary: (M, m, k, k, L), k odd.
        secondary: (M, L, L).
        bias: (M, L).
        residual: (N, M * L, H', W'), added before the ReLU.
        relu: whether there is one.
        stride: of the primary convolution, pixels.
        dilation: of the primary convolution, pixels.

    Returns:
        (N, M * L, H', W') with H' = ceil(H / stride), in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    shape = _unit_shape('unit', x.shape, primary, secondary, bias, stride, dilation)
    if residual is not None and residual.shape != shape:
        raise ValueError(f'unit: residual is {tuple(residual.shape)}; it must have the output\'s shape, {shape}')
    if not takes(x, primary, secondary, bias, residual):
        return torch_unit(x, primary, secondary, bias, residual, relu, stride, dilation)
    out = torch.empty(shape, memory_format=torch.channels_last)
    _run_unit(out, _nhwc(x), primary, secondary, bias, residual if residual is None else _nhwc(residual), relu, stride, dilation)
    return out


@torch.library.custom_op('igczoo::residual_block', mutates_args=())
def residual_block(
        x: Tensor, primary1: Tensor, secondary1: Tensor, bias1: Tensor, primary2: Tensor, secondary2: Tensor, bias2: Tensor,
        projection: Tensor | None = None, projection_bias: Tensor | None = None, stride: int = 1, dilation1: int = 1, dilation2: int = 1,
) -> Tensor:
    """Two IGC units and a shortcut: relu(unit2(relu(unit1(x))) + shortcut(x)), a few images at a time.

    Args:
        x: (N, m * L, H, W) for unit1, as for `unit`.
        projection: (M, m, L) of unit2's M and L, the shortcut: a 1x1 convolution of each channel by itself; None for x itself.
        projection_bias: (M, L), with a projection.
        stride: of unit1 and the projection; unit2 has none.
        dilation1: of unit1.
        dilation2: of unit2.

    Returns:
        (N, M * L, H', W') of unit2, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    tensors = (x, primary1, secondary1, bias1, primary2, secondary2, bias2, projection, projection_bias)
    middle, shape = _block_shapes(*tensors, stride, dilation1, dilation2)
    if not takes(*tensors):
        return torch_residual_block(*tensors, stride, dilation1, dilation2)
    out = torch.empty(shape, memory_format=torch.channels_last)
    images = max(1, CHUNK_BYTES // max(1, 4 * math.prod(middle[1:])))
    between = torch.empty((min(images, middle[0]), *middle[1:]), memory_format=torch.channels_last)
    x = _nhwc(x)
    parts = ((x, out),) if len(x) <= images else zip(x.split(images), out.split(images), strict=True)
    for x_part, out_part in parts:
        y = between if len(x_part) == len(between) else between[:len(x_part)]
        _run_unit(y, x_part, primary1, secondary1, bias1, None, True, stride, dilation1)
        if projection is not None:
            _run_projection(out_part, x_part, projection, projection_bias, stride)
        _run_unit(out_part, y, primary2, secondary2, bias2, x_part if projection is None else out_part, True, 1, dilation2)
    return out


@torch.library.custom_op('igczoo::stem', mutates_args=())
def stem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The stem of the ImageNet nets: max_pool(relu(conv(x) + bias)), 7x7 with stride 2 and padding 3, then 3x3 with stride 2 and padding 1.

    Args:
        x: images (N, c, H, W), in any memory format.
        weight: (7, 7, c, C).
        bias: (C,).

    Returns:
        (N, C, H', W') with H' = ceil(H / 4), in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    shape = _stem_shape(x, weight, bias)
    if not takes(x, weight, bias):
        return torch_stem(x, weight, bias)
    out = torch.empty(shape, memory_format=torch.channels_last)
    _run_stem(out, x, weight, bias)
    return out


@unit.register_fake
def _(x, primary, secondary, bias, residual=None, relu=True, stride=1, dilation=1):
    shape = _unit_shape('unit', x.shape, primary, secondary, bias, stride, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@residual_block.register_fake
def _(x, *args):
    _, shape = _block_shapes(x, *args)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@stem.register_fake
def _(x, weight, bias):
    return torch.empty(_stem_shape(x, weight, bias), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


def _unit_shape(name: str, x_shape, primary: Tensor, secondary: Tensor, bias: Tensor, stride: int, dilation: int) -> tuple[int, ...]:
    """The shape of a unit's output, once its arguments are known to fit: the kernel reads what they say without looking back."""
    if len(x_shape) != 4 or primary.dim() != 5 or primary.shape[2] != primary.shape[3] or primary.shape[2] % 2 == 0:
        raise ValueError(f'{name}: x is {tuple(x_shape)} and primary {tuple(primary.shape)}; they must be (N, m * L, H, W) and '
                         f'(M, m, k, k, L), k odd')
    M, m, _, _, L = primary.shape
    if x_shape[1] != m * L or secondary.shape != (M, L, L) or bias.shape != (M, L):
        raise ValueError(f'{name}: x has {x_shape[1]} channels, secondary is {tuple(secondary.shape)} and bias {tuple(bias.shape)}; with '
                         f'primary {tuple(primary.shape)} they must be {m * L}, {(M, L, L)} and {(M, L)}')
    if stride < 1 or dilation < 1:
        raise ValueError(f'{name}: stride is {stride} and dilation {dilation}; they must be positive')
    return x_shape[0], M * L, -(-x_shape[2] // stride), -(-x_shape[3] // stride)


def _block_shapes(x, primary1, secondary1, bias1, primary2, secondary2, bias2, projection=None, projection_bias=None, stride=1,
                  dilation1=1, dilation2=1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The shapes between a block's units and of its output, likewise."""
    middle = _unit_shape('residual_block, unit 1', x.shape, primary1, secondary1, bias1, stride, dilation1)
    shape = _unit_shape('residual_block, unit 2', middle, primary2, secondary2, bias2, 1, dilation2)
    if projection is None:
        if x.shape != shape:
            raise ValueError(f'residual_block: x is {tuple(x.shape)} and the output {shape}; where they differ, a projection must be given')
        return middle, shape
    M, _, _, _, L = primary2.shape
    m = x.shape[1] // L
    found = None if projection_bias is None else tuple(projection_bias.shape)
    if projection.shape != (M, m, L) or x.shape[1] != m * L or found != (M, L):
        raise ValueError(f'residual_block: projection is {tuple(projection.shape)} and its bias {found}; for x of {x.shape[1]} channels '
                         f'they must be {(M, m, L)} and {(M, L)}')
    return middle, shape


def _stem_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """The shape of the stem's output, likewise."""
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:3] != (7, 7, x.shape[1]) or bias.shape != weight.shape[3:]:
        raise ValueError(f'stem: x is {tuple(x.shape)}, weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; they must be '
                         f'(N, c, H, W), (7, 7, c, C) and (C,)')
    return x.shape[0], weight.shape[3], -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _differentiate(operator, reference: Callable[..., Tensor], num_tensors: int) -> None:
    """Give an operator, whose first arguments are tensors, the gradients of its reference, computed anew in the backward pass."""
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs[:num_tensors])
        ctx.options = inputs[num_tensors:]

    def backward(ctx, grad):
        twice = torch.is_grad_enabled()
        tensors, needed = ctx.saved_tensors, ctx.needs_input_grad
        with torch.enable_grad():
            y = reference(*tensors, *ctx.options)
        wanted = [tensor for tensor, need in zip(tensors, needed, strict=False) if need]
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=twice))
        return tuple(next(grads) if need else None for need in needed)

    operator.register_autograd(backward, setup_context=setup_context)


_differentiate(unit, torch_unit, 5)
_differentiate(residual_block, torch_residual_block, 9)
_differentiate(stem, torch_stem, 3)


# Calls of the kernel ------------------------------------------------------------------------------------------------------------------

def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernel is ready and of the kind of these tensors: float32 on a CPU."""
    return _kernel is not None and all(
        tensor is None or (tensor.dtype is torch.float32 and tensor.is_cpu) for tensor in tensors)


def _run_unit(
        out: Tensor, x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, stride: int,
        dilation: int,
) -> None:
    """Write a unit's output to ``out``, which may be the residual; maps are in channels_last memory."""
    primary, secondary, bias = primary.contiguous(), secondary.contiguous(), bias.contiguous()
    N, _, H, W = x.shape
    M, m, k, _, L = primary.shape
    if out.numel():
        _kernel.igc_unit(out.data_ptr(), x.data_ptr(), primary.data_ptr(), secondary.data_ptr(), bias.data_ptr(),
                         None if residual is None else residual.data_ptr(), N, H, W, m, M, L, k, stride, dilation, relu,
                         torch.get_num_threads())


def _run_projection(out: Tensor, x: Tensor, projection: Tensor, bias: Tensor, stride: int) -> None:
    projection, bias = projection.contiguous(), bias.contiguous()
    N, _, H, W = x.shape
    M, m, L = projection.shape
    if out.numel():
        _kernel.igc_projection(out.data_ptr(), x.data_ptr(), projection.data_ptr(), bias.data_ptr(), N, H, W, m, M, L, stride,
                               torch.get_num_threads())


def _run_stem(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    weight, bias = weight.contiguous(), bias.contiguous()
    if out.numel():
        _kernel.igc_stem(out.data_ptr(), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), *x.shape, *x.stride(), len(bias),
                         torch.get_num_threads())


# Compiling it -------------------------------------------------------------------------------------------------------------------------

SOURCE = Path(__file__).with_name('unit.cpp')
# No -ffast-math: NaN must come through. No -fopenmp: the source calls the threads of the library torch has loaded.
FLAGS = ('-std=c++17', '-O2', '-march=native', '-ffp-contract=fast', '-fno-exceptions', '-fPIC', '-shared')

_lock = threading.Lock()
_kernel: ctypes.CDLL | None = None
_why_not = 'nobody has asked for it yet: igczoo.kernels.load(build=True) compiles and loads it'


class Unavailable(Exception):
    """The kernel cannot be had here; the message says why, in one line."""


def load(build: bool) -> bool:
    """Have the operators use the kernel from now on.

    It is compiled once for a source, compiler and CPU, and kept in the user's cache, `igczoo/kernels` in $XDG_CACHE_HOME or ~/.cache.

    Args:
        build: compile it where that has not been done; takes some seconds. Otherwise only a compiled one is taken.

    Returns:
        Whether the kernel is ready. If not, `why_not` says why, and the operators work all the same.
    """
    global _kernel, _why_not
    with _lock:
        if _kernel is None:
            _kernel, _why_not = _try(build)
    return _kernel is not None


def why_not() -> str:
    """Why the kernel is not ready, in one line; '' if it is."""
    return _why_not


@functools.cache
def _try(build: bool) -> tuple[ctypes.CDLL | None, str]:
    try:
        return _open(build), ''
    except Unavailable as error:
        return None, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return None, ' '.join(f'{type(error).__name__}: {error}'.split())


def _open(build: bool) -> ctypes.CDLL:
    """The compiled kernel, from the cache or compiled now; in a folder of this process alone where the cache cannot be written."""
    if sys.platform != 'linux':
        raise Unavailable(f'the kernel is for Linux; this is {sys.platform}')
    compiler = _compiler()
    version = subprocess.run([*compiler, '--version'], capture_output=True, check=True, timeout=60).stdout
    digest = hashlib.sha256(b'\0'.join([SOURCE.read_bytes(), ' '.join([*compiler, *FLAGS]).encode(), version, _cpu().encode()])).hexdigest()
    cached = Path(os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache'), 'igczoo', 'kernels', f'{digest[:32]}.so')
    if cached.is_file():
        return _library(cached)
    if not build:
        raise Unavailable(f'{cached} is not there yet; igczoo.kernels.load(build=True) compiles it')
    with _folder_beside(cached) as folder:
        fresh = Path(folder, cached.name)
        _compile([*compiler, *FLAGS, str(SOURCE), '-o', str(fresh)])
        library = _library(fresh)
        with suppress(OSError):         # read-only: the library stays loaded though its folder goes
            os.replace(fresh, cached)
    return library


def _compiler() -> list[str]:
    """The command of $CXX, or the first of the usual names that is there."""
    if chosen := shlex.split(os.environ.get('CXX', '')):
        if shutil.which(chosen[0]) is None:
            raise Unavailable(f'the compiler that CXX names, {chosen[0]!r}, is not there; set CXX to a C++ compiler or unset it')
        return chosen
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise Unavailable('no C++ compiler found: looked for $CXX, c++, g++ and clang++; install one, or set CXX')


def _cpu() -> str:
    """What -march=native depends on, as far as the system tells."""
    lines = Path('/proc/cpuinfo').read_text().splitlines()
    return platform.machine() + next((line for line in lines if line.startswith(('flags', 'Features'))), '')


def _folder_beside(path: Path) -> tempfile.TemporaryDirectory:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=path.parent)
    except OSError:
        return tempfile.TemporaryDirectory()


def _compile(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors='replace', timeout=600)
    if done.returncode:
        lines = done.stderr.splitlines() or ['']
        error = next((line for line in lines if 'error' in line), lines[-1])
        raise Unavailable(f'{command[0]} could not compile the kernel (exit status {done.returncode}): {error.strip()}')


def _library(path: Path) -> ctypes.CDLL:
    """Load a compiled kernel; GOMP_parallel, which it lacks, is found among the libraries torch has loaded for all."""
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f'the compiled kernel does not load: {error}') from error
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.igc_unit.argtypes, library.igc_unit.restype = [pointer] * 6 + [size] * 11, None
    library.igc_projection.argtypes, library.igc_projection.restype = [pointer] * 4 + [size] * 8, None
    library.igc_stem.argtypes, library.igc_stem.restype = [pointer] * 4 + [size] * 10, None
    return library
