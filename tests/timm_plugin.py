"""A pytest plugin under which timm's own tests see igczoo's models and no others; the test files stay as they are."""
import os
import tempfile

import timm
import timm.models
from hub_server import HubServer
from huggingface_hub import constants
from origins import stand_in

import igczoo  # noqa: F401  registers the models
from igczoo.checkpoints.card import cards

list_every_model, list_every_pretrained = timm.list_models, timm.list_pretrained


def list_models(filter='', *args, module='', **kwargs):
    """timm.list_models of igc* models; a list of module names, timm's families with forward_intermediates, means our family here."""
    return [name for name in list_every_model(filter, *args, module='registry' if module else '', **kwargs) if name.startswith('igc')]


timm.list_models = timm.models.list_models = list_models
timm.list_pretrained = timm.models.list_pretrained = lambda *args, **kwargs: [
    name for name in list_every_pretrained(*args, **kwargs) if name.startswith('igc')]


def pytest_configure(config):
    """Others' checkpoints, which pretrained=True would fetch, are stood in for by files served here."""
    server = HubServer().__enter__()
    folder = tempfile.TemporaryDirectory()
    constants.HF_HUB_CACHE = constants.HF_ASSETS_CACHE = folder.name
    constants.HF_HUB_OFFLINE, os.environ['IGCZOO_ORIGIN'] = False, server.url
    for name, card in cards().items():
        if card.origin:
            cards()[name] = stand_in(server, name)[0]
    config.add_cleanup(folder.cleanup)
    config.add_cleanup(lambda: server.__exit__(None, None, None))
