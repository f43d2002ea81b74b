"""IGCV2's units in the kernel compute the units as written, alone, one after another and in whole nets, on every path."""
import copy

import pytest
import torch
from batch_norms import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_inverted import net
from test_kernels import assert_close, image, require_grad, use_threads
from timm.layers import get_norm_layer
from torch.utils.flop_counter import FlopCounterMode

import igczoo
from igczoo.checkpoints.model_card import count_macs
from igczoo.deployment.deploy import forms_used
from igczoo.deployment.kernels import chain, sparse
from igczoo.deployment.units import DeployedUnits, FusedSparseProduct
from igczoo.nets.igcv2 import SparseUnit

UNITS = [   # input and output channels, channels of a group, stride, dilation, shortcut, images, height, width
    (32, 128, 8, 1, 1, False, 1, 14, 12),       # of the ImageNet net
    (128, 256, 16, 2, 1, False, 2, 9, 8),
    (256, 256, 32, 1, 1, False, 1, 7, 7),
    (8, 32, 8, 1, 1, False, 3, 10, 9),          # of the narrow ones
    (64, 64, 8, 1, 1, True, 2, 8, 8),           # of the CIFAR net
    (64, 128, 8, 2, 1, True, 2, 8, 8),
    (128, 128, 8, 1, 1, True, 1, 4, 6),         # three products
    (12, 8, 3, 2, 1, False, 1, 9, 9),           # odd groups, and fewer channels than a vector has
    (15, 15, 5, 1, 2, True, 2, 7, 4),
    (10, 4, 5, 1, 1, False, 1, 60, 5),
    (40, 40, 10, 1, 3, True, 1, 1, 1),
]


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    """Of the operator: float64 is computed by torch, the others by the kernel."""
    if request.param is not torch.float64:
        request.getfixturevalue('compiled')
    return request.param


def make(in_chs, out_chs, channels, stride=1, dilation=1, shortcut=False):
    unit = SparseUnit(in_chs, out_chs, channels, stride, dilation, shortcut, 0., 'relu', get_norm_layer('batchnorm2d')).double().eval()
    randomise(unit)
    return unit.requires_grad_(False)


def deployed(units, dtype):
    """The units in the kernel's form, with weights that ``dtype`` can hold, and once more in float64."""
    fast = [FusedSparseProduct(unit).to(dtype) for unit in units]
    return [part.unit() for part in fast], [copy.deepcopy(part).double().unit() for part in fast]


@pytest.mark.parametrize('shape', UNITS, ids=str)
def test_a_unit_is_the_layers_as_written(shape, dtype):
    torch.manual_seed(0)
    *geometry, N, H, W = shape
    unit, x = make(*geometry), image(N, geometry[0], H, W, dtype=dtype)
    expected = unit(x)
    for threads in (1, 2):
        with use_threads(threads):
            found = FusedSparseProduct(unit).to(dtype)(x.to(dtype))
            if dtype is torch.bfloat16:     # the weights too are rounded
                assert (found.double() - expected).abs().max() < .05 * expected.abs().max()
            else:
                assert_close(found, expected, 1)


@settings(max_examples=40, deadline=None)
@given(
    groups=st.integers(1, 9), channels=st.integers(2, 20), outputs=st.integers(1, 20), stride=st.integers(1, 3), dilation=st.integers(1, 3),
    N=st.integers(1, 3), H=st.integers(1, 15), W=st.integers(1, 15), threads=st.integers(1, 5), seed=st.integers(0, 2 ** 31),
    kind=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_kernel_is_the_reference(compiled, groups, channels, outputs, stride, dilation, N, H, W, threads, seed, kind):
    torch.manual_seed(seed)
    x = image(N, groups * channels, H, W, dtype=kind)
    units, exact = deployed([make(groups * channels, groups * outputs, channels, stride, dilation)], kind)
    with use_threads(threads):
        assert_close(sparse.sparse_units(x.to(kind), units), sparse.torch_sparse_units(x, exact), 1)


def some_units(dtype=torch.float32, N=3, H=12, W=10):
    """An image batch, units of several sizes, and the kernel's form of them, in ``dtype`` and in float64."""
    torch.manual_seed(0)
    units = [make(8, 12, 4), make(12, 20, 3, 2), make(20, 20, 5, shortcut=True), make(20, 20, 4, shortcut=True), make(20, 10, 10, 2, 2)]
    return image(N, 8, H, W, dtype=dtype), units, *deployed(units, dtype)


def test_units_one_after_another(dtype):
    x, units, fast, exact = some_units(dtype)
    expected = x
    for unit in units:
        expected = unit(expected)
    found = sparse.sparse_units(x.to(dtype), fast)
    if dtype is not torch.bfloat16:
        assert_close(found, expected, len(units))
    assert_close(found, sparse.torch_sparse_units(x, exact), 2 * len(units))


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_chunks_batches_and_threads_change_no_bit(compiled, monkeypatch, kind):
    x, _, units, _ = some_units(kind, N=5)
    x = x.to(kind)
    kept, whole = x.clone(), sparse.sparse_units(x, units)
    for images in (1, 2, 3):
        monkeypatch.setattr(chain, 'CHUNK_BYTES', images * 20 * 6 * 5 * kind.itemsize)
        assert torch.equal(sparse.sparse_units(x, units), whole)
        assert torch.equal(torch.cat([sparse.sparse_units(part, units) for part in x.split(2)]), whole)
    for threads in (1, 2, 3, 16):
        with use_threads(threads):
            assert torch.equal(sparse.sparse_units(x, units), whole)
    assert torch.equal(x, kept)
    assert torch.equal(sparse.sparse_units(x.contiguous(), units), whole)
    assert sparse.sparse_units(x[:0], units).shape == (0, 10, 3, 3)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_what_is_no_number_comes_through(compiled, value, kind):
    _, _, units, _ = some_units(kind)
    for unit in units:
        x = torch.randn(2, unit.depthwise.shape[2], 9, 7).to(kind)
        x[1, 3, 2, 4] = value
        found, expected = sparse.sparse_units(x, [unit]), sparse.torch_sparse_units(x, [unit])
        assert not found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=2 ** -5, atol=2 ** -3 if kind is torch.bfloat16 else 1e-4, equal_nan=True)


def test_misfits_are_named():
    x, _, units, _ = some_units()
    x = x.float()
    with pytest.raises(ValueError, match='there is no unit'):
        sparse.sparse_units(x, [])
    with pytest.raises(ValueError, match=r'unit 1: x has 6 channels, .*; they must be 8 and'):
        sparse.sparse_units(x[:, :6], units)
    with pytest.raises(ValueError, match=r'unit 2: x has 12 channels, .*\(20,\)'):
        sparse.sparse_units(x, [units[0], units[1]._replace(bias=units[1].bias[:7])])
    with pytest.raises(ValueError, match=r'unit 1: .*k odd'):
        sparse.sparse_units(x, [units[0]._replace(depthwise=units[0].depthwise[:2])])
    with pytest.raises(ValueError, match='unit 1: stride is 1 and dilation 0'):
        sparse.sparse_units(x, [units[0]._replace(dilation=0)])
    with pytest.raises(ValueError, match=r"unit 1: x is \(3, 8, 12, 10\) and the output \(3, 12, 12, 10\); a residual unit's"):
        sparse.sparse_units(x, [units[0]._replace(residual=True)])


# As an operator of torch ----------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings('ignore:The .grad attribute:UserWarning')     # opcheck itself reads it
def test_the_operator_is_well_formed(compiled):
    x, _, units, _ = some_units(N=2, H=4, W=3)
    tensors, numbers = sparse._pack(units[:1])
    for gradients in (list, require_grad):
        torch.library.opcheck(sparse._sparse_units, (*gradients([x.float()]), gradients(tensors), numbers))


def test_gradients_are_those_of_the_reference(compiled):
    x, _, units, _ = some_units()
    tensors, numbers = sparse._pack(units)
    grads = []
    for compute in (sparse.sparse_units, sparse.torch_sparse_units):
        x_and_tensors = require_grad([x.float(), *tensors])
        compute(x_and_tensors[0], sparse._unpack(x_and_tensors[1:], numbers)).square().sum().backward()
        grads.append([tensor.grad for tensor in x_and_tensors])
    for found, expected in zip(*grads, strict=True):
        if expected is not None:        # of no products
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


def test_multiply_adds_are_counted(compiled):
    x, _, units, _ = some_units()
    counts = []
    for compute in (sparse.sparse_units, sparse.torch_sparse_units):
        with FlopCounterMode(display=False) as counter:
            compute(x.float(), units)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


# Whole nets -----------------------------------------------------------------------------------------------------------------------------

NETS = [('igcv2_100', {}), ('igcv2_050', dict(output_stride=8)), ('igcv2_025', dict(in_chans=1)), ('igcv2_20_c64', {})]


@torch.inference_mode()
@pytest.mark.parametrize('name, options', NETS)
def test_whole_nets(compiled, name, options):
    model = net(name, **options)
    fast = igczoo.deploy(model)
    assert set(forms_used(fast).values()) == {'fused'} and not any(isinstance(part, torch.nn.BatchNorm2d) for part in fast.modules())
    x = torch.randn(2, options.get('in_chans', 3), 48, 33)
    expected, features = copy.deepcopy(model).double()(x.double()), model.forward_intermediates(x, intermediates_only=True)
    spread = expected.amax() - expected.amin()
    assert (fast(x) - expected).abs().max() < 1e-4 * spread
    for found, feature in zip(fast.forward_intermediates(x, intermediates_only=True), features, strict=True):
        torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4 * feature.abs().max().item())
    assert count_macs(fast, x.shape[1:]) == count_macs(model, x.shape[1:])


@torch.inference_mode()
def test_forms(compiled):
    model, x = net('igcv2_025'), torch.randn(1, 3, 32, 32)
    portable = igczoo.deploy(model, portable=True)
    assert set(forms_used(portable).values()) == {'regular'} and not any(isinstance(part, DeployedUnits) for part in portable.modules())
    assert set(forms_used(igczoo.deploy(net('igcv2_025', act_layer='relu6'))).values()) == {'regular'}
    model.prune_intermediate_layers([2])
    model.eval()
    fast, expected = [igczoo.deploy(model), igczoo.deploy(model, portable=True), igczoo.deploy(model, x)], model(x)
    for each in fast:
        assert len(forms_used(each)) == 3
        torch.testing.assert_close(each(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('pattern', ['stages', 'stages.1', 'stages.1.0', 'stem'])
def test_hooks_fire_and_change_nothing(compiled, pattern):
    fast, x, heard = igczoo.deploy(net('igcv2_025')), torch.randn(2, 3, 64, 64), []
    expected = fast(x)
    fast.get_submodule(pattern).register_forward_hook(lambda module, args, output: heard.append(output))
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert len(heard) == 1 and heard[0].ndim == 4


def test_exported(compiled):
    fast, x = igczoo.deploy(net('igcv2_025')), torch.randn(2, 3, 64, 64)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    assert 'igczoo.sparse_units' in str(program.graph)
    more = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(more), fast(more))
