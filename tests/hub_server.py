"""A small Hugging Face hub on 127.0.0.1: downloads, ranges, redirects, model info, uploads, plain files of other origins, and named faults.

    with HubServer() as hub:
        hub.add_repo('igczoo/a.b', {'model.safetensors': b'...'})
        hub.fault('reset', times=2)     # for the next two GET requests of a file
"""
from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
import socket
import struct
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from huggingface_hub import constants, file_download

HTML = b'<!doctype html><html><title>Log in</title><body>Please log in to this network.</body></html>'


def set_endpoint(monkeypatch, url: str) -> None:
    """What HF_ENDPOINT does in a new process."""
    monkeypatch.setattr(constants, 'ENDPOINT', url)
    for module in (constants, file_download):       # the second's own copy is what huggingface_hub 0.30 uses
        monkeypatch.setattr(module, 'HUGGINGFACE_CO_URL_TEMPLATE', url + '/{repo_id}/resolve/{revision}/{filename}', raising=False)


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]     # names in lower case


class HubServer:
    """``repos[id]['main']`` is the newest commit, ``repos[id][oid]`` the files of a commit by path; ``files`` are served by bare path."""

    def __init__(self):
        self.repos: dict[str, dict] = {}
        self.files: dict[str, bytes] = {}
        self.lfs: dict[str, bytes] = {}
        self.requests: list[Request] = []
        self.faults: list[dict] = []
        self.closing = threading.Event()
        handler = type('Handler', (_Handler,), {'hub': self})
        self._servers = [_Server(('127.0.0.1', 0), handler) for _ in range(2)]
        self.url, self.cdn_url = (f'http://127.0.0.1:{server.server_port}' for server in self._servers)   # the second has the large files

    def __enter__(self):
        for server in self._servers:
            threading.Thread(target=server.serve_forever, kwargs={'poll_interval': 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def add_repo(self, repo: str, files: dict[str, bytes]) -> str:
        """Add a commit with ``files`` on top of what the repository has; gives its oid."""
        commits = self.repos.setdefault(repo, {})
        files = {**commits.get(commits.get('main'), {}), **files}
        listing = json.dumps([len(commits), sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())])
        oid = hashlib.sha1(listing.encode()).hexdigest()
        commits.update({oid: files, 'main': oid})
        self.lfs.update({hashlib.sha256(data).hexdigest(): data for path, data in files.items() if _is_lfs(path)})
        return oid

    def fault(self, name: str, times: float = float('inf'), **options) -> None:
        """Answer the next ``times`` GET requests of a file in a wrong way; see `FAULTS`."""
        self.faults.append({'answer': FAULTS[name], 'times': times, 'options': options})

    def heal(self) -> None:
        self.faults.clear()
        self.requests.clear()

    @property
    def downloads(self) -> list[Request]:
        """The requests for a file by its name; what a redirect leads to counts as the same download."""
        return [request for request in self.requests if request.method == 'GET' and not request.path.startswith(('/api/', '/lfs/'))]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, *_):
        """Clients that hang up are what the tests are about."""


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = 'HTTP/1.1'

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = self._log()
        if match := re.fullmatch(r'/api/models/([^/]+/[^/]+)(/revision/([^/]+)|/tree/([^/]+))?', path):
            return self._info(match[1], match[3] or match[4] or 'main', tree=bool(match[4]))
        if path == '/api/whoami-v2':
            return self.send_json({'type': 'user', 'name': 'tester', 'orgs': [{'name': 'igczoo'}]})
        if path.startswith('/lfs/'):
            return self.send_file(self.hub.lfs[path[5:]], etag=path[5:])
        data, headers = self.hub.files.get(path), {}
        if match := re.fullmatch(r'/([^/]+/[^/]+)/resolve/([^/]+)/(.+)', path):
            oid, files = self._commit(match[1], match[2])
            if files is None or match[3] not in files:
                return self.send_error_code(404, 'EntryNotFound' if files is not None else oid)
            data, headers = files[match[3]], {'X-Repo-Commit': oid}
        if data is None:
            return self.send_error_code(404, None)
        if self.command == 'GET' and (fault := self._fault()):
            return fault['answer'](self, data, headers, **fault['options'])
        self.send_found(path, data, headers)

    def send_found(self, path: str, data: bytes, headers: dict) -> None:
        if not headers or not _is_lfs(path):
            return self.send_file(data, headers, etag=_git_oid(data))
        oid = hashlib.sha256(data).hexdigest()
        linked = {'X-Linked-Size': len(data), 'X-Linked-Etag': f'"{oid}"', 'ETag': f'"{oid}"'}
        self.redirect(f'{self.hub.cdn_url}/lfs/{oid}', {**headers, **linked})

    def do_POST(self):
        path, body = self._log(), self._body()
        if 'authorization' not in self.hub.requests[-1].headers:
            return self.send_error_code(401, None)
        if path == '/api/validate-yaml':
            return self.send_json({'errors': [], 'warnings': []})
        if path == '/api/repos/create':
            wanted = json.loads(body)
            repo = f'{wanted["organization"] or "tester"}/{wanted["name"]}'
            known = repo in self.hub.repos
            if not known:
                self.hub.add_repo(repo, {})
            return self.send_json({'url': f'{self.hub.url}/{repo}', 'name': repo}, 409 if known else 200)
        if match := re.fullmatch(r'/api/models/([^/]+/[^/]+)/(preupload|commit)/main', path):
            if match[1] not in self.hub.repos:
                return self.send_error_code(404, 'RepoNotFound')
            return self._preupload(match[1], json.loads(body)) if match[2] == 'preupload' else self._add_commit(match[1], body)
        if path.endswith('.git/info/lfs/objects/batch'):
            return self._lfs_batch(json.loads(body))
        self.send_error_code(404, None)

    def do_PUT(self):
        path, body = self._log(), self._body()
        if hashlib.sha256(body).hexdigest() != path[len('/lfs/'):]:
            return self.send_error_code(400, None)
        self.hub.lfs[path[len('/lfs/'):]] = body
        self.send_json({})

    def _preupload(self, repo: str, wanted: dict) -> None:
        _, files = self._commit(repo, 'main')
        self.send_json({'files': [{
            'path': file['path'], 'uploadMode': 'lfs' if _is_lfs(file['path']) else 'regular', 'shouldIgnore': False,
            'oid': _oid(file['path'], files[file['path']]) if file['path'] in files else None,
        } for file in wanted['files']]})

    def _lfs_batch(self, wanted: dict) -> None:
        self.send_json({'transfer': 'basic', 'objects': [
            item if item['oid'] in self.hub.lfs else {**item, 'actions': {'upload': {'href': f'{self.hub.cdn_url}/lfs/{item["oid"]}'}}}
            for item in wanted['objects']]})

    def _add_commit(self, repo: str, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        if lines[0]['value'].get('parentCommit', self.hub.repos[repo]['main']) != self.hub.repos[repo]['main']:
            return self.send_error_code(412, None)
        files = {}
        for line in lines[1:]:
            value = line['value']
            files[value['path']] = base64.b64decode(value['content']) if line['key'] == 'file' else self.hub.lfs[value['oid']]
        oid = self.hub.add_repo(repo, files)
        self.send_json({'commitUrl': f'{self.hub.url}/{repo}/commit/{oid}', 'commitOid': oid})

    def _info(self, repo: str, revision: str, tree: bool) -> None:
        oid, files = self._commit(repo, revision)
        if files is None:
            return self.send_error_code(404, oid)
        if not tree:
            return self.send_json({'id': repo, 'modelId': repo, 'sha': oid, 'private': False, 'tags': [],
                                   'siblings': [{'rfilename': path} for path in files]})
        entries = [{'type': 'file', 'path': path, 'size': len(data), 'oid': _git_oid(data)} for path, data in files.items()]
        for entry in entries:
            if _is_lfs(entry['path']):
                entry['lfs'] = {'oid': _oid(entry['path'], files[entry['path']]), 'size': entry['size'], 'pointerSize': 130}
        self.send_json(entries)

    def _commit(self, repo: str, revision: str) -> tuple[str, dict | None]:
        """The oid and files of a revision, or the hub's error code and None."""
        commits = self.hub.repos.get(repo)
        if commits is None:
            return 'RepoNotFound', None
        oid = commits.get('main') if revision == 'main' else revision
        return (oid, commits[oid]) if oid in commits else ('RevisionNotFound', None)

    def _fault(self) -> dict | None:
        for fault in self.hub.faults:
            if fault['times'] > 0:
                fault['times'] -= 1
                return fault
        return None

    def _log(self) -> str:
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        self.hub.requests.append(Request(self.command, unquote(parts.path), {k.lower(): v for k, v in self.headers.items()}))
        return unquote(parts.path)

    def _body(self) -> bytes:
        if self.headers.get('Transfer-Encoding') != 'chunked':
            return self.rfile.read(int(self.headers.get('Content-Length', 0)))
        body = b''
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    # --- answers ---

    def send_head(self, status: int, headers: dict) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, str(value))
        self.end_headers()

    def send_body(self, body: bytes) -> None:
        if self.command != 'HEAD':
            self.wfile.write(body)

    def send_json(self, value, status: int = 200) -> None:
        body = json.dumps(value).encode()
        self.send_head(status, {'Content-Type': 'application/json', 'Content-Length': len(body)})
        self.send_body(body)

    def send_error_code(self, status: int, code: str | None, **headers) -> None:
        named = {'X-Error-Code': code} if code else {}
        self.send_head(status, {**named, 'Content-Length': 0, **{name.replace('_', '-'): value for name, value in headers.items()}})

    def send_file(self, data: bytes, headers: dict | None = None, etag: str = '', ranges: bool = True) -> None:
        headers = {'Content-Type': 'application/octet-stream', 'ETag': f'"{etag}"', **(headers or {})}
        match = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', '')) if ranges else None
        if match and int(match[1]) >= len(data):
            return self.send_error_code(416, None, Content_Range=f'bytes */{len(data)}')
        if match:
            headers['Content-Range'] = f'bytes {match[1]}-{len(data) - 1}/{len(data)}'
            data = data[int(match[1]):]
        self.send_head(206 if match else 200, {'Content-Length': len(data), **headers})
        self.send_body(data)

    def redirect(self, target: str, headers: dict | None = None) -> None:
        self.send_head(302, {'Location': target, 'Content-Length': 0, **(headers or {})})

    def send_part(self, data: bytes, end: int, repo: dict) -> int:
        """The head of the whole answer (or of the part asked for) and the bytes up to ``end``; gives the first byte asked for."""
        match = re.fullmatch(r'bytes=(\d+)-', self.headers.get('Range', ''))
        start = int(match[1]) if match else 0
        ranged = {'Content-Range': f'bytes {start}-{len(data) - 1}/{len(data)}'} if match else {}
        self.send_head(206 if match else 200, {'Content-Length': len(data) - start, **repo, **ranged})
        self.wfile.write(data[start:max(start, end)])
        self.close_connection = True
        return start

    def reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()

    def drip(self, data: bytes, interval: float, step: int = 1) -> None:
        for start in range(0, len(data), step):
            self.wfile.write(data[start:start + step])
            if self.hub.closing.wait(interval):
                break
        self.close_connection = True


def _is_lfs(path: str) -> bool:
    return path.endswith(('.safetensors', '.bin'))


def _oid(path: str, data: bytes) -> str:
    return hashlib.sha256(data).hexdigest() if _is_lfs(path) else _git_oid(data)


def _git_oid(data: bytes) -> str:
    return hashlib.sha1(b'blob %d\0' % len(data) + data).hexdigest()


def _flip(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


def _status(status: int, code: str | None = None, **headers):
    return lambda http, data, repo: http.send_error_code(status, code, **headers)


def _reset(http, data, repo, at: float = 0.5):
    http.send_part(data, int(len(data) * at), repo)
    http.reset()


def _stall(http, data, repo):
    http.send_part(data, len(data) // 2, repo)
    http.hub.closing.wait(60)


def _silence(http, data, repo):
    http.hub.closing.wait(60)
    http.close_connection = True


def _drip(http, data, repo, interval: float = 0.02, step: int = 1):
    start = http.send_part(data, 0, repo)
    http.drip(data[start:], interval, step)


def _dripping_head(http, data, repo, interval: float = 0.02):
    http.drip(b'HTTP/1.1 200 OK\r\nX-Filler: ' + b'.' * 100_000, interval)


def _endless(http, data, repo):
    http.send_head(200, {'Content-Type': 'application/octet-stream'})
    while not http.hub.closing.is_set():
        http.wfile.write(bytes(65536))


def _bare(http, data, repo, cut: int | None = None):
    """Without a length: the end of the connection is the end of the file."""
    http.send_head(200, {'Connection': 'close'})
    http.wfile.write(data[:cut])
    http.close_connection = True


def _garbage(http, data, repo):
    http.wfile.write(b'SSH-2.0-OpenSSH_9.6\r\n')
    http.close_connection = True


def _gzipped(http, data, repo):
    http.send_file(gzip.compress(data), {'Content-Encoding': 'gzip'})


def _wrong_range(http, data, repo):
    """Says 206 and gives another part."""
    http.send_head(206, {'Content-Length': len(data) - 5, 'Content-Range': f'bytes 5-{len(data) - 1}/{len(data)}'})
    http.wfile.write(data[5:])


# Each is called with the handler, the right bytes of the file and the headers of its repository.
FAULTS = {
    '401': _status(401, 'RepoNotFound'), '403': _status(403, 'GatedRepo'), '404': _status(404, 'EntryNotFound'),
    '416': _status(416), '429': _status(429), '500': _status(500), '503': _status(503),
    'retry after 1 s': _status(429, Retry_After=1), 'retry after an hour': _status(503, Retry_After=3600),
    'reset': _reset, 'reset at once': lambda http, data, repo: http.reset(),
    'truncated': lambda http, data, repo: http.send_part(data, len(data) // 2, repo),
    'flipped': lambda http, data, repo: http.send_file(_flip(data)),
    'html': lambda http, data, repo: http.send_file(HTML, {'Content-Type': 'text/html; charset=utf-8'}),
    'html of the same size': lambda http, data, repo: http.send_file(HTML.ljust(len(data)), {'Content-Type': 'text/html'}),
    'other bytes': lambda http, data, repo, body: http.send_file(body),
    'wrong etag': lambda http, data, repo: http.send_file(data, repo, etag='0' * 64),
    'hostile etag': lambda http, data, repo: http.send_file(data, repo, etag='../../../../escaped'),
    'stall': _stall, 'silence': _silence, 'drip': _drip, 'dripping head': _dripping_head, 'garbage': _garbage,
    'too long': lambda http, data, repo: http.send_file(data + bytes(5000)),
    'linked too long': lambda http, data, repo: http.send_file(data, {'X-Linked-Size': 10 ** 12}),
    'endless': _endless, 'no length': _bare, 'gzip': _gzipped,
    'no ranges': lambda http, data, repo: http.send_file(data, ranges=False), 'wrong range': _wrong_range,
    'redirect': lambda http, data, repo, to: http.redirect(to, repo),
    'redirect loop': lambda http, data, repo: http.redirect(http.path),
}
