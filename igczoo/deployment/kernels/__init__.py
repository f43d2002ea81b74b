"""IGC units of a deployed net as operators of torch: on a CPU fused in a kernel (kernel.cpp) compiled where it runs; else in torch's own.

Tensors are in planar order, the C = m * L channels of a pixel as m planes of L channels, `[m][l]` (see planes.py), and what an operator
returns is in channels_last memory. BatchNorm is folded into the weights:

    primary     (M, m, k, k, L)   output plane, input plane, kernel row and column, channel: M x m channel-wise convolutions
    secondary   (M, L, L)         plane, input channel, output channel: one matrix a plane
    bias        (M, L)
    projection  (M, m, L)         output plane, input plane, channel: the 1x1 shortcut where width or stride changes
    stem        (7, 7, c, C)      kernel row and column, channel of the image, channel of the stem

The kernel takes float32 and bfloat16 on a CPU, once `load` has returned True; all else, and every gradient, is computed by `torch_unit`,
`torch_residual_blocks` and `torch_stem`, which define what the operators mean. The units of IGCV2 and IGCV3 have operators of their own,
in sparse.py and inverted.py.
"""
import ctypes
import functools
import threading
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten
from torch.utils.flop_counter import register_flop_formula

from ..planes import convolve_planes
from .build import compiled, cpu_features

__all__ = [
    'Block',
    'is_outrun',
    'load',
    'residual_blocks',
    'stem',
    'takes',
    'torch_residual_blocks',
    'torch_stem',
    'torch_unit',
    'unit',
    'why_not',
]

C_TYPES = {torch.float32: 'float', torch.bfloat16: 'bfloat16'}      # the types there is a kernel for, as its source calls them
CHUNK_BYTES = 2 * 1024 ** 2     # of a map that goes through blocks at a time: what stays in the cache until the next unit has read it


class Block(NamedTuple):
    """Two IGC units and a shortcut: relu(unit2(relu(unit1(x))) + shortcut(x))."""
    unit1: tuple[Tensor, Tensor, Tensor]            # primary, secondary and bias
    unit2: tuple[Tensor, Tensor, Tensor]
    projection: tuple[Tensor, Tensor] | tuple[()]   # and its bias; () where the shortcut is x itself
    stride: int                                     # of unit1 and the projection; unit2 has none
    dilation1: int
    dilation2: int


# The operators in torch ---------------------------------------------------------------------------------------------------------------

def torch_unit(
        x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = True, stride: int = 1,
        dilation: int = 1,
) -> Tensor:
    """What `unit` computes, by torch's own operators, differentiable, for every device and floating dtype."""
    M, _, _, _, L = primary.shape
    y = convolve_planes(x.to(primary.dtype), primary, stride, dilation)
    matrices = secondary.transpose(1, 2).reshape(M * L, L, 1, 1)
    y = F.conv2d(y, matrices, bias.flatten(), groups=M)
    y = y if residual is None else y + residual
    return _nhwc(F.relu(y) if relu else y).to(x.dtype)


def torch_residual_blocks(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """What `residual_blocks` computes, likewise."""
    for block in blocks:
        y = torch_unit(x, *block.unit1, None, True, block.stride, block.dilation1)
        if block.projection:
            weight, bias = block.projection
            M, m, L = weight.shape
            x = (convolve_planes(x.to(weight.dtype), weight.view(M, m, 1, 1, L), block.stride) + bias.view(M * L, 1, 1)).to(x.dtype)
        x = torch_unit(y, *block.unit2, x, True, 1, block.dilation2)
    return x


def torch_stem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """What `stem` computes, likewise."""
    y = F.conv2d(_nhwc(x.to(weight.dtype)), weight.permute(3, 2, 0, 1), bias, stride=2, padding=3)
    return _nhwc(F.max_pool2d(F.relu(y), 3, 2, 1)).to(x.dtype)


def _nhwc(x: Tensor) -> Tensor:
    return x if _is_transformed() else x.contiguous(memory_format=torch.channels_last)     # vmap knows no memory formats


# The operators ------------------------------------------------------------------------------------------------------------------------

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
        (N, M * L, H', W') with H' = ceil(H / stride), of the type of x, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    compute = torch_unit if _is_transformed() else unit_operator
    return compute(x, primary, secondary, bias, residual, relu, stride, dilation)


@torch.library.custom_op('igczoo::unit', mutates_args=())
def unit_operator(
        x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None = None, relu: bool = True, stride: int = 1,
        dilation: int = 1,
) -> Tensor:
    """`unit` as torch has it."""
    shape = _unit_shape('unit', x.shape, primary, secondary, bias, stride, dilation)
    if residual is not None and residual.shape != shape:
        raise ValueError(f'unit: residual is {tuple(residual.shape)}; it must have the output\'s shape, {shape}')
    given, x = x, x.to(primary.dtype)       # autocast may have made it of another type
    residual = residual if residual is None else residual.to(primary.dtype)
    if not takes(x, primary, secondary, bias, residual) or not _has_pixels(x):
        return torch_unit(given, primary, secondary, bias, residual, relu, stride, dilation)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    _run_unit(out, _nhwc(x), primary, secondary, bias, residual if residual is None else _nhwc(residual), relu, stride, dilation)
    return out.to(given.dtype)


def residual_blocks(x: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Residual blocks one after another, in one operator that takes a few images at a time through as many of them as the cache serves.

    Args:
        x: (N, m * L, H, W) for the first block's unit1, as for `unit`.
        blocks: at least one.

    Returns:
        (N, M * L, H', W') of the last block's unit2, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    return torch_residual_blocks(x, blocks) if _is_transformed() else _residual_blocks(x, *_pack(blocks))


@torch.library.custom_op('igczoo::residual_blocks', mutates_args=(), schema='(Tensor x, Tensor[] tensors, int[] numbers) -> Tensor')
def _residual_blocks(x: Tensor, tensors: Sequence[Tensor], numbers: Sequence[int]) -> Tensor:
    blocks = _unpack(tensors, numbers)
    shapes = _block_shapes(x, blocks)
    given, x = x, x.to(tensors[0].dtype)
    if not takes(x, *tensors) or not _has_pixels(x):
        return torch_residual_blocks(given, blocks)
    out = torch.empty(shapes[-1], dtype=x.dtype, memory_format=torch.channels_last)
    _run_blocks(out, _nhwc(x), blocks, [x.shape, *shapes[:-1]])
    return out.to(given.dtype)


def stem(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The stem of the ImageNet nets: max_pool(relu(conv(x) + bias)), 7x7 with stride 2 and padding 3, then 3x3 with stride 2 and padding 1.

    Args:
        x: images (N, c, H, W), in any memory format.
        weight: (7, 7, c, C).
        bias: (C,).

    Returns:
        (N, C, H', W') with H' = ceil(H / 4), of the type of x, in channels_last memory.

    Raises:
        ValueError: shapes that do not fit together.
    """
    return (torch_stem if _is_transformed() else stem_operator)(x, weight, bias)


@torch.library.custom_op('igczoo::stem', mutates_args=())
def stem_operator(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """`stem` as torch has it."""
    shape = _stem_shape(x, weight, bias)
    given, x = x, x.to(weight.dtype)
    if not takes(x, weight, bias) or not _has_pixels(x):
        return torch_stem(given, weight, bias)
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    _run_stem(out, x, weight, bias)
    return out.to(given.dtype)


def _is_transformed() -> bool:
    """Whether torch.func or forward-mode differentiation is at work, for which the operators have no rules and torch's own have."""
    if torch.compiler.is_compiling():
        return False
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def _has_pixels(x: Tensor) -> bool:
    """Where there are none, torch's convolution says so."""
    return 0 not in x.shape[2:]


@unit_operator.register_fake
def _(x, primary, secondary, bias, residual=None, relu=True, stride=1, dilation=1):
    shape = _unit_shape('unit', x.shape, primary, secondary, bias, stride, dilation)
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@_residual_blocks.register_fake
def _(x, tensors, numbers):
    shape = _block_shapes(x, _unpack(tensors, numbers))[-1]
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)


@stem_operator.register_fake
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


def _pack(blocks: Sequence[Block]) -> tuple[list[Tensor], list[int]]:
    """What of the blocks an operator can take; of each block's numbers, the first says whether it has a projection."""
    tensors = [tensor for block in blocks for tensor in (*block.unit1, *block.unit2, *block.projection)]
    return tensors, [number for block in blocks for number in (len(block.projection) // 2, block.stride, block.dilation1, block.dilation2)]


def _unpack(tensors: Sequence[Tensor], numbers: Sequence[int]) -> list[Block]:
    """The blocks of which `_pack` made these."""
    blocks, start = [], 0
    for at in range(0, len(numbers), 4):
        projected, stride, dilation1, dilation2 = numbers[at:at + 4]
        end = start + 6 + 2 * projected
        unit1, unit2, projection = tensors[start:start + 3], tensors[start + 3:start + 6], tensors[start + 6:end]
        blocks.append(Block(tuple(unit1), tuple(unit2), tuple(projection), stride, dilation1, dilation2))
        start = end
    return blocks


def _block_shapes(x: Tensor, blocks: Sequence[Block]) -> list[tuple[int, ...]]:
    """The shape of each block's output, likewise."""
    if not blocks:
        raise ValueError('residual_blocks: there is no block; give at least one')
    if not x.is_floating_point():
        raise ValueError(f'residual_blocks: x is {x.dtype}; it must be of floating point')
    shapes, shape = [], x.shape
    for number, block in enumerate(blocks, 1):
        shapes.append(shape := _block_shape(f'residual_blocks, block {number}', shape, block))
    return shapes


def _block_shape(name: str, x_shape, block: Block) -> tuple[int, ...]:
    middle = _unit_shape(f'{name}, unit 1', x_shape, *block.unit1, block.stride, block.dilation1)
    shape = _unit_shape(f'{name}, unit 2', middle, *block.unit2, 1, block.dilation2)
    if not block.projection:
        if tuple(x_shape) != shape:
            raise ValueError(f'{name}: x is {tuple(x_shape)} and the output {shape}; where they differ, a projection must be given')
        return shape
    projection, bias = block.projection
    M, L = block.unit2[2].shape
    m = x_shape[1] // L
    if projection.shape != (M, m, L) or x_shape[1] != m * L or bias.shape != (M, L):
        raise ValueError(f'{name}: projection is {tuple(projection.shape)} and its bias {tuple(bias.shape)}; for x of {x_shape[1]} '
                         f'channels they must be {(M, m, L)} and {(M, L)}')
    return shape


def _stem_shape(x: Tensor, weight: Tensor, bias: Tensor) -> tuple[int, ...]:
    """The shape of the stem's output, likewise."""
    if x.dim() != 4 or weight.dim() != 4 or weight.shape[:3] != (7, 7, x.shape[1]) or bias.shape != weight.shape[3:]:
        raise ValueError(f'stem: x is {tuple(x.shape)}, weight {tuple(weight.shape)} and bias {tuple(bias.shape)}; they must be '
                         f'(N, c, H, W), (7, 7, c, C) and (C,)')
    if not x.is_floating_point():
        raise ValueError(f'stem: x is {x.dtype}; it must be of floating point')
    return x.shape[0], weight.shape[3], -(-x.shape[2] // 4), -(-x.shape[3] // 4)


def _count_unit(primary_shape, out_shape) -> int:
    """Twice the multiply-adds, as torch.utils.flop_counter counts: of the channel-wise convolutions and of the matrices."""
    M, m, k, _, L = primary_shape
    N, _, H, W = out_shape
    return 2 * N * H * W * M * L * (m * k * k + L)


@register_flop_formula(torch.ops.igczoo.unit)
def _unit_flops(x_shape, primary_shape, *args, out_shape=None, **kwargs) -> int:
    return _count_unit(primary_shape, out_shape)


@register_flop_formula(torch.ops.igczoo.residual_blocks, get_raw=True)
def _residual_blocks_flops(x, tensors, numbers, *args, out_val=None, **kwargs) -> int:
    blocks, flops, inputs = _unpack(tensors, numbers), 0, x.shape
    for block, shape in zip(blocks, _block_shapes(x, blocks), strict=True):
        for primary, *_ in (block.unit1, block.unit2):
            flops += _count_unit(primary.shape, shape)
        if block.projection:
            flops += 2 * shape[0] * shape[2] * shape[3] * shape[1] * (inputs[1] // block.unit2[0].shape[-1])
        inputs = shape
    return flops


@register_flop_formula(torch.ops.igczoo.stem)
def _stem_flops(x_shape, weight_shape, *args, out_shape=None, **kwargs) -> int:
    N, _, H, W = x_shape
    rows, across, in_chans, out_chans = weight_shape
    return 2 * N * -(-H // 2) * -(-W // 2) * rows * across * in_chans * out_chans


def _differentiate(operator, reference: Callable[..., Tensor]) -> None:
    """Give an operator the gradients of its reference, computed anew in the backward pass."""
    def setup_context(ctx, inputs, output):
        leaves, ctx.structure = tree_flatten(inputs)
        ctx.is_tensor = [isinstance(leaf, Tensor) for leaf in leaves]
        ctx.others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        ctx.save_for_backward(*(leaf for leaf in leaves if isinstance(leaf, Tensor)))

    def backward(ctx, grad):
        twice, tensors = torch.is_grad_enabled(), iter(ctx.saved_tensors)
        leaves = [next(tensors) if is_tensor else other for is_tensor, other in zip(ctx.is_tensor, ctx.others, strict=True)]
        with torch.enable_grad():
            # Each a tensor of its own: inputs may be made of one another, or be the same, and each shall have its own gradient only.
            leaves = [leaf.view_as(leaf) if isinstance(leaf, Tensor) and leaf.requires_grad else leaf for leaf in leaves]
            arguments = tree_unflatten(leaves, ctx.structure)
            y = reference(*arguments)
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad and leaf.numel()]
        grads = iter(torch.autograd.grad(y, wanted, grad, create_graph=twice) if wanted else ())     # an empty batch has none

        def grad_of(argument):
            if isinstance(argument, Tensor):
                return next(grads) if argument.requires_grad and argument.numel() else None
            if isinstance(argument, list) and isinstance(argument[0], Tensor):
                return [grad_of(tensor) for tensor in argument]
            return None

        return tuple(map(grad_of, arguments))

    operator.register_autograd(backward, setup_context=setup_context)


_differentiate(unit_operator, torch_unit)
_differentiate(_residual_blocks, lambda x, tensors, numbers: torch_residual_blocks(x, _unpack(tensors, numbers)))
_differentiate(stem_operator, torch_stem)


# Calls of the kernel ------------------------------------------------------------------------------------------------------------------

def takes(*tensors: Tensor | None) -> bool:
    """Whether the kernel is ready for these tensors: on a CPU, all of one type."""
    dtypes = {tensor.dtype if tensor.is_cpu else None for tensor in tensors if tensor is not None}
    return len(dtypes) == 1 and dtypes <= _kernels.keys()


def _run_unit(
        out: Tensor, x: Tensor, primary: Tensor, secondary: Tensor, bias: Tensor, residual: Tensor | None, relu: bool, stride: int,
        dilation: int,
) -> None:
    """Write a unit's output to ``out``; maps are in channels_last memory, and the residual may be ``out``."""
    primary, secondary, bias = primary.contiguous(), secondary.contiguous(), bias.contiguous()
    N, _, H, W = x.shape
    M, m, k, _, L = primary.shape
    if out.numel():
        _kernels[x.dtype].igc_unit(
            out.data_ptr(), x.data_ptr(), primary.data_ptr(), secondary.data_ptr(), bias.data_ptr(),
            None if residual is None else residual.data_ptr(), N, H, W, m, M, L, k, stride, dilation, relu, torch.get_num_threads())


class _Block(ctypes.Structure):
    """A block as blocks.h has it."""
    _fields_ = [
        *((name, ctypes.c_void_p) for name in (
            'primary1', 'secondary1', 'bias1', 'primary2', 'secondary2', 'bias2', 'projection', 'projection_bias')),
        *((name, ctypes.c_int64) for name in (
            'height', 'width', 'in_planes', 'planes', 'channels', 'kernel1', 'kernel2', 'stride', 'dilation1', 'dilation2')),
    ]


def _run_blocks(out: Tensor, x: Tensor, blocks: Sequence[Block], shapes: Sequence[tuple[int, ...]]) -> None:
    """Write the last block's output to ``out``; ``shapes`` are those of the blocks' inputs."""
    rows, tensors = [], []              # these live until the call is over
    for block, (_, _, H, W) in zip(blocks, shapes, strict=True):
        parts = [tensor.contiguous() for tensor in (*block.unit1, *block.unit2, *block.projection)]
        pointers = [tensor.data_ptr() for tensor in parts] + [None] * (2 - len(block.projection))
        M, m, k, _, L = block.unit1[0].shape
        rows.append((*pointers, H, W, m, M, L, k, block.unit2[0].shape[2], block.stride, block.dilation1, block.dilation2))
        tensors += parts
    if out.numel():
        kernel, work = _kernels[x.dtype], ((_Block * len(rows))(*rows), len(rows), len(x), CHUNK_BYTES)
        room = torch.empty(kernel.igc_room(*work), dtype=x.dtype)
        kernel.igc_residual_blocks(out.data_ptr(), x.data_ptr(), room.data_ptr(), *work, torch.get_num_threads())


def _run_stem(out: Tensor, x: Tensor, weight: Tensor, bias: Tensor) -> None:
    weight, bias = weight.contiguous(), bias.contiguous()
    if out.numel():
        _kernels[x.dtype].igc_stem(out.data_ptr(), x.data_ptr(), weight.data_ptr(), bias.data_ptr(), *x.shape, *x.stride(), len(bias),
                                   torch.get_num_threads())


# Having it ----------------------------------------------------------------------------------------------------------------------------

_lock = threading.Lock()
_kernels: dict[torch.dtype, ctypes.CDLL] = {}
_why_not = 'nobody has asked for it yet: igczoo.deployment.kernels.load(build=True) compiles and loads it'


def load(build: bool, dtype: torch.dtype = torch.float32) -> bool:
    """Have the operators use the kernel for tensors of this type from now on.

    It is compiled once for a type, source, compiler and CPU, and kept in the user's cache, `igczoo/kernels` in $XDG_CACHE_HOME or
    ~/.cache, with its digest; a file that has another one is never loaded. Where the cache cannot be used, it is compiled for this
    process alone. Where it is compiled for AMX's tiles, it tries them now, and multiplies by vectors where they do not serve.

    Args:
        build: compile it where that has not been done; takes some fifteen seconds. Otherwise only a compiled one is taken.
        dtype: float32 or bfloat16; there is none for another.

    Returns:
        Whether the kernel is ready. If not, `why_not` says why, and the operators work all the same.
    """
    global _why_not
    with _lock:
        kernel, _why_not = (_kernels[dtype], '') if dtype in _kernels else _try(build, dtype)
        if kernel is not None:
            _declare(kernel)
            _kernels[dtype] = kernel
            if dtype is torch.bfloat16:
                _why_not = _why_not or kernel.igc_why_no_tiles().decode()
    return kernel is not None


def is_outrun(dtype: torch.dtype) -> bool:
    """Whether torch's own operators multiply matrices of this type faster than the kernel here, by rule: of bfloat16 by AMX.

    They did when the kernel had no products by AMX's tiles (amx.h). It has them now, but nobody has timed them, so the rule stands.
    """
    return dtype is torch.bfloat16 and 'amx_bf16' in cpu_features().split()


def why_not() -> str:
    """Why the kernel that was asked for last is not ready, is compiled for this process alone or does without tiles, in a line; else ''."""
    return _why_not


@functools.cache
def _try(build: bool, dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str]:
    if dtype not in C_TYPES:
        return None, f'the kernel is for {" and ".join(map(str, C_TYPES))}; this is {dtype}'
    return compiled(C_TYPES[dtype], build)


def _declare(library: ctypes.CDLL) -> None:
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    library.igc_unit.argtypes, library.igc_unit.restype = [pointer] * 6 + [size] * 11, None
    library.igc_residual_blocks.argtypes = [pointer] * 3 + [ctypes.POINTER(_Block)] + [size] * 4
    library.igc_residual_blocks.restype = None
    library.igc_room.argtypes, library.igc_room.restype = [ctypes.POINTER(_Block)] + [size] * 3, size
    for units in (library.igc_inverted_units, library.igc_sparse_units):
        units.argtypes, units.restype = [pointer] * 4 + [size] * 4, None
    for room in (library.igc_inverted_room, library.igc_sparse_room):
        room.argtypes, room.restype = [pointer] + [size] * 3, size
    library.igc_stem.argtypes, library.igc_stem.restype = [pointer] * 4 + [size] * 10, None
    library.igc_why_no_tiles.argtypes, library.igc_why_no_tiles.restype = [], ctypes.c_char_p
