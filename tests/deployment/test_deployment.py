"""A deployed model computes what the original does, in every form of its layers, and is a model like the original."""
import copy
import warnings

import pytest
import timm
import torch
from batch_norms import randomise
from timm.utils import reparameterize_model
from torch import nn

import igczoo
from igczoo.deployment import deploy as deployment
from igczoo.deployment import kernels
from igczoo.deployment.deploy import forms_used
from igczoo.deployment.forms import FORMS
from igczoo.nets.igcnet import IGCNet
from igczoo.nets.layers import IGConv2d

NETS = {
    'L doubles, M = 2': dict(stem='imagenet', stem_width=6, widths=(12, 24, 48), primary=(6, 12, 24), depths=(2, 1, 2)),
    'L kept, M doubles to 8': dict(stem='cifar', stem_width=20, widths=(20, 40, 80), primary=(10, 10, 10), depths=(1, 2, 1)),
    'M = 3': dict(stem='cifar', stem_width=12, widths=(12, 24), primary=(4, 4), depths=(2, 1)),
    'M = 1': dict(stem='cifar', stem_width=6, widths=(6, 6), primary=(6, 6), depths=(1, 1)),
    'M above L': dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(2, 2), depths=(2, 1)),
    'L = 1': dict(stem='cifar', stem_width=4, widths=(4, 8), primary=(1, 1), depths=(1, 1)),
    'from more planes than channels to fewer': dict(stem='cifar', stem_width=12, widths=(12, 24), primary=(3, 12), depths=(1, 1)),
    'another L that does not fit': dict(stem='cifar', stem_width=12, widths=(12, 36), primary=(6, 4), depths=(1, 1)),
    'plain': dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(2, 2), shortcuts=False),
    'dilated': dict(stem='cifar', stem_width=8, widths=(8, 16, 32), primary=(4, 4, 4), depths=(1, 1, 1), output_stride=2),
    'regular convolutions': dict(stem='imagenet', stem_width=8, widths=(8, 16), primary=None, depths=(2, 1)),
    'another activation': dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(1, 1), act_layer='gelu'),
}
EXACT = dict(rtol=1e-10, atol=1e-10)


def make(name: str, dtype=torch.float64, **kwargs) -> IGCNet:
    torch.manual_seed(0)
    net = IGCNet(**(NETS[name] | dict(num_classes=5, drop_rate=.3) | kwargs), dtype=dtype).eval()
    randomise(net)
    return net


def images(*shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*(shape or (3, 3, 32, 24)), dtype=dtype)


@pytest.fixture(params=NETS)
def net(request):
    return make(request.param)


def test_outputs_are_equal_and_the_original_is_untouched(net):
    before, x = copy.deepcopy(net.state_dict()), images()
    fast = igczoo.deploy(net)
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), **EXACT)
        torch.testing.assert_close(fast.forward_features(x), net.forward_features(x), **EXACT)
        torch.testing.assert_close(fast.forward_head(net.forward_features(x), pre_logits=True),
                                   net.forward_head(net.forward_features(x), pre_logits=True), **EXACT)
        for outputs in zip(fast.forward_intermediates(x, intermediates_only=True), net.forward_intermediates(x, intermediates_only=True),
                           strict=True):
            torch.testing.assert_close(*outputs, **EXACT)
    assert type(net.stages[0][0]) is not type(fast.stages[0])
    for key, value in net.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_nothing_slow_is_left(net):
    left = {type(module) for module in igczoo.deploy(net).modules()}
    assert not left & {nn.BatchNorm2d, nn.Dropout, IGConv2d}


def test_timm_reparameterises_to_the_same(net):
    x, same = images(), reparameterize_model(net)
    assert type(same.stages) is deployment.DeployedStages
    assert not any(isinstance(module, nn.BatchNorm2d) for module in same.modules())
    with torch.no_grad():
        torch.testing.assert_close(same(x), net(x), **EXACT)
        torch.testing.assert_close(same(x), igczoo.deploy(net)(x), rtol=0, atol=0)


@pytest.mark.parametrize('form', FORMS)
@pytest.mark.parametrize('name', ['L doubles, M = 2', 'L kept, M doubles to 8', 'M = 3', 'M above L', 'dilated'])
def test_every_form_is_exact(name, form, monkeypatch):
    def forms_of(layer, portable):
        serves = form in possible(layer, portable) or (form == 'fused' and layer.planar)     # which in float64 is no kernel, but exact
        return [form] if serves else possible(layer, portable)

    possible = deployment.forms_of
    monkeypatch.setattr(deployment, 'forms_of', forms_of)
    net, x = make(name), images()
    fast = igczoo.deploy(net)
    if form not in forms_used(fast).values():
        pytest.skip(f'{form} serves the other order of channels')
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), **EXACT)


def test_forms_chosen_by_measurement_are_the_fastest(monkeypatch):
    class Slow(FORMS['planar']):
        def forward(self, x):
            for _ in range(100):
                y = super().forward(x)
            return y

    net, x = make('L doubles, M = 2'), images()
    by_rule = forms_used(igczoo.deploy(net, portable=True))
    assert set(by_rule.values()) == {'planar'} and len(by_rule) == 10
    monkeypatch.setitem(FORMS, 'planar', Slow)
    fast = igczoo.deploy(net, x, portable=True)
    assert set(forms_used(fast).values()) == {'dense'}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), **EXACT)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize(('features', 'dtype', 'form'), [
    ('flags : avx512f amx_bf16 amx_tile', torch.bfloat16, 'planar'), ('flags : avx512f amx_bf16 amx_tile', torch.float32, 'fused'),
    ('flags : avx512f avx512_bf16', torch.bfloat16, 'fused'), ('', torch.bfloat16, 'fused')])
def test_the_rule_where_torch_outruns_the_kernel(compiled, monkeypatch, features, dtype, form):
    """PyTorch's products of bfloat16 by AMX are faster than the kernel's, which serve on other processors and for float32."""
    monkeypatch.setattr(kernels, 'cpu_features', lambda: features)
    net = make('L doubles, M = 2', dtype=dtype)
    fast = igczoo.deploy(net)
    assert set(forms_used(fast).values()) == {form}
    assert set(forms_used(igczoo.deploy(net, portable=True)).values()) == {'planar'}
    x = images(dtype=dtype)
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(fast(x), expected, rtol=0, atol=(.05 if dtype is torch.bfloat16 else 1e-4) * expected.abs().max().item())


@pytest.mark.parametrize('options', [dict(num_classes=0), dict(in_chans=1), dict(global_pool='max'), dict(global_pool='catavgmax'),
                                     dict(num_classes=0, global_pool='')])
def test_other_heads_and_inputs(options):
    net = make('L kept, M doubles to 8', **options)
    fast = igczoo.deploy(net)
    with torch.no_grad():
        for shape in ((1, 16, 16), (2, 33, 47), (5, 8, 8)):
            x = images(shape[0], net.in_chans, *shape[1:])
            for memory_format in (torch.contiguous_format, torch.channels_last):
                torch.testing.assert_close(fast(x.contiguous(memory_format=memory_format)), net(x), **EXACT)


@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'getter'])
@pytest.mark.parametrize('model', ['igc_resnet20_l24m2', 'igcnet18', 'igc_resnet20_l4m8', 'igcv2_20_c64', 'igcv2_025', 'igcv3_025'])
def test_features_only(model, feature_cls):
    net = timm.create_model(model, features_only=True, feature_cls=feature_cls, out_indices=(0, 1, 2)).double().eval()
    randomise(net)
    fast, x = igczoo.deploy(net), images(1, 3, 32, 32)
    assert fast.feature_info.channels() == net.feature_info.channels()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.modules())
    with torch.no_grad():
        found, expected = fast(x), net(x)
    if feature_cls == 'dict':
        assert list(found) == list(expected)
        found, expected = list(found.values()), list(expected.values())
    for outputs in zip(found, expected, strict=True):
        torch.testing.assert_close(*outputs, **EXACT)


def test_float32_and_bfloat16_are_close(net):
    x = images()
    with torch.no_grad():
        expected = net(x)
        spread = (expected.amax() - expected.amin()).item()
        assert (igczoo.deploy(net.float())(x.float()) - expected).abs().max() < 1e-4 * spread
        assert (igczoo.deploy(net.bfloat16())(x.bfloat16()) - expected).abs().max() < .1 * spread
        with torch.autocast('cpu', torch.bfloat16):
            assert (igczoo.deploy(net.float())(x.float()) - expected).abs().max() < .1 * spread


def test_it_is_a_model_like_the_original():
    net = timm.create_model('igc_resnet20_l24m2', num_classes=7).eval()
    randomise(net)
    fast, x = igczoo.deploy(net), images(2, 3, 32, 32, dtype=torch.float32)
    assert fast.pretrained_cfg == net.pretrained_cfg and (fast.num_classes, fast.num_features) == (7, 192)
    with torch.no_grad():
        other = igczoo.deploy(timm.create_model('igc_resnet20_l24m2', num_classes=7).eval())
        assert not torch.equal(other(x), fast(x))
        other.load_state_dict(fast.state_dict())
        torch.testing.assert_close(other(x), fast(x), rtol=0, atol=0)
        assert fast.prune_intermediate_layers([1]) == [1] and len(fast.stages) == 1
        fast.reset_classifier(0, 'avg')
        expected = net.forward_intermediates(x, [1], intermediates_only=True)[0].mean((2, 3))
        torch.testing.assert_close(fast(x), expected, rtol=1e-4, atol=1e-4)


def test_gradients_reach_the_image():
    net, x = make('L doubles, M = 2'), images().requires_grad_()
    gradients = [torch.autograd.grad(model(x).square().sum(), x)[0] for model in (net, igczoo.deploy(net))]
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize('portable', [True, False])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float64])
def test_compile_and_export(portable, dtype):
    net = make('L doubles, M = 2', dtype)
    fast, x = igczoo.deploy(net, portable=portable), images(2, 3, 32, 32, dtype=dtype)
    tolerance = EXACT if dtype == torch.float64 else dict(rtol=1e-4, atol=1e-4)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')     # of torch about itself
        torch.testing.assert_close(torch.compile(fast, fullgraph=True, backend='aot_eager')(x), net(x), **tolerance)
        program = torch.export.export(fast, (x,), dynamic_shapes=({0: torch.export.Dim('batch', min=1, max=64)},))
        more = images(5, 3, 32, 32, dtype=dtype)
        torch.testing.assert_close(program.module()(more), net(more), **tolerance)
    operators = {str(node.target) for node in program.graph.nodes if node.op == 'call_function'}
    assert not (portable and any('igczoo' in operator for operator in operators))
    assert not any('batch_norm' in operator or 'dropout' in operator for operator in operators)


def test_what_cannot_be_deployed_is_refused():
    net = make('M = 3')
    with pytest.raises(ValueError, match='is in training mode; call eval'):
        igczoo.deploy(make('M = 3').train())
    with pytest.raises(ValueError, match=r'stages\.0\.1 is in training mode'):
        half = make('M = 3')
        half.stages[0][1].training = True
        igczoo.deploy(half)
    with pytest.raises(ValueError, match='has no IGC stages, or has been deployed before'):
        igczoo.deploy(igczoo.deploy(net))
    with pytest.raises(ValueError, match='ResNet has no IGC stages'):
        igczoo.deploy(timm.create_model('resnet10t').eval())
    with pytest.raises(ValueError, match=r'stem\.bn is GroupNorm.*; it must be BatchNorm2d'):
        igczoo.deploy(make('M = 3', stem_width=32, widths=(32, 64), norm_layer='groupnorm'))
    with pytest.raises(ValueError, match=r'stages\.1 has forward hooks'):
        net.stages[1].register_forward_hook(print)
        igczoo.deploy(net)
    with pytest.raises(ValueError, match='has forward hooks'):
        igczoo.deploy(timm.create_model('igc_resnet20_l4m8', features_only=True, feature_cls='hook').eval())
