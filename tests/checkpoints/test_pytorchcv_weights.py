"""pytorchcv's weights from their address to an answer equal to its own module's; and no file but a whole, plain, verified one is opened.

Its files cannot be had in a test; random values in its format stand in, served on 127.0.0.1, with cards that pin those.
"""
import dataclasses
import hashlib
import json
import pickle
import struct
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
import timm
import torch
from batch_norms import randomise
from hub_server import HubServer
from huggingface_hub import constants
from origins import PYTORCHCV, member_name, pytorchcv_names, pytorchcv_state, serve_pth, to_pth, to_zip
from safetensors.torch import load_file

from igczoo.checkpoints import download, unpack
from igczoo.checkpoints.card import cards
from igczoo.checkpoints.convert import SOURCES, convert_checkpoint
from igczoo.checkpoints.convert.keys import key_table
from igczoo.checkpoints.store import StoreError, fetch
from igczoo.cli import main
from igczoo.nets.families import build

SMALL = 'igcv3_025'
PHOTOGRAPH = Path(__file__).parents[2] / 'examples' / 'school_bus.jpg'


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture
def server(monkeypatch, tmp_path):
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_ASSETS_CACHE', str(tmp_path / 'assets'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setattr(download, 'PAUSES', (0.01, 0.02, 0.04))
    with HubServer() as server:
        monkeypatch.setenv('IGCZOO_ORIGIN', server.url)
        yield server


@pytest.fixture
def publish(server, monkeypatch):
    """Serve a .pth file as the weights of a model; gives the card that pins it."""
    def publish(data: bytes, model: str = SMALL):
        card = serve_pth(server, cards()[f'{model}.pcv_in1k'], data)
        monkeypatch.setitem(cards(), card.name, card)
        return card

    return publish


# What loads

@pytest.mark.parametrize('model', PYTORCHCV)
def test_the_model_equals_pytorchcvs(publish, server, model):
    model_provider = pytest.importorskip('pytorchcv.model_provider', reason='pytorchcv is not installed')
    theirs = model_provider.get_model(PYTORCHCV[model], pretrained=False)
    randomise(theirs)
    publish(to_pth(theirs.state_dict(), new=model == 'igcv3_050'), model)
    net = timm.create_model(f'{model}.pcv_in1k', pretrained=True).double().eval()
    x = torch.randn(1, 3, 224, 224, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs.double().eval()(x)
        torch.testing.assert_close(net(x), expected, rtol=0, atol=1e-9 * expected.abs().max().item())
    cfg = net.pretrained_cfg
    assert (cfg['mean'], cfg['crop_pct'], cfg['interpolation']) == ((.485, .456, .406), .875, 'bilinear')
    assert len(server.downloads) == 1


def test_the_bare_name_means_these_and_they_are_fetched_once(publish, server):
    card = publish(to_pth(pytorchcv_state('igcv3_100')), 'igcv3_100')
    assert timm.create_model('igcv3_100', pretrained=True, num_classes=3).pretrained_cfg['tag'] == 'pcv_in1k'
    timm.create_model('igcv3_100', pretrained=True, features_only=True)
    assert len(server.downloads) == 1
    folder = fetch(card).parent
    assert folder.name.startswith(card.origin.unpacked_sha1) and {file.name for file in folder.iterdir()} == {
        'lock', 'model.safetensors', 'verified.json'}


def test_classify_by_command(publish, capsys):
    publish(to_pth(pytorchcv_state(SMALL)))
    assert main(['classify', str(PHOTOGRAPH), '--model', SMALL, '--json']) == 0
    assert len(json.loads(capsys.readouterr().out)[0]['predictions']) == 5


@pytest.mark.parametrize('left_out', ['all', 'one'])
def test_a_file_without_batch_counters(publish, left_out):
    state = pytorchcv_state(SMALL)
    counters = [key for key in state if key.endswith('num_batches_tracked')]
    for key in counters[:None if left_out == 'all' else 1]:
        del state[key]
    found = load_file(fetch(publish(to_pth(state))))
    assert sum(key.endswith('num_batches_tracked') for key in found) == 98 == len(counters)


def test_convert_by_command(tmp_path, capsys):
    (tmp_path / 'x.pth').write_bytes(to_pth(pytorchcv_state(SMALL)))
    assert main(['convert', str(tmp_path / 'x.pth'), '--model', SMALL, '-o', str(tmp_path / 'out')]) == 0
    cfg = timm.create_model(f'local-dir:{tmp_path / "out"}', pretrained=True).pretrained_cfg
    assert cfg['mean'] == [.485, .456, .406] and cfg['tag'] == 'pcv_in1k'
    for name, message in {'x.pth.zip': 'x.pth.zip is a zip; unpack it and give the file in it', 'x.params': 'found header'}.items():
        (tmp_path / name).write_bytes((tmp_path / 'x.pth').read_bytes())
        assert main(['convert', str(tmp_path / name), '--model', SMALL if 'zip' in name else 'igcv3_100', '-o', str(tmp_path / 'new')]) == 1
        error = capsys.readouterr().err
        assert message in error and error.count('\n') == 1 and not (tmp_path / 'new').exists()


@pytest.mark.parametrize('model', PYTORCHCV)
def test_each_of_its_keys_has_one_place(model):
    net = build(model, device='meta')
    table = key_table(SOURCES['pytorchcv'].models[model], net)
    assert sorted(table.values()) == sorted(net.state_dict()) and len(table) == 590
    assert {ours: theirs for theirs, ours in table.items()} == pytorchcv_names(list(net.state_dict()))


# What is refused before anything is opened

def changed(data: bytes, at: int, layout: str, value: int) -> bytes:
    return data[:at] + struct.pack(layout, value) + data[at + struct.calcsize(layout):]


def directory(data: bytes) -> int:
    return data.rfind(b'PK\1\2')


ZIPS = {    # of the right content and its name: what is served, and what is said of it
    'cut': (lambda data, name: to_zip({name: data})[:-100], '0 files in the zip; it must have one'),
    'empty': (lambda data, name: b'', '0 files in the zip'),
    'no zip': (lambda data, name: data, '0 files in the zip'),
    'two files': (lambda data, name: to_zip({name: data, 'more': b'x'}), '2 files in the zip; it must have one'),
    'another name': (lambda data, name: to_zip({'x.pth': data}), r"\['x.pth'\] in the zip; it must have .*\.pth alone"),
    'a path': (lambda data, name: to_zip({f'../{name}': data}), r"\['\.\./igcv3.*'\] in the zip; it must have"),
    'an absolute path': (lambda data, name: to_zip({f'/tmp/{name}': data}), r"\['/tmp/igcv3.*'\] in the zip"),
    'a bomb': (lambda data, name: to_zip({name: bytes(40 << 20)}), r'in the zip is of 41,943,040 bytes; it must have no more than'),
    'a bomb that lies': (lambda data, name: changed(packed := to_zip({name: bytes(40 << 20)}), directory(packed) + 24, '<I', 1000),
                         'damaged: Bad CRC-32'),
    'another method': (lambda data, name: to_zip({name: data}, zipfile.ZIP_LZMA), 'packed by method 14; it must be stored or deflated'),
    'a flipped bit': (lambda data, name: changed(packed := to_zip({name: data}), len(packed) // 2, '<B', packed[len(packed) // 2] ^ 1),
                      'the zip is damaged|gave no zip'),
    'a count that lies': (lambda data, name: changed(packed := to_zip({name: data, 'more': b''}), packed.rfind(b'PK\5\6') + 10, '<H', 1),
                          'in the zip; it must have'),
    'other content': (lambda data, name: to_zip({name: data[:-1]}), 'with digest [0-9a-f]{40}, not those with digest [0-9a-f]{40}'),
}


@pytest.mark.parametrize('fault', ZIPS)
def test_no_other_zip_is_opened(publish, server, monkeypatch, tmp_path, fault):
    data, (make, message) = np.random.default_rng(0).bytes(5000), ZIPS[fault]
    card = publish(data)
    path = urlsplit(card.origin.url).path
    server.files[path] = make(data, member_name(card))
    monkeypatch.setattr(torch, 'load', None)    # nothing gets so far
    with pytest.raises(StoreError, match=message) as raised:
        fetch(card)
    assert '\n' not in str(raised.value) and len(server.downloads) <= 3
    assert [file.name for file in (tmp_path / 'assets').rglob('*') if file.is_file()] == ['lock']


def test_the_command_says_so_in_one_line(publish, server, capsys):
    card = publish(b'x')
    server.files[urlsplit(card.origin.url).path] = to_zip({'x': b'x', 'y': b'y'})
    assert main(['classify', str(PHOTOGRAPH), '--model', card.name]) == 1
    error = capsys.readouterr().err
    assert error.count('\n') == 1 and '.pth.zip gave no zip of one file: 2 files in the zip; it must have one, igcv3_wd4-' in error


def test_an_announced_flood_is_not_stored(publish, server, tmp_path):
    card = publish(to_pth(pytorchcv_state(SMALL)))
    server.files[urlsplit(card.origin.url).path] = bytes(40 << 20)
    with pytest.raises(StoreError, match=r'announces 41,943,040 bytes of .*, not [0-9,]* or fewer'):
        fetch(card)
    assert [file.name for file in (tmp_path / 'assets').rglob('*') if file.is_file()] == ['lock']


def test_a_whole_file_that_a_killed_process_left_is_fetched_again(publish, server):
    card = publish(to_pth(pytorchcv_state(SMALL)))
    folder = fetch(card).parent
    (folder / 'model.safetensors').unlink()
    (folder / 'part').write_bytes(server.files[urlsplit(card.origin.url).path])
    assert fetch(card).is_file()


def test_a_zip_of_many_entries_is_not_read(tmp_path, monkeypatch):
    (tmp_path / 'x.zip').write_bytes(to_zip({str(n): b'' for n in range(300)}))
    monkeypatch.setattr(zipfile, 'ZipFile', None)
    with pytest.raises(ValueError, match=r'^300 files in the zip; it must have one, x\.pth$'):
        unpack.unpack(tmp_path / 'x.zip', 'x.pth', 1000)


# What is verified, and yet no checkpoint

def test_code_in_a_pickle_is_never_run(publish, tmp_path):
    state = pytorchcv_state(SMALL)
    for pickled in (to_pth(state | {'output.bias': Trap(tmp_path / 'sprung')}), to_pth(Trap(tmp_path / 'sprung'), new=True),
                    pickle.dumps(Trap(tmp_path / 'sprung'))):
        with pytest.raises(StoreError, match='is no file of tensors alone') as raised:
            fetch(publish(pickled))
        assert '\n' not in str(raised.value) and 'weights_only' not in str(raised.value)
    assert not (tmp_path / 'sprung').exists()


@pytest.mark.parametrize(('found', 'message'), [
    ([1, 2], 'holds list of other things than named tensors; it must be a state dict'),
    ({'epoch': 3}, 'holds dict of other things than named tensors'),
    ({1: torch.ones(1)}, 'holds dict of other things than named tensors'),
    ({'x': torch.eye(2).to_sparse()}, 'holds dict of other things than named tensors'),
    ({}, r'394 missing|\d+ missing: features.init_block.conv.weight \(for stem.conv.weight\)'),
])
def test_what_is_no_state_dict(publish, found, message):
    with pytest.raises(StoreError, match=message):
        fetch(publish(to_pth(found)))


def test_what_does_not_fit_is_listed_from_both_sides(publish, tmp_path):
    state = pytorchcv_state(SMALL)
    del state['features.stage4.unit9.conv3.bn.weight']
    state['features.stage4.unit15.conv1.bn.weight'] = torch.ones(1)
    state['output.bias'] = torch.ones(999)
    state['features.init_block.bn.num_batches_tracked'] = torch.zeros(1, dtype=torch.int64)
    state['features.final_block.bn.bias'] = torch.full((1280,), torch.nan)
    with pytest.raises(StoreError) as raised:
        fetch(publish(to_pth(state)))
    said = str(raised.value)
    assert '1 missing: features.stage4.unit9.conv3.bn.weight (for stages.4.0.bn3.weight)' in said
    assert '1 left over: features.stage4.unit15.conv1.bn.weight' in said
    assert 'output.bias is float32 (999,) where head.bias is float32 (1000,)' in said
    assert 'features.init_block.bn.num_batches_tracked is int64 (1,) where stem.bn.num_batches_tracked is int64 ()' in said
    assert '1 not finite: features.final_block.bn.bias' in said


def test_a_file_of_another_width(tmp_path):
    (tmp_path / 'x.pth').write_bytes(to_pth(pytorchcv_state('igcv3_050')))
    with pytest.raises(ValueError, match=r'x\.pth is not a checkpoint of igcv3_025: \d+ of another shape or dtype: .* and \d+ more$'):
        convert_checkpoint(tmp_path / 'x.pth', SMALL)
    with pytest.raises(ValueError, match="there is no conversion to 'igcnet18' from pytorchcv; there is one to each of igcv3_100, igcv3"):
        convert_checkpoint(tmp_path / 'x.pth', 'igcnet18')
    with pytest.raises(ValueError, match="there is no converter 'caffe'; there is one from each of mxnet, pytorchcv"):
        convert_checkpoint(tmp_path / 'x.pth', SMALL, 'caffe')


def test_the_cards_pin_what_pytorchcv_names():
    """Its file names end in the first digits of the digest, after the top-5 error in hundredths of a per cent; its table has it all."""
    for model, theirs in PYTORCHCV.items():
        card = cards()[f'{model}.pcv_in1k']
        name, error, digest = member_name(card).removesuffix('.pth').split('-')
        assert name == theirs and card.origin.unpacked_sha1.startswith(digest) and len(card.origin.unpacked_sha1) == 40
        assert int(error) == round(100 * (100 - card.accuracy[0].top5))
        model_store = pytest.importorskip('pytorchcv.models.common.model_store', reason='pytorchcv is not installed')
        assert model_store.get_model_metainfo(theirs) == (
            card.params, error, card.origin.unpacked_sha1, urlsplit(card.origin.url).path.split('/')[-2])


def test_hashes_of_the_files_are_not_taken_for_those_of_their_zips(publish, server):
    data = to_pth(pytorchcv_state(SMALL))
    card = publish(data)
    packed = server.files[urlsplit(card.origin.url).path]
    wrong = dataclasses.replace(card, origin=dataclasses.replace(card.origin, unpacked_sha1=hashlib.sha1(packed).hexdigest()))
    with pytest.raises(StoreError, match='with digest'):
        fetch(wrong)
