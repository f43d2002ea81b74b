"""deploy(model): an equal, faster model for inference, without BatchNorm, interleaves or dropout."""
from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from timm.models import FeatureDictNet
from torch import Tensor, nn
from torchvision.ops.misc import FrozenBatchNorm2d

from ..nets.igcnet import IGCNet, PlainBlock, Projection, Stage, Stages, Unit
from ..nets.layers import ConvNormAct, IGConv2d, fold_batch_norm
from ..nets.net import Net
from ..nets.structure import altered_part, has_hooks, has_own_hooks, has_own_methods, is_centred
from . import kernels
from .forms import FORMS, Folded, Fused, forms_of, is_planar
from .planes import PlaneConv2d, constant, convolve_planes
from .units import UNIT_FORMS, UNITS, deploy_units, has_only_units, unit_forms_of

__all__ = ['DeployedStage', 'DeployedStages', 'deploy', 'forms_used']

FUSING = Stage, Stages, *UNITS
FOLDABLE = nn.BatchNorm2d, nn.SyncBatchNorm, FrozenBatchNorm2d      # as written, trained on several GPUs, frozen by timm.utils.freeze

Choose = Callable[[nn.Module, Folded | nn.Module], str]    # the name of an IGConv2d's form, or of a unit's, which comes twice


def deploy(model: nn.Module, example: Tensor | None = None, portable: bool = False, build: bool = True) -> nn.Module:
    """A new model of equal outputs that runs faster; ``model`` stays as it is.

    BatchNorm is folded into the weights, permutations into their order, and each layer takes the form that is most likely the fastest, or
    with ``example`` the one that runs fastest on it here. The result is for inference; it has the methods of the original and its
    ``pretrained_cfg``. `timm.utils.reparameterize_model` gives an equal one.

    Args:
        model: an `IGCNet`, `IGCV2` or `IGCV3` in evaluation mode, or a module that contains one, such as timm's for ``features_only=True``.
        example: (N, in_chans, H, W) of the device and dtype of the model, to choose by measurement.
        portable: use nothing but PyTorch's own operations, as an export to another engine needs.
        build: compile the fused kernel for a model on a CPU if that has not been done on this machine yet, which takes some fifteen seconds
            once; where it cannot be compiled, the layers take other forms.

    Raises:
        ValueError: there is nothing to deploy in the model, it is in training mode or has forward hooks, one of its norm layers
            is not BatchNorm2d with running statistics, or one of its parts has been replaced by another kind of module.
    """
    _check(model)
    weight = next(model.parameters())
    kernels.load(build=build and weight.is_cpu and not portable, dtype=weight.dtype)
    model = copy.deepcopy(model)
    choose = partial(by_rule, portable=portable) if example is None else _by_measurement(model, example, portable)
    _replace_parts(model, choose, portable)
    return model


def _replace_parts(parent: nn.Module, choose: Choose, portable: bool) -> None:
    if isinstance(parent, Net):
        parent.grad_checkpointing = False
    if (isinstance(parent, IGCNet) and not portable and not has_own_methods(parent) and type(parent.stages) is Stages
            and has_usual_stem(parent) and kernels.takes(parent.stem.conv.weight)):
        parent.__class__ = FusedStemIGCNet
    if isinstance(parent, FeatureDictNet) and 'stem_bn' in parent:      # timm has taken the stem apart
        parent['stem_conv'] = fold_batch_norm(parent['stem_conv'], parent['stem_bn'])
        parent['stem_bn'] = nn.Identity()
    for name, child in parent.named_children():
        if isinstance(child, Stage):
            setattr(parent, name, deploy_stage(child, choose)[0])
        elif isinstance(child, Stages):
            setattr(parent, name, deploy_stages(child, choose))
        elif has_only_units(child):
            setattr(parent, name, deploy_units(child, lambda unit: choose(unit, unit)))
        elif isinstance(child, ConvNormAct):
            setattr(parent, name, child.fuse())
        elif isinstance(child, nn.Dropout):
            setattr(parent, name, nn.Identity())
        else:
            _replace_parts(child, choose, portable)


def has_usual_stem(net: IGCNet) -> bool:
    """Whether stem and pooling are, in kind and numbers, what `kernels.stem` computes; the stem as written or deployed."""
    stem, pool = net.stem, net.pool
    if [name for name in stem._modules if name != 'bn'] != ['conv', 'act'] or type(stem.conv) is not nn.Conv2d:
        return False
    conv = stem.conv
    return (type(stem.act) is nn.ReLU and is_centred(conv)
            and (conv.kernel_size[0], conv.stride[0], conv.dilation[0], conv.groups) == (7, 2, 1, 1)
            and type(pool) is nn.MaxPool2d and not (pool.ceil_mode or pool.return_indices)
            and (pool.kernel_size, pool.stride, pool.padding, pool.dilation) == (3, 2, 1, 1))


def forms_used(model: nn.Module) -> dict[str, str]:
    """The form of each IGC layer or unit of a deployed model, by its name."""
    names = {form: name for forms in (FORMS, *UNIT_FORMS.values()) for name, form in forms.items()}
    return {layer: names[type(module)] for layer, module in model.named_modules() if type(module) in names}


def by_rule(module: nn.Module, layer: Folded | nn.Module, portable: bool = False) -> str:
    """The first form that it can take."""
    return next(iter(_forms(layer, portable)))


def _forms(layer: Folded | nn.Module, portable: bool) -> dict[str, type[nn.Module]]:
    if isinstance(layer, UNITS):
        return unit_forms_of(layer, portable)
    return {name: FORMS[name] for name in forms_of(layer, portable)}


@torch.inference_mode()
def _by_measurement(model: nn.Module, example: Tensor, portable: bool) -> Choose:
    """Choose the form that is fastest on what each layer is given when the model runs on the example."""
    from torch.utils.benchmark import Timer  # looks for a CUDA compiler when imported
    inputs: dict[nn.Module, Tensor] = {}
    hooks = [module.register_forward_pre_hook(lambda module, args: inputs.update({module: torch.randn_like(args[0])}))
             for module in model.modules() if isinstance(module, (IGConv2d, *UNITS))]
    model(example.contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()

    @torch.inference_mode()
    def seconds(form: nn.Module, x: Tensor) -> float:
        return Timer('form(x)', globals=dict(form=form, x=x)).blocked_autorange(min_run_time=0.05).median

    def choose(module: nn.Module, layer: Folded | nn.Module) -> str:
        forms = _forms(layer, portable)
        if len(forms) == 1 or module not in inputs:     # which the example has not reached
            return next(iter(forms))
        x = inputs[module].contiguous(memory_format=torch.channels_last)
        return min(forms, key=lambda name: seconds(forms[name](layer), x))

    return choose


class FusedStemIGCNet(IGCNet):
    """An IGCNet whose stem and max-pool are one operator, except where the stem's own output is asked for.

    It restores the order of channels after pooling them where that gives the same.
    """

    def forward(self, x: Tensor) -> Tensor:
        pooling = getattr(self.global_pool, 'pool_type', '')        # it may be another module by now, as all that is asked about here
        if (pooling not in ('avg', 'max', 'avgmax') or type(self.final) is not nn.Identity or type(self.stages) is not DeployedStages
                or has_own_hooks(self.stages) or has_own_hooks(self.final) or has_hooks(self.global_pool)):
            return super().forward(x)
        x, last = self.stages.run(self.forward_stem(x))
        x = self.global_pool(x)                         # (N, C)
        if last is not None and last.restore is not None:
            x = x.index_select(1, last.restore)
        return self.head(self.head_drop(x))

    def forward_stem(self, x: Tensor) -> Tensor:
        if not has_usual_stem(self) or has_hooks(self.stem) or has_hooks(self.pool):       # pruned away, replaced, or listened to
            return super().forward_stem(x)
        conv = self.stem.conv
        return kernels.stem(x, conv.weight.permute(2, 3, 1, 0), conv.bias)      # (7, 7, in_chans, C)


class DeployedStage(nn.Module):
    """The blocks of a stage, in the channel order of their forms; takes and gives the network's own order.

    Args:
        blocks: in the order they run.
        order_in: which channel each position of the first block's input holds, an integer (channels,).
        order_out: likewise of the last block's output.
        follows: the stage before leaves its channels in ``order_in``.
    """

    def __init__(self, blocks: list[nn.Module], order_in: Tensor, order_out: Tensor, follows: bool):
        super().__init__()
        self.blocks = nn.Sequential(*blocks)
        self.follows = follows
        natural_in, natural_out = (torch.arange(len(order), device=order.device) for order in (order_in, order_out))
        self.register_buffer('order_in', None if torch.equal(order_in, natural_in) else order_in, persistent=False)
        self.register_buffer('restore', None if torch.equal(order_out, natural_out) else order_out.argsort(), persistent=False)

    def enter(self, x: Tensor) -> Tensor:
        return x if self.order_in is None else _reordered(x, self.order_in)

    def leave(self, x: Tensor) -> Tensor:
        return x if self.restore is None else _reordered(x, self.restore)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            return self.leave(self.blocks(self.enter(x)))
        return self.leave(run_blocks(self.blocks, self.enter(x)))


def _reordered(x: Tensor, order: Tensor) -> Tensor:
    """Channels of (N, C, H, W) in another order, in channels_last memory."""
    x = x.permute(0, 2, 3, 1)
    return x.gather(3, order.expand_as(x)).permute(0, 3, 1, 2)       # beyond batch 1 faster than index_select


class DeployedStages(nn.Sequential):
    """Deployed stages one after another, without restoring the network's order of channels where the next stage takes them as they are."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():
            for stage in self:
                x = stage(x)
            return x
        x, last = self.run(x)
        return x if last is None else last.leave(x)

    def run(self, x: Tensor) -> tuple[Tensor, DeployedStage | None]:
        """The last stage's output as it has not left it yet, and that stage; None where there is none."""
        if any(map(has_own_hooks, self)):
            return super().forward(x), None
        last, blocks = None, []
        for stage in self:
            if last is None or not stage.follows:
                x = stage.enter(x if last is None else last.leave(run_blocks(blocks, x)))
                blocks = []
            blocks.extend(stage.blocks)
            last = stage
        return run_blocks(blocks, x), last


class DeployedResidual(nn.Module):
    """Two layers, a shortcut and their activations, as `igcnet.ResidualBlock`."""

    def __init__(self, layer1: nn.Module, act1: nn.Module, layer2: nn.Module, shortcut: nn.Module, act2: nn.Module):
        super().__init__()
        self.layer1, self.act1, self.layer2, self.shortcut, self.act2 = layer1, act1, layer2, shortcut, act2

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer2(self.act1(self.layer1(x)))
        return self.act2(y + self.shortcut(x))


class FusedResidual(nn.Module):
    """Likewise with ReLU, in the fused kernel; `run_blocks` has one operator run all that follow one another."""

    def __init__(self, layer1: Fused, layer2: Fused, shortcut: nn.Module):
        super().__init__()
        self.layer1, self.layer2, self.shortcut = layer1, layer2, shortcut

    def block(self) -> kernels.Block:
        first, second, shortcut = self.layer1, self.layer2, self.shortcut
        projection = (shortcut.weight, shortcut.bias) if isinstance(shortcut, PlanarProjection) else ()
        return kernels.Block((first.primary, first.secondary, first.bias), (second.primary, second.secondary, second.bias), projection,
                             first.stride, first.dilation, second.dilation)

    def forward(self, x: Tensor) -> Tensor:
        if not any(map(has_hooks, self.children())):
            return kernels.residual_blocks(x, [self.block()])
        y = self.layer2(F.relu(self.layer1(x)))
        return F.relu(y + self.shortcut(x))


def run_blocks(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """The output of blocks one after another; those with hooks are called one by one."""
    fused: list[kernels.Block] = []
    for block in blocks:
        if isinstance(block, FusedResidual) and not has_hooks(block):
            fused.append(block.block())
            continue
        if fused:
            x, fused = kernels.residual_blocks(x, fused), []
        x = block(x)
    return kernels.residual_blocks(x, fused) if fused else x


class PlanarProjection(nn.Module):
    """The grouped 1x1 convolution of a shortcut, from planar to planar order: weighted sums of whole planes.

    Args:
        weight: (M, m, L), of input plane i in output plane j.
        bias: (M, L).
        stride: pixels.
    """

    def __init__(self, weight: Tensor, bias: Tensor, stride: int):
        super().__init__()
        self.weight, self.bias = constant(weight), constant(bias)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        M, m, L = self.weight.shape
        return convolve_planes(x, self.weight.view(M, m, 1, 1, L), self.stride) + self.bias.view(M * L, 1, 1)

    def as_convolution(self) -> PlaneConv2d:
        """The same, as modules of PyTorch's own."""
        return PlaneConv2d(self.weight[:, :, None, None], self.bias, self.stride)


def deploy_stages(stages: Stages, choose: Choose = by_rule) -> DeployedStages:
    """Deploy stages that follow one another."""
    deployed, order = OrderedDict(), None
    for name, stage in stages._modules.items():     # also one that comes twice
        deployed[name], order = deploy_stage(stage, choose, order)
    return DeployedStages(deployed)


def deploy_stage(stage: Stage, choose: Choose = by_rule, order: Tensor | None = None) -> tuple[DeployedStage, Tensor]:
    """Deploy the blocks of a stage.

    In planar order the primary partitions may stand in any order, the same in each plane. Where that makes it possible they stand so that
    the stage takes its input as the one before gives it.

    Args:
        stage: in evaluation mode.
        choose: names the form of a layer.
        order: which channel each position of the input holds (channels,), if it is not the network's own order.

    Returns:
        The stage, and the order of its output.
    """
    first = next(module for module in stage.modules() if isinstance(module, Unit))
    conv = first.conv.primary if isinstance(first.conv, IGConv2d) else first.conv
    in_chs, out_chs, L, device = conv.in_channels, conv.out_channels, conv.groups, conv.weight.device
    natural = torch.arange(in_chs, device=device)
    order = natural if order is None else order
    if not is_planar(L, out_chs // L):
        order_in, order_out, partitions = natural, torch.arange(out_chs, device=device), None
    else:
        partitions = order[:L] // (in_chs // L)
        if not torch.equal(planar_order(partitions, in_chs), order):
            partitions = natural[:L]
        order_in, order_out = planar_order(partitions, in_chs), planar_order(partitions, out_chs)
    blocks = [_deploy_block(block, partitions, choose) for block in stage]
    return DeployedStage(blocks, order_in, order_out, follows=torch.equal(order_in, order)), order_out


def planar_order(partitions: Tensor, channels: int) -> Tensor:
    """Which channel each position holds in planar order, with the L primary partitions of each plane in the order given."""
    planes = channels // len(partitions)
    return (torch.arange(planes, device=partitions.device)[:, None] + planes * partitions).flatten()


def _deploy_block(block: nn.Module, partitions: Tensor | None, choose: Choose) -> nn.Module:
    if isinstance(block, PlainBlock):
        return nn.Sequential(_deploy_unit(block.unit, partitions, choose), block.act)
    shortcut = block.shortcut
    if isinstance(shortcut, Projection):
        shortcut = _deploy_projection(shortcut, partitions)
    layer1, layer2 = (_deploy_unit(unit, partitions, choose) for unit in (block.unit1, block.unit2))
    if isinstance(layer1, Fused) and isinstance(layer2, Fused) and type(block.act1) is type(block.act2) is nn.ReLU:
        return FusedResidual(layer1, layer2, shortcut)
    if isinstance(shortcut, PlanarProjection):
        shortcut = shortcut.as_convolution()
    return DeployedResidual(layer1, block.act1, layer2, shortcut, block.act2)


def _deploy_unit(unit: Unit, partitions: Tensor | None, choose: Choose) -> nn.Module:
    if not isinstance(unit.conv, IGConv2d):
        return fold_batch_norm(unit.conv, unit.bn)
    layer = fold(unit, torch.arange(unit.conv.num_primary, device=unit.bn.running_mean.device) if partitions is None else partitions)
    return FORMS[choose(unit.conv, layer)](layer)


def fold(unit: Unit, partitions: Tensor) -> Folded:
    """The layer with its BatchNorm folded in, primary partitions in the order given. Computed in float64."""
    conv, L, M = unit.conv, unit.conv.num_primary, unit.conv.num_secondary
    scale, shift = (value.view(L, M)[partitions].t() for value in _scale_and_shift(unit.bn))            # (M, L)
    primary = conv.primary.weight.unflatten(0, (L, M))[partitions].permute(1, 2, 3, 4, 0)               # (M, m, k, k, L)
    secondary = conv.secondary.weight.view(M, L, L)[:, partitions][:, :, partitions].transpose(1, 2)    # (M, L input, L output)
    dtype = conv.primary.weight.dtype
    return Folded(primary, (secondary * scale[:, None]).to(dtype), shift.to(dtype), conv.primary.stride[0], conv.primary.dilation[0])


def _deploy_projection(projection: Projection, partitions: Tensor | None) -> nn.Module:
    if partitions is None:
        return fold_batch_norm(projection.conv, projection.bn)
    conv, L = projection.conv, len(partitions)
    scale, shift = (value.view(L, -1)[partitions].t() for value in _scale_and_shift(projection.bn))     # (M, L)
    weight = conv.weight.view(L, -1, conv.weight.shape[1])[partitions].permute(1, 2, 0)                 # (M, m, L)
    dtype = conv.weight.dtype
    return PlanarProjection((weight * scale[:, None]).to(dtype), shift.to(dtype), conv.stride[0])


def _scale_and_shift(bn: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """float64 (channels,): normalisation is x * scale + shift."""
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    scale = scale if bn.weight is None else scale * bn.weight
    shift = -bn.running_mean * scale
    return scale, shift if bn.bias is None else shift + bn.bias


def _check(model: nn.Module) -> None:
    modules = dict(model.named_modules())
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ValueError(f'deploy: {type(model).__name__} is on the meta device, where it has no weights; load them first')
    if not any(isinstance(module, FUSING) for module in modules.values()):
        raise ValueError(f'deploy: {type(model).__name__} has no IGC stages, or has been deployed before; give a model of this package')
    for name, module in modules.items():
        name = name or type(model).__name__
        if module.training:
            raise ValueError(f'deploy: {name} is in training mode; call eval() on the model first')
        if module._forward_hooks or module._forward_pre_hooks:
            raise ValueError(f'deploy: {name} has forward hooks, which the new model would not run; remove them first')
        if isinstance(module, (Unit, Projection, *UNITS, ConvNormAct)):
            for part, bn in module.named_children():
                if part.startswith('bn') and (type(bn) not in FOLDABLE or bn.running_mean is None):
                    raise ValueError(f'deploy: {name}.{part} is {bn}; it must be BatchNorm2d with running statistics to be folded')
    if altered := altered_part(model):
        raise ValueError(f'deploy: {altered}; the new model would lack what is other about it. Undo that, or use the model as it is')


# timm.utils.reparameterize_model calls `fuse` of the modules that have it.
Stage.fuse = lambda stage: deploy_stage(stage)[0]
Stages.fuse = deploy_stages
