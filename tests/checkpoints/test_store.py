"""Every way a hub, an origin, a disk or another process can fail, and what `fetch` makes of it: the right bytes or one plain error."""
import dataclasses
import hashlib
import json
import os
import pickle
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from filelock import FileLock
from hub_server import HubServer, set_endpoint
from huggingface_hub import cached_assets_path, constants, scan_cache_dir, try_to_load_from_cache
from safetensors.torch import load_file, save

from igczoo.checkpoints import digests, download, shelves, store
from igczoo.checkpoints.card import Card, Origin, Preprocess, write_card
from igczoo.checkpoints.store import StoreError, fetch, locate

NAME = 'igcnet18.unit'
PAYLOAD = save({'weight': torch.arange(1500.)})
ORIGIN = b'\x12\x01' + bytes(range(250)) * 12
LYING_HEADER = (1 << 62).to_bytes(8, 'little') + PAYLOAD[8:]
FILE = f'/igczoo/{NAME}/resolve/main/model.safetensors'


class Trap:
    """Unpickled, it leaves a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def make_card(**fields) -> Card:
    preprocess = Preprocess((3, 8, 8), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), 'bicubic', 1.)
    pinned = {} if 'origin' in fields else {'sha256': hashlib.sha256(PAYLOAD).hexdigest(), 'size': len(PAYLOAD)}
    words = dict.fromkeys(['title', 'license', 'terms', 'provenance', 'limits'], 'none')
    return Card('igcnet18', 'unit', params=1, macs=1, labels=('cat',), preprocess=preprocess, accuracy=(), **words, **pinned | fields)


class World:
    """A hub, a card, and a folder in which only the cache and the weights may appear."""

    def __init__(self, hub: HubServer, folder: Path):
        self.hub, self.folder, self.cache, self.card = hub, folder, folder / 'cache', make_card()
        self.oid = hub.add_repo(f'igczoo/{NAME}', {'model.safetensors': PAYLOAD})
        self.weights = folder / 'weights' / NAME / 'model.safetensors'
        self.repo, self.assets = self.cache / f'models--igczoo--{NAME}', folder / 'assets'
        self.copy = self.repo / 'snapshots' / self.oid / 'model.safetensors'
        self.part = self.repo / 'blobs' / f'{self.card.sha256}.incomplete'
        self.lock = self.cache / '.locks' / self.repo.name / f'{self.card.sha256}.lock'

    def check(self, **options) -> Path:
        """A fetch that must work, and leave nothing behind but the right bytes."""
        path = fetch(self.card, **options)
        assert path.name == 'model.safetensors' and path.read_bytes() == PAYLOAD
        self.check_clean()
        return path

    def check_fails(self, message: str, **options) -> str:
        with pytest.raises(StoreError, match=message) as raised:
            fetch(self.card, **options)
        self.check_clean()
        said = str(raised.value)
        assert '\n' not in said and all(word in said for word in (NAME, 'model.safetensors', 'pretrained=False', 'file='))
        return said

    def check_clean(self):
        assert {path.name for path in self.folder.iterdir()} <= {'cache', 'weights', 'assets'}
        for path in self.cache.rglob('*'):
            if path.is_file() and path.suffix not in ('.lock', '.TAG') and 'refs' not in path.parts:
                right = path.read_bytes()
                assert right == PAYLOAD or (path.suffix == '.incomplete' and PAYLOAD.startswith(right)), path


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(download, 'PAUSES', (0.01, 0.02, 0.04))
    monkeypatch.setattr(download, 'MIN_RATE', 50_000)
    monkeypatch.setattr(digests, '_known', {})
    monkeypatch.setattr(store, 'weights_folder', lambda: tmp_path / 'weights')
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
    monkeypatch.setattr(constants, 'HF_ASSETS_CACHE', str(tmp_path / 'assets'))
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    monkeypatch.setenv('NO_PROXY', '127.0.0.1')
    for name in ('IGCZOO_HUB', 'IGCZOO_SOURCES', 'IGCZOO_ORIGIN', 'HF_TOKEN'):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def world(monkeypatch, tmp_path):
    with HubServer() as hub:
        set_endpoint(monkeypatch, hub.url)
        yield World(hub, tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    for name in ('PATIENCE', 'ANSWER_PATIENCE'):
        monkeypatch.setattr(download, name, 0.3)
    yield lambda: [monkeypatch.setattr(download, name, 10.) for name in ('PATIENCE', 'ANSWER_PATIENCE')]


def forget(monkeypatch):
    """As if in another process."""
    monkeypatch.setattr(digests, '_known', {})


# --- faults of the hub ---

BOTH_DIGESTS = rf'[0-9a-f]{{64}}, not {len(PAYLOAD):,} bytes with digest {hashlib.sha256(PAYLOAD).hexdigest()}'
FINAL = [   # fault, options, what is said, requests
    ('401', {}, 'HTTP 401, .*token', 1),
    ('403', {}, 'HTTP 403, .*token', 1),
    ('404', {}, f'{FILE}: HTTP 404, the repository, its revision or the file is not there', 1),
    ('429', {}, 'HTTP 429; gave up at attempt 4', 4),
    ('500', {}, 'HTTP 500; gave up at attempt 4', 4),
    ('503', {}, 'HTTP 503; gave up at attempt 4', 4),
    ('retry after an hour', {}, 'HTTP 503, and the server asks to come back in 3600 s', 1),
    ('reset', {}, 'gave up at attempt 4', 4),
    ('reset at once', {}, r'no HTTP answer \(Connection reset by peer\); gave up at attempt 4', 4),
    ('garbage', {}, r'no HTTP answer \(BadStatusLine\); gave up at attempt 4', 4),
    ('truncated', {}, rf'the connection ended after {len(PAYLOAD) // 2:,} of {len(PAYLOAD):,} bytes; gave up at attempt 4', 4),
    ('no length', {'cut': 100}, 'the connection ended after 100 of', 4),
    ('flipped', {}, f'gave {len(PAYLOAD):,} bytes of application/octet-stream with digest {BOTH_DIGESTS}', 2),
    ('html', {}, f'gave 9. bytes of text/html with digest {BOTH_DIGESTS}', 2),
    ('html of the same size', {}, f'bytes of text/html with digest {BOTH_DIGESTS}', 2),
    ('gzip', {}, f'with digest {BOTH_DIGESTS}', 2),
    ('endless', {}, f'with digest {BOTH_DIGESTS}', 2),
    ('other bytes', {'body': LYING_HEADER}, f'with digest {BOTH_DIGESTS}', 2),
    ('too long', {}, f'announces {len(PAYLOAD) + 5000:,} bytes of application/octet-stream, not {len(PAYLOAD):,}', 2),
    ('linked too long', {}, f'announces 1,000,000,000,000 bytes .*not {len(PAYLOAD):,}', 2),
    ('wrong range', {}, 'asked for the bytes from 0 on, got HTTP 206', 2),
    ('hostile etag', {}, "the server calls the file '../../../../escaped', which is no digest", 2),
    ('redirect loop', {}, 'more than 5 redirects', 6),
    ('redirect', {'to': 'file:///somewhere'}, "'file:///somewhere' is no http or https address", 1),
]


@pytest.mark.parametrize(('fault', 'options', 'message', 'requests'), FINAL, ids=[fault[0] for fault in FINAL])
def test_a_lasting_fault_is_one_plain_error(world, fault, options, message, requests):
    world.hub.fault(fault, **options)
    said = world.check_fails(message)
    assert 'bundled: not part of this installation; cache: no copy in ' in said and world.hub.url in said
    assert len(world.hub.downloads) == requests
    world.hub.heal()
    world.check()


@pytest.mark.parametrize(('fault', 'message'), [
    ('silence', 'no answer within 0.3 s, twice; check the network'),
    ('dripping head', 'no answer within 0.3 s, twice; check the network'),
    ('stall', 'no byte came for 0.3 s; gave up at attempt 4'),
    ('drip', r'only \d+ bytes came in \d s; gave up at attempt 4'),
])
def test_silence_ends(world, impatient, fault, message):
    world.hub.fault(fault)
    began = time.monotonic()
    world.check_fails(message)
    assert time.monotonic() - began < 8     # the server would keep it up for a minute
    world.hub.heal()
    impatient()
    world.check()


@pytest.mark.parametrize('faults', [
    [('500', 2)], [('503', 2)], [('429', 1)], [('retry after 1 s', 1)], [('reset', 1)], [('reset at once', 2)], [('truncated', 1)],
    [('flipped', 1)], [('html', 1)], [('too long', 1)], [('wrong etag', 9)], [('hostile etag', 1)], [('no length', 9)],
    [('truncated', 1), ('no ranges', 9)], [('truncated', 1), ('wrong range', 1)], [('truncated', 1), ('416', 1)],
    [('truncated', 1), ('503', 2)],
], ids=lambda faults: ', '.join(f'{name} x{times}' for name, times in faults))
def test_a_passing_fault_is_overcome(world, faults):
    for name, times in faults:
        world.hub.fault(name, times)
    path = world.check()
    named = faults[0][0] != 'no length'     # such a server says nothing of commits
    assert (path == world.copy) == named and path.is_symlink()
    assert sorted(path.name for path in world.repo.rglob('*') if not path.is_dir()) == sorted(
        ['main', 'model.safetensors', world.card.sha256])
    assert (world.repo / 'refs' / 'main').read_text() == path.parent.name
    world.hub.heal()
    world.check()
    assert not world.hub.requests


@pytest.mark.parametrize('fault', ['silence', 'dripping head'])
def test_one_unanswered_request_is_made_again(world, impatient, fault):
    world.hub.fault(fault, 1)
    world.check()


def test_silence_is_not_tried_for_ever(world, impatient, monkeypatch):
    monkeypatch.setattr(download, 'GIVE_UP', 0.)
    world.hub.fault('stall')
    world.check_fails('no byte came for 0.3 s; gave up at attempt 1')


def test_progress_makes_up_for_failures(world, monkeypatch):
    monkeypatch.setattr(download, 'PATIENCE', 10.)
    monkeypatch.setattr(download, 'MIN_RATE', 50)
    data = bytes(range(256)) * 100
    world.card = make_card(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    world.hub.add_repo(f'igczoo/{NAME}', {'model.safetensors': data})
    for eighth in range(1, 8):
        world.hub.fault('reset', 1, at=eighth / 8)
    assert fetch(world.card).read_bytes() == data
    assert len(world.hub.downloads) == 8


def test_a_stall_is_overcome_by_going_on(world, impatient):
    world.hub.fault('stall', 1)
    world.check()
    assert [request.headers.get('range') for request in world.hub.downloads] == [None, f'bytes={len(PAYLOAD) // 2}-']


def test_a_flipped_byte_before_a_reset_does_not_stay(world):
    world.part.parent.mkdir(parents=True)
    world.part.write_bytes(b'x' + PAYLOAD[1:3000])    # what an interrupted call may leave
    world.check()
    assert [request.headers.get('range') for request in world.hub.downloads] == ['bytes=3000-', None]


@pytest.mark.parametrize('left', [PAYLOAD, PAYLOAD + b'more', b''])
def test_any_partial_file_is_used_or_replaced(world, left):
    world.part.parent.mkdir(parents=True)
    world.part.write_bytes(left)
    world.check()
    asked, = (request.headers.get('range') for request in world.hub.downloads)
    assert asked == (f'bytes={len(PAYLOAD) - 1}-' if left == PAYLOAD else None)     # of a whole one the last byte, to hear its commit


def test_a_name_that_is_looked_up_slowly(world, monkeypatch):
    """As where the first of two resolvers is dead: longer than an answer is waited for, with the redirect, and each time anew."""
    monkeypatch.setattr(download, 'ANSWER_PATIENCE', .5)
    look_up = socket.getaddrinfo
    monkeypatch.setattr(socket, 'getaddrinfo', lambda *args, **kwargs: (time.sleep(.35), look_up(*args, **kwargs))[1])
    world.check()


def test_nothing_is_left_of_a_repository_that_nothing_came_of(world):
    world.check_fails('HTTP 404, the repository', namespace='nobody')
    assert not list(world.cache.glob('models--*')) and not scan_cache_dir(world.cache).warnings


def test_a_payload_that_repositories_share_stays(world, tmp_path):
    """As huggingface_hub keeps what comes by Xet: the blob is a link into a folder of the whole cache."""
    shared = world.cache / 'blobs' / 'ab' / ('c' * 64)
    shared.parent.mkdir(parents=True)
    shared.write_bytes(b'other bytes')
    mine, fork = (world.cache / f'models--{name}' for name in (f'igczoo--{NAME}', f'somebody--{NAME}'))
    for repo in (mine, fork):
        blob, copy = repo / 'blobs' / ('d' * 64), repo / 'snapshots' / world.oid / 'model.safetensors'
        for link, target in ((blob, shared), (copy, blob)):
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(os.path.relpath(target, link.parent))
    assert fetch(world.card).read_bytes() == PAYLOAD
    assert (fork / 'snapshots' / world.oid / 'model.safetensors').read_bytes() == b'other bytes'


def test_a_process_of_huggingface_hub_that_gets_on_is_waited_for(world, monkeypatch):
    monkeypatch.setattr(shelves, 'LOCK_PATIENCE', .3)
    partial = world.part.with_name(f'{world.card.sha256}.01234567.incomplete')
    for path in (world.part, world.lock):
        path.parent.mkdir(parents=True, exist_ok=True)
    held = threading.Event()

    def hold():
        with FileLock(world.lock):
            held.set()
            for size in range(1, 9):
                partial.write_bytes(PAYLOAD[:size])
                time.sleep(.15)
            partial.unlink()

    holder = threading.Thread(target=hold)
    holder.start()
    held.wait()
    world.check()
    holder.join()


def test_no_such_repository(world):
    world.check_fails('HTTP 404, the repository', namespace='nobody')
    assert world.hub.downloads[0].path == f'/nobody/{NAME}/resolve/main/model.safetensors'
    world.check()


def test_a_refused_connection(world, monkeypatch):
    url = world.hub.url
    set_endpoint(monkeypatch, 'http://127.0.0.1:1')
    world.check_fails(r'127.0.0.1:1/.*no HTTP answer \(Connection refused\); gave up at attempt 4, check the network')
    set_endpoint(monkeypatch, url)
    world.check()


def test_no_pickle_is_opened(world):
    trap = pickle.dumps(Trap(world.folder / 'sprung'))
    world.hub.fault('other bytes', body=trap.ljust(len(PAYLOAD)))
    world.check_fails('with digest')
    world.card = dataclasses.replace(world.card, sha256=hashlib.sha256(trap).hexdigest(), size=len(trap))
    world.hub.heal()
    world.hub.fault('other bytes', body=trap)
    assert fetch(world.card).read_bytes() == trap   # these very bytes were pinned; to open them as safetensors is the reader's business
    assert not (world.folder / 'sprung').exists()


def test_the_token_goes_to_the_hub_only(world, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    with HubServer() as elsewhere:
        elsewhere.files['/x'] = PAYLOAD
        world.hub.fault('redirect', 1, to=f'{elsewhere.url}/x')
        world.check()
        assert [request.headers.get('authorization') for request in world.hub.downloads] == ['Bearer hf_secret']
        assert [request.headers.get('authorization') for request in elsewhere.requests] == [None]
    world.copy.unlink()
    world.check()   # by the hub's own redirect
    assert [request.headers.get('authorization') for request in world.hub.requests] == ['Bearer hf_secret', 'Bearer hf_secret', None]
    world.copy.unlink()
    world.hub.fault('redirect', 1, to=f'/igczoo/{NAME}/resolve/{world.oid}/model.safetensors')
    world.check()
    assert [request.headers.get('authorization') for request in world.hub.downloads[-2:]] == ['Bearer hf_secret'] * 2


# --- sources, names, offline ---

def test_the_pinned_revision_comes_first_and_main_after_it(world):
    world.hub.add_repo(f'igczoo/{NAME}', {'model.safetensors': b'a later version'})
    world.check_fails('with digest')
    world.card = dataclasses.replace(world.card, revision=world.oid)
    world.check()
    world.hub.add_repo(f'mirror/{NAME}', {'model.safetensors': PAYLOAD, 'README.md': b''})
    world.check(namespace='mirror', cache_dir=world.cache / 'other')
    assert [request.path.split('/')[4] for request in world.hub.downloads[-2:]] == [world.oid, 'main']


def test_names_in_the_environment(world, monkeypatch):
    world.hub.add_repo(f'somebody/{NAME}', {'model.safetensors': PAYLOAD})
    monkeypatch.setenv('IGCZOO_HUB', 'somebody')
    world.check()
    assert world.hub.downloads[0].path.startswith(f'/somebody/{NAME}/')
    monkeypatch.setenv('IGCZOO_HUB', 'some/body')
    with pytest.raises(StoreError, match=f"'some/body/{NAME}', by IGCZOO_HUB, is no name of a hub repository"):
        fetch(world.card)


def test_sources_restrict(world, monkeypatch):
    assert 'hub: not among the sources allowed, see IGCZOO_SOURCES' in world.check_fails('cache: no copy', sources=['bundled', 'cache'])
    monkeypatch.setenv('IGCZOO_SOURCES', ' cache , bundled')
    world.check_fails('hub: not among')
    assert not world.hub.requests
    world.check(sources=['hub'])    # an argument counts more than the environment
    world.check()
    assert len(world.hub.downloads) == 1
    monkeypatch.setenv('IGCZOO_SOURCES', 'bundled')
    world.check_fails('cache: not among')
    for wrong in ('hubb', 'hub,,cache'):
        monkeypatch.setenv('IGCZOO_SOURCES', wrong)
        with pytest.raises(StoreError, match=f"IGCZOO_SOURCES is '{wrong}'; it must be one or more of bundled, cache, hub, origin"):
            fetch(world.card)
    for wrong in ([], ['disk']):
        with pytest.raises(StoreError, match=r'sources is .*; it must be one or more of'):
            fetch(world.card, sources=wrong)


def test_offline(world, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    world.check_fails('hub: HF_HUB_OFFLINE is set')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    world.check()
    world.hub.heal()
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    world.check()
    forget(monkeypatch)
    world.check(sources=['hub'])
    assert not world.hub.requests


def test_bundled(world):
    world.weights.parent.mkdir(parents=True)
    world.weights.write_bytes(PAYLOAD)
    assert world.check() == world.weights and not world.cache.exists()
    world.weights.write_bytes(b'wrong')
    said = world.check_fails(f'bundled: .*has sha256 {hashlib.sha256(b"wrong").hexdigest()}, not {world.card.sha256}', sources=['bundled'])
    assert 'install igczoo again' in said and world.weights.read_bytes() == b'wrong'    # reported, not removed
    assert world.check() == world.copy


def test_a_card_must_give_a_digest(world):
    for broken in (make_card(sha256=None), make_card(sha256='../../x'), make_card(origin=Origin('http://h/x', 'them', 'mxnet', '../x'))):
        with pytest.raises(StoreError, match=f'{NAME}: its card has neither'):
            fetch(broken)
    with pytest.raises(StoreError, match='hub: the card gives no size'):
        fetch(make_card(size=None))
    assert not world.hub.requests


# --- the cache ---

def rewrite(path: Path, data: bytes) -> None:
    """Change a file behind everybody's back: same size, same inode, same modification time."""
    before = path.stat()
    with open(path, 'rb+') as file:
        file.write(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_file_is_read_once(world, monkeypatch):
    world.check()
    monkeypatch.setattr(digests, 'sha256', lambda path: pytest.fail('read again'))
    world.check()
    assert [copy.state for copy in locate(world.card)] == ['absent', 'ok']


@pytest.mark.parametrize('again', [False, True], ids=['this process', 'another process'])
def test_a_bad_copy_is_noticed_dropped_and_healed(world, monkeypatch, again):
    for way in ('cache', 'hub', 'all'):
        path = world.check()
        rewrite(path, b'x')
        if again:
            forget(monkeypatch)
        assert locate(world.card)[1].state == 'wrong digest' and path.exists()
        if way == 'cache':
            world.check_fails(f'cache: .*had sha256 [0-9a-f]{{64}}, not {world.card.sha256}', sources=['cache'])
            assert not path.exists()
        world.check(sources=['hub'] if way == 'hub' else None)
    assert len(world.hub.downloads) == 4


def test_a_bad_copy_is_dropped_offline(world, monkeypatch):
    world.check().write_bytes(b'short')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    world.check_fails('had sha256 .*HF_HUB_OFFLINE')
    assert not world.copy.exists()


def test_verify_believes_nothing_found_before(world, monkeypatch):
    path = world.check()
    rewrite(path, b'x')
    monkeypatch.setitem(digests._known, path, (world.card.sha256, digests.stamp(path)))
    assert [copy.state for copy in locate(world.card)] == ['absent', 'ok']     # forged
    assert [copy.state for copy in locate(world.card, rehash=True)] == ['absent', 'wrong digest']


def test_locate(world):
    assert [tuple(copy) for copy in locate(world.card)] == [('bundled', world.weights, 'absent'), ('cache', world.repo, 'absent')]
    world.weights.parent.mkdir(parents=True)
    world.weights.write_bytes(b'wrong')
    assert [copy.state for copy in locate(world.card)] == ['wrong digest', 'absent']
    assert not world.cache.exists() and not world.hub.requests


def put_in_hub_cache(world, data: bytes, blob: str, commit: str = '') -> tuple[Path, Path]:
    """As hf_hub_download lays it out."""
    folder = world.cache / f'models--igczoo--{NAME}'
    commit = commit or world.oid
    snapshot = folder / 'snapshots' / commit
    for part in (folder / 'refs', folder / 'blobs', snapshot):
        part.mkdir(parents=True)
    (folder / 'refs' / 'main').write_text(commit)
    (folder / 'blobs' / blob).write_bytes(data)
    (snapshot / 'model.safetensors').symlink_to(f'../../blobs/{blob}')
    return snapshot / 'model.safetensors', folder / 'blobs' / blob


def test_a_copy_of_huggingface_hub_is_used(world, monkeypatch):
    path, _ = put_in_hub_cache(world, PAYLOAD, world.card.sha256)
    assert world.check() == world.check(sources=['cache']) == world.check(sources=['hub']) == path
    assert not world.hub.requests and ('cache', path, 'ok') in locate(world.card)


def test_a_bad_copy_of_huggingface_hub_is_dropped_with_its_blob(world):
    path, blob = put_in_hub_cache(world, b'x' + PAYLOAD[1:], 'e' * 64)
    assert world.check() == world.copy == path and path.resolve().name == world.card.sha256
    assert not blob.exists()


def test_another_version_in_the_hub_cache_stays(world):
    other = b'x' + PAYLOAD[1:]
    path, _ = put_in_hub_cache(world, other, hashlib.sha256(other).hexdigest(), 'f' * 40)
    assert fetch(world.card) == world.copy and path.read_bytes() == other


def test_a_link_out_of_the_cache_is_not_followed_to_remove(world):
    _, blob = put_in_hub_cache(world, b'wrong', 'e' * 64)
    blob.unlink()
    world.weights.parent.mkdir(parents=True)
    (world.weights.parent / 'mine').write_bytes(b'mine')
    blob.symlink_to(world.weights.parent / 'mine')
    world.check()
    assert not blob.is_symlink() and (world.weights.parent / 'mine').read_bytes() == b'mine'


def test_a_pinned_commit_is_main_where_nothing_else_is(world):
    """Else `hf cache prune` would remove it, and timm would not find it offline."""
    world.card = dataclasses.replace(world.card, revision=world.oid)
    world.check()
    reference = world.repo / 'refs' / 'main'
    assert reference.read_text() == world.oid
    reference.write_text('a' * 40)
    world.copy.unlink()
    world.check()
    assert reference.read_text() == 'a' * 40


def test_without_links_the_file_itself_lies_in_the_snapshot(world, monkeypatch):
    monkeypatch.setattr(Path, 'symlink_to', lambda *_: (_ for _ in ()).throw(OSError('no links here')))
    assert world.check() == world.copy and not world.copy.is_symlink()
    assert world.check(sources=['cache']) == world.copy


def test_hf_cache_lists_our_copies(world):
    world.check()
    scan = scan_cache_dir(world.cache)
    assert not scan.warnings and [repo.repo_id for repo in scan.repos] == [f'igczoo/{NAME}']
    (revision,) = next(iter(scan.repos)).revisions
    assert revision.commit_hash == world.oid and revision.refs == {'main'}
    assert try_to_load_from_cache(f'igczoo/{NAME}', 'model.safetensors', cache_dir=world.cache) == str(world.copy)


def test_disk_full(world):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))     # a write beyond it fails as on a full disk, with another number
    try:
        with pytest.raises(StoreError, match=r'hub: cannot use .*cache.*: File too large'):
            fetch(world.card)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in world.cache.rglob('*') if path.is_file()] == [world.lock.name]
    world.check()


def test_the_cache_is_no_folder(world):
    world.cache.write_bytes(b'')
    with pytest.raises(StoreError, match=r'hub: cannot use .*cache.*: Not a directory'):
        fetch(world.card)


# --- other processes ---

CHILD = """
    import sys
    from igczoo.checkpoints import store
    from igczoo.checkpoints.card import read_card
    try:
        print(store.fetch(read_card(sys.argv[1])))
    except store.StoreError as error:
        sys.exit(str(error))
"""


def start_child(world, **environment) -> subprocess.Popen:
    """A process that fetches the card, with nothing but environment variables to guide it."""
    card = world.folder.parent / f'{world.folder.name}-card.json'
    write_card(world.card, card)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(('HF_', 'HUGGINGFACE', 'IGCZOO'))}
    given = {'HF_ENDPOINT': world.hub.url, 'HF_HUB_CACHE': str(world.cache), 'PYTHONPATH': str(Path(store.__file__).parents[2])}
    return subprocess.Popen([sys.executable, '-c', textwrap.dedent(CHILD), str(card)], env={**kept, **given, **environment}, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_environment_variables_of_a_new_process(world):
    def run(**environment):
        process = start_child(world, **environment)
        out, err = process.communicate(timeout=60)
        return process.returncode, out.strip(), err

    code, _, said = run(HF_HUB_OFFLINE='1')
    assert code == 1 and 'HF_HUB_OFFLINE is set' in said and said.count('\n') == 1 and not world.hub.requests
    assert run(HF_TOKEN='hf_secret') == (0, str(world.copy), '')    # and no progress bar where there is no terminal
    assert world.hub.downloads[0].headers['authorization'] == 'Bearer hf_secret'
    world.hub.heal()
    assert run(HF_HUB_OFFLINE='1') == (0, str(world.copy), '') and not world.hub.requests
    world.check_clean()


def test_eight_processes_fetch_once(world):
    world.hub.fault('drip', interval=0.5, step=len(PAYLOAD) // 4)
    children = [start_child(world) for _ in range(8)]
    for child in children:
        out, err = child.communicate(timeout=120)
        assert out.strip() == str(world.copy), err
    assert len(world.hub.downloads) == 1
    world.check()


def test_kill_9_then_again(world):
    data = bytes(range(256)) * 800
    world.card = make_card(sha256=hashlib.sha256(data).hexdigest(), size=len(data))
    world.hub.add_repo(f'igczoo/{NAME}', {'model.safetensors': data})
    world.hub.fault('stall')
    child = start_child(world)
    part = world.part.with_name(f'{world.card.sha256}.incomplete')
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    left = part.read_bytes()
    assert left and data.startswith(left)
    world.hub.heal()
    assert fetch(world.card).read_bytes() == data and not part.exists()
    assert [request.headers.get('range') for request in world.hub.downloads] == [f'bytes={len(left)}-']


def test_a_lock_held_by_a_stalled_process(world, monkeypatch):
    monkeypatch.setattr(shelves, 'LOCK_PATIENCE', 0.3)
    for path in (world.part, world.lock):
        path.parent.mkdir(parents=True)
    part, lock, release, held = world.part, FileLock(world.lock), threading.Event(), threading.Event()

    def hold(growing: int):
        with lock:
            held.set()
            for count in range(1, growing + 1):
                part.write_bytes(PAYLOAD[:count])
                release.wait(0.1)
            release.wait(30)

    holder = threading.Thread(target=hold, args=(10,))
    holder.start()
    held.wait()
    began = time.monotonic()
    said = world.check_fails('another process holds .*lock and has not got on for 0.3 s; end it')
    assert time.monotonic() - began > 1 and str(world.lock) in said     # it was waited for as long as it got on
    release.set()
    holder.join()
    world.check()


@contextmanager
def read_only(folder: Path):
    """Nobody may write in the folder; root, who may everywhere, becomes somebody else for that."""
    paths = [folder, *folder.rglob('*')]
    for path in paths:
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)
        for path in paths:
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.parametrize('state', ['good', 'bad', 'empty'])
def test_read_only_cache(world, monkeypatch, state):
    world.check()   # by now everything is imported
    with tempfile.TemporaryDirectory() as open_to_all:  # the folders above pytest's own are one user's only
        Path(open_to_all).chmod(0o755)
        monkeypatch.setattr(store, 'weights_folder', lambda: Path(open_to_all))
        cache = Path(open_to_all) / 'cache'
        cache.mkdir()
        if state != 'empty':
            copy = fetch(world.card, cache_dir=cache)
        if state == 'bad':
            rewrite(copy, b'x')
        before = {path: path.stat().st_mtime_ns for path in cache.rglob('*')}
        forget(monkeypatch)
        with read_only(cache):
            if state == 'good':
                assert fetch(world.card, cache_dir=cache) == copy
            else:
                with pytest.raises(StoreError, match=f'hub: cannot use {cache}.*: Permission denied. Use pretrained=False') as raised:
                    fetch(world.card, cache_dir=cache)
                assert state == 'empty' or 'had sha256' in str(raised.value)
        assert {path: path.stat().st_mtime_ns for path in cache.rglob('*')} == before
        assert fetch(world.card, cache_dir=cache).read_bytes() == PAYLOAD


# --- the origin ---

@pytest.fixture
def foreign(world, monkeypatch):
    """A world whose card is made from somebody else's file."""
    def convert(path, model_name, source):
        assert Path(path).read_bytes() == ORIGIN and (model_name, source) == ('igcnet18', 'mxnet')
        world.conversions += 1
        return {'weight': torch.arange(1500.)}

    blob = hashlib.sha1(b'blob %d\0' % len(ORIGIN) + ORIGIN).hexdigest()
    world.conversions = 0
    world.card = make_card(origin=Origin('https://origin.invalid/owner/repo/file.params', 'them', 'mxnet', blob, size=len(ORIGIN)))
    world.copy = world.assets / 'igczoo' / NAME / f'{blob}-{shelves.CONVERSION}' / 'model.safetensors'
    world.hub.files['/owner/repo/file.params'] = ORIGIN
    monkeypatch.setitem(sys.modules, 'igczoo.checkpoints.convert', SimpleNamespace(convert_checkpoint=convert))
    monkeypatch.setenv('IGCZOO_ORIGIN', world.hub.url)
    monkeypatch.setenv('HF_TOKEN', 'hf_secret')
    return world


def check_origin(world, **options) -> None:
    path = fetch(world.card, **options)
    assert path == world.copy and torch.equal(load_file(path)['weight'], torch.arange(1500.))
    assert sorted(path.name for path in path.parent.iterdir()) == ['lock', 'model.safetensors', 'verified.json']
    assert json.loads(path.with_name('verified.json').read_text())['sha256'] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert {path.name for path in world.folder.iterdir()} <= {'cache', 'weights', 'assets'}


def test_origin(foreign, monkeypatch):
    check_origin(foreign)
    assert [request.path for request in foreign.hub.requests] == ['/owner/repo/file.params']
    assert 'authorization' not in foreign.hub.requests[0].headers
    assert [tuple(copy) for copy in locate(foreign.card)] == [('bundled', foreign.weights, 'absent'), ('cache', foreign.copy, 'ok')]
    foreign.hub.heal()
    forget(monkeypatch)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    for sources in (None, ['cache'], ['origin']):
        check_origin(foreign, sources=sources)
    assert not foreign.hub.requests and foreign.conversions == 1


@pytest.mark.parametrize('harm', [
    lambda copy: rewrite(copy, b'x'), lambda copy: copy.with_name('verified.json').unlink(),
    lambda copy: copy.with_name('verified.json').write_text('{"sha256": ""}'), lambda copy: copy.write_bytes(copy.read_bytes()[:-1]),
], ids=['changed', 'no record', 'empty record', 'cut'])
def test_a_bad_conversion_is_made_again(foreign, monkeypatch, harm):
    check_origin(foreign)
    harm(foreign.copy)
    forget(monkeypatch)
    assert locate(foreign.card)[1].state == 'wrong digest'
    check_origin(foreign)
    assert foreign.conversions == 2


@pytest.mark.parametrize(('fault', 'options', 'message'), [
    ('other bytes', {'body': b'x' + ORIGIN[1:]}, rf'with digest [0-9a-f]{{40}}, not {len(ORIGIN):,} bytes with digest [0-9a-f]{{40}}'),
    ('too long', {}, 'announces'), ('404', {}, 'origin: .*/owner/repo/file.params: HTTP 404'), ('html', {}, 'bytes of text/html'),
])
def test_a_bad_origin(foreign, fault, options, message):
    foreign.hub.fault(fault, **options)
    with pytest.raises(StoreError, match=message):
        fetch(foreign.card)
    assert foreign.conversions == 0 and [path.name for path in foreign.assets.rglob('*') if path.is_file()] == ['lock']
    foreign.hub.heal()
    foreign.hub.fault('truncated', 1)
    check_origin(foreign)


def test_an_origin_that_cannot_be_converted(foreign, monkeypatch):
    def refuse(path, model_name, source):
        raise ValueError(f'an array too few for {source}')

    monkeypatch.setitem(sys.modules, 'igczoo.checkpoints.convert', SimpleNamespace(convert_checkpoint=refuse))
    with pytest.raises(StoreError, match=r'origin: cannot convert https://origin.invalid/.*: an array too few for mxnet'):
        fetch(foreign.card)
    assert not foreign.copy.exists()
    foreign.card = dataclasses.replace(foreign.card, origin=dataclasses.replace(foreign.card.origin, converter='caffe'))
    with pytest.raises(StoreError, match="an array too few for caffe"):
        fetch(foreign.card)


def test_conversions_lie_in_the_hub_librarys_assets(foreign, monkeypatch):
    blob = foreign.card.origin.git_blob_sha1
    assert cached_assets_path('igczoo', NAME, f'{blob}-{shelves.CONVERSION}', assets_dir=foreign.assets) == foreign.copy.parent
    path = fetch(foreign.card, cache_dir=foreign.cache)
    assert path == foreign.cache / 'assets' / foreign.copy.relative_to(foreign.assets)     # nothing outside of the folder given
    umask = os.umask(0o022)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_conversion_that_fills_the_disk_leaves_nothing(foreign):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))     # the origin's 3,002 bytes fit, the 6,000 converted ones do not
    try:
        with pytest.raises(StoreError, match=f'origin: .*{foreign.copy.parent}.*File too large'):
            fetch(foreign.card)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in foreign.assets.rglob('*') if path.is_file()] == ['lock']
    check_origin(foreign)


def test_what_a_killed_conversion_left_is_removed(foreign):
    foreign.copy.parent.mkdir(parents=True)
    (foreign.copy.parent / '.part.0123456789abcdef.part').write_bytes(bytes(5000))
    check_origin(foreign)


def test_what_is_said_of_origins(foreign, monkeypatch):
    with pytest.raises(StoreError, match='origin: not among the sources allowed'):
        fetch(foreign.card, sources=['hub', 'bundled'])
    assert not foreign.hub.requests     # never on the hub
    monkeypatch.setenv('IGCZOO_ORIGIN', 'mirror.example')
    with pytest.raises(StoreError, match=r"IGCZOO_ORIGIN is 'mirror\.example'; it must be a scheme and a host"):
        fetch(foreign.card)


# --- copies that somebody put there beforehand, and what refusals mean ---

def put(world, commit: str, data: bytes) -> Path:
    """A copy as huggingface_hub lays it, of a commit that no reference names."""
    repo = world.cache / f'models--igczoo--{NAME}'
    blob = repo / 'blobs' / hashlib.sha256(data).hexdigest()
    link = repo / 'snapshots' / commit / 'model.safetensors'
    for path in (blob, link):
        path.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(data)
    link.symlink_to(os.path.relpath(blob, link.parent))
    return link


def test_a_copy_of_any_commit_is_found_offline(world, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    put(world, 'a' * 40, b'another version')
    right = put(world, 'b' * 40, PAYLOAD)
    assert fetch(world.card) == right
    assert not world.hub.requests and (world.cache / f'models--igczoo--{NAME}' / 'snapshots' / ('a' * 40)).exists()


def test_a_copy_that_cannot_be_read_does_not_end_the_search(world, monkeypatch):
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', True)
    unreadable, right = put(world, 'a' * 40, b'another version'), put(world, 'b' * 40, PAYLOAD)
    digest = shelves.known_digest

    def guarded(path, *args):
        if path == unreadable:
            raise PermissionError(13, 'Permission denied', str(path))
        return digest(path, *args)

    monkeypatch.setattr(shelves, 'known_digest', guarded)
    assert fetch(world.card) == right


@pytest.mark.parametrize(('fault', 'token', 'message'), [
    ('401', None, 'HTTP 401, no such repository, or a private one that asks for a token'),
    ('401', 'hf_old', r'HTTP 401, the token \(HF_TOKEN\) is not accepted: it may have expired'),
    ('403', None, r'HTTP 403, refused; a gated repository asks for a token'),
    ('403', 'hf_mine', r'HTTP 403, the token \(HF_TOKEN\) gives no access to it'),
])
def test_what_a_refusal_means(world, monkeypatch, fault, token, message):
    if token:
        monkeypatch.setenv('HF_TOKEN', token)
    world.hub.fault(fault)
    world.check_fails(message)
    world.hub.heal()
    world.check()


def test_nothing_but_the_file_is_asked_for(world):
    world.check()
    assert [request.path for request in world.hub.requests if not request.path.startswith('/lfs/')] == [FILE]
