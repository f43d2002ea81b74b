"""IGCV2: interleaved structured sparse convolutions (Xie, Wang, Zhang, Lai, Hong, Qi, CVPR 2018).

In the order data flows: the convolution and the conditions it meets, units, stages, head; then the table of variants, and what timm must
know of each. The authors have released neither code nor weights, and the paper's own text was not at hand: what is a choice of this
package says so.
"""
import copy
import math
from collections import OrderedDict
from itertools import pairwise
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from timm.layers import DropPath, calculate_drop_path_rates, create_act_layer, get_norm_layer
from torch import Tensor, nn

from .layers import ConvNormAct, fold_batch_norm, interleave
from .net import Net, Paper, Printed, last_of_each_reduction

__all__ = ['IGCV2', 'PAPER', 'PRINTED', 'VARIANTS', 'Balance', 'SparseConv2d', 'balance', 'out_indices', 'timm_cfg']

PAPER = Paper('IGCV2: Interleaved Structured Sparse Convolutional Neural Networks',
              'Xie, Guotian and Wang, Jingdong and Zhang, Ting and Lai, Jianhuang and Hong, Richang and Qi, Guo-Jun', 'CVPR', 2018,
              '1804.06202')

WIDE = 64       # channels a group, from which on two cores with AVX2 compute the groups faster than their product


class SparseConv2d(nn.Module):
    """Interleaved structured sparse convolution: y = W_L P W_(L-1) ... P W_2 W_1 x, with nothing non-linear inside.

    W_1 filters each channel by itself, 3x3. W_2 to W_L are 1x1 convolutions in groups of K channels, the last of which gives the
    out_channels. There are as many as it takes to reach every channel: the fewest with K^(L-1) >= in_channels.

    The complementary condition of the paper, that the channels of a group come from different groups of the convolution before, makes
    exactly one path from each input channel to each output channel. That takes K^(L-1) = in_channels, so at K = 8 only 8, 64, 512, ...
    channels meet it; elsewhere some pairs have several paths, and every pair has one.

    P is `interleave` by the number of groups: one channel from each group in turn, as in the first IGC layer. With channels numbered by
    L - 1 digits to the base K, it moves the last digit, in which a convolution mixes, to the front, so that the next one mixes in the
    digit before it. The paper's own formula was not at hand; at L = 3 any that meets the condition makes the same functions, up to the
    order of the channels between. After W_1 and W_L a permutation would only rename channels.

    Args:
        in_channels: a multiple of ``channels``.
        out_channels: a multiple of the number of groups, in_channels / channels.
        channels: K, input channels of each group.
        stride, dilation: of W_1, pixels.

    Shape:
        (N, in_channels, H, W) -> (N, out_channels, ceil(H / stride), ceil(W / stride)).

    Raises:
        ValueError: channels that cannot be split so, or a size that is not positive; K = 1 with more than one input channel.
    """

    def __init__(
            self, in_channels: int, out_channels: int, channels: int = 8, stride: int = 1, dilation: int = 1, device=None, dtype=None):
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        sizes = dict(in_channels=in_channels, out_channels=out_channels, channels=channels, stride=stride, dilation=dilation)
        for name, size in sizes.items():
            if not isinstance(size, int) or size < 1:
                raise ValueError(f'SparseConv2d: {name} is {size!r}; it must be a positive integer')
        if in_channels % channels:
            raise ValueError(f'SparseConv2d: in_channels={in_channels} cannot be split into groups of channels={channels}; '
                             f'it must be a multiple of {channels}')
        self.groups = in_channels // channels
        if out_channels % self.groups:
            raise ValueError(f'SparseConv2d: out_channels={out_channels} cannot be split into {self.groups} groups; '
                             f'it must be a multiple of {self.groups}')
        if channels == 1 < in_channels:
            raise ValueError(f'SparseConv2d: channels=1 connects none of the {in_channels} channels; it must be at least 2')
        depth = next(depth for depth in range(1, in_channels + 1) if channels ** depth >= in_channels)
        widths = [in_channels] * depth + [out_channels]
        self.spatial = nn.Conv2d(in_channels, in_channels, 3, stride, dilation, dilation, in_channels, bias=False, **dd)
        self.pointwise = nn.ModuleList(
            nn.Conv2d(*pair, 1, groups=self.groups, bias=False, **dd) for pair in pairwise(widths))

    def forward(self, x: Tensor) -> Tensor:
        x = self.spatial(x)
        for layer, conv in enumerate(self.pointwise):
            if layer > 0:
                x = interleave(x, self.groups)      # (N, C, H', W')
            x = conv(x)
        return x

    def is_narrow(self) -> bool:
        """Whether its groups are so narrow that a processor computes their product faster, although it multiplies more."""
        return self.spatial.in_channels // self.groups < WIDE

    def product(self, dtype: torch.dtype) -> Tensor:
        """The 1x1 convolutions as one regular one, what they make of each channel alone: (out_channels, in_channels), differentiable."""
        inputs = self.spatial.in_channels
        x = torch.eye(inputs, dtype=dtype, device=self.spatial.weight.device)[:, :, None, None]
        for layer, conv in enumerate(self.pointwise):
            x = interleave(x, self.groups) if layer > 0 else x
            x = F.conv2d(x, conv.weight.to(dtype), groups=self.groups)      # (in, out, 1, 1)
        return x[:, :, 0, 0].t()

    def extra_repr(self) -> str:
        return f'L={len(self.pointwise) + 1}, K={self.spatial.in_channels // self.groups}'


class Balance(NamedTuple):
    """What the balance condition asks of a convolution; see `balance`."""
    depth: int          # L
    channels: float     # K_2 = ... = K_L; K_1 is S times less
    weights: float      # Q


def balance(width: int, depth: int | None = None, positions: int = 9) -> Balance:
    """The numbers of channels a group that need the fewest weights for a width.

    A product of L group convolutions has Q = C (S K_1 + K_2 + ... + K_L) weights. Under the complementary condition
    K_1 K_2 ... K_L = C that is at least C L (S C)^(1/L), reached where S K_1 = K_2 = ... = K_L = (S C)^(1/L): the balance condition. The
    bound itself is least at L = log(S C). For C = 64 and L = 3 the condition gives K = 8.3, and K_1 = 0.92: groups of 8 and
    channel-wise filters, as `SparseConv2d` has them.

    Args:
        width: C, channels.
        depth: L; None takes the better of the integers next to log(S C).
        positions: S, of the spatial kernel.
    """
    if depth is None:
        best = max(1, math.floor(math.log(positions * width)))
        return min((balance(width, depth, positions) for depth in (best, best + 1)), key=lambda found: found.weights)
    channels = (positions * width) ** (1 / depth)
    return Balance(depth, channels, width * depth * channels)


class SparseUnit(nn.Module):
    """A convolution, its normalisation and an activation; where asked for and nothing changes shape, with an identity shortcut.

    Args:
        in_chs, out_chs, channels, stride, dilation: as for `SparseConv2d`.
        shortcut: whether the input is added before the activation where stride is 1 and in_chs is out_chs.
        drop_path: probability that an image goes by the shortcut alone.
    """

    def __init__(
            self, in_chs: int, out_chs: int, channels: int, stride: int, dilation: int, shortcut: bool, drop_path: float, act_layer,
            norm_layer, **dd,
    ):
        super().__init__()
        self.conv = SparseConv2d(in_chs, out_chs, channels, stride, dilation, **dd)
        self.bn = norm_layer(out_chs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = shortcut and stride == 1 and in_chs == out_chs
        self.act = create_act_layer(act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        return self.act(x + self.drop_path(y) if self.residual else y)

    def fuse(self) -> nn.Module:
        """An equal unit for evaluation mode; timm's `reparameterize_model` and `igczoo.deploy` call this."""
        return FoldedSparseUnit(self)


class FoldedSparseUnit(nn.Module):
    """A `SparseUnit` without normalisation, and where its groups are narrow without interleave.

    Groups of few channels keep a processor waiting, so that one regular 1x1 convolution by the product of W_2 to W_L is quicker although
    it multiplies more; wide groups stay as they are.
    """

    def __init__(self, unit: SparseUnit):
        super().__init__()
        self.conv = copy.deepcopy(unit.conv)
        self.conv.pointwise[-1] = fold_batch_norm(unit.conv.pointwise[-1], unit.bn)
        if self.conv.is_narrow():
            self.conv.pointwise = nn.ModuleList([_product(self.conv)])
        self.conv.requires_grad_(False).to(memory_format=torch.channels_last)
        self.act = unit.act
        self.residual = unit.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.act(y + x if self.residual else y)


@torch.no_grad()
def _product(conv: SparseConv2d) -> nn.Conv2d:
    """The 1x1 convolutions as one regular one, computed in float64; the last of them has the bias."""
    last = conv.pointwise[-1]
    product = nn.Conv2d(conv.spatial.in_channels, last.out_channels, 1, device=last.weight.device, dtype=last.weight.dtype)
    product.weight.copy_(conv.product(torch.float64)[:, :, None, None])
    product.bias.copy_(last.bias)
    return product


class IGCV2(Net):
    """A 3x3 stem, stages of units, global pooling and a linear classifier.

    ``forward_features`` gives (N, num_features, H / reduction, W / reduction), ``forward`` logits (N, num_classes), for any H and W.
    Normalisation and activation stand after a whole product of convolutions, as in the first IGCNets: that keeps it one linear map.

    Args:
        stem_width: channels of the stem.
        widths: channels of each stage.
        depths: units of each stage.
        strides: of the stem and of each stage.
        groups: the most groups that a convolution is split into, of ``channels`` channels at least; None: ``channels`` in each.
        channels: K of `SparseConv2d`.
        shortcuts: an identity shortcut around each unit that changes no shape.
        num_classes: outputs of the classifier; 0 for none, so that ``forward`` returns the pooled features.
        in_chans: channels of the images.
        global_pool: a pooling of timm's `SelectAdaptivePool2d`; '' for none.
        output_stride: the largest reduction, a power of two not below the stem's; beyond it, stages dilate instead of striding.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, rising linearly to this rate at the last unit.
        act_layer: a name timm knows or a module class.
        norm_layer: likewise.

    Raises:
        ValueError: the stages' settings differ in length, an impossible output_stride, or stochastic depth without shortcuts; and as
            `SparseConv2d` where the widths do not divide.
    """

    def __init__(
            self,
            stem_width: int,
            widths: tuple[int, ...],
            depths: tuple[int, ...],
            strides: tuple[int, ...],
            groups: int | None = None,
            channels: int = 8,
            shortcuts: bool = False,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            act_layer='relu',
            norm_layer='batchnorm2d',
            device=None,
            dtype=None,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        if not len(widths) == len(depths) == len(strides) - 1 or not all(depths):
            raise ValueError(f'IGCV2: widths={widths} and depths={depths} must have one entry a stage, of a unit at least, and '
                             f'strides={strides} one more, the stem\'s')
        steps = self._steps(output_stride, strides[0], strides[1:])
        if drop_path_rate and not shortcuts:
            raise ValueError(f'IGCV2: drop_path_rate={drop_path_rate} needs shortcuts; a plain net must use drop_path_rate=0')
        norm_layer = get_norm_layer(norm_layer)
        dd = {'device': device, 'dtype': dtype}
        style = dict(act_layer=act_layer, norm_layer=norm_layer, **dd)

        # Children stand in the order they run in: timm's feature extraction goes by it.
        in_chs = stem_width
        self.stem = ConvNormAct(OrderedDict(
            conv=nn.Conv2d(in_chans, in_chs, 3, strides[0], 1, bias=False, **dd), bn=norm_layer(in_chs, **dd),
            act=create_act_layer(act_layer, inplace=True)))
        self.pool = nn.Identity()
        features = [dict(num_chs=in_chs, reduction=strides[0], module='stem.act', stage=0)]
        stages = []
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        for s, (width, depth, drop_paths) in enumerate(zip(widths, depths, drop_path_rates, strict=True)):
            stride, first_dilation, dilation, reduction = steps[s]
            units = []
            for b in range(depth):
                k = channels if groups is None else max(channels, in_chs // groups)
                shape = (in_chs, width, k, 1, dilation) if b else (in_chs, width, k, stride, first_dilation)
                units.append(SparseUnit(*shape, shortcuts, drop_paths[b], **style))
                in_chs = width
            stages.append(nn.Sequential(*units))
            features.append(dict(num_chs=width, reduction=reduction, module=f'stages.{s}', stage=s + 1))
        self.stages = nn.Sequential(*stages)
        self.feature_info = [features[stage] for stage in last_of_each_reduction(strides)]
        self.final = nn.Identity()
        self.num_features = in_chs
        self._create_head(global_pool, **dd)
        self.init_weights()


def _imagenet(width: float) -> dict[str, Any]:
    """The shape of MobileNetV1 (a stem and 13 units), its units twice as wide, in groups that number 8 once they have 8 channels.

    Nothing printed that is at hand says how these nets are split. The multiply-adds that ShuffleNet V2's table 8 prints do: 564, 156 and
    46 M at 1.0, 0.5 and 0.25 are 504 w^2 + 60 w, as MobileNetV1's are 540 w^2 + 29 w. So most of them grow with the square of the width:
    the number of groups is fixed, not the channels in each, and what is linear, the stem and the channel-wise convolutions, is twice that
    of MobileNetV1. As read here there are 548, 152 and 46 M (2.8, 2.5 and 0.2 % fewer). With K = 8 throughout, as in the CIFAR nets, at
    MobileNetV1's widths there would be 77, 37 and 17 M.
    """
    stem, *widths = (int(channels * width) for channels in (32, 128, 256, 512, 1024, 2048))
    return dict(stem_width=stem, widths=tuple(widths), depths=(1, 2, 2, 6, 2), strides=(2, 1, 2, 2, 2, 2), groups=8)


def _cifar(depth: int, width: int) -> dict[str, Any]:
    """Three stages of width, 2 and 4 times that, for 32x32 images; depth = 3n + 2. The shortcuts are this package's choice."""
    units = (depth - 2) // 3
    return dict(stem_width=width, widths=(width, 2 * width, 4 * width), depths=(units,) * 3, strides=(1, 1, 2, 2), shortcuts=True)


VARIANTS: dict[str, dict[str, Any]] = {
    'igcv2_100':        _imagenet(1.),
    'igcv2_050':        _imagenet(.5),
    'igcv2_025':        _imagenet(.25),
    'igcv2_14_c64':     _cifar(14, 64),
    'igcv2_20_c64':     _cifar(20, 64),
}
PRINTED = {
    'igcv2_100':        Printed(70.7, 'ShuffleNet V2, table 8, of the authors\' net'),
    'igcv2_050':        Printed(65.5, 'ShuffleNet V2, table 8, of the authors\' net'),
    'igcv2_025':        Printed(54.9, 'ShuffleNet V2, table 8, of the authors\' net'),
}


def timm_cfg(variant: str, input_size: tuple[int, int, int] | None = None, **kwargs) -> dict[str, Any]:
    """What timm must know of a variant."""
    strides = VARIANTS[variant]['strides']
    return PAPER.timm_cfg(strides[0] == 2, math.prod(strides), input_size, **kwargs)


def out_indices(variant: str) -> tuple[int, ...]:
    """Which entries of `feature_info` are a backbone's feature maps: all."""
    return tuple(range(len(last_of_each_reduction(VARIANTS[variant]['strides']))))
