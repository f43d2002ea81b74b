"""Blocks by compiled kernels compute what the net's own blocks do: outputs, every gradient, and running statistics."""
import copy

import pytest
import torch
from batch_norms import randomise
from torch import nn
from torch.autograd import forward_ad

from igczoo.nets.igcnet import IGCNet, PlainBlock, ResidualBlock, igc_resnet
from igczoo.training import fused, planar
from igczoo.training.planar import PlanarIGCNet

EXACT = dict(rtol=1e-10, atol=1e-10)


@pytest.fixture(autouse=True)
def few_images_at_a_time(monkeypatch):
    """Blocks go through small maps in several chunks, and narrow planes have kernels too."""
    if reason := fused.why_not(torch.float64):
        pytest.skip(reason)
    monkeypatch.setattr(fused, 'CHUNK_BYTES', 20_000)
    monkeypatch.setattr(planar, 'LEAST_WIDTH', 1)


def make_block(L, M, m=None, stride=1, dilation=1, shortcuts=True, act_layer='relu', dtype=torch.float64):
    style = dict(act_layer=act_layer, norm_layer=nn.BatchNorm2d, dtype=dtype)
    shape = (L * (m or M), L * M, L, stride)
    block = ResidualBlock(*shape, dilation, dilation, 0., **style) if shortcuts else PlainBlock(*shape, dilation, **style)
    randomise(block)
    return block


def run_planar(block, x, partitions, kernels=True):
    """The block's output for x of so many partitions, by way of planar order, both in primary order."""
    net = PlanarIGCNet(igc_resnet(8, 4, 2), kernels)
    y = net._block(block, planar._interleave(x, partitions))
    return planar._interleave(y, y.shape[1] // partitions)


def results(run, block, x, target):
    """Output, gradients of x and of every parameter, and buffers afterwards."""
    x = x.clone().requires_grad_()
    y = run(block, x)
    (y * target).sum().backward()
    return dict(output=y.detach(), x=x.grad, **{key: value.grad for key, value in block.named_parameters()}, **dict(block.named_buffers()))


def compare(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, **tolerance, msg=lambda message, key=key: f'{key}: {message}')


def assert_equals_the_block(block, L, x, train=True, used=True, monkeypatch=None):
    block.train(train)
    twin, calls = copy.deepcopy(block), []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, '_run', lambda dtype, name, *rest, run=fused._run: (calls.append(name), run(dtype, name, *rest)))
        target = torch.randn_like(block(x.detach()).detach()) if not train else torch.randn_like(copy.deepcopy(block)(x).detach())
        found = results(lambda block, x: run_planar(block, x, L), twin, x, target)
    assert bool(calls) == used
    compare(found, results(lambda block, x: block(x), block, x, target), **EXACT)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize(('L', 'M', 'm', 'stride', 'dilation'), [
    (5, 1, None, 1, 1), (13, 2, None, 1, 1), (8, 2, 1, 1, 1), (8, 2, 1, 2, 1), (6, 4, None, 1, 1), (6, 4, 2, 2, 1), (3, 8, None, 1, 1),
    (3, 8, 4, 2, 1), (9, 3, None, 1, 2), (21, 2, None, 1, 3), (70, 2, 1, 2, 1), (4, 2, 2, 3, 1)])
def test_a_block_equals_the_nets_own(L, M, m, stride, dilation, train):
    torch.manual_seed(0)
    block = make_block(L, M, m, stride, dilation)
    assert_equals_the_block(block, L, torch.randn(5, L * (m or M), 9, 6, dtype=torch.float64), train)


@pytest.mark.parametrize('shape', [(1, 7, 5), (3, 1, 1), (2, 1, 9), (2, 2, 2), (150, 2, 2), (1, 33, 17)], ids=str)
@pytest.mark.parametrize('stride', [1, 2])
def test_maps_of_all_sizes(shape, stride):
    torch.manual_seed(1)
    N, H, W = shape
    assert_equals_the_block(make_block(6, 2, 1, stride), 6, torch.randn(N, 6, H, W, dtype=torch.float64))


@pytest.mark.parametrize('act_layer', ['relu', 'relu6'])
def test_plain_blocks_and_bounded_activations(act_layer):
    torch.manual_seed(2)
    for shortcuts in (True, False):
        block = make_block(7, 2, shortcuts=shortcuts, act_layer=act_layer)
        with torch.no_grad():
            for module in block.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.weight *= 6      # so that ReLU6 has something to do
        assert_equals_the_block(block, 7, torch.randn(4, 14, 5, 5, dtype=torch.float64))


def test_what_there_are_no_kernels_for_is_computed_all_the_same():
    x = torch.randn(3, 8, 6, 6, dtype=torch.float64)
    assert_equals_the_block(make_block(4, 2, act_layer='silu'), 4, x, used=False)
    assert_equals_the_block(make_block(4, 2, stride=2, dilation=2), 4, x, used=False)


def test_statistics_over_all_batches():
    block = make_block(6, 2)
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    twin = copy.deepcopy(block)
    for _ in range(3):
        x = torch.randn(3, 12, 5, 5, dtype=torch.float64)
        block(x), run_planar(twin, x, 6)
    compare(dict(twin.named_buffers()), dict(block.named_buffers()), **EXACT)


def test_variance_far_from_the_origin():
    """Where the mean is 1e4 standard deviations, float32 sums of squares would leave nothing of the variance."""
    y = 1e4 + torch.randn(4, 7, 7, 20)
    moments = torch.zeros(2, 20, dtype=torch.float64)
    for part in range(4):
        fused._run(torch.float32, 'igc_moments', moments, part * 49, y[part], 49, 20)
    rows = y.view(-1, 20).double()
    torch.testing.assert_close(moments[0], rows.mean(0), rtol=1e-6, atol=0)
    torch.testing.assert_close(moments[1] / 195, rows.var(0), rtol=1e-3, atol=0)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('stem', ['imagenet', 'cifar'])
def test_a_whole_net(stem, train):
    torch.manual_seed(3)
    net = IGCNet(stem, 10, (20, 40, 80), (10, 20, 20), (2, 1, 1), num_classes=5, dtype=torch.float64).train(train)
    randomise(net)
    twin = copy.deepcopy(net)
    x, target = torch.randn(3, 3, 37, 30, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    for images in (x, x.clone().requires_grad_(), torch.randn(3, 30, 37, 3, dtype=torch.float64).permute(0, 3, 2, 1)):
        for form in (net, PlanarIGCNet(twin)):
            form.zero_grad()
            (form(images) * target).sum().backward()
        found, expected = ({key: value.grad for key, value in form.named_parameters()} | dict(form.named_buffers()) for form in (twin, net))
        compare(found, expected, **EXACT)


@pytest.mark.parametrize('bf16', [False, True], ids=['float32', 'bfloat16'])
def test_other_types(bf16):
    """Errors against float64 are no larger than torch's own; in bfloat16, weights and their gradients are float32 as autocast has it."""
    torch.manual_seed(4)
    for L, M, m, stride in ((13, 4, 2, 2), (70, 2, 2, 1)):
        block = make_block(L, M, m, stride, dtype=torch.float32)
        x, target = torch.randn(4, L * m, 6, 6), torch.randn(4, L * M, 6 // stride, 6 // stride)
        exact = results(lambda block, x: block(x), copy.deepcopy(block).double(), x.double(), target.double())
        with torch.autocast('cpu', torch.bfloat16, enabled=bf16):
            found, torchs = (
                results(lambda block, x: run_planar(block, x, L, kernels).float(), copy.deepcopy(block), x, target)     # noqa: B023
                for kernels in (True, False))
        for key, value in exact.items():
            assert found[key].dtype == torchs[key].dtype, key
            errors = [((it[key] - value).double().norm() / value.double().norm()).item() for it in (found, torchs)]
            assert errors[0] <= 1.5 * errors[1] + 1e-6, f'{key}: {errors}'


def test_neither_threads_nor_repetition_change_a_bit():
    torch.manual_seed(5)
    block, x = make_block(12, 4, 2, 2, dtype=torch.float32), torch.randn(7, 24, 11, 11)
    target, threads, all_found = torch.randn(7, 48, 6, 6), torch.get_num_threads(), []
    try:
        for count in (1, 2, 2, 5):
            torch.set_num_threads(count)
            all_found.append(results(lambda block, x: run_planar(block, x, 12), copy.deepcopy(block), x, target))
    finally:
        torch.set_num_threads(threads)
    for found in all_found[1:]:
        compare(found, all_found[0], rtol=0, atol=0)


def test_float64_stays_it_under_autocast():
    block = make_block(4, 3)
    x = torch.randn(2, 12, 6, 5, dtype=torch.float64)
    with torch.autocast('cpu', torch.bfloat16):
        found, expected = run_planar(block.eval(), x, 4), block(x)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated:FutureWarning')      # torch's own, at its first use
def test_forward_derivatives_are_those_of_the_net():
    net = igc_resnet(8, 24, 2).double().eval()
    x, tangent = torch.randn(2, 2, 3, 16, 16, dtype=torch.float64)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, tangent)
        found, expected = (forward_ad.unpack_dual(model(dual)).tangent for model in (PlanarIGCNet(net).eval(), net))
    torch.testing.assert_close(found, expected, **EXACT)


def test_negated_views_keep_their_sign():
    block = make_block(4, 3).eval()
    x = torch.randn(2, 12, 6, 5, dtype=torch.complex128).to(memory_format=torch.channels_last).conj().imag
    torch.testing.assert_close(run_planar(block, x, 4), block(x), **EXACT)


def test_gradients_of_gradients_are_refused():
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64, requires_grad=True)
    y = run_planar(make_block(6, 2), x, 6).sum()
    with pytest.raises(RuntimeError, match=r'no second derivatives \(create_graph=True\); compute it by the net as written'):
        torch.autograd.grad(y, x, create_graph=True)


def test_frozen_parameters_and_inputs():
    """What wants no gradient gets none, and the others get theirs."""
    block = make_block(6, 2)
    block.unit2.requires_grad_(False)
    twin, x = copy.deepcopy(block), torch.randn(2, 12, 5, 5, dtype=torch.float64)
    block(x).square().sum().backward()
    run_planar(twin, x, 6).square().sum().backward()
    for (key, expected), found in zip(block.named_parameters(), twin.parameters(), strict=True):
        assert (found.grad is None) == (expected.grad is None) == key.startswith('unit2'), key
        if expected.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, **EXACT)


def test_one_pixel_has_no_statistics():
    with pytest.raises(ValueError, match='Expected more than 1 value per channel'):
        run_planar(make_block(6, 2), torch.randn(1, 12, 1, 1, dtype=torch.float64), 6)


def test_without_a_compiler_all_is_computed_by_torch(monkeypatch):
    monkeypatch.setattr(fused, '_library', lambda dtype: (None, 'no C++ compiler found'))
    monkeypatch.setattr(fused, '_run', None)
    assert fused.why_not() == 'no C++ compiler found'
    block, x = make_block(6, 2), torch.randn(2, 12, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(run_planar(copy.deepcopy(block), x, 6), block(x), **EXACT)


FOUR = ((0, 0), (0, 2), (1, 1), (1, 3))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(('pixels', 'inputs', 'outputs', 'places'), [
    (700, 24, 24, ((0, 0), (1, 1))), (70, 3, 9, FOUR), (33, 9, 3, ((0, 0), (1, 1), (2, 2))), (1, 1, 1, ((0, 0),)), (2, 5, 130, FOUR),
    (513, 72, 20, ((2, 1), (0, 0), (1, 1))), (300, 17, 40, ((0, 0),)), (65, 100, 100, ((1, 0), (0, 1)))], ids=str)
def test_products_of_planes(pixels, inputs, outputs, places, dtype, monkeypatch):
    monkeypatch.setattr(fused, 'NARROW', 1000)
    generator = torch.Generator().manual_seed(0)
    sources, results = (1 + max(place[side] for place in places) for side in (0, 1))
    rows, grad, matrices = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in (
        (1, pixels, 1, sources * inputs), (1, pixels, 1, results * outputs), (len(places), outputs, inputs)))
    unit = fused.Unit(None, matrices, *[None] * 3, (), (), (), places)
    x, g, w = (tensor.double() for tensor in (rows.view(pixels, sources, inputs), grad.view(pixels, results, outputs), matrices))
    forward, back, of_matrices = torch.zeros_like(g), torch.zeros_like(x), torch.ones_like(w)
    for matrix, gradient, (source, result) in zip(w, of_matrices, places, strict=True):
        forward[:, result] += x[:, source] @ matrix.t()
        back[:, source] += g[:, result] @ matrix
        gradient += g[:, result].t() @ x[:, source]
    found = torch.full_like(grad, 7.), torch.full_like(rows, 7.), torch.ones(matrices.shape, dtype=fused._real(rows))
    fused._multiply(rows, unit, found[0])
    fused._multiply(grad, unit, found[1], back=True)
    fused._add_products(rows, unit, grad, found[2])
    rounding = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]     # of bfloat16, also of a sum in between
    for ours, theirs, scale in zip(found, (forward, back, of_matrices), (inputs, outputs, pixels), strict=True):
        tolerance = (1e-5 if ours.dtype == torch.float32 else rounding) * (scale + 10) ** .5
        torch.testing.assert_close(ours.double().view(theirs.shape), theirs, rtol=0, atol=tolerance)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_products_of_a_plane_see_nothing_of_the_next(dtype):
    rows, out = torch.ones(1, 6, 1, 2 * 5, dtype=dtype), torch.empty(1, 6, 1, 2 * 3, dtype=dtype)
    rows[..., 5:] = float('nan')
    unit = fused.Unit(None, torch.ones(2, 3, 5, dtype=dtype), *[None] * 3, (), (), ())
    gradient = torch.zeros(2, 3, 5)
    fused._multiply(rows, unit, out)
    fused._add_products(rows, unit, torch.ones_like(out), gradient)
    assert (out[..., :3] == 5).all() and out[..., 3:].isnan().all()
    assert (gradient[0] == 6).all() and gradient[1].isnan().all()
