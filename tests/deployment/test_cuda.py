"""On a GPU: shapes and devices by torch's fake tensors, which need none, and outputs where there is one."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from test_deployment import NETS, make
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.func import functional_call

import igczoo
from igczoo.deployment.deploy import forms_used
from igczoo.deployment.forms import FORMS
from igczoo.training.forms import as_written, planar_by_torch
from igczoo.training.planar import PlanarIGCNet, has_igc_layers


def on_gpu(value: torch.Tensor, mode: FakeTensorMode, dtype: torch.dtype = torch.float32) -> FakeTensor:
    # no gradients and not by to('cuda'): older versions of torch ask the driver then
    return FakeTensor(mode, value.detach().to('meta', dtype if value.is_floating_point() else None), torch.device('cuda:0'))


def run_fake(net: nn.Module, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    """What the net returns for images on a GPU; raises where a tensor is on another device."""
    mode = FakeTensorMode()
    state = {name: on_gpu(value, mode, dtype) for name, value in [*net.named_parameters(), *net.named_buffers()]}
    x = on_gpu(torch.empty(shape).to(memory_format=torch.channels_last), mode, dtype)
    with mode:
        return functional_call(net, state, (x,))


def fakes_need_a_driver() -> bool:
    """Whether this version of torch asks the driver how to convolve channels (2.6 does)."""
    mode = FakeTensorMode()
    x, weight = on_gpu(torch.empty(1, 8, 8, 8), mode), on_gpu(torch.empty(8, 1, 3, 3), mode)
    try:
        with mode:
            F.conv2d(x, weight, groups=8)
    except RuntimeError as error:
        return 'driver' in str(error)
    return False


if not torch.cuda.is_available() and fakes_need_a_driver():
    pytest.skip('fake tensors need a driver', allow_module_level=True)


def check(fake: FakeTensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32):
    assert (type(fake), fake.device.type, tuple(fake.shape), fake.dtype) == (FakeTensor, 'cuda', shape, dtype)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('portable', [True, False])
@pytest.mark.parametrize('name', NETS)
def test_a_deployed_net_moves(name, portable, dtype):
    """Deployed where the fused kernel serves, its layers serve elsewhere too."""
    check(run_fake(igczoo.deploy(make(name, torch.float32), portable=portable), (2, 3, 32, 24), dtype), (2, 5), dtype)


@pytest.mark.parametrize('form', FORMS)
def test_every_form_moves(form, monkeypatch):
    monkeypatch.setattr('igczoo.deployment.deploy.by_rule', lambda conv, layer, portable: form)
    fast = igczoo.deploy(make('L doubles, M = 2' if form in ('fused', 'planar') else 'M above L', torch.float32))
    assert set(forms_used(fast).values()) == {form}
    check(run_fake(fast, (2, 3, 32, 24)), (2, 5))


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('name', NETS)
def test_a_net_and_its_planar_form_run(name, training):
    net = make(name, torch.float32).train(training)
    check(run_fake(net, (2, 3, 32, 24)), (2, 5))
    if has_igc_layers(net):
        check(run_fake(PlanarIGCNet(net), (2, 3, 32, 24)), (2, 5))


def test_features():
    net = timm.create_model('igcnet18', features_only=True).eval()
    for model in (net, igczoo.deploy(net)):
        shapes = [tuple(map.shape) for map in run_fake(model, (2, 3, 224, 224))]
        assert shapes == [(2, 100, 112, 112), (2, 200, 56, 56), (2, 400, 28, 28), (2, 800, 14, 14), (2, 1600, 7, 7)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', NETS)
def test_outputs_are_equal(name):
    net = make(name)
    x = torch.randn(3, 3, 32, 24, dtype=torch.float64)
    want = net(x)
    net.cuda()
    for model in (net, igczoo.deploy(net), igczoo.deploy(net, x.cuda())):
        torch.testing.assert_close(model(x.cuda()).cpu(), want, rtol=1e-10, atol=1e-10)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
@pytest.mark.parametrize('name', NETS)
def test_training_steps_are_equal(name):
    """Gradients and running statistics of the net and of its planar form, on a GPU and on the CPU."""
    net = make(name, drop_rate=0.).train()
    x, target = torch.randn(3, 3, 32, 24, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    twins = [(copy.deepcopy(net).cuda(), form) for form in (as_written, planar_by_torch)]
    (net(x) * target).sum().backward()
    for twin, form in twins:
        (form(twin, x.cuda().device)(x.cuda()) * target.cuda()).sum().backward()
        for (key, expected), found in zip(net.named_parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(found.grad.cpu(), expected.grad, rtol=1e-8, atol=1e-8, msg=f'{key} differs')
        for (key, expected), found in zip(net.named_buffers(), twin.buffers(), strict=True):
            torch.testing.assert_close(found.cpu(), expected, rtol=1e-10, atol=1e-10, msg=f'{key} differs')
