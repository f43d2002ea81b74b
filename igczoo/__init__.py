"""igczoo: Interleaved Group Convolution networks (Zhang, Qi, Xiao, Wang, ICCV 2017) for PyTorch and timm, with verified weights.

Importing it makes timm know every model here: at once where timm is imported already, otherwise as soon as it is, so that
`igczoo --help` loads neither timm nor torch.
"""
from __future__ import annotations

import importlib.util
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .card import list_models
    from .classifier import Classifier, Prediction, load
    from .convert import convert_checkpoint
    from .deployment import deploy
    from .igcnet import IGCNet, igc_resnet
    from .layers import IGConv2d, interleave

__version__ = '0.1.0'
__all__ = ['Classifier', 'IGCNet', 'IGConv2d', 'Prediction', 'convert_checkpoint', 'deploy', 'igc_resnet', 'interleave',
           'list_models', 'load']

HOMES = {
    'Classifier': 'classifier', 'Prediction': 'classifier', 'load': 'classifier', 'list_models': 'card', 'convert_checkpoint': 'convert',
    'deploy': 'deployment', 'IGCNet': 'igcnet', 'igc_resnet': 'igcnet', 'IGConv2d': 'layers', 'interleave': 'layers',
}


def __getattr__(name: str):
    if name not in HOMES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(import_module(f'.{HOMES[name]}', __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _RegisterAfterTimm(MetaPathFinder):
    """Lets timm be imported as it would be, then imports the models, which register themselves."""

    def find_spec(self, name, path=None, target=None):
        if name != 'timm':
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec and spec.loader:
            execute = spec.loader.exec_module

            def exec_module(module):
                execute(module)
                import_module('.igcnet', __name__)

            spec.loader.exec_module = exec_module
        return spec


if 'timm' in sys.modules:
    import_module('.igcnet', __name__)
else:
    sys.meta_path.insert(0, _RegisterAfterTimm())
