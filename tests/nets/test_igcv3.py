"""IGCV3 as released: counted, and against pytorchcv's module, an independent one that holds weights of this form."""
import pytest
import timm
import torch
from batch_norms import fused_with_same_outputs, make, randomise
from origins import pytorchcv_names

from igczoo.checkpoints.model_card import count_macs, count_params
from igczoo.nets.igcv3 import STAGES, VARIANTS, FoldedInvertedUnit, InvertedUnit

IMAGENET = {    # name, as pytorchcv has it: parameters; multiply-adds
    'igcv3_100': ('igcv3_w1', 3_491_688, 313.0e6),
    'igcv3_075': ('igcv3_w3d4', 2_638_084, 189.9e6),
    'igcv3_050': ('igcv3_wd2', 1_985_528, 96.9e6),
    'igcv3_025': ('igcv3_wd4', 1_534_020, 34.0e6),
}


@pytest.mark.parametrize('name', IMAGENET)
def test_parameters_and_multiply_adds(name):
    net, (_, params, macs) = timm.create_model(name, device='meta'), IMAGENET[name]
    assert count_params(net) == params and abs(count_macs(net, (3, 224, 224)) - macs) < 0.05e6


def test_structure():
    net = timm.create_model('igcv3_100', device='meta')
    units = [module for module in net.modules() if isinstance(module, InvertedUnit)]
    assert len(units) == sum(depth for _, _, depth in STAGES) == 32 and sum(unit.residual for unit in units) == 25
    assert [info['reduction'] for info in net.feature_info] == [2, 4, 8, 16, 32]
    assert [info['stage'] for info in net.feature_info] == [1, 2, 3, 5, 7]
    features = timm.create_model('igcv3_100', features_only=True, device='meta')
    assert features.feature_info.channels() == [16, 24, 32, 96, 320] and features.feature_info.reduction() == [2, 4, 8, 16, 32]
    some = timm.create_model('igcv3_025', features_only=True, out_indices=(1, 2, 3, 4)).eval()      # as others ask for those from 4 on
    assert some.feature_info.reduction() == [4, 8, 16, 32] and [x.shape[2] for x in some(torch.zeros(1, 3, 64, 64))] == [16, 8, 4, 2]
    assert count_params(timm.create_model('igcv3_100_cifar', num_classes=100, device='meta')) == 2_338_788
    quarter, cifar = (timm.create_model(name, device='meta') for name in ('igcv3_025', 'igcv3_025_cifar'))
    assert count_params(cifar) == count_params(quarter) - 990 * 1281 and cifar.feature_info[-1]['reduction'] == 4


@pytest.mark.parametrize('name', IMAGENET)
def test_equal_to_pytorchcv(name):
    model_provider = pytest.importorskip('pytorchcv.model_provider', reason='pytorchcv is not installed')
    theirs = model_provider.get_model(IMAGENET[name][0], pretrained=False).double()
    randomise(theirs)
    net = make(name)
    table = pytorchcv_names(list(net.state_dict()))
    assert sorted(table.values()) == sorted(theirs.state_dict())
    net.load_state_dict({key: theirs.state_dict()[other] for key, other in table.items()})
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs.eval()(x)
        torch.testing.assert_close(net.eval()(x), expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('stride', [32, 8])
def test_fused_units_compute_the_same(name, stride):
    fused = fused_with_same_outputs(make(name, output_stride=stride))
    assert not any(isinstance(module, InvertedUnit | torch.nn.BatchNorm2d) for module in fused)
    assert sum(isinstance(module, FoldedInvertedUnit) for module in fused) == 32


def test_impossible_settings():
    with pytest.raises(ValueError, match=r'strides=.* there must be 8'):
        timm.create_model('igcv3_100', strides=(2, 1))
    with pytest.raises(ValueError, match='output_stride is 3'):
        timm.create_model('igcv3_100', output_stride=3)
