"""What igczoo fetches from the hub, seen by huggingface_hub's own command, by timm, through proxies and by a second user of the cache."""
import json
import os
import subprocess
import sys
import tempfile
import textwrap
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
from hub_server import HubServer
from packaging.version import Version

from igczoo.checkpoints.card import weights_folder
from igczoo.checkpoints.download import _where

NAME = 'igc_resnet20_l24m2.cifar10'
REPO = f'igczoo/{NAME}'
FETCH = f"""
    import encodings.idna, os, sys
    from igczoo.checkpoints.card import cards
    from igczoo.checkpoints.store import StoreError, fetch
    cards()
    if len(sys.argv) > 1:   # the number of a user to become, now that everything is imported
        os.setuid(int(sys.argv[1]))
        os.umask(0o022)
    try:
        print(fetch(cards()['{NAME}'], sources=['cache', 'hub']))
    except StoreError as error:
        print(error)
"""
OFFLINE = f"""
    import timm, torch, igczoo
    from huggingface_hub import try_to_load_from_cache
    print(try_to_load_from_cache('{REPO}', 'model.safetensors'))
    theirs = timm.create_model('hf-hub:{REPO}', pretrained=True).eval()
    ours = timm.create_model('{NAME}', pretrained=True).eval()
    x = torch.rand(2, 3, 32, 32)
    print(torch.equal(theirs(x), ours(x)))
"""


@pytest.fixture
def hub():
    with HubServer() as server:
        folder = weights_folder() / NAME
        server.commit = server.add_repo(REPO, {name: (folder / name).read_bytes() for name in ('model.safetensors', 'config.json')})
        yield server


def environment(hub: HubServer, home: Path, **given: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.upper().startswith(('HF_', 'IGCZOO', 'HTTP', 'ALL_PROXY'))}
    return {**kept, 'HF_ENDPOINT': hub.url, 'HF_HOME': str(home), 'NO_PROXY': '127.0.0.1', 'HF_HUB_DISABLE_UPDATE_CHECK': '1', **given}


def run(code: str, environment: dict[str, str], *arguments: str) -> list[str]:
    command = [sys.executable, '-c', textwrap.dedent(code), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def hf(environment: dict[str, str], *arguments: str) -> str:
    command = [sys.executable, '-c', 'from huggingface_hub.cli.hf import main; main()', *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_others_see_what_was_fetched(hub, tmp_path):
    online = environment(hub, tmp_path)
    path, = run(FETCH, online)
    snapshot = tmp_path / 'hub' / f'models--igczoo--{NAME}' / 'snapshots' / hub.commit
    assert path == str(snapshot / 'model.safetensors')
    assert sorted(file.name for file in snapshot.iterdir()) == ['config.json', 'model.safetensors']
    assert [request.path.rpartition('/')[2] for request in hub.downloads] == ['model.safetensors', 'config.json']
    hub.heal()
    assert run(OFFLINE, environment(hub, tmp_path, HF_HUB_OFFLINE='1')) == [path, 'True'] and not hub.requests


@pytest.mark.skipif(Version(huggingface_hub.__version__) < Version('2'), reason='its command line had other commands')
def test_the_command_line_of_the_hub_knows_what_was_fetched(hub, tmp_path):
    online = environment(hub, tmp_path)
    path, = run(FETCH, online)
    listed = hf(online, 'cache', 'list', '--json')
    assert REPO in listed and 'models--' not in listed
    assert 'mismatch' not in hf(online, 'cache', 'verify', REPO, '--revision', hub.commit)
    hf(online, 'cache', 'prune', '--yes')
    assert Path(path).exists()


def test_a_config_of_other_bytes_is_left_out(hub, tmp_path):
    hub.add_repo(REPO, {'config.json': json.dumps({'architecture': 'resnet18'}).encode()})
    path, = run(FETCH, environment(hub, tmp_path))
    assert [file.name for file in Path(path).parent.iterdir()] == ['model.safetensors']
    assert not list(tmp_path.rglob('*.incomplete'))


# --- proxies ---

@pytest.mark.parametrize('proxy', ['user:secret@127.0.0.1:9', 'http://user:secret@127.0.0.1:9', '127.0.0.1:9'])
def test_a_proxy_is_named_without_its_password(monkeypatch, proxy):
    monkeypatch.setenv('NO_PROXY', '')
    monkeypatch.setattr('urllib.request.getproxies', lambda: {'https': proxy})
    assert _where(['https://hub.example/x']) == ' through the proxy 127.0.0.1:9'


def test_a_proxy_of_another_kind_is_named(hub, tmp_path):
    said, = run(FETCH, environment(hub, tmp_path, NO_PROXY='', ALL_PROXY='socks5h://user:secret@127.0.0.1:9'))
    assert 'the proxy 127.0.0.1:9 is of the kind socks5h, which is not supported' in said and 'secret' not in said


class Proxy(BaseHTTPRequestHandler):
    """Passes requests for http addresses on, or asks for a password."""
    refuses = False

    def log_message(self, *_):
        pass

    def do_GET(self):
        type(self).asked.append(self.path)
        if self.refuses:
            self.send_response(407)
            self.send_header('Content-Length', '0')
            return self.end_headers()
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        headers = {name: value for name, value in self.headers.items() if name.lower() in ('range', 'user-agent')}
        with opener.open(urllib.request.Request(self.path, headers=headers)) as answer:
            body = answer.read()
            self.send_response(answer.status)
            for name, value in answer.headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

    def do_CONNECT(self):
        type(self).asked.append(self.path)
        self.send_response(407)
        self.send_header('Content-Length', '0')
        self.end_headers()


@pytest.fixture
def proxy():
    handler = type('Handler', (Proxy,), {'asked': []})
    server = ThreadingHTTPServer(('127.0.0.1', 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
    handler.url = f'http://127.0.0.1:{server.server_port}'
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize('variable', ['ALL_PROXY', 'HTTP_PROXY', 'all_proxy'])
def test_a_proxy_is_used(hub, proxy, tmp_path, variable):
    path, = run(FETCH, environment(hub, tmp_path, NO_PROXY='', **{variable: proxy.url}))
    assert Path(path).is_file() and proxy.asked[0] == f'{hub.url}/{REPO}/resolve/main/model.safetensors'


@pytest.mark.parametrize('endpoint', ['http', 'https'])
def test_a_proxy_that_asks_for_a_password_is_named(hub, proxy, tmp_path, endpoint):
    proxy.refuses = True
    secret = proxy.url.replace('http://', 'http://me:secret@')
    endpoint = hub.url.replace('http:', f'{endpoint}:')
    said, = run(FETCH, environment(hub, tmp_path, NO_PROXY='', ALL_PROXY=secret, HF_ENDPOINT=endpoint))
    host = proxy.url.removeprefix('http://')
    assert f'HTTP 407 through the proxy {host}, the proxy asks for a name and password' in said and 'secret' not in said


def test_a_dead_proxy_is_named(hub, tmp_path):
    said, = run(FETCH, environment(hub, tmp_path, NO_PROXY='', HTTPS_PROXY='http://127.0.0.1:1', HTTP_PROXY='http://127.0.0.1:1'))
    assert 'no HTTP answer through the proxy 127.0.0.1:1 (Connection refused)' in said


def test_the_host_that_refuses_is_named(hub, tmp_path):
    hub.fault('redirect', to='http://127.0.0.1:1/file')
    said, = run(FETCH, environment(hub, tmp_path))
    assert f'{hub.url}/{REPO}' in said and 'no HTTP answer from 127.0.0.1:1 (Connection refused)' in said


# --- a second user ---

@pytest.mark.skipif(os.geteuid() != 0, reason='only root can become two users')
def test_a_second_user_of_a_shared_cache(hub):
    with tempfile.TemporaryDirectory() as shared:   # the folders above pytest's own are one user's only
        Path(shared).chmod(0o777)
        given = environment(hub, Path(shared) / 'home', HOME=shared)
        first, = run(FETCH, given, '1234')
        hub.heal()
        second, = run(FETCH, given, '4321')
        assert second == first and not hub.requests
        assert Path(first).stat().st_mode & 0o777 == 0o644
