"""The exact forms of the units of IGCV2 and IGCV3, and units that run one after another in one operator."""
from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..nets.igcv2 import FoldedSparseUnit, SparseUnit
from ..nets.igcv3 import FoldedInvertedUnit, InvertedUnit
from ..nets.layers import fold_batch_norm
from ..nets.structure import has_own_hooks
from . import kernels
from .kernel_layer import KernelLayer
from .kernels import inverted, sparse
from .planes import constant

__all__ = ['UNITS', 'UNIT_FORMS', 'DeployedUnits', 'FusedInvertedUnit', 'FusedSparseUnit', 'deploy_units', 'has_only_units',
           'unit_forms_of']

UNITS = InvertedUnit, SparseUnit


class FusedInvertedUnit(KernelLayer):
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
            self.expand, self.expand_bias = constant(ordered(matrix).transpose(2, 3)), constant(ordered(bias))
            filters = ordered(depthwise.weight[:, 0]).permute(0, 3, 4, 1, 2)                                # (p, k, k, g, c)
            self.depthwise, self.depthwise_bias = constant(filters), constant(ordered(depthwise.bias))
            matrix = project.weight.view(p, -1, mid_chs // p).transpose(1, 2).flatten(0, 1)                 # (mid, O / p)
            self.project, self.project_bias = constant(ordered(matrix)), constant(project.bias.view(p, -1))
        self.stride, self.dilation, self.residual = depthwise.stride[0], depthwise.dilation[0], unit.residual

    def unit(self) -> inverted.InvertedUnit:
        return inverted.InvertedUnit(self.expand, self.expand_bias, self.depthwise, self.depthwise_bias, self.project, self.project_bias,
                                     self.stride, self.dilation, self.residual)

    @staticmethod
    def run(x: Tensor, units: list[FusedInvertedUnit]) -> Tensor:
        return inverted.inverted_units(x, [unit.unit() for unit in units])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, [self])


class FusedSparseUnit(KernelLayer):
    """All convolutions of a `SparseUnit` in one kernel on a CPU in float32 and bfloat16, elsewhere by torch's own operations."""

    def __init__(self, unit: SparseUnit):
        super().__init__()
        spatial, *between, last = unit.conv.spatial, *unit.conv.pointwise[:-1], fold_batch_norm(unit.conv.pointwise[-1], unit.bn)
        g, C = unit.conv.groups, spatial.in_channels

        def matrices(conv: nn.Conv2d) -> Tensor:
            return conv.weight.detach().view(g, -1, C // g).transpose(1, 2)        # (g, K, outputs of a group)

        self.depthwise = constant(spatial.weight[:, 0].permute(1, 2, 0))
        no_product = spatial.weight.new_zeros(0, g, C // g, C // g)
        self.between = constant(torch.cat([no_product, *(matrices(conv)[None] for conv in between)]))
        self.last, self.bias = constant(matrices(last)), constant(last.bias)
        self.stride, self.dilation, self.residual = spatial.stride[0], spatial.dilation[0], unit.residual

    def unit(self) -> sparse.SparseUnit:
        return sparse.SparseUnit(self.depthwise, self.between, self.last, self.bias, self.stride, self.dilation, self.residual)

    @staticmethod
    def run(x: Tensor, units: list[FusedSparseUnit]) -> Tensor:
        return sparse.sparse_units(x, [unit.unit() for unit in units])

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, [self])


FUSED = FusedInvertedUnit, FusedSparseUnit
UNIT_FORMS: dict[type[nn.Module], dict[str, type[nn.Module]]] = {
    InvertedUnit: {'fused': FusedInvertedUnit, 'mixed': FoldedInvertedUnit},
    SparseUnit: {'fused': FusedSparseUnit, 'regular': FoldedSparseUnit}}
ACTIVATIONS = {InvertedUnit: nn.ReLU6, SparseUnit: nn.ReLU}     # of the kernel


def unit_forms_of(unit: InvertedUnit | SparseUnit, portable: bool = False) -> dict[str, type[nn.Module]]:
    """The forms a unit can take, by name; first the one that is most likely the fastest.

    Args:
        unit: in evaluation mode.
        portable: only those of PyTorch's own operations.
    """
    kind, weight = next(kind for kind in UNIT_FORMS if isinstance(unit, kind)), next(unit.parameters())
    fused = (not portable and type(unit.act) is ACTIVATIONS[kind] and kernels.load(build=False, dtype=weight.dtype)
             and kernels.takes(weight))
    return {name: form for name, form in UNIT_FORMS[kind].items() if fused or name != 'fused'}


class DeployedUnits(nn.Sequential):
    """Units, or stages of them, one after another; one operator runs all fused ones that follow one another, without those with hooks."""

    def forward(self, x: Tensor) -> Tensor:
        together: list[nn.Module] = []      # fused, and of one kind
        for part in self.parts():
            fused = isinstance(part, FUSED) and not has_own_hooks(part)
            if together and not (fused and type(part) is type(together[0])):
                x, together = together[0].run(x, together), []
            if fused:
                together.append(part)
            else:
                x = part(x)
        return together[0].run(x, together) if together else x

    def parts(self) -> list[nn.Module]:
        """Its units, and of its stages those with hooks whole."""
        parts = []
        for module in self:
            parts += module.parts() if isinstance(module, DeployedUnits) and not has_own_hooks(module) else [module]
        return parts


def has_only_units(module: nn.Module) -> bool:
    """Whether it is a unit, or a sequence of units, or of such sequences."""
    return isinstance(module, UNITS) or (isinstance(module, nn.Sequential) and len(module) > 0 and all(map(has_only_units, module)))


def deploy_units(units: nn.Module, choose: Callable[[nn.Module], str]) -> nn.Module:
    """Deploy what `has_only_units`; ``choose`` names the form of a unit."""
    if isinstance(units, UNITS):
        return unit_forms_of(units)[choose(units)](units)
    deployed = OrderedDict((name, deploy_units(part, choose)) for name, part in units._modules.items())    # also one that comes twice
    is_fused = any(isinstance(part, (*FUSED, DeployedUnits)) for part in deployed.values())
    return (DeployedUnits if is_fused else nn.Sequential)(deployed)
