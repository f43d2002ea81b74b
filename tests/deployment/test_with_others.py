"""A deployed net under torch's transforms and counters, with hooks, and made of nets as others' tools leave them."""
import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from batch_norms import randomise
from timm.utils import freeze, reparameterize_model
from torch.utils.flop_counter import FlopCounterMode

import igczoo
from igczoo.checkpoints.model_card import count_macs
from igczoo.deployment.deploy import forms_used

SMALL = dict(stem_width=20, widths=(40, 80), primary=(20, 40), depths=(2, 1), num_classes=5)
NAMES = 'igcnet18', 'igc_resnet20_l24m2'


@pytest.fixture(params=NAMES)
def net(request, compiled):
    torch.manual_seed(0)
    net = timm.create_model(request.param, **(SMALL if request.param == 'igcnet18' else dict(num_classes=5)))
    randomise(net)
    return net.eval()


@pytest.fixture
def fast(net):
    fast = igczoo.deploy(net)
    assert set(forms_used(fast).values()) == {'fused'}
    return fast


def images(n=2, size=32):
    return torch.randn(n, 3, size, size)


def close(found, expected):
    scale = expected.detach().abs().max().item()
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * scale)


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated:FutureWarning')      # torch's own, at its first use
def test_forward_mode(net, fast):
    x, tangent = images(), images()
    expected, found = (torch.func.jvp(model, (x,), (tangent,)) for model in (net, fast))
    assert expected[1].abs().max() > 0
    close(found[0], expected[0])
    close(found[1], expected[1])


@pytest.mark.filterwarnings('ignore:`torch.jit.script` is deprecated:FutureWarning')
def test_dual_numbers(net, fast):
    x, tangent = images(), images()
    with torch.autograd.forward_ad.dual_level():
        expected, found = (torch.autograd.forward_ad.unpack_dual(model(torch.autograd.forward_ad.make_dual(x, tangent))).tangent
                           for model in (net, fast))
    close(found, expected)


@pytest.mark.filterwarnings('ignore:There is a performance drop:UserWarning')      # torch's own, of memory formats
def test_vmap(net, fast):
    x = images(6).view(3, 2, 3, 32, 32)
    close(torch.func.vmap(fast)(x), torch.func.vmap(net)(x))


def test_gradients_and_jacobians(net, fast):
    x = images(1, 16)
    close(*(torch.func.grad(lambda x, model=model: model(x).square().sum())(x) for model in (fast, net)))
    close(*(torch.func.jacrev(model)(x) for model in (fast, net)))


@pytest.mark.filterwarnings('ignore:Skipping serialization of:UserWarning')     # PyTorch 2.6 says so of settings of its own
def test_compiled_under_autocast(net, fast):
    x = images()
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        eager, compiled, plain = fast(x), torch.compile(fast)(x), net(x)
    assert eager.dtype == compiled.dtype == plain.dtype == torch.bfloat16
    spread = (plain.max() - plain.min()).float()
    assert (compiled.float() - eager.float()).abs().max() < .05 * spread
    assert (plain.float() - eager.float()).abs().max() < .1 * spread


@pytest.mark.parametrize('shape', [(2, 3, 0, 32), (2, 3, 32, 0)])
def test_images_without_pixels_are_the_plain_nets_error(net, fast, shape):
    errors = []
    for model in (net, fast):
        with pytest.raises(RuntimeError) as caught:
            model(torch.randn(shape))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


@pytest.mark.parametrize('name', NAMES)
def test_multiply_adds_are_counted(compiled, name):
    net = timm.create_model(name).eval()
    size = net.pretrained_cfg['input_size']
    assert count_macs(igczoo.deploy(net), size) == count_macs(igczoo.deploy(net, portable=True), size) == count_macs(net, size)


def test_multiply_adds_of_one_operator(compiled):
    x, primary, secondary, bias = torch.randn(2, 40, 7, 6), torch.randn(3, 2, 3, 3, 20), torch.randn(3, 20, 20), torch.randn(3, 20)
    counts = []
    for compute in (igczoo.deployment.kernels.unit, igczoo.deployment.kernels.torch_unit):
        with FlopCounterMode(display=False) as counter:
            compute(x, primary, secondary, bias, None, True, 2)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 2 * 4 * 3 * 3 * 20 * (2 * 9 + 20)


@pytest.mark.parametrize('pattern', ['layer1', 'layer2', 'shortcut', 'stages', 'stages.1', 'stem', 'stem.conv', 'stages.0.blocks.1'])
def test_hooks_fire_and_change_nothing(net, fast, pattern):
    x, heard = images(), []
    expected = fast(x)
    names = [name for name, _ in fast.named_modules() if name == pattern or name.endswith(f'.{pattern}')]
    assert names
    for name in names:
        fast.get_submodule(name).register_forward_hook(lambda module, args, output, name=name: heard.append((name, output)))
    close(fast(x), expected)
    assert sorted(name for name, _ in heard) == sorted(names) and all(output.ndim == 4 for _, output in heard)


def test_gradients_reach_a_hook(fast):
    heard = []
    block = fast.stages[-1].blocks[-1]
    block.register_forward_hook(lambda module, args, output: heard.append(output.requires_grad_()))
    logits = fast(images())
    gradient, = torch.autograd.grad(logits[:, 0].sum(), heard)
    assert gradient.shape == heard[0].shape and gradient.abs().max() > 0


def test_a_model_in_training_is_reparameterised_as_timm_does_its_own(net):
    x = images().double()
    net.double()
    expected = net(x)
    close(reparameterize_model(net.train()).eval()(x), expected)


@pytest.mark.parametrize('tool', ['synchronised', 'frozen'])
def test_normalisation_of_other_kinds(net, tool):
    net, x = net.double(), images().double()
    expected = net(x)
    if tool == 'synchronised':
        other = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(net))
    else:
        other = copy.deepcopy(net)
        freeze(other)
    kinds = {type(module).__name__ for module in other.modules()}
    assert 'BatchNorm2d' not in kinds and {'SyncBatchNorm', 'FrozenBatchNorm2d'} & kinds
    for fast in (igczoo.deploy(other.eval()), reparameterize_model(other)):
        torch.testing.assert_close(fast(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize('name', ['igc_resnet20_l24m2', 'igcv2_14_c64', 'igcv3_025_cifar'])
def test_memory_formats_and_types(compiled, name):
    net = timm.create_model(name).eval()
    randomise(net)
    x = images(2, 32)
    for fast in (igczoo.deploy(net), reparameterize_model(copy.deepcopy(net))):
        expected = fast(x)
        assert torch.equal(fast.to(memory_format=torch.channels_last)(x), expected)
        assert torch.equal(fast.double().float()(x), expected)


def test_a_pickled_net_has_the_kernel_in_another_process(compiled, tmp_path):
    net = timm.create_model('igc_resnet20_l24m2').eval()
    torch.save(igczoo.deploy(net), tmp_path / 'fast.pt')
    code = '''
import sys, torch
fast = torch.load(sys.argv[1], weights_only=False)
from igczoo.deployment import kernels
print(kernels.takes(torch.zeros(1)), kernels.takes(torch.zeros(1).bfloat16()))
'''
    environment = os.environ | dict(PYTHONPATH=str(Path(igczoo.__file__).parents[1]))
    done = subprocess.run([sys.executable, '-c', code, str(tmp_path / 'fast.pt')], env=environment, capture_output=True, text=True)
    assert done.stdout == 'True False\n', done.stderr


def test_a_net_without_weights_is_refused():
    with torch.device('meta'):
        net = timm.create_model('igc_resnet20_l24m2').eval()
    with pytest.raises(ValueError, match='is on the meta device, where it has no weights; load them first'):
        igczoo.deploy(net)


@pytest.mark.parametrize('name', ['igcv2_20_c64', 'igcv2_025', 'igcv3_050'])
def test_the_later_generations_are_deployed(compiled, name):
    net = timm.create_model(name, num_classes=5).double()
    randomise(net)
    x = images(2, 64).double()
    expected = net.eval()(x)
    fast = igczoo.deploy(net)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(fast(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
    with pytest.raises(ValueError, match='has been deployed before'):
        igczoo.deploy(fast)
