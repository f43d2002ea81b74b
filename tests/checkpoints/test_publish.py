"""Publishing against the fixture hub: what comes back is what was sent, and a card changes only when that has been seen."""
import dataclasses
import hashlib
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from hub_server import HubServer, set_endpoint
from huggingface_hub import constants
from huggingface_hub.utils import disable_progress_bars
from safetensors.torch import save

import igczoo
from igczoo.checkpoints import card as card_module
from igczoo.checkpoints import download
from igczoo.checkpoints.card import Accuracy, Card, CardError, Origin, Preprocess, card_json, cards, read_card, write_card
from igczoo.checkpoints.model_card import config_json, count_macs, count_params, model_card
from igczoo.checkpoints.publish import PublishError, publish
from igczoo.checkpoints.store import fetch
from igczoo.cli import main

# huggingface_hub's own upload without Xet warns of how it calls its HTTP library.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

LABELS = ('aeroplane', 'car', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'lorry')
NAME, REPO = 'igc_resnet20_l24m2.unit', 'birds/igc_resnet20_l24m2.unit'
FILES = ['README.md', 'card.json', 'config.json', 'model.safetensors']
PREPROCESS = Preprocess((3, 32, 32), (.5, .4, .3), (.2, .25, .3), 'bilinear', .875)


@pytest.fixture(scope='module')
def net() -> torch.nn.Module:
    """Random weights and statistics, so that a tensor that is lost or swapped shows in the logits."""
    torch.manual_seed(0)
    net = timm.create_model('igc_resnet20_l24m2')
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=.5)
            torch.nn.init.uniform_(module.running_var, .5, 2.)
    torch.nn.init.normal_(net.head.weight, std=.1)
    return net.eval()


@pytest.fixture(scope='module')
def weights(net) -> bytes:
    return save(net.state_dict(), metadata={'format': 'pt'})


@pytest.fixture(scope='module')
def made(net, weights) -> Card:
    words = dict(title='A test', license='apache-2.0', terms='None.', provenance='Random.', limits='Good for nothing.')
    return Card('igc_resnet20_l24m2', 'unit', params=count_params(net), macs=count_macs(net, (3, 32, 32)), labels=LABELS,
                preprocess=PREPROCESS, accuracy=(Accuracy('noise', 'all', 'igczoo', 10., n=100, top1_interval=(5.52, 17.44)),),
                sha256=hashlib.sha256(weights).hexdigest(), size=len(weights), **words)


@pytest.fixture
def card(made, weights, tmp_path, monkeypatch) -> Card:
    """The only checkpoint of an installation whose package lies in tmp_path."""
    folder = tmp_path / 'weights' / NAME
    folder.mkdir(parents=True)
    (folder / 'model.safetensors').write_bytes(weights)
    write_card(made, folder / 'card.json')
    (tmp_path / 'igczoo').mkdir()
    monkeypatch.setattr(card_module, '__file__', str(tmp_path / 'igczoo' / 'checkpoints' / 'card.py'))
    cards.cache_clear()
    yield made
    cards.cache_clear()


@pytest.fixture
def path(card, tmp_path) -> Path:
    return tmp_path / 'weights' / NAME / 'card.json'


class Keeper(HubServer):
    """Spoils one of the files it is sent."""
    spoilt = None

    def add_repo(self, repo, files):
        if self.spoilt in files:
            data = files[self.spoilt]
            files = files | {self.spoilt: data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]}
        return super().add_repo(repo, files)


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with Keeper() as hub:
        set_endpoint(monkeypatch, hub.url)
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True, raising=False)       # huggingface_hub 0.30 has none
        monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'no token'))
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(download, 'PAUSES', (.01, .01, .01))
        monkeypatch.setenv('HF_TOKEN', 'hf_secret')
        for name in ('IGCZOO_HUB', 'IGCZOO_SOURCES', 'HUGGING_FACE_HUB_TOKEN'):
            monkeypatch.delenv(name, raising=False)
        disable_progress_bars()
        yield hub


def fails(message: str, **options) -> str:
    with pytest.raises(PublishError, match=message) as raised:
        publish(NAME, **{'to': 'birds', 'dry_run': False} | options)
    assert '\n' not in str(raised.value)
    return str(raised.value)


def rewrite(path: Path, **fields) -> None:
    write_card(dataclasses.replace(read_card(path), **fields), path)


def test_a_dry_run_says_what_would_be_uploaded(hub, card, path):
    before = path.read_bytes()
    publication = publish(NAME, 'birds')
    assert (publication.repo, publication.revision) == (REPO, None)
    assert sorted(file.name for file in publication.files) == FILES
    texts = {'card.json': card_json(card), 'config.json': config_json(card), 'README.md': model_card(card)}
    contents = {name: text.encode() for name, text in texts.items()}
    contents['model.safetensors'] = path.with_name('model.safetensors').read_bytes()
    for file in publication.files:
        assert (file.size, file.sha256) == (len(contents[file.name]), hashlib.sha256(contents[file.name]).hexdigest())
    assert not hub.requests and not hub.repos and path.read_bytes() == before


def test_what_is_published_loads_everywhere_with_the_same_logits(hub, card, path, net, tmp_path, monkeypatch):
    publication = publish(card, 'birds', dry_run=False)
    uploaded = hub.repos[REPO][publication.revision]
    assert sorted(uploaded) == FILES and hub.repos[REPO]['main'] == publication.revision
    assert read_card(path) == dataclasses.replace(card, revision=publication.revision) == cards()[NAME]
    assert sorted(file.name for file in path.parent.iterdir()) == ['card.json', 'model.safetensors']
    assert f'/{REPO}/resolve/{publication.revision}/model.safetensors' in [request.path for request in hub.downloads]

    folder = tmp_path / 'clone'
    folder.mkdir()
    for name, data in uploaded.items():
        (folder / name).write_bytes(data)
    assert read_card(folder / 'card.json') == card

    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = net(x)
        assert expected.std() > .1
        for name in (f'hf-hub:{REPO}', f'local-dir:{folder}'):
            model = timm.create_model(name, pretrained=True, cache_dir=tmp_path / 'cache').eval()
            assert torch.equal(model(x), expected)
            classifier = igczoo.load(name, cache_dir=tmp_path / 'cache')
            assert torch.equal(classifier.model(x), expected) and classifier.labels == LABELS
            for key, value in timm.data.resolve_model_data_config(model).items():
                assert (tuple(value) if isinstance(value, list) else value) == getattr(PREPROCESS, key)

    monkeypatch.setenv('IGCZOO_HUB', 'birds')
    path.with_name('model.safetensors').unlink()
    fetched = fetch(read_card(path), cache_dir=tmp_path / 'another cache')     # as an installation without it does
    assert fetched.read_bytes() == uploaded['model.safetensors']


def test_publishing_again(hub, card, path):
    first = publish(NAME, 'birds', dry_run=False)
    assert publish(NAME, 'birds', dry_run=False) == first and len(hub.repos[REPO]) == 3     # the empty commit, ours, and main
    hub.add_repo(REPO, {'notes.txt': b'by hand'})
    rewrite(path, title='Another title')
    second = publish(NAME, 'birds', dry_run=False)
    assert second.revision == read_card(path).revision != first.revision
    assert sorted(hub.repos[REPO][second.revision]) == sorted([*FILES, 'notes.txt'])
    assert len([request for request in hub.requests if request.method == 'PUT']) == 1   # the weights, once
    assert 'Another title' in hub.repos[REPO][second.revision]['README.md'].decode()


@pytest.mark.parametrize('spoilt', FILES)
def test_a_file_the_hub_spoils_leaves_the_card_as_it_was(hub, card, path, spoilt):
    before, hub.spoilt = path.read_bytes(), spoilt
    said = fails(f'{REPO} at [0-9a-f]{{40}} could not be verified, so the card stays as it was: .*{spoilt}')
    assert path.read_bytes() == before
    assert hashlib.sha256(hub.repos[REPO][hub.repos[REPO]['main']][spoilt]).hexdigest() in said
    assert sorted(file.name for file in path.parent.iterdir()) == ['card.json', 'model.safetensors']
    hub.spoilt = None
    assert publish(NAME, 'birds', dry_run=False).revision == read_card(path).revision


def test_bytes_spoilt_on_the_way_back(hub, path):
    before = path.read_bytes()
    hub.fault('flipped')
    fails('could not be verified')
    assert path.read_bytes() == before
    hub.heal()
    publish(NAME, 'birds', dry_run=False)


def test_without_a_token(hub, path, monkeypatch):
    before = path.read_bytes()
    monkeypatch.delenv('HF_TOKEN')
    assert fails(r'HTTP 401') == f'{REPO}: the hub refuses (HTTP 401); set HF_TOKEN to a token that may write there'
    assert path.read_bytes() == before and not hub.repos


def test_a_hub_that_is_not_there(hub, path, monkeypatch):
    before = path.read_bytes()
    set_endpoint(monkeypatch, 'http://127.0.0.1:1')
    fails(f'{REPO}: the upload failed .*try again')
    assert path.read_bytes() == before


def test_a_card_that_cannot_be_written(hub, path, monkeypatch):
    def full(card, path):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('igczoo.checkpoints.publish.write_card', full)
    said = fails('is published and verified, but .*card.json cannot be written .No space left on device.')
    assert hub.repos[REPO]['main'] in said


def other_tensors(net, weights: bytes, change) -> tuple[bytes, dict]:
    """A file of other tensors, and the fields of a card that describes it."""
    state = dict(net.state_dict())
    change(state)
    data = save(state)
    return data, dict(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def halve(state):
    state.update({key: tensor.half() for key, tensor in state.items() if tensor.is_floating_point()})


@pytest.mark.parametrize('change, fields, message', [
    (None, {'sha256': '0' * 64}, 'it has [0-9]+ bytes and sha256 [0-9a-f]{64}, not [0-9]+ and 0{64}'),
    (None, {'size': 5}, 'bytes and sha256 [0-9a-f]{64}, not 5 and'),
    (None, {'sha256': None, 'size': None}, 'not None and None'),
    (None, {'params': 7}, 'it has [0-9]+ parameters, not 7'),
    (None, {'labels': ('cat', 'dog')}, 'size mismatch for head'),
    (lambda state: state.pop('stem.conv.weight'), {}, 'Missing key.*stem.conv.weight'),
    (lambda state: state.update(extra=torch.ones(1)), {}, 'Unexpected key.*extra'),
    (halve, {}, 'its tensors are float16, not float32'),
])
def test_weights_other_than_the_card_says(hub, path, net, weights, change, fields, message):
    if change:
        data, described = other_tensors(net, weights, change)
        path.with_name('model.safetensors').write_bytes(data)
        fields = described | fields
    rewrite(path, **fields)
    fails(f'{re.escape(str(path.with_name("model.safetensors")))} is not what its card says: .*{message}')
    assert not hub.requests


def test_half_precision(hub, path, net, weights):
    data, described = other_tensors(net, weights, halve)
    path.with_name('model.safetensors').write_bytes(data)
    rewrite(path, dtype='float16', **described)
    assert publish(NAME, 'birds').files[0].size == len(data) < 0.6 * len(weights)


def test_files_that_are_no_weights(hub, path):
    data = b'\x09' + bytes(200)
    path.with_name('model.safetensors').write_bytes(data)
    rewrite(path, sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    fails('is not what its card says')
    path.with_name('model.safetensors').unlink()
    fails('model.safetensors: cannot be read: No such file')
    assert not hub.requests


def test_weights_of_others_are_never_published(hub, path):
    rewrite(path, origin=Origin('https://example.com/a.params', 'the authors', 'mxnet', '0' * 40), license='unknown')
    assert 'https://example.com/a.params' in fails(f"{NAME} cannot be published: its weights are somebody else's")
    fails('cannot be published', dry_run=True)
    assert not hub.requests


def test_wrong_calls(hub, card, path):
    fails("'a/b/igc_resnet20_l24m2.unit', by the user or organisation given, is no name of a hub repository", to='a/b')
    fails('is no name of a hub repository', to='', dry_run=True)
    with pytest.raises(PublishError, match=r'card\.json is not the card given'):
        publish(dataclasses.replace(card, title='Another'), 'birds')
    with pytest.raises(CardError, match="'igcnet19' is no checkpoint"):
        publish('igcnet19', 'birds')
    path.write_text('{}')
    with pytest.raises(CardError, match='card lacks'):
        publish(card, 'birds')
    assert not hub.requests


def test_a_checkpoints_name_means_the_checkpoint(hub, card, path, tmp_path, monkeypatch):
    """As it does to load, though there is a folder of that name."""
    mine = Path(shutil.copytree(path.parent, tmp_path / 'here' / card.name))
    rewrite(mine / 'card.json', sha256='0' * 64)
    monkeypatch.chdir(mine.parent)
    assert publish(card.name, 'birds').repo == REPO
    with pytest.raises(PublishError):
        publish(f'local-dir:{card.name}', 'birds')


def test_command(hub, card, path, capsys):
    assert main(['publish', NAME, '--to', 'birds']) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in FILES) and card.sha256 in out and out.endswith(f'{REPO}: nothing is uploaded without --upload\n')
    assert not hub.requests
    assert main(['publish', NAME, '--to', 'birds', '--upload']) == 0
    assert capsys.readouterr().out.endswith(f'{REPO}: uploaded and verified at {read_card(path).revision}\n')
    assert main(['publish', NAME, '--to', 'birds', '--json']) == 0
    published = json.loads(capsys.readouterr().out)
    assert published['repo'] == REPO and len(published['files']) == 4
    rewrite(path, sha256='0' * 64)
    assert main(['publish', NAME, '--to', 'birds', '--upload']) == 1
    captured = capsys.readouterr()
    assert captured.out == '' and captured.err.startswith('igczoo publish: ') and captured.err.count('\n') == 1
    with pytest.raises(SystemExit) as exit:
        main(['publish', NAME])
    assert exit.value.code == 2
