"""Nets that somebody has changed: their faster forms compute what they compute, or are refused by the name of what is other."""
import copy

import pytest
import timm
import torch
from batch_norms import randomise
from torch import nn

from igczoo.deployment.deploy import deploy
from igczoo.nets.igcnet import IGCNet
from igczoo.nets.structure import altered_part, has_own_methods
from igczoo.training.forms import planar_by_torch, training_form
from igczoo.training.planar import PlanarIGCNet

SMALL = dict(stem_width=20, widths=(40, 80), primary=(20, 40), depths=(2, 3))
NAMES = 'igcnet18', 'igc_resnet20_l24m2', 'igcv2_14_c64', 'igcv3_025_cifar'


def make(name: str, **kwargs) -> nn.Module:
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=5, **(SMALL if name == 'igcnet18' else {}), **kwargs)
    randomise(net)
    return net.eval()


def logits(net: nn.Module, size: int = 33) -> torch.Tensor:
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return net(x.to(next(net.parameters()).dtype))


def check(name: str, change, refused: bool) -> None:
    """Of a changed net every form computes the same, or deploy refuses it and it is trained as it is written."""
    net = make(name).double()
    change(net)
    net.eval()
    assert bool(altered_part(net)) == refused
    expected = logits(net)
    if refused:
        with pytest.raises(ValueError, match=r'^deploy: .*; the new model would lack'):
            deploy(net)
        assert training_form(net, torch.device('cpu')) is net and planar_by_torch(net, torch.device('cpu')) is net
        return
    for portable in (False, True):
        torch.testing.assert_close(logits(deploy(net, portable=portable)), expected, rtol=1e-8, atol=1e-8)
    for form in (training_form, planar_by_torch):
        torch.testing.assert_close(logits(form(net, torch.device('cpu')).eval()), expected, rtol=1e-8, atol=1e-8)
    fast = deploy(net.float())          # by the kernels, which have no float64
    assert (logits(fast) - expected).abs().max() < .03 * expected.std()


def convolutions(net: nn.Module, kernel: int = 1) -> list[nn.Conv2d]:
    return [module for module in net.stages.modules() if isinstance(module, nn.Conv2d) and module.kernel_size[0] >= kernel]


@pytest.mark.parametrize('name', NAMES)
def test_a_net_as_it_was_made(name):
    check(name, lambda net: None, refused=False)
    for kwargs in (dict(drop_path_rate=.1), dict(output_stride=4), dict(act_layer='silu')):
        assert not altered_part(make(name, **kwargs))
    assert not altered_part(timm.create_model(name, features_only=True, **(SMALL | dict(out_indices=(1, 2)) if name == 'igcnet18' else {})))


class Adapter(nn.Module):
    """What parameter-efficient tuning puts in the place of a layer: its ``weight`` is the layer's, and it adds something."""

    def __init__(self, base: nn.Conv2d):
        super().__init__()
        self.base, self.more = base, copy.deepcopy(base)

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.more(x)


def replace(net: nn.Module, make_other) -> None:
    """The last convolution of the last stage."""
    name, conv = next(item for item in net.named_modules() if item[1] is convolutions(net)[-1])
    net.set_submodule(name, make_other(conv))


def with_bias(conv: nn.Conv2d) -> nn.Conv2d:
    other = copy.deepcopy(conv)
    other.bias = nn.Parameter(torch.randn(conv.out_channels, dtype=conv.weight.dtype))
    return other


CHANGES = {
    'padding mode': lambda net: [setattr(conv, 'padding_mode', 'circular') or setattr(conv, '_reversed_padding_repeated_twice', [1] * 4)
                                 for conv in convolutions(net, 3)[:1]],
    'stride': lambda net: [setattr(conv, 'stride', (2, 1)) for conv in convolutions(net) if conv.stride[0] == 2],
    'bias': lambda net: replace(net, with_bias),
    'adapter': lambda net: replace(net, Adapter),
    'parametrized': lambda net: nn.utils.parametrizations.weight_norm(convolutions(net)[-1]),
    'stem': lambda net: net.stem.append(nn.AvgPool2d(3, 1, 1)),
}


@pytest.mark.parametrize('name', NAMES)
@pytest.mark.parametrize('change', CHANGES)
def test_a_part_of_another_kind_is_refused_by_name(name, change):
    check(name, CHANGES[change], refused=True)


@pytest.mark.parametrize(('name', 'change'), [
    ('igc_resnet20_l24m2', lambda net: setattr(net.stages[0][1], 'shortcut', nn.AvgPool2d(3, 1, 1))),
    ('igc_resnet20_l24m2', lambda net: setattr(net.stages[0][1], 'drop_path', nn.Hardtanh())),
    ('igc_resnet20_l24m2', lambda net: net.stages.__setitem__(1, nn.Identity())),
    ('igc_resnet20_l24m2', lambda net: net.stages[0].__setitem__(1, nn.Identity())),
    ('igcv2_14_c64', lambda net: setattr(net.stages[0][0], 'drop_path', nn.Hardtanh())),
    ('igcv3_025_cifar', lambda net: setattr(net.stages[1][1], 'drop_path', nn.Hardtanh())),
    ('igcv3_025_cifar', lambda net: net.final.append(nn.Tanh())),
    ('igcv3_025_cifar', lambda net: setattr(net.stages[1][1], 'forward', nn.Identity())),
])
def test_blocks_of_another_kind_are_refused(name, change):
    net = make(name)
    change(net)
    net.eval()
    assert altered_part(net)
    with pytest.raises(ValueError, match=r'^deploy: '):
        deploy(net)
    assert training_form(net, torch.device('cpu')) is net


@pytest.mark.parametrize('change', [
    lambda net: setattr(net.stem.conv, 'stride', (1, 1)),
    lambda net: setattr(net.stem, 'conv', nn.Conv2d(3, 20, 7, 2, 3).double()),
    lambda net: setattr(net.stem, 'conv', nn.Conv2d(3, 20, 4, 2, 1, padding_mode='reflect').double()),
    lambda net: setattr(net.stem, 'act', nn.SiLU()),
    lambda net: setattr(net, 'pool', nn.MaxPool2d(2)),
    lambda net: setattr(net, 'pool', nn.MaxPool2d(3, 2, 1, ceil_mode=True)),
    lambda net: setattr(net, 'pool', nn.Identity()),
    lambda net: setattr(net, 'final', nn.Conv2d(80, 80, 1).double()),
    lambda net: setattr(net.stages[0][0], 'act1', nn.SiLU()),
    lambda net: setattr(net, 'global_pool', nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())),
    lambda net: setattr(net, 'stages', nn.Sequential(*net.stages)),
    lambda net: setattr(net, 'forward_head', lambda x: x.mean((2, 3))),
])
def test_other_changes_of_igcnet_are_computed(change):
    check('igcnet18', change, refused=False)


@pytest.mark.parametrize('name', NAMES)
def test_a_unit_that_comes_twice_is_computed_twice(name):
    stage = 2 if name == 'igcv3_025_cifar' else 1
    check(name, lambda net: net.stages[stage].__setitem__(len(net.stages[stage]) - 1, net.stages[stage][-2]), refused=False)


def test_a_stem_with_a_bias_learns_it_and_keeps_its_statistics():
    for name in NAMES:
        net = make(name).double()
        conv = net.stem.conv
        net.stem.conv = nn.Conv2d(3, conv.out_channels, conv.kernel_size[0], conv.stride, conv.padding, dtype=torch.float64)
        other = copy.deepcopy(net)
        for one in (net.train(), training_form(other, torch.device('cpu')).train()):
            one(torch.randn(3, 3, 33, 33, generator=torch.Generator().manual_seed(1), dtype=torch.float64)).square().sum().backward()
        torch.testing.assert_close(other.stem.bn.running_mean, net.stem.bn.running_mean)
        assert other.stem.conv.bias.grad is not None


class Mine(IGCNet):
    """A net of somebody's own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + 1


def test_a_class_of_ones_own_is_left_its_methods():
    net = make('igcnet18')
    net.__class__ = Mine
    assert has_own_methods(net)
    torch.testing.assert_close(logits(deploy(net)), logits(net), rtol=1e-4, atol=1e-4)
    assert training_form(net, torch.device('cpu')) is net


@pytest.mark.parametrize('name', NAMES)
def test_hooks_in_training_forms_are_called_with_what_the_net_has(name):
    net = make(name).double()
    form, heard = training_form(net, torch.device('cpu')).eval(), {}
    modules = [net.stages[0], net.stages[1][0], next(net.stages[1][1].children())]
    for number, module in enumerate(modules):
        module.register_forward_hook(lambda module, args, y, number=number: heard.setdefault(number, []).append(y.clone()))
    expected = logits(net)
    torch.testing.assert_close(logits(form), expected)
    assert sorted(heard) == [0, 1, 2]
    for as_written, by_form in heard.values():
        torch.testing.assert_close(by_form, as_written)


def test_a_deployed_net_is_heard_wherever_somebody_listens():
    net = make('igcnet18')
    fast = deploy(net)
    for part in ('global_pool', 'final'):
        heard = []
        for one in (net, fast):
            handle = getattr(one, part).register_forward_hook(lambda module, args, y, heard=heard: heard.append(y.clone()))
            logits(one)
            handle.remove()
        torch.testing.assert_close(heard[1], heard[0], rtol=1e-3, atol=1e-3)
    with pytest.raises((ValueError, RuntimeError)):
        fast(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    x = torch.zeros(0, 3, 32, 32, requires_grad=True)
    fast(x).sum().backward()


def test_what_training_forms_cannot_compute_is_refused_also_later():
    for name in NAMES:
        net = make(name)
        form = training_form(net, torch.device('cpu'))
        net.set_grad_checkpointing()
        with pytest.raises(ValueError, match='gradient checkpointing'):
            form.train()
        net.set_grad_checkpointing(False)
        form.train()
        nn.SyncBatchNorm.convert_sync_batchnorm(form)
        with pytest.raises(ValueError, match=r'bn\d? is SyncBatchNorm.*; it must be BatchNorm2d with parameters and running statistics'):
            form.train()
    net = timm.create_model('igc_resnet20_l24m2', norm_layer=lambda channels, **dd: nn.BatchNorm2d(channels, affine=False, **dd))
    with pytest.raises(ValueError, match='must be BatchNorm2d with parameters'):
        PlanarIGCNet(net)
    replace(net := make('igc_resnet20_l24m2'), with_bias)
    with pytest.raises(ValueError, match=r'PlanarIGCNet: stages\.2\.2\.unit2\.conv\.secondary is Conv2d.*; train the net as it is written'):
        PlanarIGCNet(net)


def test_training_under_another_default_device():
    net = make('igc_resnet20_l24m2').train()
    form, x = training_form(net, torch.device('cpu')), torch.randn(2, 3, 16, 16)
    with torch.device('meta'):
        form(x).sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
