"""Whether somebody listens to a module, so that it must be called rather than run together with others."""
from torch import nn

__all__ = ['has_hooks', 'is_heard']


def is_heard(module: nn.Module) -> bool:
    """Whether somebody has put hooks on this module."""
    return bool(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks)


def has_hooks(module: nn.Module) -> bool:
    """Whether this module or a part of it is listened to."""
    return any(map(is_heard, module.modules()))
