"""IGCV2 and IGCV3 by kernels compute the nets they wrap: outputs, gradients and running statistics."""
import copy

import pytest
import timm
import torch
from batch_norms import randomise
from timm.layers import DropPath
from torch import nn

from igczoo.nets.igcv2 import IGCV2, SparseConv2d
from igczoo.nets.igcv3 import CIFAR_STRIDES, IGCV3, InvertedUnit
from igczoo.training import fused
from igczoo.training.forms import training_form
from igczoo.training.igcv2 import FusedIGCV2
from igczoo.training.igcv3 import FusedIGCV3
from igczoo.training.planar import PlanarIGCNet

EXACT = dict(rtol=1e-10, atol=1e-10)
FORMS = {IGCV2: FusedIGCV2, IGCV3: FusedIGCV3}
SPARSE = dict(stem_width=16, widths=(16, 32, 48), depths=(1, 2, 2), strides=(1, 1, 2, 2), shortcuts=True)
SETTINGS = {
    'IGCV2': (IGCV2, SPARSE), 'IGCV2, dilation': (IGCV2, SPARSE | dict(output_stride=2)),
    'IGCV2, wide groups': (IGCV2, dict(stem_width=16, widths=(32, 256, 256), depths=(1, 1, 2), strides=(2, 1, 2, 1), groups=4)),
    'IGCV3': (IGCV3, dict(width=.25, strides=CIFAR_STRIDES)), 'IGCV3, dilation': (IGCV3, dict(width=.25, output_stride=8)),
    'IGCV3, a long stride': (IGCV3, dict(width=.25, strides=(1, 1, 9, 1, 1, 1, 1, 1))),
}
FAMILIES = pytest.mark.parametrize('settings', ['IGCV2', 'IGCV3'])


@pytest.fixture(autouse=True)
def few_images_at_a_time(monkeypatch):
    if reason := fused.why_not(torch.float64):
        pytest.skip(reason)
    monkeypatch.setattr(fused, 'CHUNK_BYTES', 20_000)


def make_pair(settings, **kwargs):
    torch.manual_seed(0)
    family, arguments = SETTINGS[settings]
    net = family(num_classes=5, dtype=torch.float64, **arguments, **kwargs)
    randomise(net)
    return net, copy.deepcopy(net)


def form_of(net):
    return FORMS[type(net)](net)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('settings', SETTINGS)
def test_it_equals_the_net(settings, train, monkeypatch):
    net, twin = make_pair(settings)
    blocks = []
    monkeypatch.setattr(fused, 'block', lambda *arguments, block=fused.block: (blocks.append(arguments), block(*arguments))[1])
    x, target = torch.randn(3, 3, 21, 18, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    outputs = net.train(train)(x), form_of(twin.train(train))(x)
    for output in outputs:
        (output * target).sum().backward()
    units = sum(isinstance(module, InvertedUnit) or (isinstance(module, SparseConv2d) and module.is_narrow()) for module in net.modules())
    assert len(blocks) == units + 1 + (not isinstance(net.final, nn.Identity))      # the stem, and the final convolution
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)
    for (key, expected), found in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, **EXACT, msg=f'{key} differs')
    for (key, expected), found in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, **EXACT, msg=f'{key} differs')


@FAMILIES
def test_images_may_want_gradients_and_nets_be_cut_short(settings):
    net, twin = make_pair(settings)
    for it in (net, twin):
        it.prune_intermediate_layers(3)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    grads = []
    for form in (net, form_of(twin)):
        images = x.clone().requires_grad_()
        form.forward_features(images).square().sum().backward()
        grads.append(images.grad)
    torch.testing.assert_close(grads[1], grads[0], **EXACT)


@FAMILIES
def test_images_may_be_one_pixel_wide(settings):
    net, twin = make_pair(settings)
    x, grads = torch.randn(3, 3, 6, 1, dtype=torch.float64), []
    for form in (net, form_of(twin)):
        form(x).square().sum().backward()
        grads.append([parameter.grad for parameter in form.parameters()])
    torch.testing.assert_close(grads[1], grads[0], **EXACT)


@FAMILIES
def test_no_images_give_no_logits(settings):
    net, _ = make_pair(settings)
    assert form_of(net.eval())(torch.empty(0, 3, 9, 9, dtype=torch.float64)).shape == (0, 5)


@FAMILIES
def test_stochastic_depth_is_kept(settings):
    net, twin = make_pair(settings, drop_path_rate=.5)
    assert any(isinstance(module, DropPath) for module in net.modules())
    x, outputs = torch.randn(4, 3, 9, 9, dtype=torch.float64), []
    for form in (net, form_of(twin)):
        torch.manual_seed(1)
        outputs.append(form(x))
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)


@FAMILIES
def test_without_a_compiler_all_is_computed_by_torch(settings, monkeypatch):
    monkeypatch.setattr(fused, '_library', lambda dtype: (None, 'no C++ compiler found'))
    net, twin = make_pair(settings)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(form_of(twin)(x), net(x), **EXACT)


@FAMILIES
def test_what_it_cannot_wrap_is_refused(settings):
    net, _ = make_pair(settings, norm_layer='layernorm2d')
    with pytest.raises(ValueError, match=rf'Fused{settings}: stem\.bn is LayerNorm2d.*; it must be BatchNorm2d'):
        form_of(net)
    net, _ = make_pair(settings)
    net.set_grad_checkpointing()
    with pytest.raises(ValueError, match=f'Fused{settings}: the net has gradient checkpointing on'):
        form_of(net)


@pytest.mark.parametrize(('name', 'form'), [
    ('igc_resnet20_l24m2', PlanarIGCNet), ('igcv2_14_c64', FusedIGCV2), ('igcv3_025_cifar', FusedIGCV3), ('igc_regconv20_w16', None),
    ('resnet18', None)])
def test_each_net_trains_in_its_fastest_form(name, form):
    net = timm.create_model(name)
    found = training_form(net, torch.device('cpu'))
    assert found is net if form is None else type(found) is form and found.net is net
    assert training_form(net, torch.device('cuda')) is net
