"""A pytest plugin under which timm's own tests see igczoo's models and no others; the test files stay as they are."""
import timm
import timm.models

import igczoo  # noqa: F401  registers the models

list_every_model, list_every_pretrained = timm.list_models, timm.list_pretrained


def list_models(filter='', *args, module='', **kwargs):
    """timm.list_models of igc* models; a list of module names, timm's families with forward_intermediates, means our family here."""
    return [name for name in list_every_model(filter, *args, module='igcnet' if module else '', **kwargs) if name.startswith('igc')]


timm.list_models = timm.models.list_models = list_models
timm.list_pretrained = timm.models.list_pretrained = lambda *args, **kwargs: [
    name for name in list_every_pretrained(*args, **kwargs) if name.startswith('igc')]
