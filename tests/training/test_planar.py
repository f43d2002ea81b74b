"""The planar form computes the net it wraps: outputs, gradients and running statistics."""
import pytest
import torch
from batch_norms import randomise
from timm.layers import DropPath
from torch.optim.swa_utils import update_bn

from igczoo.nets.igcnet import IGCNet, igc_resnet
from igczoo.training.planar import PlanarIGCNet

NETS = {
    'L doubles, M = 2': dict(stem='imagenet', stem_width=6, widths=(12, 24), primary=(6, 12), depths=(2, 1)),
    'L kept, M doubles to 8': dict(stem='cifar', stem_width=12, widths=(12, 24, 48), primary=(6, 6, 6), depths=(1, 2, 1)),
    'M = 3': dict(stem='cifar', stem_width=12, widths=(12, 24), primary=(4, 4), depths=(2, 1)),
    'M = 1': dict(stem='cifar', stem_width=6, widths=(6, 6), primary=(6, 6), depths=(1, 1)),
    'plain': dict(stem='cifar', stem_width=8, widths=(8, 16), primary=(4, 4), depths=(2, 2), shortcuts=False),
    'dilated': dict(stem='cifar', stem_width=8, widths=(8, 16, 32), primary=(4, 4, 4), depths=(1, 1, 1), output_stride=2),
}


@pytest.mark.parametrize('name', NETS)
@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('wide', [1, 200], ids=['as products', 'as convolutions'])
def test_planar_form_equals_the_net(name, training, wide, monkeypatch):
    monkeypatch.setattr('igczoo.training.planar.WIDE_PARTITION', wide)
    torch.manual_seed(0)
    net = IGCNet(**NETS[name], num_classes=5, dtype=torch.float64).train(training)
    randomise(net)
    twin = IGCNet(**NETS[name], num_classes=5, dtype=torch.float64).train(training)
    twin.load_state_dict(net.state_dict())
    planar = PlanarIGCNet(twin, kernels=False)      # test_fused.py has those
    x, target = torch.randn(3, 3, 32, 32, dtype=torch.float64), torch.randn(3, 5, dtype=torch.float64)
    outputs = net(x), planar(x)
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-11, atol=1e-11)
    for output in outputs:
        (output * target).sum().backward()
    for (key, expected), found in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-10, atol=1e-10, msg=f'{key} differs')
    for (key, expected), found in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12, msg=f'{key} differs')


def test_statistics_over_all_batches_are_equal():
    """momentum=None is the mean over all batches, which torch's update_bn asks for."""
    net, twin = (igc_resnet(8, 6, 2).double() for _ in range(2))
    twin.load_state_dict(net.state_dict())
    batches = torch.randn(3, 4, 3, 16, 16, dtype=torch.float64)
    update_bn(batches, net)
    update_bn(batches, PlanarIGCNet(twin))
    for (key, expected), found in zip(net.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11, msg=f'{key} differs')


def test_features_come_in_primary_order():
    net = igc_resnet(8, 6, 2).double().eval()
    randomise(net)
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(PlanarIGCNet(net).forward_features(x), net.forward_features(x), rtol=1e-11, atol=1e-11)


def test_what_has_no_planar_form_is_refused():
    with pytest.raises(ValueError, match=r'stages\.0\.0\.unit1 is a regular convolution'):
        PlanarIGCNet(IGCNet('cifar', 8, (8,), None, (1,)))
    with pytest.raises(ValueError, match=r'stem\.bn is GroupNorm.*; it must be BatchNorm2d'):
        PlanarIGCNet(IGCNet('cifar', 64, (64,), (32,), (1,), norm_layer='groupnorm'))
    checkpointed = igc_resnet(8, 4, 2)
    checkpointed.set_grad_checkpointing()
    with pytest.raises(ValueError, match='gradient checkpointing'):
        PlanarIGCNet(checkpointed)


def test_stochastic_depth_is_kept():
    net = igc_resnet(20, 4, 2, drop_path_rate=0.5).train()
    assert any(isinstance(module, DropPath) for module in net.modules())
    planar, x = PlanarIGCNet(net), torch.randn(8, 3, 16, 16)
    torch.manual_seed(1)
    expected = net(x)
    torch.manual_seed(1)
    torch.testing.assert_close(planar(x), expected, rtol=1e-4, atol=1e-4)
