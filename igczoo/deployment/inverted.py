"""The exact forms of IGCV3's inverted unit, and units that run one after another in one operator."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..nets.igcv3 import FusedUnit, InvertedUnit
from ..nets.layers import fold_batch_norm
from . import kernels
from .hooks import is_heard
from .kernels import inverted
from .planes import constant

__all__ = ['UNIT_FORMS', 'DeployedUnits', 'FusedInvertedUnit', 'deploy_units', 'has_only_units', 'unit_forms_of']


class FusedInvertedUnit(nn.Module):
    """The whole unit in one kernel on a CPU in float32 and bfloat16, elsewhere by torch's own operations; no weights of zeros.

    Between the convolutions, channels are in the order of the kernel, `[p][g][c]`: by the projection's group they go to, then by the
    expansion's group they come from.
    """

    def __init__(self, unit: InvertedUnit):
        super().__init__()
        expand, depthwise, project = (fold_batch_norm(conv, bn) for conv, bn in (
            (unit.expand, unit.bn1), (unit.depthwise, unit.bn2), (unit.project, unit.bn3)))
        g, p, mid_chs = expand.groups, project.groups, depthwise.out_channels
        c = -(-mid_chs // (g * p))      # where the parts are not equal, some end in a channel of zeros
        channel = torch.arange(mid_chs, device=expand.weight.device)                # interleaved
        source, target = channel % g, channel // (mid_chs // p)                     # groups of the expansion and of the projection
        of_target = (target * (mid_chs // p) - source + g - 1) // g                 # the first of its source's that goes to its target
        place = (target * g + source) * c + channel // g - of_target

        def ordered(values: Tensor) -> Tensor:
            """(mid, ...) of each interleaved channel -> (p, g, c, ...)."""
            return values.new_zeros(p * g * c, *values.shape[1:]).index_copy(0, place, values).unflatten(0, (p, g, c))

        with torch.no_grad():
            came_from = source * (mid_chs // g) + channel // g
            matrix, bias = expand.weight[came_from, :, 0, 0], expand.bias[came_from]                        # (mid, C / g), (mid,)
            self.expand, self.expand_bias = constant(ordered(matrix).transpose(2, 3).contiguous()), constant(ordered(bias))
            filters = ordered(depthwise.weight[:, 0]).permute(0, 3, 4, 1, 2).contiguous()                   # (p, k, k, g, c)
            self.depthwise, self.depthwise_bias = constant(filters), constant(ordered(depthwise.bias))
            matrix = project.weight.view(p, -1, mid_chs // p).transpose(1, 2).flatten(0, 1)                 # (mid, O / p)
            self.project, self.project_bias = constant(ordered(matrix)), constant(project.bias.view(p, -1))
        self.stride, self.dilation, self.residual = depthwise.stride[0], depthwise.dilation[0], unit.residual

    def unit(self) -> inverted.InvertedUnit:
        return inverted.InvertedUnit((self.expand, self.expand_bias), (self.depthwise, self.depthwise_bias),
                                     (self.project, self.project_bias), self.stride, self.dilation, self.residual)

    def forward(self, x: Tensor) -> Tensor:
        return inverted.inverted_units(x, [self.unit()])


UNIT_FORMS: dict[str, type[nn.Module]] = {'fused': FusedInvertedUnit, 'mixed': FusedUnit}


def unit_forms_of(unit: InvertedUnit, portable: bool = False) -> list[str]:
    """The names of the forms a unit can take; first the one that is most likely the fastest.

    Args:
        unit: in evaluation mode.
        portable: only those of PyTorch's own operations.
    """
    weight = unit.expand.weight
    fused = not portable and type(unit.act) is nn.ReLU6 and kernels.load(build=False, dtype=weight.dtype) and kernels.takes(weight)
    return [*['fused'] * fused, 'mixed']


class DeployedUnits(nn.Sequential):
    """Units, or stages of them, one after another; one operator runs all fused ones that follow one another, without those with hooks."""

    def forward(self, x: Tensor) -> Tensor:
        together: list[inverted.InvertedUnit] = []
        for module in self.parts():
            if isinstance(module, FusedInvertedUnit) and not is_heard(module):
                together.append(module.unit())
                continue
            if together:
                x, together = inverted.inverted_units(x, together), []
            x = module(x)
        return inverted.inverted_units(x, together) if together else x

    def parts(self) -> Iterator[nn.Module]:
        """Its units, and of its stages those with hooks whole."""
        for module in self:
            if isinstance(module, DeployedUnits) and not is_heard(module):
                yield from module.parts()
            else:
                yield module


def has_only_units(module: nn.Module) -> bool:
    """Whether it is a sequence of units, or of such sequences."""
    return isinstance(module, nn.Sequential) and len(module) > 0 and all(
        isinstance(part, InvertedUnit) or has_only_units(part) for part in module)


def deploy_units(units: nn.Sequential, choose: Callable[[InvertedUnit], str]) -> nn.Sequential:
    """Deploy units that follow one another, or stages of them; ``choose`` names the form of a unit."""
    deployed = OrderedDict(
        (name, UNIT_FORMS[choose(part)](part) if isinstance(part, InvertedUnit) else deploy_units(part, choose))
        for name, part in units.named_children())
    of_torch = not any(isinstance(part, FusedInvertedUnit | DeployedUnits) for part in deployed.values())
    return nn.Sequential(deployed) if of_torch else DeployedUnits(deployed)
