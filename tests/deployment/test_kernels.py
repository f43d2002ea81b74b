"""The fused operators compute the layers they stand for, on every path, and a machine that cannot compile them does without."""
import os
import sys
from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from igczoo.deployment import kernels
from igczoo.nets.layers import IGConv2d


@contextmanager
def use_threads(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    yield
    torch.set_num_threads(before)


# The layers and their planar form, by indices of this file's own ------------------------------------------------------------------------

def planar(L, m):
    """The channels of primary order, `[l][m]`, in planar order, `[m][l]`."""
    return [m * channel + plane for plane in range(m) for channel in range(L)]


def layer(L, m, M, k=3, stride=1, dilation=1, dtype=torch.float64):
    """An IGConv2d with random weights, and (primary, secondary, bias) of the unit that computes it, float64 that ``dtype`` can hold."""
    conv = IGConv2d(m * L, M * L, L, k, stride, dilation, dtype=torch.float64).requires_grad_(False).to(dtype).double()
    primary, secondary = torch.empty(M, m, k, k, L, dtype=torch.float64), torch.empty(M, L, L, dtype=torch.float64)
    for j in range(M):
        for channel in range(L):
            for i in range(m):
                primary[j, i, :, :, channel] = conv.primary.weight[channel * M + j, i]
            secondary[j, channel] = conv.secondary.weight[j * L:(j + 1) * L, channel, 0, 0]
    return conv, (primary, secondary, numbers(M, L, dtype=dtype))


def expected_unit(conv, bias, x, m, residual=None, relu=True):
    """The unit's output by the layer itself; x and the result in planar order."""
    M, L = bias.shape
    x_primary = torch.empty_like(x)
    x_primary[:, planar(L, m)] = x
    y = conv(x_primary)[:, planar(L, M)] + bias.view(M * L, 1, 1)
    y = y if residual is None else y + residual
    return y.relu() if relu else y


def numbers(*shape, dtype=torch.float64):
    """Random float64 that ``dtype`` can hold."""
    return torch.randn(*shape, dtype=torch.float64).to(dtype).double()


def image(*shape, dtype=torch.float64):
    return numbers(*shape, dtype=dtype).contiguous(memory_format=torch.channels_last)


def image_of(rows):
    """(N, H, W, C) as (N, C, H, W) in channels_last memory."""
    return rows.permute(0, 3, 1, 2)


def to(dtype, tensors):
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]


def assert_close(found, expected, blocks=0):
    """Against float64, relative to the largest value; with so many blocks' maps that bfloat16 rounds on the way, four in each."""
    assert found.is_contiguous(memory_format=torch.channels_last)
    largest = expected.abs().max().item()
    rtol, atol = {
        torch.float64: (1e-12, 1e-12 * (largest if blocks else 1)),
        torch.float32: (1e-5, 3e-6 * (1 + largest)),
        torch.bfloat16: (2 ** -8, 2 ** -8 * max(1, 4 * blocks) * (1 + largest)),
    }[found.dtype]
    torch.testing.assert_close(found.double(), expected, rtol=rtol, atol=atol)


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    """Of the operators: float64 is computed by torch, the others by the kernel."""
    if request.param is not torch.float64:
        request.getfixturevalue('compiled')
    return request.param


SHAPES = [  # L, m, M, k, stride, dilation, N, H, W
    (100, 2, 2, 3, 1, 1, 1, 9, 11),
    (100, 1, 2, 3, 1, 1, 3, 5, 4),
    (24, 4, 8, 3, 2, 1, 2, 8, 8),
    (24, 8, 8, 3, 1, 1, 1, 6, 6),
    (16, 2, 1, 1, 1, 1, 1, 4, 4),
    (17, 3, 4, 5, 1, 1, 2, 7, 3),
    (3, 2, 3, 3, 2, 2, 1, 9, 9),
    (1, 4, 4, 3, 1, 1, 3, 2, 3),
    (1, 1, 1, 5, 3, 2, 1, 7, 5),
    (44, 1, 3, 3, 1, 3, 1, 5, 6),
    (200, 2, 2, 3, 1, 1, 1, 1, 1),
    (264, 1, 2, 3, 2, 1, 1, 3, 5),
    (72, 2, 2, 3, 1, 1, 2, 6, 7),
    (131, 1, 3, 3, 2, 1, 1, 13, 12),
    (264, 2, 1, 5, 1, 2, 1, 8, 8),
]


@pytest.mark.parametrize('shape', SHAPES)
def test_unit_is_the_layer(shape, dtype):
    L, m, M, k, stride, dilation, N, H, W = shape
    torch.manual_seed(0)
    conv, weights = layer(L, m, M, k, stride, dilation, dtype)
    x = image(N, m * L, H, W, dtype=dtype)
    residual = image(N, M * L, -(-H // stride), -(-W // stride), dtype=dtype)
    for shortcut, relu in ((residual, True), (None, False)):
        expected = expected_unit(conv, weights[2], x, m, shortcut, relu)
        assert_close(kernels.unit(*to(dtype, (x, *weights, shortcut)), relu, stride, dilation), expected)


@settings(max_examples=60, deadline=None)
@given(
    L=st.integers(1, 70), m=st.integers(1, 4), M=st.integers(1, 4), k=st.sampled_from([1, 3, 5]), stride=st.integers(1, 3),
    dilation=st.integers(1, 3), N=st.integers(1, 3), H=st.integers(1, 12), W=st.integers(1, 12), threads=st.integers(1, 5),
    seed=st.integers(0, 2 ** 31), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_kernel_is_the_reference(compiled, L, m, M, k, stride, dilation, N, H, W, threads, seed, dtype):
    torch.manual_seed(seed)
    shapes = (M, m, k, k, L), (M, L, L), (M, L)
    tensors = image(N, m * L, H, W, dtype=dtype), *(numbers(*shape, dtype=dtype) for shape in shapes)
    expected = kernels.torch_unit(*tensors, None, True, stride, dilation)
    with use_threads(threads):
        assert_close(kernels.unit(*to(dtype, tensors), None, True, stride, dilation), expected)


@settings(max_examples=40, deadline=None)
@given(
    L=st.integers(64, 150), N=st.integers(1, 3), threads=st.integers(1, 5), range_=st.sampled_from([0, 3, 30, 60]),
    sparse=st.sampled_from([0, .5, .97]), offset=st.sampled_from([0, 1]), seed=st.integers(0, 2 ** 31))
def test_rows_and_columns_of_any_size(compiled, L, N, threads, range_, sparse, offset, seed):
    """Each to its own precision, though the kernel may add rows' numbers to columns'; what is 0 stays 0, what is infinite infinite."""
    torch.manual_seed(seed)

    def some(*shape):
        return (numbers(*shape) + offset) * (torch.rand(shape) >= sparse)

    rows, secondary = some(N, 6, 7, L), some(1, L, L)
    rows *= 2. ** torch.randint(-range_, range_ + 1, (N, 6, 7, 1))
    secondary *= 2. ** torch.randint(-range_, range_ + 1, (1, 1, L))
    rows[0, 1, 2], secondary[0, :, 5] = 0, 0
    secondary[0, ::L // 8, 7] *= 2. ** -40          # no sample of a column tells its size
    rows[0, 3, 4, 6], rows[0, 5, 6, 9] = float('inf'), float('nan')
    x, primary = image_of(rows).float(), torch.ones(1, 1, 1, 1, L)
    with use_threads(threads):
        found = kernels.unit(x, primary, secondary.float(), torch.zeros(1, L), None, False).permute(0, 2, 3, 1).double()
    finite, kept = torch.ones(N, 6, 7, dtype=torch.bool), secondary[0].float().double()
    finite[0, 3, 4] = finite[0, 5, 6] = False
    rows = rows.float().double()
    error, lengths = (found - rows @ kept).abs(), rows.norm(dim=-1, keepdim=True) * kept.norm(dim=0)
    assert (error <= 1.5e-6 * lengths)[finite].all()
    assert (found[0, 1, 2] == 0).all() and (found[finite][:, 5] == 0).all()
    torch.testing.assert_close(found[~finite], (rows @ kept)[~finite], rtol=1e-4, atol=0, equal_nan=True)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf'), 3e38])
def test_a_weight_that_is_not_finite(compiled, value):
    """Reaches its own column alone."""
    torch.manual_seed(0)
    x, primary, secondary = image(2, 100, 6, 7).float(), torch.ones(1, 1, 1, 1, 100), numbers(1, 100, 100).float()
    secondary[0, 40, 70] = value
    arguments = x, primary, secondary, torch.zeros(1, 100), None, False
    found, expected = kernels.unit(*arguments), kernels.torch_unit(*arguments)
    assert not value < 3e38 or not found[:, 70].isfinite().any()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)


def block_and_expected(x, m, stride, dtype, L=20, M=2):
    """A random block of float64 and what its layers give."""
    conv1, weights1 = layer(L, m, M, stride=stride, dilation=2, dtype=dtype)
    conv2, weights2 = layer(L, M, M, 5, dilation=3, dtype=dtype)
    shortcut, projection = x, ()
    if (m, stride) != (M, 1):
        projection = numbers(M, m, L, dtype=dtype), numbers(M, L, dtype=dtype)
        planes = x[:, :, ::stride, ::stride].unflatten(1, (m, L))
        shortcut = torch.einsum('jil,nilyx->njlyx', projection[0], planes).flatten(1, 2) + projection[1].view(M * L, 1, 1)
    y = expected_unit(conv1, weights1[2], x, m)
    block = kernels.Block(tuple(weights1), tuple(weights2), projection, stride, 2, 3)
    return block, expected_unit(conv2, weights2[2], y, M, shortcut)


def block_to(dtype, block):
    parts = {part: tuple(to(dtype, getattr(block, part))) for part in ('unit1', 'unit2', 'projection')}
    return block._replace(**parts)


@pytest.mark.parametrize('geometry', [[(2, 1)], [(1, 2)], [(1, 1)], [(4, 2)], [(2, 1), (2, 1), (2, 2), (2, 1), (2, 2)], [(3, 1), (2, 1)]])
@pytest.mark.parametrize('N', [1, 3])
def test_blocks_are_their_layers(geometry, N, dtype):
    torch.manual_seed(0)
    x = expected = image(N, geometry[0][0] * 20, 9, 7, dtype=dtype)
    blocks = []
    for m, stride in geometry:
        block, expected = block_and_expected(expected, m, stride, dtype)
        blocks.append(block)
    found = kernels.residual_blocks(x.to(dtype), [block_to(dtype, block) for block in blocks])
    assert_close(found, expected, len(blocks))


@pytest.mark.parametrize('shape', [(1, 3, 224, 50, 100), (3, 3, 37, 41, 24), (2, 1, 8, 9, 3), (1, 4, 1, 1, 17), (2, 3, 5, 64, 9)])
def test_stem_is_convolution_and_pooling(shape, dtype):
    N, c, H, W, C = shape
    torch.manual_seed(0)
    conv, pool = torch.nn.Conv2d(c, C, 7, 2, 3, dtype=torch.float64).requires_grad_(False), torch.nn.MaxPool2d(3, 2, 1)
    conv = conv.to(dtype).double()
    for x in (image(N, c, H, W, dtype=dtype), numbers(N, c, H, W, dtype=dtype), image(N, c, H, 2 * W, dtype=dtype)[..., ::2]):
        expected = pool(conv(x).relu())
        assert_close(kernels.stem(*to(dtype, (x, conv.weight.permute(2, 3, 1, 0), conv.bias))), expected)


@settings(max_examples=60, deadline=None)
@given(
    N=st.integers(1, 3), c=st.integers(1, 4), H=st.integers(1, 60), W=st.integers(1, 60), C=st.integers(1, 40), threads=st.integers(1, 5),
    seed=st.integers(0, 2 ** 31), dtype=st.sampled_from([torch.float32, torch.bfloat16]))
def test_stem_kernel_is_the_reference(compiled, N, c, H, W, C, threads, seed, dtype):
    torch.manual_seed(seed)
    tensors = image(N, c, H, W, dtype=dtype), numbers(7, 7, c, C, dtype=dtype), numbers(C, dtype=dtype)
    with use_threads(threads):
        assert_close(kernels.stem(*to(dtype, tensors)), kernels.torch_stem(*tensors))


@pytest.mark.parametrize('size', [2. ** 90, 2. ** 110, 2. ** 120])
def test_stem_takes_numbers_of_any_size(compiled, size):
    x, weight, bias = some_stem()
    found = kernels.stem(x * size, weight, bias * size)
    torch.testing.assert_close(found / size, kernels.stem(x, weight, bias), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('value', [1e4, 65535., 1e20])
def test_one_large_pixel_leaves_what_does_not_see_it_alone(compiled, value):
    x, weight, bias = some_stem(N=1)
    x[0, 1, 20, 17] = value
    found, expected = kernels.stem(x, weight, bias), kernels.torch_stem(x, weight, bias)
    apart = expected < 100
    assert apart.float().mean() > .8
    torch.testing.assert_close(found[apart], expected[apart], rtol=1e-4, atol=1e-3)


def some_stem(N=2, dtype=torch.float32):
    torch.manual_seed(0)
    return to(dtype, [torch.randn(N, 3, 45, 38), torch.randn(7, 7, 3, 20), torch.randn(20)])


def some_unit(L=20, m=2, M=2, N=2, H=7, W=6, dtype=torch.float32):
    torch.manual_seed(0)
    _, weights = layer(L, m, M)
    return to(dtype, (image(N, m * L, H, W), *weights))


def some_blocks(N=5, projected=True, dtype=torch.float32):
    """An image batch and two blocks, the second one of half the height and width where ``projected``."""
    x, *weights1 = some_unit(N=N, dtype=dtype)
    _, *weights2 = some_unit(N=N, dtype=dtype)
    projection = to(dtype, (torch.randn(2, 2, 20), torch.randn(2, 20))) if projected else ()
    return x, [kernels.Block(tuple(weights1), tuple(weights2), (), 1, 1, 1),
               kernels.Block(tuple(weights2), tuple(weights1), tuple(projection), 1 + projected, 1, 1)]


# What holds besides ---------------------------------------------------------------------------------------------------------------------

def test_residual_may_be_the_output(compiled):
    x, *weights = some_unit(L=37)
    residual = image(2, 74, 7, 6).float()
    expected = kernels.unit(x, *weights, residual)
    kernels._run_unit(residual, x, *weights, residual, True, 1, 1)
    assert torch.equal(residual, expected)


@pytest.mark.parametrize('value', [float('nan'), -float('nan'), float('inf')])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('L', [17, 18, 69])
def test_nan_comes_through(compiled, value, kind, L):
    close = dict(rtol=1e-4, atol=1e-4) if kind is torch.float32 else dict(rtol=2 ** -6, atol=2 ** -4)
    x, *weights = some_unit(L=L, dtype=kind)
    x[1, 3, 2, 5] = value
    found, expected = kernels.unit(x, *weights), kernels.torch_unit(x, *weights)
    assert found.isnan().any() or found.isinf().any()
    torch.testing.assert_close(found, expected, **close, equal_nan=True)
    x, weight, bias = some_stem(dtype=kind)
    x[1, 2, 20, 20] = value
    found, expected = kernels.stem(x, weight, bias), kernels.torch_stem(x, weight, bias)
    assert found.isnan().any() or found.isinf().any()
    torch.testing.assert_close(found, expected, **close, equal_nan=True)


@pytest.mark.parametrize('projected', [True, False])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(compiled, monkeypatch, projected, kind):
    x, blocks = some_blocks(projected=projected, dtype=kind)
    kept, whole = x.clone(), kernels.residual_blocks(x, blocks)
    for images in (1, 2, 3):
        monkeypatch.setattr(kernels, 'CHUNK_BYTES', images * 40 * 7 * 6 * kind.itemsize)
        assert torch.equal(kernels.residual_blocks(x, blocks), whole)
        assert torch.equal(torch.cat([kernels.residual_blocks(part, blocks) for part in x.split(2)]), whole)
    assert torch.equal(x, kept)


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_threads_and_batches_change_no_bit(compiled, kind):
    x, *weights = some_unit(L=132, N=3, H=9, W=13, dtype=kind)
    expected = kernels.unit(x, *weights)
    for threads in (1, 2, 3, 16):
        with use_threads(threads):
            assert torch.equal(kernels.unit(x, *weights), expected)
    assert torch.equal(torch.cat([kernels.unit(one, *weights) for one in x.split(1)]), expected)
    stem = some_stem(dtype=kind)
    expected = kernels.stem(*stem)
    for threads in (2, 7):
        with use_threads(threads):
            assert torch.equal(kernels.stem(*stem), expected)


def test_any_memory_format_and_an_empty_batch(compiled):
    x, primary, secondary, bias = some_unit()
    expected = kernels.unit(x, primary, secondary, bias)
    scattered = primary.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0)
    assert torch.equal(kernels.unit(x.contiguous(), scattered, secondary, bias), expected)
    assert torch.equal(kernels.unit(x[:, :, 2:5], primary, secondary, bias), kernels.unit(x[:, :, 2:5].clone(), primary, secondary, bias))
    assert kernels.unit(x[:0], primary, secondary, bias).shape == (0, 40, 7, 6)
    assert kernels.stem(*some_stem(N=0)).shape == (0, 20, 12, 10)
    x, blocks = some_blocks()
    assert kernels.residual_blocks(x[:0], blocks).shape == (0, 40, 4, 3)


def test_other_kinds_are_left_to_torch(compiled):
    tensors = some_unit(dtype=torch.float16)
    assert torch.equal(kernels.unit(*tensors), kernels.torch_unit(*tensors))
    assert not kernels.takes(torch.empty(1), torch.empty(1, dtype=torch.bfloat16))


@pytest.mark.parametrize('x', [1., 1 + 2 ** -9, 1 + 3 * 2 ** -9, 2 ** -133, 1e-40, 3.3895e38, 3.4e38, float('inf'), float('nan')])
def test_bfloat16_is_rounded_to_the_nearest(compiled, x):
    """A unit whose weights are 1 gives its bias added to 0 in float32, and rounds that once."""
    tensors = some_unit(L=2, m=1, M=1, dtype=torch.bfloat16)
    high = torch.tensor(x).bfloat16()
    low = (torch.tensor(x).double() - high.double()).bfloat16() if high.isfinite() else torch.zeros(())
    primary, secondary = torch.zeros_like(tensors[1]), torch.zeros_like(tensors[2])
    residual = high.expand(2, 2, 7, 6)
    found = kernels.unit(tensors[0], primary, secondary, low.bfloat16().expand(1, 2), residual, False)
    expected = (low.float() + high.float()).bfloat16()
    torch.testing.assert_close(found, expected.expand_as(found), rtol=0, atol=0, equal_nan=True)


def test_misfits_are_named():
    x, primary, secondary, bias = some_unit()
    with pytest.raises(ValueError, match=r'x has 20 channels.* they must be 40, \(2, 20, 20\) and \(2, 20\)'):
        kernels.unit(x[:, :20], primary, secondary, bias)
    with pytest.raises(ValueError, match=r'primary \(2, 2, 3, 2, 20\); they must be .*k odd'):
        kernels.unit(x, primary[:, :, :, :2], secondary, bias)
    with pytest.raises(ValueError, match=r"residual is \(2, 40, 6, 6\); it must have the output's shape, \(2, 40, 7, 6\)"):
        kernels.unit(x, primary, secondary, bias, x[:, :, :6])
    with pytest.raises(ValueError, match='stride is 0'):
        kernels.unit(x, primary, secondary, bias, None, True, 0)
    x, [block, projected] = some_blocks(N=2)
    with pytest.raises(ValueError, match=r'block 2: x is .*the output \(2, 40, 4, 3\); where they differ, a projection must be given'):
        kernels.residual_blocks(x, [block, projected._replace(projection=())])
    weight, bias = projected.projection
    with pytest.raises(ValueError, match=r'block 1: projection is \(1, 2, 20\) and its bias \(2, 20\); .* \(2, 2, 20\) and \(2, 20\)'):
        kernels.residual_blocks(x, [projected._replace(projection=(weight[:1], bias))])
    with pytest.raises(ValueError, match='there is no block'):
        kernels.residual_blocks(x, [])
    with pytest.raises(ValueError, match=r'x is \(2, 3, 45, 38\), weight \(7, 7, 2, 20\)'):
        kernels.stem(some_stem()[0], torch.randn(7, 7, 2, 20), torch.randn(20))


# As operators of torch ------------------------------------------------------------------------------------------------------------------

def require_grad(tensors):
    return [tensor if tensor is None else tensor.detach().clone().requires_grad_() for tensor in tensors]


@pytest.mark.filterwarnings('ignore:The .grad attribute:UserWarning')     # opcheck itself reads it
def test_operators_are_well_formed(compiled):
    residual = torch.randn(2, 40, 7, 6)
    x, blocks = some_blocks(N=2)
    tensors, numbers = kernels._pack(blocks)
    for gradients in (list, require_grad):
        torch.library.opcheck(kernels.unit_operator, gradients([*some_unit(), residual]))
        torch.library.opcheck(kernels._residual_blocks, (*gradients([x]), gradients(tensors), numbers))
        torch.library.opcheck(kernels.stem_operator, gradients(some_stem()))


@pytest.mark.parametrize('projected', [True, False])
def test_gradients_are_those_of_the_reference(compiled, projected):
    x, blocks = some_blocks(projected=projected)
    tensors, numbers = kernels._pack(blocks)
    grads = []
    for compute in (kernels.residual_blocks, kernels.torch_residual_blocks):
        x_and_tensors = require_grad([x, *tensors])
        compute(x_and_tensors[0], kernels._unpack(x_and_tensors[1:], numbers)).square().sum().backward()
        grads.append([tensor.grad for tensor in x_and_tensors])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_gradients_where_only_some_are_wanted(compiled):
    x, blocks = some_blocks()
    grads = []
    for compute in (kernels.residual_blocks, kernels.torch_residual_blocks):
        bias = blocks[1].unit2[2].clone().requires_grad_()
        compute(x, [blocks[0], blocks[1]._replace(unit2=(*blocks[1].unit2[:2], bias))]).square().sum().backward()
        grads.append(bias.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4 * grads[1].abs().max().item())


def test_gradients_of_first_and_second_order():
    unit = require_grad([*some_unit(L=2, N=1, H=3, W=2, dtype=torch.float64), image(1, 4, 3, 2)])
    assert torch.autograd.gradcheck(kernels.unit, (*unit, False))
    assert torch.autograd.gradgradcheck(kernels.unit, (*unit, False))


def test_gradients_of_inputs_that_are_made_of_one_another(compiled):
    x, *weights = some_unit(L=4)
    block = (some_blocks(projected=False)[1][0], some_blocks(projected=False)[0])

    def same_for_both(unit):
        a = x.clone().requires_grad_()
        unit(a, *weights, a, False).square().sum().backward()
        return [a.grad]

    def one_of_the_other(unit):
        a = x.clone().requires_grad_()
        y = a * 2
        unit(unit(y, *weights), *weights, y).square().sum().backward()
        return [a.grad]

    def tied_weights(unit):
        a, (weight, *others) = x.clone().requires_grad_(), require_grad(weights)
        unit(unit(a, weight, *others), weight, *others).square().sum().backward()
        return [a.grad, weight.grad]

    for case in (same_for_both, one_of_the_other, tied_weights):
        for found, expected in zip(case(kernels.unit), case(kernels.torch_unit), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
    grads = []
    for compute in (kernels.residual_blocks, kernels.torch_residual_blocks):
        weight = block[0].unit1[0].clone().requires_grad_()
        tied = block[0]._replace(unit1=(weight, *block[0].unit1[1:]), unit2=(weight, *block[0].unit2[1:]))
        compute(block[1], [tied]).square().sum().backward()
        grads.append(weight.grad)
    torch.testing.assert_close(*grads, rtol=1e-4, atol=1e-4 * grads[1].abs().max().item())


class Blocks(torch.nn.Module):
    def __init__(self, blocks):
        super().__init__()
        tensors, self.numbers = kernels._pack(blocks)
        self.tensors = torch.nn.ParameterList(tensors).requires_grad_(False)

    def forward(self, x):
        return kernels.residual_blocks(x, kernels._unpack(list(self.tensors), self.numbers))


@pytest.mark.parametrize('backend', ['eager', 'aot_eager'])
def test_compiled_in_one_graph(compiled, backend):
    x, blocks = some_blocks()
    module = Blocks(blocks)
    torch.compiler.reset()
    found = torch.compile(module, backend=backend, fullgraph=True)(x)
    assert torch.equal(found, module(x))


def test_exported(compiled):
    x, blocks = some_blocks()
    module = Blocks(blocks).eval()
    program = torch.export.export(module, (x,), dynamic_shapes=({0: torch.export.Dim('batch')},))
    assert 'igczoo.residual_blocks' in str(program.graph)
    assert torch.equal(program.module()(x[:2]), module(x[:2]))


@pytest.mark.skipif(sys.platform != 'linux', reason='reads the list of loaded libraries from /proc')
def test_threads_are_those_of_torch(compiled):
    before = _openmp_libraries()
    with use_threads(2):
        kernels.unit(*some_unit())
    assert _openmp_libraries() == before and len(before) == 1


def _openmp_libraries():
    with open('/proc/self/maps') as maps:
        paths = {line.split()[-1] for line in maps if '/' in line}
    return {path for path in paths if any(name in os.path.basename(path) for name in ('libgomp', 'libomp', 'libiomp'))}
