"""IGCV2: the convolution is the product of its sparse matrices, its paths are those of the paper's conditions, and the nets are counted."""
import math
from itertools import product

import pytest
import timm
import torch
from batch_norms import fused_with_same_outputs, make
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from igczoo.checkpoints.model_card import count_macs, count_params
from igczoo.nets.igcv2 import IGCV2, PRINTED, VARIANTS, FoldedSparseUnit, SparseConv2d, SparseUnit, balance

CASES = {
    #                             in   out   K  stride dilation
    'one path':                  (64, 64, 8, 1, 1),
    'one group':                 (8, 24, 8, 1, 1),
    'three layers, wider':       (27, 54, 3, 2, 1),
    'several paths, narrower':   (24, 12, 4, 1, 2),
    'wide groups':               (32, 64, 16, 2, 2),
}
TABLE_8 = {'igcv2_100': (564e6, .028), 'igcv2_050': (156e6, .0255), 'igcv2_025': (46e6, .002)}     # multiply-adds printed; how near


def block_diagonal(conv: nn.Conv2d) -> Tensor:
    """The matrix (out, in) of a grouped 1x1 convolution."""
    return torch.block_diag(*conv.weight[:, :, 0, 0].chunk(conv.groups))


def dealt(channels: int, groups: int) -> Tensor:
    """The matrix of P: position j * groups + i holds channel j of group i."""
    matrix, size = torch.zeros(channels, channels, dtype=torch.float64), channels // groups
    for i, j in product(range(groups), range(size)):
        matrix[j * groups + i, i * size + j] = 1
    return matrix


def matrix_of(conv: SparseConv2d) -> Tensor:
    """W_L P ... P W_2, (out, in)."""
    first, *others = conv.pointwise
    found = block_diagonal(first)
    for other in others:
        found = block_diagonal(other) @ dealt(conv.spatial.in_channels, conv.groups) @ found
    return found


def paths(channels: int, k: int) -> Tensor:
    """How many paths lead from each channel to each, by impulses through weights of 1."""
    conv = SparseConv2d(channels, channels, k)
    for weight in conv.pointwise.parameters():
        nn.init.ones_(weight)
    nn.init.dirac_(conv.spatial.weight, groups=channels)
    with torch.no_grad():
        return conv(torch.eye(channels)[:, :, None, None])[:, :, 0, 0]


# The convolution

@pytest.mark.parametrize('case', CASES)
def test_it_is_the_product_of_sparse_matrices(case):
    conv = SparseConv2d(*CASES[case], dtype=torch.float64)
    inputs, _, _, stride, dilation = CASES[case]
    kernel = torch.einsum('oi,ihw->oihw', matrix_of(conv), conv.spatial.weight[:, 0])
    x = torch.randn(2, inputs, 11, 8, dtype=torch.float64)
    expected = F.conv2d(x, kernel, stride=stride, padding=dilation, dilation=dilation)
    assert conv(x).shape[2:] == (math.ceil(11 / stride), math.ceil(8 / stride))
    torch.testing.assert_close(conv(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(('channels', 'k'), [(8, 8), (64, 8), (512, 8), (4, 2), (32, 2), (81, 3), (25, 5), (7, 7)])
def test_a_power_of_k_has_one_path_for_each_pair(channels, k):
    assert torch.equal(paths(channels, k), torch.ones(channels, channels))


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([2, 3, 4, 8, 16]), st.integers(1, 40))
def test_any_width_has_a_path_for_each_pair(k, groups):
    found = paths(k * groups, k)
    depth = len(SparseConv2d(k * groups, k * groups, k).pointwise)
    assert found.min() >= 1 and k ** (depth - 1) < max(2, k * groups) <= k ** depth
    assert torch.equal(found.sum(0), torch.full((k * groups,), float(k ** depth)))     # the paths from a channel, however they spread


@pytest.mark.parametrize('channels', [416, 832, 1664])
def test_the_widths_that_are_printed_of_the_cifar_nets(channels):
    assert paths(channels, 8).min() >= 1


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(in_channels=0), 'SparseConv2d: in_channels is 0; it must be a positive integer'),
    (dict(channels=8.), 'SparseConv2d: channels is 8.0; it must be a positive integer'),
    (dict(in_channels=20), 'SparseConv2d: in_channels=20 cannot be split into groups of channels=8; it must be a multiple of 8'),
    (dict(out_channels=20), 'SparseConv2d: out_channels=20 cannot be split into 8 groups; it must be a multiple of 8'),
    (dict(channels=1), 'SparseConv2d: channels=1 connects none of the 64 channels; it must be at least 2'),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as raised:
        SparseConv2d(**dict(in_channels=64, out_channels=64) | arguments)
    assert str(raised.value) == message


def test_description():
    assert 'L=3, K=8' in repr(SparseConv2d(64, 64))


# The balance condition

def weights(*channels: float, width: float, positions: int = 9) -> float:
    return width * (positions * channels[0] + sum(channels[1:]))


@pytest.mark.parametrize('width', [32, 64, 100, 512])
@pytest.mark.parametrize('depth', [1, 2, 3, 4])
def test_no_split_needs_fewer_weights_than_the_balanced_one(width, depth):
    found = balance(width, depth)
    each = [found.channels / 9, *[found.channels] * (depth - 1)]
    assert math.prod(each) == pytest.approx(width) and weights(*each, width=width) == pytest.approx(found.weights)
    for split in product(range(1, 33), repeat=depth - 1):       # the last K makes the product the width
        assert weights(width / math.prod(split), *split, width=width) >= found.weights * (1 - 1e-12)


@pytest.mark.parametrize('width', [1, 8, 64, 100, 512, 4096])
def test_the_best_depth_is_near_the_logarithm(width):
    found = balance(width)
    assert found.weights == min(balance(width, depth).weights for depth in range(1, 40))
    assert abs(found.depth - math.log(9 * width)) < 1


def test_groups_of_eight_are_balanced_at_64_channels():
    assert round(balance(64, 3).channels) == 8 and len(SparseConv2d(64, 64).pointwise) == 2


# The nets

@pytest.mark.parametrize('name', TABLE_8)
def test_multiply_adds_beside_those_printed(name):
    printed, near = TABLE_8[name]
    net = timm.create_model(name, device='meta')
    assert near - .002 < 1 - count_macs(net, (3, 224, 224)) / printed <= near
    assert set(PRINTED) == set(TABLE_8)


def test_structure():
    for name, scale in (('igcv2_100', 1.), ('igcv2_050', .5), ('igcv2_025', .25)):
        net = timm.create_model(name, device='meta')
        units = [module for module in net.modules() if isinstance(module, SparseUnit)]
        assert len(units) == 13 and not any(unit.residual for unit in units)
        assert [info['num_chs'] for info in net.feature_info] == [int(scale * c) for c in (128, 256, 512, 1024, 2048)]
        assert [info['reduction'] for info in net.feature_info] == [2, 4, 8, 16, 32]
        assert all(unit.conv.groups == min(8, unit.conv.spatial.in_channels // 8) for unit in units)
    features = timm.create_model('igcv2_100', features_only=True, device='meta')
    assert features.feature_info.channels() == [128, 256, 512, 1024, 2048] and features.feature_info.reduction() == [2, 4, 8, 16, 32]
    some = timm.create_model('igcv2_025', features_only=True, out_indices=(1, 2, 3, 4), output_stride=16, device='meta')
    assert some.feature_info.reduction() == [4, 8, 16, 16]


@pytest.mark.parametrize('n', [4, 6])
def test_counts_of_the_cifar_nets(n):
    """Stem and head; channel-wise and grouped weights of 2 and 3 layers of 8 channels a group; two numbers of each norm."""
    units = [(64, 64, 2, 32)] * n + [(64, 128, 2, 16)] + [(128, 128, 3, 16)] * (n - 1) + [(128, 256, 3, 8)] + [(256, 256, 3, 8)] * (n - 1)
    each = [9 * a + 8 * (a * (depth - 1) + b) for a, b, depth, _ in units]
    net = timm.create_model(f'igcv2_{3 * n + 2}_c64', device='meta')
    assert count_params(net) == 27 * 64 + 128 + sum(each) + sum(2 * b for _, b, _, _ in units) + 2570
    assert count_macs(net, (3, 32, 32)) == 27 * 64 * 1024 + sum(n * side ** 2 for n, (*_, side) in zip(each, units, strict=True)) + 2560
    assert sum(unit.residual for unit in net.modules() if isinstance(unit, SparseUnit)) == 3 * n - 2


@pytest.mark.parametrize('name', VARIANTS)
@pytest.mark.parametrize('stride', [32, 8])
def test_fused_units_compute_the_same(name, stride):
    fused = fused_with_same_outputs(make(name, output_stride=stride))
    assert not any(isinstance(module, SparseUnit | nn.BatchNorm2d) for module in fused)
    units = [module.conv for module in fused if isinstance(module, FoldedSparseUnit)]
    narrow = [conv for conv in units if conv.spatial.in_channels // conv.groups < 64]
    assert len(units) == sum(VARIANTS[name]['depths']) and {len(conv.pointwise) for conv in narrow} == {1}


@pytest.mark.parametrize(('arguments', 'message'), [
    (dict(depths=(1, 1)), r'IGCV2: widths=.* and depths=\(1, 1\) must have one entry a stage'),
    (dict(depths=(1, 2, 0)), 'of a unit at least'),
    (dict(strides=(1, 2)), r'strides=\(1, 2\) one more'),
    (dict(output_stride=3), "output_stride is 3; it must be a power of two and at least 1, the stem's"),
    (dict(drop_path_rate=.1, shortcuts=False), 'drop_path_rate=0.1 needs shortcuts'),
])
def test_impossible_settings(arguments, message):
    with pytest.raises(ValueError, match=message):
        IGCV2(**VARIANTS['igcv2_20_c64'] | arguments)
