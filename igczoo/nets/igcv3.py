"""IGCV3-D: interleaved low-rank group convolutions (Sun, Li, Liu, Wang, BMVC 2018), as its authors released it.

In the order data flows: stem, inverted units, final convolution, head; then the table of variants, and what timm must know of each.
Source: symbols/igcv3.py and models/igcv3-symbol.json of homles11/IGCV3.
"""
import math
from collections import OrderedDict
from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates, create_act_layer, get_norm_layer
from torch import Tensor, nn

from .layers import ConvNormAct, fold_batch_norm, interleave
from .net import Net, Paper, Printed, last_of_each_reduction

__all__ = ['IGCV3', 'PAPER', 'PRINTED', 'VARIANTS', 'out_indices', 'timm_cfg']

PAPER = Paper('IGCV3: Interleaved Low-Rank Group Convolutions for Efficient Deep Neural Networks',
              'Sun, Ke and Li, Mingjie and Liu, Dong and Wang, Jingdong', 'BMVC', 2018, '1806.00178')

GROUPS = 2      # of both 1x1 convolutions in every unit
STEM_WIDTH, FINAL_WIDTH = 32, 1280
STAGES = (
    # expansion, channels, units
    (1, 16, 1),
    (6, 24, 4),
    (6, 32, 6),
    (6, 64, 8),
    (6, 96, 6),
    (6, 160, 6),
    (6, 320, 1),
)
STRIDES = (2, 1, 2, 2, 2, 1, 2, 1)      # of the stem and of each stage


class InvertedUnit(nn.Module):
    """Expand by a 1x1 convolution of two groups, interleave, filter channel by channel, project by a 1x1 convolution of two groups.

    There is no activation after the expansion, and a ReLU6 after the channel-wise convolution only.

    The released weights belong to this form, in which ports differ:

    * one interleave, before the channel-wise convolution: the paper's figure and some ports have a second one after the projection, which
      the authors' code computes and drops;
    * some ports put a ReLU6 after the expansion too.

    Args:
        in_chs, out_chs: channels, even.
        expansion: channels between for each input channel.
        stride, dilation: of the channel-wise convolution, pixels.
        drop_path: probability that an image goes by the shortcut alone.
    """

    def __init__(
            self, in_chs: int, out_chs: int, expansion: int, stride: int, dilation: int, drop_path: float, act_layer, norm_layer, **dd):
        super().__init__()
        mid_chs = in_chs * expansion
        self.expand = nn.Conv2d(in_chs, mid_chs, 1, groups=GROUPS, bias=False, **dd)
        self.bn1 = norm_layer(mid_chs, **dd)
        self.depthwise = nn.Conv2d(mid_chs, mid_chs, 3, stride, dilation, dilation, mid_chs, bias=False, **dd)
        self.bn2 = norm_layer(mid_chs, **dd)
        self.act = create_act_layer(act_layer, inplace=True)
        self.project = nn.Conv2d(mid_chs, out_chs, 1, groups=GROUPS, bias=False, **dd)
        self.bn3 = norm_layer(out_chs, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.residual = stride == 1 and in_chs == out_chs

    def forward(self, x: Tensor) -> Tensor:
        y = interleave(self.bn1(self.expand(x)), self.expand.groups)    # (N, mid, H, W)
        y = self.act(self.bn2(self.depthwise(y)))               # (N, mid, H', W')
        y = self.bn3(self.project(y))                           # (N, out, H', W')
        return x + self.drop_path(y) if self.residual else y

    def fuse(self) -> nn.Module:
        """An equal, faster unit for evaluation mode; timm's `reparameterize_model` and `igczoo.deploy` call this."""
        return FoldedInvertedUnit(self)


class FoldedInvertedUnit(nn.Module):
    """An `InvertedUnit` without normalisation and without interleave.

    The channel-wise convolution takes its kernels in the order in which the expansion gives the channels. The projection, whose groups
    that order scatters, becomes a regular 1x1 convolution, half of whose weights are zeros.
    """

    def __init__(self, unit: InvertedUnit):
        super().__init__()
        mid_chs, device = unit.depthwise.in_channels, unit.depthwise.weight.device
        place = interleave(torch.arange(mid_chs, device=device).view(1, -1, 1, 1), GROUPS).flatten()    # of each interleaved channel
        depthwise, project = fold_batch_norm(unit.depthwise, unit.bn2), fold_batch_norm(unit.project, unit.bn3)
        with torch.no_grad():
            depthwise.weight[place], depthwise.bias[place] = depthwise.weight.clone(), depthwise.bias.clone()
        self.expand = _in_channels_last(fold_batch_norm(unit.expand, unit.bn1))
        self.depthwise = _in_channels_last(depthwise)
        self.act = unit.act
        self.project = _in_channels_last(_dense(project, place))
        self.residual = unit.residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.act(self.depthwise(self.expand(x))))
        return y + x if self.residual else y


def _dense(conv: nn.Conv2d, place: Tensor) -> nn.Conv2d:
    """A grouped 1x1 convolution as a regular one that finds its input channel c at ``place[c]``."""
    outputs, inputs = conv.out_channels // GROUPS, conv.in_channels // GROUPS
    dense = nn.Conv2d(conv.in_channels, conv.out_channels, 1, device=conv.weight.device, dtype=conv.weight.dtype)
    with torch.no_grad():
        weight = torch.zeros_like(dense.weight)
        for group in range(GROUPS):
            rows = slice(group * outputs, (group + 1) * outputs)
            weight[rows, place[group * inputs:(group + 1) * inputs]] = conv.weight[rows]
        dense.weight.copy_(weight)
        dense.bias.copy_(conv.bias)
    return dense


def _in_channels_last(conv: nn.Conv2d) -> nn.Conv2d:
    return conv.requires_grad_(False).to(memory_format=torch.channels_last)


class IGCV3(Net):
    """A 3x3 stem, stages of inverted units, a final 1x1 convolution, global pooling and a linear classifier.

    ``forward_features`` gives (N, num_features, H / 32, W / 32) at output_stride 32, ``forward`` logits (N, num_classes).

    Widths are those of pytorchcv: ``int(channels * width)``, rounded up to even. The authors' file scales twice where a stage
    begins when its multiplier is not 1, so that its narrower nets are others; at 1 both are the same.

    Args:
        width: multiplies the channels of the stem and of each stage.
        strides: of the stem and of each stage.
        num_classes: outputs of the classifier; 0 for none, so that ``forward`` returns the pooled features.
        in_chans: channels of the images.
        global_pool: a pooling of timm's `SelectAdaptivePool2d`; '' for none.
        output_stride: the largest reduction, a power of two not below the stem's; beyond it, stages dilate instead of striding.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, rising linearly to this rate at the last unit.
        act_layer: a name timm knows or a module class.
        norm_layer: likewise.

    Raises:
        ValueError: there is not one stride for the stem and one for each stage, or an impossible output_stride.
    """

    def __init__(
            self,
            width: float = 1.,
            strides: tuple[int, ...] = STRIDES,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            act_layer='relu6',
            norm_layer='batchnorm2d',
            device=None,
            dtype=None,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        if len(strides) != 1 + len(STAGES):
            raise ValueError(f'IGCV3: strides={strides}; there must be {1 + len(STAGES)}, of the stem and of each of {len(STAGES)} stages')
        steps = self._steps(output_stride, strides[0], strides[1:])
        norm_layer = get_norm_layer(norm_layer)
        dd = {'device': device, 'dtype': dtype}
        style = dict(act_layer=act_layer, norm_layer=norm_layer, **dd)

        # Children stand in the order they run in: timm's feature extraction goes by it.
        in_chs = _scaled(STEM_WIDTH, width)
        self.stem = ConvNormAct(OrderedDict(
            conv=nn.Conv2d(in_chans, in_chs, 3, strides[0], 1, bias=False, **dd), bn=norm_layer(in_chs, **dd),
            act=create_act_layer(act_layer, inplace=True)))
        self.pool = nn.Identity()
        features = [dict(num_chs=in_chs, reduction=strides[0], module='stem.act', stage=0)]
        stages = []
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, [depth for _, _, depth in STAGES], stagewise=True)
        for s, ((expansion, channels, depth), drop_paths) in enumerate(zip(STAGES, drop_path_rates, strict=True)):
            stride, first_dilation, dilation, reduction = steps[s]
            out_chs, units = _scaled(channels, width), []
            for b in range(depth):
                unit = (out_chs, out_chs, expansion, 1, dilation) if b else (in_chs, out_chs, expansion, stride, first_dilation)
                units.append(InvertedUnit(*unit, drop_paths[b], **style))
            stages.append(nn.Sequential(*units))
            features.append(dict(num_chs=out_chs, reduction=reduction, module=f'stages.{s}', stage=s + 1))
            in_chs = out_chs
        self.stages = nn.Sequential(*stages)
        self.feature_info = [features[stage] for stage in last_of_each_reduction(strides)]
        self.num_features = FINAL_WIDTH if width <= 1 else _scaled(FINAL_WIDTH, width)
        self.final = ConvNormAct(OrderedDict(
            conv=nn.Conv2d(in_chs, self.num_features, 1, bias=False, **dd), bn=norm_layer(self.num_features, **dd),
            act=create_act_layer(act_layer, inplace=True)))
        self._create_head(global_pool, **dd)
        self.init_weights()


def _scaled(channels: int, width: float) -> int:
    scaled = int(channels * width)
    return scaled + scaled % 2


# For 32x32 images: no reduction but by the third and the fourth stage, as SeesawNet's authors had it from IGCV3's.
CIFAR_STRIDES = (1, 1, 1, 2, 2, 1, 1, 1)
VARIANTS: dict[str, dict[str, Any]] = {     # parameters
    'igcv3_100':        dict(width=1.),         # 3,491,688
    'igcv3_075':        dict(width=.75),        # 2,638,084
    'igcv3_050':        dict(width=.5),         # 1,985,528
    'igcv3_025':        dict(width=.25),        # 1,534,020
    'igcv3_100_cifar':  dict(width=1., strides=CIFAR_STRIDES),
    'igcv3_025_cifar':  dict(width=.25, strides=CIFAR_STRIDES),
}
PRINTED: dict[str, Printed] = {}


def timm_cfg(variant: str, input_size: tuple[int, int, int] | None = None, **kwargs) -> dict[str, Any]:
    """What timm must know of a variant."""
    strides = VARIANTS[variant].get('strides', STRIDES)
    return PAPER.timm_cfg(strides[0] == 2, math.prod(strides), input_size, **kwargs)


def out_indices(variant: str) -> tuple[int, ...]:
    """Which entries of `feature_info` are a backbone's feature maps: all."""
    return tuple(range(len(last_of_each_reduction(VARIANTS[variant].get('strides', STRIDES)))))
