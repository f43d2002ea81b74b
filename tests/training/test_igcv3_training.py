"""IGCV3 by kernels computes the net it wraps: outputs, gradients and running statistics."""
import copy

import pytest
import torch
from batch_norms import randomise
from timm.layers import DropPath

from igczoo.nets.igcv3 import IGCV3
from igczoo.training import fused
from igczoo.training.inverted import FusedIGCV3

EXACT = dict(rtol=1e-10, atol=1e-10)
SMALL, DILATED = dict(strides=(1, 1, 1, 2, 2, 1, 1, 1)), dict(output_stride=8)


@pytest.fixture(autouse=True)
def few_images_at_a_time(monkeypatch):
    if reason := fused.why_not(torch.float64):
        pytest.skip(reason)
    monkeypatch.setattr(fused, 'CHUNK_BYTES', 20_000)


def make_pair(**kwargs):
    torch.manual_seed(0)
    net = IGCV3(.25, num_classes=5, dtype=torch.float64, **kwargs)
    randomise(net)
    return net, copy.deepcopy(net)


@pytest.mark.parametrize('train', [True, False], ids=['training', 'evaluation'])
@pytest.mark.parametrize('settings', [SMALL, DILATED], ids=['strides', 'dilation'])
def test_it_equals_the_net(settings, train, monkeypatch):
    net, twin = make_pair(**settings)
    calls = []
    monkeypatch.setattr(fused, '_run', lambda dtype, name, *rest, run=fused._run: (calls.append(name), run(dtype, name, *rest)))
    x, target = torch.randn(3, 3, 21, 18, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    outputs = net.train(train)(x), FusedIGCV3(twin.train(train))(x)
    for output in outputs:
        (output * target).sum().backward()
    assert calls.count('igc_primary_weight') >= 34      # of each unit
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)
    for (key, expected), found in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, **EXACT, msg=f'{key} differs')
    for (key, expected), found in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, **EXACT, msg=f'{key} differs')


def test_images_may_want_gradients_and_nets_be_cut_short():
    net, twin = make_pair(**SMALL)
    for it in (net, twin):
        it.prune_intermediate_layers(3)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    grads = []
    for form in (net, FusedIGCV3(twin)):
        images = x.clone().requires_grad_()
        form.forward_features(images).square().sum().backward()
        grads.append(images.grad)
    torch.testing.assert_close(grads[1], grads[0], **EXACT)


def test_stochastic_depth_is_kept():
    net, twin = make_pair(**SMALL, drop_path_rate=.5)
    assert any(isinstance(module, DropPath) for module in net.modules())
    x, outputs = torch.randn(4, 3, 9, 9, dtype=torch.float64), []
    for form in (net, FusedIGCV3(twin)):
        torch.manual_seed(1)
        outputs.append(form(x))
    torch.testing.assert_close(outputs[1], outputs[0], **EXACT)


def test_without_a_compiler_all_is_computed_by_torch(monkeypatch):
    monkeypatch.setattr(fused, '_library', lambda dtype: (None, 'no C++ compiler found'))
    net, twin = make_pair(**SMALL)
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    torch.testing.assert_close(FusedIGCV3(twin)(x), net(x), **EXACT)


def test_what_it_cannot_wrap_is_refused():
    with pytest.raises(ValueError, match=r'FusedIGCV3: stem\.bn is LayerNorm2d; it must be BatchNorm2d'):
        FusedIGCV3(IGCV3(norm_layer='layernorm2d'))
    net, _ = make_pair()
    net.set_grad_checkpointing()
    with pytest.raises(ValueError, match='gradient checkpointing'):
        FusedIGCV3(net)
