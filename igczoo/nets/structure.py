"""Whether a net's parts are still those that its family is made of, and whether somebody listens to them.

The faster forms of a net (deployment, training) are computed from the weights of its parts, and would leave out what else a user has put
there: a bias, another padding, an adapter around a convolution, a block of one's own. A module with hooks must be called, rather than run
together with others.
"""
from timm.layers import DropPath
from torch import nn

from .igcnet import IGCNet, PlainBlock, Projection, ResidualBlock, Stage, Stages, Unit
from .igcv2 import IGCV2, SparseConv2d, SparseUnit
from .igcv3 import IGCV3, InvertedUnit
from .layers import ConvNormAct, IGConv2d

__all__ = ['altered_part', 'has_hooks', 'has_own_hooks', 'has_own_methods', 'is_centred']

CONV, ANY = (nn.Conv2d,), ()        # the types that a part may have; (): every one
DROP = DropPath, nn.Identity
PARTS: dict[type[nn.Module], dict[str, tuple[type[nn.Module], ...]]] = {
    IGConv2d: dict(primary=CONV, secondary=CONV),
    Unit: dict(conv=(IGConv2d, nn.Conv2d), bn=ANY),
    Projection: dict(conv=CONV, bn=ANY),
    ResidualBlock: dict(unit1=(Unit,), act1=ANY, unit2=(Unit,), drop_path=DROP, shortcut=(Projection, nn.Identity), act2=ANY),
    PlainBlock: dict(unit=(Unit,), act=ANY),
    SparseConv2d: dict(spatial=CONV, pointwise=(nn.ModuleList,)),
    SparseUnit: dict(conv=(SparseConv2d,), bn=ANY, drop_path=DROP, act=ANY),
    InvertedUnit: dict(expand=CONV, bn1=ANY, depthwise=CONV, bn2=ANY, act=ANY, project=CONV, bn3=ANY, drop_path=DROP),
    ConvNormAct: dict(conv=CONV, bn=ANY, act=ANY),
}
SEQUENCES = {Stages: (Stage,), Stage: (ResidualBlock, PlainBlock)}
WHOLE = Unit, ConvNormAct     # whose own convolution is taken with all it has, or not at all


def altered_part(net: nn.Module) -> str:
    """What of a net, or of a module that contains parts of one, is otherwise than its family makes it, in a few words; '' where nothing is.

    The kinds of norm layers and activations are for the forms themselves to know.
    """
    for name, module in net.named_modules():
        kind = next((kind for kind in (*PARTS, *SEQUENCES) if isinstance(module, kind)), None)
        if kind and (fault := _fault(module, kind)):
            return f'{name or type(module).__name__}{fault}'
    return ''


def has_own_methods(net: nn.Module) -> bool:
    """Whether the class of a net is none of this package, or one of its forward methods has been replaced on the net itself."""
    return type(net) not in (IGCNet, IGCV2, IGCV3) or any(name.startswith('forward') for name in vars(net))


def has_own_hooks(module: nn.Module) -> bool:
    """Whether somebody has put hooks on this module."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody has put hooks on this module or a part of it."""
    return any(map(has_own_hooks, module.modules()))


def _fault(module: nn.Module, kind: type[nn.Module]) -> str:
    if type(module) is not kind:
        return f' is a {type(module).__name__}, which is more than a {kind.__name__}'
    if 'forward' in vars(module):
        return ' has another forward than its class'
    parts = PARTS.get(kind) or dict.fromkeys(module._modules, SEQUENCES.get(kind))
    if module._modules.keys() != parts.keys():
        return f' has the parts {", ".join(module._modules)}, where a {kind.__name__} has {", ".join(parts)}'
    for name, child in module._modules.items():
        if parts[name] and type(child) not in parts[name]:
            return f'.{name} is a {type(child).__name__}, not a {" or ".join(one.__name__ for one in parts[name])}'
    if kind in WHOLE:
        return ''
    convolutions = [(name, child) for name, child in module._modules.items() if parts[name] == CONV]
    if kind is SparseConv2d:
        convolutions += [(f'pointwise.{number}', conv) for number, conv in enumerate(module.pointwise)]
    for name, conv in convolutions:
        if type(conv) is not nn.Conv2d or conv.bias is not None or not is_centred(conv):
            found = conv if type(conv) is nn.Conv2d else f'a {type(conv).__name__}'
            return (f'.{name} is {found}, where a {kind.__name__} has a Conv2d of a square kernel, without bias, that zeros are padded for '
                    f'to keep maps centred')
    return ''


def is_centred(conv: nn.Conv2d) -> bool:
    """Whether kernel, stride and dilation are square and zeros are padded so that the map stays centred."""
    squares = conv.kernel_size, conv.stride, conv.dilation
    if conv.padding_mode != 'zeros' or not all(isinstance(pair, tuple) and len(set(pair)) == 1 for pair in squares):
        return False
    return conv.kernel_size[0] % 2 == 1 and conv.padding == (conv.dilation[0] * (conv.kernel_size[0] // 2),) * 2
