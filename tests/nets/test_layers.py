"""The layer is the paper's: a regular convolution with a structured kernel, one path for each pair of channels, and its cost."""
import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from igczoo import IGConv2d, interleave

CASES = {
    #                             in  out  L  kernel stride dilation
    'L > M':                     (12, 12, 6, 3, 1, 1),
    'L < M':                     (12, 12, 3, 3, 1, 1),
    'M does not divide L':       (20, 20, 4, 3, 1, 1),
    'wider, stride 2':           (12, 24, 6, 3, 2, 1),
    'narrower':                  (24, 12, 4, 3, 1, 1),
    'one channel a partition':   (6, 12, 6, 3, 2, 1),
    'kernel 5, dilation 2':      (6, 12, 3, 5, 1, 2),
    'kernel 1, stride 3':        (4, 8, 2, 1, 3, 1),
    'kernel 7, all at once':     (8, 4, 2, 7, 2, 3),
    'L = 1':                     (6, 10, 1, 3, 1, 1),
    'M = 1':                     (12, 6, 6, 3, 1, 1),
    'L = M = 1':                 (1, 1, 1, 3, 1, 1),
}


def labels(text: str) -> Tensor:
    """(1, C, 1, 1) from channel numbers as the docstrings write them."""
    return torch.tensor([int(word) for word in text.replace('|', ' ').split()])[None, :, None, None]


def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """The dense kernel (out, in, k, k) of a grouped one (out, in / groups, k, k)."""
    out_channels, width = weight.shape[:2]
    dense = weight.new_zeros(out_channels, width * groups, *weight.shape[2:])
    for o in range(out_channels):
        start = o // (out_channels // groups) * width
        dense[o, start:start + width] = weight[o]
    return dense


def to_secondary_order(primary: int, secondary: int) -> Tensor:
    """The matrix P^T of the paper: channel j of primary partition i becomes channel i of secondary partition j."""
    matrix = torch.zeros(primary * secondary, primary * secondary, dtype=torch.float64)
    for i in range(primary):
        for j in range(secondary):
            matrix[j * primary + i, i * secondary + j] = 1
    return matrix


def dense_kernel(layer: IGConv2d) -> Tensor:
    """P W_d P^T W_p of equation 4, one matrix of channels a kernel position."""
    w_p = block_diagonal(layer.primary.weight, layer.num_primary)
    w_d = block_diagonal(layer.secondary.weight, layer.num_secondary)[:, :, 0, 0]
    p_t = to_secondary_order(layer.num_primary, layer.num_secondary)
    return torch.einsum('ab,bc,cd,dekl->aekl', p_t.T, w_d, p_t, w_p)


# interleave ---------------------------------------------------------------------------------------------------------------------------

def test_worked_example():
    assert torch.equal(interleave(labels('0 1 2 | 3 4 5'), 2), labels('0 3 | 1 4 | 2 5'))
    assert torch.equal(interleave(labels('0 3 | 1 4 | 2 5'), 3), labels('0 1 2 | 3 4 5'))


@pytest.mark.parametrize('channels,groups', [(12, 3), (12, 4), (30, 5), (6, 1), (6, 6)])
def test_interleave_is_the_index_formula_and_channel_shuffle(channels, groups):
    x = torch.randn(2, channels, 3, 5)
    y = interleave(x, groups)
    for j in range(channels // groups):
        for i in range(groups):
            assert torch.equal(y[:, j * groups + i], x[:, i * (channels // groups) + j])
    assert torch.equal(y, F.channel_shuffle(x, groups))
    assert torch.equal(interleave(y, channels // groups), x)
    assert torch.equal(interleave(x.to(memory_format=torch.channels_last), groups), y)


# IGConv2d -----------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('case', CASES)
def test_it_is_a_regular_convolution_with_a_structured_kernel(case):
    *_, kernel, stride, dilation = CASES[case]
    torch.manual_seed(0)
    layer, x = IGConv2d(*CASES[case], dtype=torch.float64), torch.randn(2, CASES[case][0], 11, 8, dtype=torch.float64)
    expected = F.conv2d(x, dense_kernel(layer), stride=stride, padding=dilation * (kernel - 1) // 2, dilation=dilation)
    assert layer(x).shape == (2, CASES[case][1], math.ceil(11 / stride), math.ceil(8 / stride))
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_one_secondary_partition_is_the_xception_block():
    layer, x = IGConv2d(6, 6, 6, dtype=torch.float64), torch.randn(2, 6, 7, 7, dtype=torch.float64)
    assert layer.primary.weight.shape == (6, 1, 3, 3) and layer.secondary.weight.shape == (6, 6, 1, 1)
    channel_wise = torch.stack([F.conv2d(x[:, [c]], layer.primary.weight[[c]], padding=1)[:, 0] for c in range(6)], 1)
    expected = torch.einsum('oc,nchw->nohw', layer.secondary.weight[:, :, 0, 0], channel_wise)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_one_primary_partition_is_a_regular_convolution_and_a_scale():
    layer, x = IGConv2d(6, 10, 1, dtype=torch.float64), torch.randn(2, 6, 7, 7, dtype=torch.float64)
    assert layer.primary.weight.shape == (10, 6, 3, 3) and layer.secondary.weight.shape == (10, 1, 1, 1)
    expected = F.conv2d(x, layer.primary.weight, padding=1) * layer.secondary.weight.view(1, 10, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('in_channels,out_channels,primary', [case[:3] for case in CASES.values()])
def test_each_pair_of_channels_has_one_path(in_channels, out_channels, primary):
    """With weights of 1, an impulse in one channel comes out of every channel as often as there are paths to it."""
    layer = IGConv2d(in_channels, out_channels, primary, kernel_size=1)
    for weight in layer.parameters():
        nn.init.ones_(weight)
    impulses = torch.eye(in_channels).view(in_channels, in_channels, 1, 1)
    assert torch.equal(layer(impulses), torch.ones(in_channels, out_channels, 1, 1))
    assert torch.equal(dense_kernel(layer.double()), torch.ones(out_channels, in_channels, 1, 1, dtype=torch.float64))


def test_secondary_partitions_of_the_narrower_width_give_two_paths():
    """The first unit of a down-sampling block in the authors' resnet_igc.py: M of the input's width, so 2 L channels in each."""
    primary, in_channels, out_channels = 6, 12, 24
    secondary = in_channels // primary
    x = torch.eye(in_channels).view(in_channels, in_channels, 1, 1)
    x = F.conv2d(x, torch.ones(out_channels, in_channels // primary, 1, 1), groups=primary)
    x = F.conv2d(F.channel_shuffle(x, primary), torch.ones(out_channels, 2 * primary, 1, 1), groups=secondary)
    assert torch.equal(F.channel_shuffle(x, secondary), torch.full((in_channels, out_channels, 1, 1), 2.))


# Its cost (section 3.2) ---------------------------------------------------------------------------------------------------------------

def count_weights(primary: int, secondary: int, kernel_size: int = 3) -> int:
    width = primary * secondary
    return sum(weight.numel() for weight in IGConv2d(width, width, primary, kernel_size, device='meta').parameters())


@pytest.mark.parametrize('kernel_size', [1, 3, 5])
@pytest.mark.parametrize('primary,secondary', [(24, 2), (4, 8), (16, 16), (1, 7), (7, 1)])
def test_number_of_weights(primary, secondary, kernel_size):
    """G^2 (S / L + 1 / M) with G = L M channels and S kernel positions; the regular convolution has G^2 S."""
    width, positions = primary * secondary, kernel_size ** 2
    found = count_weights(primary, secondary, kernel_size)
    assert found * primary * secondary == width ** 2 * (positions * secondary + primary)
    assert (found < width ** 2 * positions) == (primary < (primary - 1) * secondary * positions)    # L / (L - 1) < M S


def test_the_width_is_greatest_where_l_is_m_times_s():
    """For T weights G <= (T / (2 sqrt S))^(2/3), with equality where L = M S."""
    budget, positions = 20736, 9
    bound = (budget / (2 * positions ** .5)) ** (2 / 3)
    weights = {(primary, secondary): positions * secondary ** 2 * primary + primary ** 2 * secondary
               for primary in range(1, 145) for secondary in range(1, 49)}
    affordable = [sizes for sizes, count in weights.items() if count <= budget]
    widest = max(affordable, key=math.prod)
    assert widest == (45, 5) and widest[0] == widest[1] * positions
    assert weights[widest] == count_weights(*widest)
    assert 225 == math.prod(widest) < bound < 229
    for secondary in (1, 2, 5):
        exact = (count_weights(secondary * positions, secondary) / (2 * positions ** .5)) ** (2 / 3)
        assert exact == pytest.approx(secondary ** 2 * positions, rel=1e-12)


# Use ----------------------------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize('arguments,message', [
    (dict(in_channels=0), 'IGConv2d: in_channels is 0; it must be a positive integer'),
    (dict(out_channels=-6), 'IGConv2d: out_channels is -6; it must be a positive integer'),
    (dict(primary=0), 'IGConv2d: primary is 0; it must be a positive integer'),
    (dict(primary=2.), 'IGConv2d: primary is 2.0; it must be a positive integer'),
    (dict(primary=None), 'IGConv2d: primary is None; it must be a positive integer'),
    (dict(kernel_size=(3, 3)), 'IGConv2d: kernel_size is (3, 3); it must be a positive integer'),
    (dict(stride=0), 'IGConv2d: stride is 0; it must be a positive integer'),
    (dict(dilation=-1), 'IGConv2d: dilation is -1; it must be a positive integer'),
    (dict(in_channels=8), 'IGConv2d: in_channels=8 cannot be split into primary=6 equal partitions; it must be a multiple of 6'),
    (dict(out_channels=3), 'IGConv2d: out_channels=3 cannot be split into primary=6 equal partitions; it must be a multiple of 6'),
    (dict(kernel_size=4), 'IGConv2d: kernel_size is 4; it must be odd, for the padding to keep the map centred'),
])
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError) as raised:
        IGConv2d(**dict(in_channels=12, out_channels=12, primary=6) | arguments)
    assert str(raised.value) == message


def test_channels_last_and_bfloat16():
    torch.manual_seed(0)
    layer, x = IGConv2d(12, 24, 6, stride=2, dtype=torch.float64), torch.randn(2, 12, 8, 8, dtype=torch.float64)
    y = layer(x)
    found = layer.to(memory_format=torch.channels_last)(x.to(memory_format=torch.channels_last))
    torch.testing.assert_close(found, y, rtol=1e-12, atol=1e-12)
    half = layer.bfloat16()(x.bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.double(), y, rtol=.05, atol=.05)


def test_meta_device():
    layer = IGConv2d(12, 24, 6, stride=2, device='meta', dtype=torch.float16)
    y = layer(torch.empty(2, 12, 9, 8, device='meta', dtype=torch.float16))
    assert y.is_meta and y.shape == (2, 24, 5, 4) and y.dtype == torch.float16


def test_state_dict_and_description():
    layer = IGConv2d(6, 12, 3)
    assert {key: tuple(value.shape) for key, value in layer.state_dict().items()} == {
        'primary.weight': (12, 2, 3, 3), 'secondary.weight': (12, 3, 1, 1)}
    assert repr(layer).splitlines()[1].strip() == 'L=3, M=4'
