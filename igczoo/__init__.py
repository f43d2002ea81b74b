"""igczoo: Interleaved Group Convolution networks (Zhang, Qi, Xiao, Wang, ICCV 2017) for PyTorch and timm, with verified weights.

Importing it makes timm know every model here: at once where timm is imported already, otherwise as soon as it is, so that
`igczoo --help` loads neither timm nor torch.
"""
from __future__ import annotations

import sys
from importlib import import_module, reload
from importlib.abc import Loader, MetaPathFinder
from threading import RLock
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .checkpoints.card import list_models
    from .checkpoints.convert import convert_checkpoint
    from .deployment.deploy import deploy
    from .inference.classifier import Classifier, Prediction, load
    from .nets.igcnet import IGCNet, igc_resnet
    from .nets.layers import IGConv2d, interleave
    from .training.finetune import finetune

__version__ = '0.2.0'
__all__ = ['Classifier', 'IGCNet', 'IGConv2d', 'Prediction', 'convert_checkpoint', 'deploy', 'finetune', 'igc_resnet',
           'interleave', 'list_models', 'load']

HOMES = {
    'Classifier': 'inference.classifier', 'Prediction': 'inference.classifier', 'load': 'inference.classifier',
    'list_models': 'checkpoints.card', 'convert_checkpoint': 'checkpoints.convert', 'deploy': 'deployment.deploy',
    'finetune': 'training.finetune', 'IGCNet': 'nets.igcnet', 'igc_resnet': 'nets.igcnet', 'IGConv2d': 'nets.layers',
    'interleave': 'nets.layers',
}


_importing = RLock()        # of two threads, one would find timm half imported


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    with _importing:
        return getattr(import_module(f'.{HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _AfterTimm(Loader):
    """Loads timm as its own loader does, then imports `igczoo.registry`, which registers the models."""

    def __init__(self, loader: Loader):
        self.loader = loader

    def __getattr__(self, name: str):   # what else is asked of a loader: get_source, is_package, ...
        return getattr(self.loader, name)

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module) -> None:
        self.loader.exec_module(module)
        _register()


class _TimmFinder(MetaPathFinder):
    """Finds timm where the other finders do, and has it loaded by `_AfterTimm`; looking timm up without importing it changes nothing."""

    def find_spec(self, name, path=None, target=None):
        if name != 'timm':
            return None
        for finder in sys.meta_path:
            find = None if finder is self else getattr(finder, 'find_spec', None)
            if find and (spec := find(name, path, target)):
                spec.loader = spec.loader and _AfterTimm(spec.loader)
                return spec
        return None


def _register() -> None:
    """Tell timm of the models; once more where timm has been imported anew, with a registry that is empty of them."""
    registry = import_module('.registry', __name__)
    if not sys.modules['timm.models'].is_model('igcnet18') and not getattr(registry.__spec__, '_initializing', False):
        reload(registry)


if not any(type(finder).__name__ == '_TimmFinder' for finder in sys.meta_path):
    sys.meta_path.insert(0, _TimmFinder())
if 'timm' in sys.modules and not getattr(sys.modules['timm'].__spec__, '_initializing', False):
    _register()
