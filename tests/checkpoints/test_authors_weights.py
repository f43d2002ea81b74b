"""The authors' ImageNet weights from their address to an answer: fetched, checked, converted once, kept, and equal to their graph.

Their files cannot be had in a test; files of random values in the same layout stand in, served on 127.0.0.1, with cards that pin those.
"""
import json
from pathlib import Path

import pytest
import timm
import torch
from hub_server import HubServer
from huggingface_hub import constants
from origins import stand_in
from params_files import FORMATS, released_symbol, synthetic_params, write_params
from symbol_graph import evaluate

from igczoo.checkpoints.card import cards
from igczoo.checkpoints.store import StoreError
from igczoo.cli import main

PHOTOGRAPH = Path(__file__).parents[2] / 'examples' / 'school_bus.jpg'


@pytest.fixture
def serve(monkeypatch, tmp_path):
    """Serve random weights of a model as its origin; gives the arrays and the server."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_ASSETS_CACHE', str(tmp_path / 'assets'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    with HubServer() as server:
        monkeypatch.setenv('IGCZOO_ORIGIN', server.url)

        def serve_model(model: str, fmt: str = 'LEGACY'):
            card, arrays = stand_in(server, f'{model}.in1k', fmt)
            monkeypatch.setitem(cards(), card.name, card)
            return arrays, server

        yield serve_model


@pytest.mark.parametrize(('model', 'fmt'), [
    *(('igcnet18', fmt) for fmt in FORMATS), ('igcnet18_l16m16', 'LEGACY'), ('igcnet18_l4m32', 'LEGACY'), ('igcv3_100', 'V2')])
def test_the_model_equals_the_authors_graph(serve, model, fmt):
    arrays, _ = serve(model, fmt)
    net = timm.create_model(f'{model}.in1k', pretrained=True).double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    [theirs] = evaluate(released_symbol(model), arrays, x, keep=['fc_score', 'fc']).values()
    with torch.inference_mode():
        torch.testing.assert_close(net(x), theirs, rtol=0, atol=1e-9 * theirs.abs().max().item())


def test_it_is_fetched_and_converted_once(serve):
    _, server = serve('igcnet18')
    first = timm.create_model('igcnet18.in1k', pretrained=True)
    assert len(server.downloads) == 1
    again = timm.create_model('igcnet18.in1k', pretrained=True, num_classes=3)
    taps = timm.create_model('igcnet18.in1k', pretrained=True, features_only=True)
    assert len(server.downloads) == 1
    assert torch.equal(first.stages[3][1].unit2.conv.secondary.weight, again.stages[3][1].unit2.conv.secondary.weight)
    assert torch.equal(first.stem.conv.weight, taps['stem_conv'].weight)
    assert first.pretrained_cfg['mean'] == (0.483804, 0.442184, 0.389827) and 'file' not in first.pretrained_cfg


def test_the_bare_name_means_the_authors_weights_where_there_are_no_others(serve):
    _, server = serve('igcnet18_l16m16')
    assert timm.create_model('igcnet18_l16m16', pretrained=True).pretrained_cfg['tag'] == 'in1k' and len(server.downloads) == 1


def test_classify_by_command(serve, capsys):
    serve('igcnet18')
    assert main(['classify', str(PHOTOGRAPH), '--model', 'igcnet18.in1k', '--json']) == 0
    predictions = json.loads(capsys.readouterr().out)[0]['predictions']
    names = timm.data.ImageNetInfo().label_descriptions()
    assert len(predictions) == 5 and all(names[p['index']] == p['label'] for p in predictions)


def test_another_file_at_that_address_is_never_loaded(serve, capsys):
    _, server = serve('igcnet18')
    path, data = next(iter(server.files.items()))
    server.files[path] = data[:-1] + bytes([data[-1] ^ 1])
    with pytest.raises(StoreError, match='digest'):
        timm.create_model('igcnet18.in1k', pretrained=True)
    assert main(['classify', str(PHOTOGRAPH), '--model', 'igcnet18.in1k']) == 1
    error = capsys.readouterr().err
    assert error.startswith('igczoo classify: no verified model.safetensors of igcnet18.in1k') and error.count('\n') == 1
    server.files[path] = data
    timm.create_model('igcnet18.in1k', pretrained=True)


@pytest.mark.parametrize(('model', 'std'), [
    ('igcnet18', [0.27058, 0.259188, 0.267812]), ('igc_regconv18_c64', [0.27058, 0.259188, 0.267812]), ('igcv3_100', [1 / 255] * 3)])
def test_convert_by_command(tmp_path, capsys, model, std):
    write_params(tmp_path / 'x.params', synthetic_params(model), 'V2')
    assert main(['convert', str(tmp_path / 'x.params'), '--model', model, '-o', str(tmp_path / 'out')]) == 0
    assert sorted(file.name for file in (tmp_path / 'out').iterdir()) == ['config.json', 'model.safetensors']
    assert len({file.stat().st_mode for file in (tmp_path / 'out').iterdir()}) == 1
    net = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True)
    assert net.pretrained_cfg['std'] == std and net.pretrained_cfg['label_names'][779] == 'school bus'
    assert main(['convert', str(tmp_path / 'x.params'), '--model', model, '-o', str(tmp_path / 'out')]) == 1
    assert 'exists; name a folder that does not' in capsys.readouterr().err
    (tmp_path / 'cut.params').write_bytes((tmp_path / 'x.params').read_bytes()[:-100])
    assert main(['convert', str(tmp_path / 'cut.params'), '--model', model, '-o', str(tmp_path / 'new')]) == 1
    assert not (tmp_path / 'new').exists() and sorted(path.name for path in tmp_path.iterdir()) == ['cut.params', 'out', 'x.params']
