"""The units of IGCV2 and IGCV3 in the kernel compute the units as written, alone, one after another and in whole nets, on every path."""
import copy
import math
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

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
from igczoo.deployment.kernels import chain, inverted, sparse
from igczoo.deployment.units import DeployedUnits, FusedInvertedUnit, FusedSparseUnit
from igczoo.nets.igcv2 import SparseUnit
from igczoo.nets.igcv3 import InvertedUnit


class Family(NamedTuple):
    """What the tests must know of a kind of units."""
    kind: str
    module: ModuleType
    fused: type
    layers: Callable[..., torch.nn.Module]                      # by the geometry: input and output channels and what follows in `units`
    units: list[tuple]                                          # geometries, each with images, height and width
    geometries: st.SearchStrategy                               # likewise, of any size
    several: list[tuple]                                        # geometries of units that follow one another, of 8 channels first
    most: int                                                   # channels of their maps
    clips: bool                                                 # what is infinite
    portable: str                                               # the form without the kernel
    activation: str                                             # that the kernel has not
    stages_kept: int                                            # units up to the second stage of `net`
    net: str

    def __str__(self):
        return self.kind

    def make(self, *geometry):
        unit = self.layers(*geometry).double().eval()
        randomise(unit)
        return unit.requires_grad_(False)

    def deployed(self, units, dtype):
        """The units in the kernel's form, with weights that ``dtype`` can hold, and once more in float64."""
        fast = [self.fused(unit).to(dtype) for unit in units]
        return [part.unit() for part in fast], [copy.deepcopy(part).double().unit() for part in fast]

    def some_units(self, dtype=torch.float32, N=3, H=12, W=10):
        """An image batch, units of several sizes, and the kernel's form of them, in ``dtype`` and in float64."""
        torch.manual_seed(0)
        units = [self.make(*geometry) for geometry in self.several]
        return image(N, 8, H, W, dtype=dtype), units, *self.deployed(units, dtype)

    def compute(self, x, units) -> torch.Tensor:
        return getattr(self.module, f'{self.kind}_units')(x, units)

    def reference(self, x, units) -> torch.Tensor:
        return getattr(self.module, f'torch_{self.kind}_units')(x, units)

    @property
    def unit_type(self) -> Any:
        return getattr(self.module, f'{self.kind.title()}Unit')


def inverted_layers(in_chs, out_chs, expansion, stride=1, dilation=1):
    return InvertedUnit(in_chs, out_chs, expansion, stride, dilation, 0., 'relu6', get_norm_layer('batchnorm2d'))


def sparse_layers(in_chs, out_chs, channels, stride=1, dilation=1, shortcut=False):
    return SparseUnit(in_chs, out_chs, channels, stride, dilation, shortcut, 0., 'relu', get_norm_layer('batchnorm2d'))


INVERTED = Family(
    'inverted', inverted, FusedInvertedUnit, inverted_layers,
    units=[     # input and output channels, expansion, stride, dilation, images, height, width
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
    ],
    geometries=st.builds(
        lambda inputs, outputs, *rest: (2 * inputs, 2 * outputs, *rest),
        st.integers(1, 20), st.integers(1, 20), st.integers(1, 7), st.integers(1, 3), st.integers(1, 3)),
    several=[(8, 6, 1), (6, 12, 6, 2), (12, 12, 6), (12, 12, 6), (12, 10, 6), (10, 14, 3, 2), (14, 14, 6, 1, 2)], most=12, clips=True,
    portable='mixed', activation='relu', stages_kept=5, net='igcv3_025')
SPARSE = Family(
    'sparse', sparse, FusedSparseUnit, sparse_layers,
    units=[     # input and output channels, channels of a group, stride, dilation, shortcut, images, height, width
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
    ],
    geometries=st.builds(
        lambda groups, channels, outputs, *rest: (groups * channels, groups * outputs, channels, *rest),
        st.integers(1, 9), st.integers(2, 20), st.integers(1, 20), st.integers(1, 3), st.integers(1, 3)),
    several=[(8, 12, 4), (12, 20, 3, 2), (20, 20, 5, 1, 1, True), (20, 20, 4, 1, 1, True), (20, 10, 10, 2, 2), (10, 10, 10)],
    most=20, clips=False, portable='regular', activation='relu6', stages_kept=3, net='igcv2_025')
FAMILIES = INVERTED, SPARSE


@pytest.fixture(params=FAMILIES, ids=str)
def family(request):
    return request.param


@pytest.fixture(params=[torch.float64, torch.float32, torch.bfloat16], ids=str)
def dtype(request):
    """Of the operator: float64 is computed by torch, the others by the kernel."""
    if request.param is not torch.float64:
        request.getfixturevalue('compiled')
    return request.param


@pytest.mark.parametrize('family, shape', [(family, shape) for family in FAMILIES for shape in family.units], ids=str)
def test_a_unit_is_the_layers_as_written(family, shape, dtype):
    torch.manual_seed(0)
    *geometry, N, H, W = shape
    unit, x = family.make(*geometry), image(N, geometry[0], H, W, dtype=dtype)
    expected = unit(x)
    for threads in (1, 2):
        with use_threads(threads):
            found = family.fused(unit).to(dtype)(x.to(dtype))
            if dtype is torch.bfloat16:     # the weights too are rounded
                assert (found.double() - expected).abs().max() < .05 * expected.abs().max()
            else:
                assert_close(found, expected, 1)


@pytest.mark.parametrize('family', FAMILIES, ids=str)
@settings(max_examples=40, deadline=None)
@given(data=st.data(), N=st.integers(1, 3), H=st.integers(1, 15), W=st.integers(1, 15), threads=st.integers(1, 5),
       seed=st.integers(0, 2 ** 31), kind=st.sampled_from([torch.float32, torch.bfloat16]))
def test_the_kernel_is_the_reference(compiled, family, data, N, H, W, threads, seed, kind):
    torch.manual_seed(seed)
    geometry = data.draw(family.geometries)
    x = image(N, geometry[0], H, W, dtype=kind)
    units, exact = family.deployed([family.make(*geometry)], kind)
    with use_threads(threads):
        assert_close(family.compute(x.to(kind), units), family.reference(x, exact), 1)


def test_units_one_after_another(family, dtype):
    x, units, fast, exact = family.some_units(dtype)
    expected = x
    for unit in units:
        expected = unit(expected)
    found = family.compute(x.to(dtype), fast)
    if dtype is not torch.bfloat16:
        assert_close(found, expected, len(units))
    assert_close(found, family.reference(x, exact), 2 * len(units))


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_chunks_batches_and_threads_change_no_bit(compiled, monkeypatch, family, kind):
    x, _, units, _ = family.some_units(kind, N=5)
    x = x.to(kind)
    kept, whole = x.clone(), family.compute(x, units)
    for images in (1, 2, 3):
        monkeypatch.setattr(chain, 'CHUNK_BYTES', images * family.most * 6 * 5 * kind.itemsize)
        assert torch.equal(family.compute(x, units), whole)
        assert torch.equal(torch.cat([family.compute(part, units) for part in x.split(2)]), whole)
    for threads in (1, 2, 3, 16):
        with use_threads(threads):
            assert torch.equal(family.compute(x, units), whole)
    assert torch.equal(x, kept)
    assert torch.equal(family.compute(x.contiguous(), units), whole)
    assert family.compute(x[:0], units).shape == (0, family.several[-1][1], 3, 3)


@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_large_maps_are_taken_by_bands_of_two_units(compiled, kind):
    """To the same bits as one unit after the other; the first two maps have more than a million numbers."""
    torch.manual_seed(0)
    geometries = [(15, 72, 5), (72, 20, 18, 3), (20, 200, 10), (200, 20, 20, 1, 2), (20, 24, 10)]
    units, _ = SPARSE.deployed([SPARSE.make(*shape) for shape in geometries], kind)
    assert 72 * 130 * 131 > 2 ** 20 < 200 * 130 * 131
    for some in (units[:2], units[2:]):
        given = image(2, some[0].depthwise.shape[-1], 130, 131, dtype=kind).to(kind)
        expected = given
        for unit in some:
            expected = SPARSE.compute(expected, [unit])
        for threads in (1, 2, 5):
            with use_threads(threads):
                assert torch.equal(SPARSE.compute(given, some), expected)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('kind', [torch.float32, torch.bfloat16])
def test_what_is_no_number_comes_through(compiled, family, value, kind):
    """And what is infinite, up to a ReLU6."""
    _, _, units, _ = family.some_units(kind)
    for (channels, *_), unit in zip(family.several, units, strict=True):
        x = torch.randn(2, channels, 9, 7).to(kind)
        x[1, 3, 2, 4] = value
        found, expected = family.compute(x, [unit]), family.reference(x, [unit])
        if math.isnan(value):
            assert found.isnan().any()
        elif not family.clips:
            assert not found.isfinite().all()
        torch.testing.assert_close(found, expected, rtol=2 ** -5, atol=2 ** -3 if kind is torch.bfloat16 else 1e-4, equal_nan=True)


MISFITS = [     # which unit, what to replace, and the message
    (INVERTED, 1, dict(expand_bias=torch.zeros(2, 2, 7)), r'unit 2: x has 6 channels, .*\(2, 2, 9\)'),
    (INVERTED, 0, dict(depthwise=torch.zeros(2, 2, 3, 2, 2)), r'unit 1: .*k odd'),
    (INVERTED, 0, dict(stride=0), 'unit 1: stride is 0 and dilation 1'),
    (INVERTED, 0, dict(residual=True), r"unit 1: x is \(3, 8, 12, 10\) and the output \(3, 6, 12, 10\); a residual unit's"),
    (SPARSE, 1, dict(bias=torch.zeros(7)), r'unit 2: x has 12 channels, .*\(20,\)'),
    (SPARSE, 0, dict(depthwise=torch.zeros(2, 3, 8)), r'unit 1: .*k odd'),
    (SPARSE, 0, dict(dilation=0), 'unit 1: stride is 1 and dilation 0'),
    (SPARSE, 0, dict(residual=True), r"unit 1: x is \(3, 8, 12, 10\) and the output \(3, 12, 12, 10\); a residual unit's"),
]


@pytest.mark.parametrize('family, number, fields, message', MISFITS)
def test_misfits_are_named(family, number, fields, message):
    x, _, units, _ = family.some_units()
    units[number] = units[number]._replace(**fields)
    with pytest.raises(ValueError, match=f'^{family.kind}_units, {message}'):
        family.compute(x.float(), units)


def test_there_must_be_units_and_channels_for_them(family):
    x, _, units, _ = family.some_units()
    x = x.float()
    with pytest.raises(ValueError, match=f'^{family.kind}_units: there is no unit'):
        family.compute(x, [])
    with pytest.raises(ValueError, match=r'unit 1: x has 6 channels, .*; they must be 8 and'):
        family.compute(x[:, :6], units)


def test_a_map_without_channels_between_units_leaves_the_bias(compiled):
    bias = torch.arange(6.)
    units = [sparse.SparseUnit(torch.randn(3, 3, 4), torch.randn(0, 2, 2, 2), torch.randn(2, 2, 0), torch.zeros(0), 1, 1, False),
             sparse.SparseUnit(torch.randn(3, 3, 0), torch.randn(0, 2, 0, 0), torch.randn(2, 0, 3), bias, 1, 1, False)]
    assert torch.equal(sparse.sparse_units(torch.randn(1, 4, 5, 5), units), bias.view(1, 6, 1, 1).expand(1, 6, 5, 5))


# As an operator of torch ----------------------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings('ignore:The .grad attribute:UserWarning')     # opcheck itself reads it
def test_the_operator_is_well_formed(compiled, family):
    x, _, units, _ = family.some_units(N=2, H=4, W=3)
    tensors, numbers = chain.pack(units[:1])
    operator = getattr(torch.ops.igczoo, f'{family.kind}_units').default
    for gradients in (list, require_grad):
        torch.library.opcheck(operator, (*gradients([x.float()]), gradients(tensors), numbers))


def test_gradients_are_those_of_the_reference(compiled, family):
    x, _, units, _ = family.some_units()
    tensors, numbers = chain.pack(units)
    grads = []
    for compute in (family.compute, family.reference):
        x_and_tensors = require_grad([x.float(), *tensors])
        compute(x_and_tensors[0], chain.unpack(family.unit_type, x_and_tensors[1:], numbers)).square().sum().backward()
        grads.append([tensor.grad for tensor in x_and_tensors if tensor.numel()])       # nothing is between a unit's layers if they are two
    for found, expected in zip(*grads, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated:FutureWarning')      # torch's own, at its first use
def test_transforms(compiled, family):
    x, _, units, _ = family.some_units(N=2)
    x, tangent = x.float(), torch.randn(2, 8, 12, 10)
    found, expected = (torch.func.jvp(lambda x, compute=compute: compute(x, units), (x,), (tangent,))
                       for compute in (family.compute, family.reference))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


def test_multiply_adds_are_counted(compiled, family):
    x, _, units, _ = family.some_units()
    counts = []
    for compute in (family.compute, family.reference):
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


NETS = [    # and how many units they have
    ('igcv3_100', {}, 32), ('igcv3_075', dict(output_stride=8), 32), ('igcv3_050', dict(in_chans=1), 32),
    ('igcv3_025', dict(width=.35), 32), ('igcv3_100_cifar', {}, 32),
    ('igcv2_100', {}, 13), ('igcv2_050', dict(output_stride=8), 13), ('igcv2_025', dict(in_chans=1), 13), ('igcv2_20_c64', {}, 18),
]


@torch.inference_mode()
@pytest.mark.parametrize('name, options, units', NETS)
def test_whole_nets(compiled, name, options, units):
    model = net(name, **options)
    fast = igczoo.deploy(model)
    assert list(forms_used(fast).values()) == ['fused'] * units
    assert not any(isinstance(part, torch.nn.BatchNorm2d) for part in fast.modules())
    x = torch.randn(2, options.get('in_chans', 3), 48, 33)
    expected, features = copy.deepcopy(model).double()(x.double()), model.forward_intermediates(x, intermediates_only=True)
    spread = expected.amax() - expected.amin()
    assert (fast(x) - expected).abs().max() < 1e-4 * spread
    for found, feature in zip(fast.forward_intermediates(x, intermediates_only=True), features, strict=True):
        torch.testing.assert_close(found, feature, rtol=1e-3, atol=1e-4 * feature.abs().max().item())
    assert count_macs(fast, x.shape[1:]) == count_macs(model, x.shape[1:])


@torch.inference_mode()
def test_bfloat16_and_autocast(compiled, family):
    model, x = net(family.net), torch.randn(2, 3, 64, 64)
    expected = model(x)
    spread = expected.amax() - expected.amin()
    fast = igczoo.deploy(copy.deepcopy(model).bfloat16())
    assert set(forms_used(fast).values()) == {'fused'}
    assert (fast(x.bfloat16()) - expected).abs().max() < .15 * spread
    with torch.autocast('cpu', torch.bfloat16):
        assert (igczoo.deploy(model)(x) - expected).abs().max() < .15 * spread


@torch.inference_mode()
def test_forms(compiled, monkeypatch, family):
    model, x = net(family.net), torch.randn(1, 3, 32, 32)
    portable = igczoo.deploy(model, portable=True)
    assert set(forms_used(portable).values()) == {family.portable}
    assert not any(isinstance(part, DeployedUnits) for part in portable.modules())
    assert set(forms_used(igczoo.deploy(net(family.net, act_layer=family.activation))).values()) == {family.portable}
    assert set(forms_used(igczoo.deploy(copy.deepcopy(model).double())).values()) == {family.portable}
    monkeypatch.setattr(bench, 'deploy', lambda model, example=None, portable=False: igczoo.deploy(model, portable=portable))
    forms = {candidate.form: candidate.layers for candidate in bench.candidates(family.net, x, onnx=False)}
    assert set(forms['deployed'].values()) == {'fused'} and set(forms['deployed, portable'].values()) == {family.portable}
    model.prune_intermediate_layers([1])        # the second stage is the last of the second reduction
    model.eval()
    fast, expected = [igczoo.deploy(model), igczoo.deploy(model, portable=True), igczoo.deploy(model, x)], model(x)
    for each in fast:
        assert len(forms_used(each)) == family.stages_kept
        torch.testing.assert_close(each(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


@pytest.mark.parametrize('name, pattern', [
    *(('igcv3_025', pattern) for pattern in ('stages', 'stages.1', 'stages.1.0', 'stages.2.5', 'stem', 'final.conv')),
    *(('igcv2_025', pattern) for pattern in ('stages', 'stages.1', 'stages.1.0', 'stem')),
])
def test_hooks_fire_and_change_nothing(compiled, name, pattern):
    fast, x, heard = igczoo.deploy(net(name)), torch.randn(2, 3, 64, 64), []
    expected = fast(x)
    fast.get_submodule(pattern).register_forward_hook(lambda module, args, output: heard.append(output))
    torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-5)
    assert len(heard) == 1 and heard[0].ndim == 4


def test_as_a_backbone_and_compiled(compiled, family):
    model, x = net(family.net, features_only=True), torch.randn(2, 3, 64, 64)
    fast = igczoo.deploy(model)
    torch.compiler.reset()
    with torch.no_grad():
        for found in (fast(x), torch.compile(fast, fullgraph=True, backend='aot_eager')(x)):
            for one, other in zip(found, model(x), strict=True):
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * other.abs().max().item())


def test_exported(compiled, family):
    fast, x = igczoo.deploy(net(family.net)), torch.randn(2, 3, 64, 64)
    program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
    assert f'igczoo.{family.kind}_units' in str(program.graph)
    more = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(program.module()(more), fast(more))
    fast.prune_intermediate_layers([1])
    assert isinstance(fast.stages, DeployedUnits) and len(fast.stages) == 2


def test_without_a_kernel(monkeypatch, family):
    monkeypatch.setattr(kernels, '_kernels', {})
    monkeypatch.setattr(kernels, 'load', lambda build, dtype=torch.float32: False)
    x, _, fast, exact = family.some_units()
    assert_close(family.compute(x.float(), fast), family.reference(x, exact), len(fast))
    assert set(forms_used(igczoo.deploy(net(family.net))).values()) == {family.portable}
