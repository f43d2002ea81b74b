"""IGCV3's units in the kernel compute the units as written, alone, one after another and in whole nets, on every path."""
import copy

import pytest
import timm
import torch
from batch_norms import randomise
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import assert_close, image, require_grad, use_threads
from timm.layers import get_norm_layer
from torch.utils.flop_counter import FlopCounterMode

import igczoo
from igczoo.checkpoints.model_card import count_macs
from igczoo.deployment import bench, kernels
from igczoo.deployment.deploy import forms_used
from igczoo.deployment.kernels import chain, inverted
from igczoo.deployment.units import DeployedUnits, FusedInvertedUnit
from igczoo.nets.igcv3 import InvertedUnit

UNITS = [   # input and output channels, expansion, stride, dilation, images, height, width
    (32, 16, 1, 1, 1, 1, 14, 12),       # of the ImageNet net
    (16, 24, 6, 2, 1, 2, 13, 12),
    (24, 24, 6, 1, 1, 3, 9, 14),
    (32, 32, 6, 1, 1, 1, 28, 28),
    (64, 64, 6, 1, 1, 2, 7, 9),
    (96, 160, 6, 2, 1, 1, 7, 7),
    (160, 160, 6, 1, 1, 1, 7, 7),
    (160, 320, 6, 1, 1, 2, 2, 3),
    (8, 4, 1, 1, 1, 3, 16, 16),         # of the narrow ones
    (4, 6, 6, 2, 1, 1, 8, 5),
    (6, 6, 6, 1, 1, 2, 5, 3),
    (18, 24, 6, 2, 1, 1, 6, 6),
    (72, 120, 6, 1, 1, 1, 4, 4),
    (24, 24, 6, 1, 2, 2, 9, 8),         # dilated by output_stride
    (24, 32, 6, 1, 4, 1, 5, 11),
    (10, 10, 1, 1, 1, 2, 6, 7),         # parts that are not equal
    (14, 6, 3, 2, 2, 1, 9, 9),
    (16, 16, 6, 1, 1, 1, 1, 1),
    (24, 24, 6, 1, 1, 1, 120, 3),       # in several bands
    (24, 30, 6, 2, 1, 1, 5, 150),
]


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    """Of the operator: float64 is computed by torch, the others by the kernel."""
    if request.param is not torch.float64:
        request.getfixturevalue('compiled')
    return request.param


def make(in_chs, out_chs, expansion, stride=1, dilation=1):
    unit = InvertedUnit(in_chs, out_chs, expansion, stride, dilation, 0., 'relu6', get_norm_layer('batchnorm2d')).double().eval()
    randomise(unit)
    return unit.requires_grad_(False)


def deployed(units, dtype):
    """The units in the kernel's form, with weights that ``dtype`` can hold, and once more in float64."""
    fast = [FusedInvertedUnit(unit).to(dtype) for unit in units]
    return [part.unit() for part in fast], [copy.deepcopy(part).double().unit() for part in fast]


@pytest.mark.parametrize('shape', UNITS, ids=str)
def test_a_unit_is_the_layers_as_written(shape, dtype):
    torch.manual_seed(0)
    *geometry, N, H, W = shape
    unit, x = make(*geometry), image(N, geometry[0], H, W, dtype=dtype)
    expected = unit(x)
    for threads in (1, 2):
        with use_threads(threads):
            found = FusedInvertedUnit(unit).to(dtype)(x.to(dtype))
            if dtype is torch.bfloat16:     # the weights too are rounded
                assert (found.double() - expected).abs().max() < .05 * expected.abs().max()
            else:
                assert_close(found, expected, 1)


@settings(max_examples=40, deadline=None)
@given(
    inputs=st.integers(1, 20), outputs=st.integers(1, 20), expansion=st.integers(1, 7), stride=st.integers(1, 3),
    dilation=st.integers(1, 3), N=st.integers(1, 3), H=st.integers(1, 15), W=st.integers(1, 15), threads=st.integers(1, 5),
    seed=st.integers(0, 2 ** 31), kind=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_kernel_is_the_reference(
        compiled, inputs, outputs, expansion, stride, dilation, N, H, W, threads, seed, kind):
    torch.manual_seed(seed)
    x = image(N, 2 * inputs, H, W, dtype=kind)
    units, exact = deployed([make(2 * inputs, 2 * outputs, expansion, stride, dilation)], kind)
    with use_threads(threads):
        assert_close(inverted.inverted_units(x.to(kind), units), inverted.torch_inverted_units(x, exact), 1)


def some_units(dtype=torch.float32, N=3, H=12, W=10):
    """An image batch, units of several sizes, and the kernel's form of them, in ``dtype`` and in float64."""
    torch.manual_seed(0)
    units = [make(8, 6, 1), make(6, 12, 6, 2), make(12, 12, 6), make(12, 12, 6), make(12, 10, 6), make(10, 14, 3, 2), make(14, 14, 6, 1, 2)]
    return image(N, 8, H, W, dtype=dtype), units, *deployed(units, dtype)


def test_units_one_after_another(dtype):
    x, units, fast, exact = some_units(dtype)
    expected = x
    for unit in units:
        expected = unit(expected)
    found = inverted.inverted_units(x.to(dtype), fast)
    if dtype is not torch.bfloat16:
        assert_close(found, expected, len(units))
    assert_close(found, inverted.torch_inverted_units(x, exact), 2 * len(units))


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_chunks_batches_and_threads_change_no_bit(compiled, monkeypatch, kind):
    x, _, units, _ = some_units(kind, N=5)
    x = x.to(kind)
    kept, whole = x.clone(), inverted.inverted_units(x, units)
    for images in (1, 2, 3):
        monkeypatch.setattr(chain, 'CHUNK_BYTES', images * 12 * 6 * 5 * kind.itemsize)
        assert torch.equal(inverted.inverted_units(x, units), whole)
        assert torch.equal(torch.cat([inverted.inverted_units(part, units) for part in x.split(2)]), whole)
    for threads in (1, 2, 3, 16):
        with use_threads(threads):
            assert torch.equal(inverted.inverted_units(x, units), whole)
    assert torch.equal(x, kept)
    assert torch.equal(inverted.inverted_units(x.contiguous(), units), whole)
    assert inverted.inverted_units(x[:0], units).shape == (0, 14, 3, 3)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_what_is_no_number_comes_through(compiled, value, kind):
    """And what is infinite, up to the ReLU6."""
    _, _, units, _ = some_units(kind)
    for unit in (units[1], units[2], units[5]):
        x = torch.randn(2, 2 * unit.expand[0].shape[2], 9, 7).to(kind)
        x[1, 3, 2, 5] = value
        found, expected = inverted.inverted_units(x, [unit]), inverted.torch_inverted_units(x, [unit])
        assert found.isnan().any() or value == value
        torch.testing.assert_close(found, expected, rtol=2 ** -5, atol=2 ** -3 if kind is torch.bfloat16 else 1e-4, equal_nan=True)


def test_misfits_are_named():
    x, _, units, _ = some_units()
    x = x.float()
    with pytest.raises(ValueError, match='there is no unit'):
        inverted.inverted_units(x, [])
    with pytest.raises(ValueError, match=r'unit 1: x has 6 channels, .*; they must be 8 and'):
        inverted.inverted_units(x[:, :6], units)
    with pytest.raises(ValueError, match=r'unit 2: x has 6 channels, .*\(2, 2, 9\)'):
        inverted.inverted_units(x, [units[0], units[1]._replace(expand=(units[1].expand[0], units[1].expand[1][:, :, :1]))])
    with pytest.raises(ValueError, match=r'unit 1: .*k odd'):
        inverted.inverted_units(x, [units[0]._replace(depthwise=(units[0].depthwise[0][:, :2], units[0].depthwise[1]))])
    with pytest.raises(ValueError, match='unit 1: stride is 0'):
        inverted.inverted_units(x, [units[0]._replace(stride=0)])
    with pytest.raises(ValueError, match=r"unit 1: x is \(3, 8, 12, 10\) and the output \(3, 6, 12, 10\); a residual unit's"):
        inverted.inverted_units(x, [units[0]._replace(residual=True)])


# As an operator of torch ----------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings('ignore:The .grad attribute:UserWarning')     # opcheck itself reads it
def test_the_operator_is_well_formed(compiled):
    x, _, units, _ = some_units(N=2, H=4, W=3)
    tensors, numbers = inverted._pack(units[:1])
    for gradients in (list, require_grad):
        torch.library.opcheck(inverted._inverted_units, (*gradients([x.float()]), gradients(tensors), numbers))


def test_gradients_are_those_of_the_reference(compiled):
    x, _, units, _ = some_units()
    tensors, numbers = inverted._pack(units)
    grads = []
    for compute in (inverted.inverted_units, inverted.torch_inverted_units):
        x_and_tensors = require_grad([x.float(), *tensors])
        compute(x_and_tensors[0], inverted._unpack(x_and_tensors[1:], numbers)).square().sum().backward()
        grads.append([tensor.grad for tensor in x_and_tensors])
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated:FutureWarning')      # torch's own, at its first use
def test_transforms(compiled):
    x, _, units, _ = some_units(N=2)
    x, tangent = x.float(), torch.randn(2, 8, 12, 10)
    found, expected = (torch.func.jvp(lambda x, compute=compute: compute(x, units), (x,), (tangent,))
                       for compute in (inverted.inverted_units, inverted.torch_inverted_units))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_multiply_adds_are_counted(compiled):
    x, _, units, _ = some_units()
    counts = []
    for compute in (inverted.inverted_units, inverted.torch_inverted_units):
        with FlopCounterMode(display=False) as counter:
            compute(x.float(), units)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1]


# Whole nets -----------------------------------------------------------------------------------------------------------------------------

def net(name, **options):
    """With the statistics of its own maps, for under others the errors of so many units grow, and random scales and shifts."""
    torch.manual_seed(0)
    model = timm.create_model(name, **(dict(num_classes=5) | options))
    randomise(model)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.
    model.train()(torch.randn(4, options.get('in_chans', 3), 48, 48))
    return model.eval()


NETS = [('igcv3_100', {}), ('igcv3_075', dict(output_stride=8)), ('igcv3_050', dict(in_chans=1)), ('igcv3_025', dict(width=.35)),
        ('igcv3_100_cifar', {})]


@torch.inference_mode()
@pytest.mark.parametrize('name, options', NETS)
def test_whole_nets(compiled, name, options):
    model = net(name, **options)
    fast = igczoo.deploy(model)
    assert list(forms_used(fast).values()) == ['fused'] * 32 and not any(isinstance(part, torch.nn.BatchNorm2d) for part in fast.modules())
    x = torch.randn(2, options.get('in_chans', 3), 48, 33)
    expected, features = copy.deepcopy(model).double()(x.double()), model.forward_intermediates(x, intermediates_only=True)
    spread = expected.amax() - expected.amin()
    assert (fast(x) - expected).abs().max() < 1e-4 * spread
    for found, feature in zip(fast.forward_intermediates(x, intermediates_only=True), features, strict=True):
        torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4 * feature.abs().max().item())
    assert count_macs(fast, x.shape[1:]) == count_macs(model, x.shape[1:])


@torch.inference_mode()
def test_bfloat16_and_autocast(compiled):
    model, x = net('igcv3_025'), torch.randn(2, 3, 64, 64)
    expected = model(x)
    spread = expected.amax() - expected.amin()
    fast = igczoo.deploy(copy.deepcopy(model).bfloat16())
    assert set(forms_used(fast).values()) == {'fused'}
    assert (fast(x.bfloat16()) - expected).abs().max() < .15 * spread
    with torch.autocast('cpu', torch.bfloat16):
        assert (igczoo.deploy(model)(x) - expected).abs().max() < .15 * spread


@torch.inference_mode()
def test_forms(compiled, monkeypatch):
    model, x = net('igcv3_025'), torch.randn(1, 3, 32, 32)
    portable = igczoo.deploy(model, portable=True)
    assert set(forms_used(portable).values()) == {'mixed'} and not any(isinstance(part, DeployedUnits) for part in portable.modules())
    assert set(forms_used(igczoo.deploy(net('igcv3_025', act_layer='relu'))).values()) == {'mixed'}
    assert set(forms_used(igczoo.deploy(copy.deepcopy(model).double())).values()) == {'mixed'}
    monkeypatch.setattr(bench, 'deploy', lambda model, example=None, portable=False: igczoo.deploy(model, portable=portable))
    forms = {candidate.form: candidate.layers for candidate in bench.candidates('igcv3_025', x, onnx=False)}
    assert set(forms['deployed'].values()) == {'fused'} and set(forms['deployed, portable'].values()) == {'mixed'}
    model.prune_intermediate_layers([2])
    model.eval()
    fast = [igczoo.deploy(model), igczoo.deploy(model, portable=True), igczoo.deploy(model, x)]
    assert [len(forms_used(each)) for each in fast] == [5, 5, 5]
    expected = model(x)
    for each in fast:
        torch.testing.assert_close(each(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('pattern', ['stages', 'stages.1', 'stages.1.0', 'stages.2.5', 'stem', 'final.conv'])
def test_hooks_fire_and_change_nothing(compiled, pattern):
    fast, x, heard = igczoo.deploy(net('igcv3_025')), torch.randn(2, 3, 64, 64), []
    expected = fast(x)
    fast.get_submodule(pattern).register_forward_hook(lambda module, args, output: heard.append(output))
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert len(heard) == 1 and heard[0].ndim == 4


def test_as_a_backbone_and_compiled(compiled):
    model, x = net('igcv3_025', features_only=True), torch.randn(2, 3, 64, 64)
    fast = igczoo.deploy(model)
    torch.compiler.reset()
    with torch.no_grad():
        for found in (fast(x), torch.compile(fast, fullgraph=True, backend='aot_eager')(x)):
            for one, other in zip(found, model(x), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_exported(compiled):
    fast, x = igczoo.deploy(net('igcv3_025')), torch.randn(2, 3, 64, 64)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    assert 'igczoo.inverted_units' in str(program.graph)
    more = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(more), fast(more))
    fast.prune_intermediate_layers([2])
    assert isinstance(fast.stages, DeployedUnits) and len(fast.stages) == 2


def test_without_a_kernel(monkeypatch):
    monkeypatch.setattr(kernels, '_kernels', {})
    monkeypatch.setattr(kernels, 'load', lambda build, dtype=torch.float32: False)
    x, units, fast, exact = some_units()
    assert_close(inverted.inverted_units(x.float(), fast), inverted.torch_inverted_units(x, exact), len(units))
    assert set(forms_used(igczoo.deploy(net('igcv3_025'))).values()) == {'mixed'}
