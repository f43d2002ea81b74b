"""IGCNet: networks of interleaved group convolutions (Zhang, Qi, Xiao, Wang, ICCV 2017), and their regular-convolution twins.

In the order data flows: stem, blocks of units, head; then the table of variants, and what timm must know of each.
"""
from collections import OrderedDict
from functools import partial
from typing import Any

from timm.layers import DropPath, calculate_drop_path_rates, create_act_layer, get_norm_layer
from torch import Tensor, nn

from .layers import ConvNormAct, IGConv2d
from .net import Net, Paper, Printed

__all__ = ['PAPER', 'PRINTED', 'VARIANTS', 'IGCNet', 'igc_resnet', 'out_indices', 'timm_cfg']

PAPER = Paper('Interleaved Group Convolutions for Deep Neural Networks', 'Zhang, Ting and Qi, Guo-Jun and Xiao, Bin and Wang, Jingdong',
              'ICCV', 2017, '1707.02725')

BatchNorm = partial(nn.BatchNorm2d, eps=2e-5)                       # every net of the authors: eps 2e-5, fix_gamma False
BatchNormPlain = partial(nn.BatchNorm2d, eps=2e-5, momentum=0.01)   # plain_igc.py writes MXNet's momentum 0.99, which is torch's 0.01


class Unit(nn.Module):
    """Convolution and normalisation: one layer of the paper's depth count, before its activation.

    The convolution is an `IGConv2d` of ``primary`` partitions, or where ``primary`` is None the regular 3x3 one it is compared with.
    """

    def __init__(self, in_chs: int, out_chs: int, primary: int | None, stride: int, dilation: int, norm_layer, **dd):
        super().__init__()
        if primary is None:
            self.conv = nn.Conv2d(in_chs, out_chs, 3, stride, dilation, dilation, bias=False, **dd)
        else:
            self.conv = IGConv2d(in_chs, out_chs, primary, stride=stride, dilation=dilation, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class Projection(nn.Module):
    """The shortcut where width or stride changes: 1x1 in as many groups as there are primary partitions, not interleaved."""

    def __init__(self, in_chs: int, out_chs: int, primary: int | None, stride: int, norm_layer, **dd):
        super().__init__()
        self.conv = nn.Conv2d(in_chs, out_chs, 1, stride, groups=primary or 1, bias=False, **dd)
        self.bn = norm_layer(out_chs, **dd)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ResidualBlock(nn.Module):
    """Two units and an identity or projected shortcut ("+Ident." in the paper's tables)."""

    def __init__(
            self, in_chs: int, out_chs: int, primary: int | None, stride: int, first_dilation: int, dilation: int, drop_path: float,
            act_layer, norm_layer, **dd,
    ):
        super().__init__()
        self.unit1 = Unit(in_chs, out_chs, primary, stride, first_dilation, norm_layer, **dd)
        self.act1 = create_act_layer(act_layer, inplace=True)
        self.unit2 = Unit(out_chs, out_chs, primary, 1, dilation, norm_layer, **dd)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        same_shape = in_chs == out_chs and stride == 1
        self.shortcut = nn.Identity() if same_shape else Projection(in_chs, out_chs, primary, stride, norm_layer, **dd)
        self.act2 = create_act_layer(act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.unit2(self.act1(self.unit1(x)))
        return self.act2(self.shortcut(x) + self.drop_path(y))


class PlainBlock(nn.Module):
    """One unit and its activation, no shortcut."""

    def __init__(self, in_chs: int, out_chs: int, primary: int | None, stride: int, dilation: int, act_layer, norm_layer, **dd):
        super().__init__()
        self.unit = Unit(in_chs, out_chs, primary, stride, dilation, norm_layer, **dd)
        self.act = create_act_layer(act_layer, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.unit(x))


class Stage(nn.Sequential):
    """Blocks of one width. The room `deployment` gives it the method ``fuse`` that timm's `reparameterize_model` calls."""


class Stages(nn.Sequential):
    """All stages. It gets the method ``fuse`` likewise."""


class IGCNet(Net):
    """A stem, stages of IGC blocks, global pooling and a linear classifier.

    ``forward_features`` gives (N, num_features, H / reduction, W / reduction), ``forward`` logits (N, num_classes), for any H and W.

    The networks are those the authors released, with two differences that leave their ImageNet nets at 224 pixels unchanged:

    * pooling is global at every input size (theirs is a fixed 7x7 or 8x8 window);
    * in the residual CIFAR nets, the first unit of a down-sampling block has M = out_channels / L secondary partitions, as everywhere
      else in their code and in the paper; their resnet_igc.py alone computes that one as in_channels / L, which gives each channel pair
      two paths, and 6,912 more weights in IGC-L24M2.

    Args:
        stem: 'imagenet' (7x7 stride 2, then a 3x3 stride 2 max-pool in floor mode) or 'cifar' (3x3 stride 1).
        stem_width: channels of the stem.
        widths: channels of each stage.
        primary: number L of primary partitions in each stage, None for regular convolutions.
        depths: blocks in each stage.
        shortcuts: residual blocks of two units (True), or plain ones of one unit.
        num_classes: outputs of the classifier; 0 for none, so that ``forward`` returns the pooled features.
        in_chans: channels of the images.
        global_pool: a pooling of timm's `SelectAdaptivePool2d`; '' for none.
        output_stride: the largest reduction, a power of two not below the stem's; beyond it, stages dilate instead of striding.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth, rising linearly to this rate at the last block.
        act_layer: a name timm knows or a module class.
        norm_layer: likewise; the default is the authors' BatchNorm, eps 2e-5.

    Raises:
        ValueError: the stages' settings differ in length, an unknown stem, an impossible output_stride, or stochastic depth without
            shortcuts; and as `IGConv2d` where the widths do not divide.
    """

    def __init__(
            self,
            stem: str,
            stem_width: int,
            widths: tuple[int, ...],
            primary: tuple[int, ...] | None,
            depths: tuple[int, ...],
            shortcuts: bool = True,
            num_classes: int = 1000,
            in_chans: int = 3,
            global_pool: str = 'avg',
            output_stride: int = 32,
            drop_rate: float = 0.,
            drop_path_rate: float = 0.,
            act_layer='relu',
            norm_layer=BatchNorm,
            device=None,
            dtype=None,
    ):
        super().__init__(num_classes, in_chans, drop_rate)
        dd = {'device': device, 'dtype': dtype}
        stage_primary = (None,) * len(widths) if primary is None else primary
        if not len(widths) == len(stage_primary) == len(depths):
            raise ValueError(f'IGCNet: widths={widths}, primary={primary} and depths={depths} must have one entry a stage')
        if not widths:
            raise ValueError('IGCNet: widths is empty; there must be at least one stage')
        if min(depths) < 1:
            raise ValueError(f'IGCNet: depths is {depths}; each stage must have at least one block')
        if drop_path_rate and not shortcuts:
            raise ValueError(f'IGCNet: drop_path_rate={drop_path_rate} needs shortcuts; a plain net must use drop_path_rate=0')
        norm_layer = get_norm_layer(norm_layer)

        # Children stand in the order they run in: timm's feature extraction goes by it.
        stem_conv, pool, stem_reduction, reduction = _create_stem(stem, in_chans, stem_width, **dd)
        steps = self._steps(output_stride, reduction, [1, *[2] * (len(widths) - 1)])
        self.stem = ConvNormAct(OrderedDict(
            conv=stem_conv, bn=norm_layer(stem_width, **dd), act=create_act_layer(act_layer, inplace=True)))
        self.pool = pool
        self.feature_info = [dict(num_chs=stem_width, reduction=stem_reduction, module='stem.act', stage=0)]

        stages = []
        in_chs = stem_width
        drop_path_rates = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)
        style = dict(act_layer=act_layer, norm_layer=norm_layer, **dd)
        for s, (width, partitions, depth, drop_paths) in enumerate(zip(widths, stage_primary, depths, drop_path_rates, strict=True)):
            stride, first_dilation, dilation, reduction = steps[s]
            blocks = []
            for b in range(depth):
                shape = (width, width, partitions, 1, dilation) if b else (in_chs, width, partitions, stride, first_dilation)
                blocks.append(ResidualBlock(*shape, dilation, drop_paths[b], **style) if shortcuts else PlainBlock(*shape, **style))
            stages.append(Stage(*blocks))
            self.feature_info.append(dict(num_chs=width, reduction=reduction, module=f'stages.{s}', stage=s + 1))
            in_chs = width
        self.stages = Stages(*stages)
        self.final = nn.Identity()

        self.num_features = in_chs
        self._create_head(global_pool, **dd)
        self.init_weights()


def _create_stem(stem: str, in_chans: int, width: int, **dd) -> tuple[nn.Module, nn.Module, int, int]:
    """The first convolution, the pooling after it, and the reduction before and after that pooling."""
    if stem == 'imagenet':
        return nn.Conv2d(in_chans, width, 7, 2, 3, bias=False, **dd), nn.MaxPool2d(3, 2, 1), 2, 4
    if stem == 'cifar':
        return nn.Conv2d(in_chans, width, 3, 1, 1, bias=False, **dd), nn.Identity(), 1, 1
    raise ValueError(f"IGCNet: stem is {stem!r}; it must be 'imagenet' or 'cifar'")


# Variants -----------------------------------------------------------------------------------------------------------------------------

def _imagenet(stem_width: int, widths: tuple[int, ...], primary: tuple[int, ...] | None) -> dict[str, Any]:
    return dict(stem='imagenet', stem_width=stem_width, widths=widths, primary=primary, depths=(2, 2, 2, 2))


def _cifar(depth: int, primary: int | None, width: int, shortcuts: bool = True) -> dict[str, Any]:
    """Three stages of width, 2 and 4 times that, for 32x32 images; depth = 6n + 2 with shortcuts, 3n + 2 without."""
    layers = 6 if shortcuts else 3
    if depth < layers + 2 or (depth - 2) % layers:
        raise ValueError(f'igc_resnet: depth is {depth}; with shortcuts={shortcuts} it must be {layers}n + 2, as {layers + 2}'
                         f' or {2 * layers + 2}')
    variant = dict(
        stem='cifar', stem_width=width, widths=(width, 2 * width, 4 * width), primary=None if primary is None else (primary,) * 3,
        depths=((depth - 2) // layers,) * 3, shortcuts=shortcuts)
    return variant if shortcuts else dict(variant, norm_layer=BatchNormPlain)


# The ImageNet nets are the authors' released graphs (network/*-symbol.json), rows of the table in their README.
# IGC-L100M2 doubles L from stage to stage and keeps M = 2; the other two keep L and double M.
# The CIFAR nets are plain_igc.py and resnet_igc.py; the width of stage 1 is L * M, L is kept and M doubles.
VARIANTS: dict[str, dict[str, Any]] = {
    #                                    stem  widths                   L
    'igcnet18':              _imagenet(100, (200, 400, 800, 1600), (100, 200, 400, 800)),      # IGC-L100M2+Ident.
    'igcnet18_l16m16':       _imagenet(256, (256, 512, 1024, 2048), (16, 16, 16, 16)),         # IGC-L16M16+Ident.
    'igcnet18_l4m32':        _imagenet(128, (128, 256, 512, 1024), (4, 4, 4, 4)),              # IGC-L4M32+Ident.
    'igc_regconv18_c64':     _imagenet(64, (64, 128, 256, 512), None),                         # ResNet (Reg. Conv.), C = 64
    'igc_regconv18_c69':     _imagenet(69, (69, 138, 276, 552), None),                         # ResNet (Reg. Conv.), C = 69
    #                                 depth L   width
    'igc_resnet20_l24m2':    _cifar(20, 24, 48),                                               # IGC-L24M2+Ident.
    'igc_resnet38_l24m2':    _cifar(38, 24, 48),
    'igc_resnet62_l24m2':    _cifar(62, 24, 48),
    'igc_resnet20_l4m8':     _cifar(20, 4, 32),                                                # IGC-L4M8+Ident.
    'igc_plain20_l24m2':     _cifar(20, 24, 48, shortcuts=False),                              # IGC-L24M2
    'igc_regconv20_w16':     _cifar(20, None, 16),                                             # RegConv-W16+Ident.
    'igc_regconv20_w18':     _cifar(20, None, 18),                                             # RegConv-W18+Ident.
}
PRINTED = {     # in the authors' README
    'igc_regconv18_c64':     Printed(68.94, 'the authors'),
    'igc_regconv18_c69':     Printed(69.42, 'the authors'),
}


def igc_resnet(
        depth: int = 20, primary: int = 24, secondary: int = 2, num_classes: int = 10, shortcuts: bool = True, **kwargs) -> IGCNet:
    """An IGC net for 32x32 images of any size, without weights: "IGC-L``primary``M``secondary``" of the paper's CIFAR tables.

    Args:
        depth: 6n + 2 with shortcuts, 3n + 2 without.
        primary: L, the same in all three stages.
        secondary: M of the first stage; it doubles from stage to stage.
        num_classes: outputs of the classifier.
        shortcuts: residual ("+Ident.") or plain net.
        **kwargs: further arguments of `IGCNet`.

    Raises:
        ValueError: a depth that is not 6n + 2 or 3n + 2, or partition counts that are not positive integers.
    """
    for name, count in (('primary', primary), ('secondary', secondary)):
        if not isinstance(count, int) or count < 1:
            raise ValueError(f'igc_resnet: {name} is {count!r}; it must be a positive integer')
    return IGCNet(**(_cifar(depth, primary, primary * secondary, shortcuts) | dict(num_classes=num_classes) | kwargs))


# Facts for timm ---------------------------------------------------------------------------------------------------------------------

AUTHORS_MEAN, AUTHORS_STD = (0.483804, 0.442184, 0.389827), (0.270580, 0.259188, 0.267812)      # train_imagenet.py, divided by 255


def timm_cfg(variant: str, input_size: tuple[int, int, int] | None = None, **kwargs) -> dict[str, Any]:
    """What timm must know of a variant."""
    imagenet = VARIANTS[variant]['stem'] == 'imagenet'
    theirs = dict(mean=AUTHORS_MEAN, std=AUTHORS_STD) if imagenet else {}
    return PAPER.timm_cfg(imagenet, 32 if imagenet else 4, input_size, **theirs | kwargs)


def out_indices(variant: str) -> tuple[int, ...]:
    """Which entries of `feature_info` are a backbone's feature maps: the stem and every stage."""
    return tuple(range(len(VARIANTS[variant]['widths']) + 1))
