"""IGCV2 in training on a CPU: the same network, parameters and gradients by the kernels of fused.py, faster (benchmarks/training.py).

The 1x1 convolutions of a unit are one linear map without anything between, so a step multiplies by their product, which is computed from
their weights once for all pixels and differentiated back to them. That multiplies more, and reads and writes maps less.
"""
from __future__ import annotations

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from ..nets.igcv2 import IGCV2, SparseUnit
from . import fused

__all__ = ['FusedIGCV2']


class FusedIGCV2(nn.Module):
    """Computes an `IGCV2`, forward and backward, with the parameters and buffers of the net it is given.

    The wrapped net stays as it is and may be used, saved or averaged at any time; its running statistics are kept up. What there are no
    kernels for is computed by the net's own modules.

    Args:
        net: an IGCV2 with BatchNorm2d for its norm layers and no gradient checkpointing.

    Raises:
        ValueError: the net has another norm layer, or gradient checkpointing.
    """

    def __init__(self, net: IGCV2):
        super().__init__()
        for name, module in net.named_modules():
            if name.rpartition('.')[2] == 'bn' and type(module) is not nn.BatchNorm2d:
                raise ValueError(f'FusedIGCV2: {name} is {type(module).__name__}; it must be BatchNorm2d')
        if net.grad_checkpointing:
            raise ValueError('FusedIGCV2: the net has gradient checkpointing on; turn it off by set_grad_checkpointing(False)')
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> logits (N, num_classes)."""
        return self.net.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """(N, in_chans, H, W) -> (N, num_features, H / reduction, W / reduction)."""
        x = self.net.pool(fused.conv_norm_act(x.contiguous(memory_format=torch.channels_last), self.net.stem))
        for stage in self.net.stages:
            for unit in stage:
                x = _unit(unit, x)
        return self.net.final(x)


def _unit(unit: SparseUnit, x: Tensor) -> Tensor:
    conv, act, dtype = unit.conv.spatial, type(unit.act), fused.storage(x)
    drops = unit.training and isinstance(unit.drop_path, DropPath)
    if dtype is None or drops or act not in fused.BOUNDS or conv.stride[0] > 1 < conv.dilation[0] or fused.pixels(x, conv.stride[0]) == 1:
        return unit(x)
    with torch.autocast('cpu', enabled=False):
        product = unit.conv.product(conv.weight.dtype)[None]                    # (1, out, in)
    channelwise = conv.weight.permute(1, 2, 3, 0)[None]                          # (1, 1, 3, 3, C)
    return fused.block(x, [fused.Unit(
        channelwise, product, unit.bn.weight, unit.bn.bias, unit.bn, (1, -1), (0, 1), fused.BOUNDS[act], stride=conv.stride[0],
        dilation=conv.dilation[0])], unit.residual, dtype)
