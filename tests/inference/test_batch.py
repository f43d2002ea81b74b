"""Many images by Ray: one row each, whatever dies; a call that was stopped goes on; nothing but what was asked is on the terminal."""
import http.server
import json
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
import threading
import warnings
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from docs_pages import blocks, check_code, commands, make_photographs, run_command
from image_files import MODEL, photograph, write_files, write_rows

import igczoo
from igczoo.cli import main
from igczoo.inference import batch
from igczoo.inference.batch import classify_all
from igczoo.inference.parts import schema

pytestmark = [pytest.mark.ray, pytest.mark.filterwarnings('ignore')]        # of Ray's own use of others


@pytest.fixture(scope='module')
def two_cpus():
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        ray = pytest.importorskip('ray')
        os.environ.update(RAY_USAGE_STATS_ENABLED='0', no_proxy='127.0.0.1')        # the workers' too
        ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False, log_to_driver=False)
        yield
        ray.shutdown()


def rows_in(out: Path) -> list[dict]:
    assert not [path for path in out.iterdir() if not path.match('part-*.parquet')]
    return [row for part in sorted(out.iterdir()) for row in pq.read_table(part).to_pylist()]


def test_a_folder_and_the_same_call_again(two_cpus, tmp_path, capsys):
    files = write_files(tmp_path / 'photos', 10)
    Path(files[4]).write_bytes(b'no image')
    call = ['batch', str(tmp_path / 'photos'), '-o', str(tmp_path / 'out'), '--model', MODEL, '-k', '3', '--part-size', '4']
    assert main([*call, '--workers', '2', '--json']) == 0
    out, err = capsys.readouterr()
    done = json.loads(out)
    assert not err and {key: done[key] for key in ('images', 'errors', 'classified', 'workers', 'cpus', 'machines')} == dict(
        images=10, errors=1, classified=10, workers=2, cpus=1, machines=1)
    rows = rows_in(tmp_path / 'out')
    assert [row['path'] for row in rows] == files and [bool(row['error']) for row in rows] == [number == 4 for number in range(10)]
    assert pq.read_schema(next((tmp_path / 'out').iterdir())).equals(schema())
    good = [row for row in rows if not row['error']]
    expected = igczoo.load(MODEL).classify([row['path'] for row in good], 3)
    assert [row['labels'] for row in good] == [[one.label for one in answer] for answer in expected]
    np.testing.assert_allclose([row['scores'] for row in good], [[one.score for one in answer] for answer in expected], rtol=1e-4)
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()}
    assert main(call) == 0
    assert capsys.readouterr().out == f'{tmp_path / "out"}: 10 images, 1 of them errors; all had been done before\n'
    assert before == {path.name: path.stat().st_mtime_ns for path in (tmp_path / 'out').iterdir()}


def test_a_stopped_call_goes_on(two_cpus, tmp_path, monkeypatch):
    images, out = [photograph(seed) for seed in range(20)], tmp_path / 'out'
    write_rows(tmp_path / 'some.parquet', images)
    real, names = batch.replacing, []

    def stop_at_the_third(path):
        names.append(path)
        if len(names) == 3:
            raise KeyboardInterrupt
        return real(path)

    monkeypatch.setattr(batch, 'replacing', stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        classify_all(MODEL, tmp_path / 'some.parquet', out, part_size=3, workers=1)
    monkeypatch.undo()
    before = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert len(before) == 2
    (out / '.part-000004-0.parquet.1.part').write_bytes(b'half')        # as a process that is killed leaves
    done = classify_all(MODEL, tmp_path / 'some.parquet', out, part_size=3, workers=1)
    assert done.images == 20 and done.classified == 14 and done.errors == 0 and done.cpus == 2
    assert [row['row'] for row in rows_in(out)] == list(range(20))
    assert before == {name: (out / name).stat().st_mtime_ns for name in before}


class Server(http.server.ThreadingHTTPServer):
    """Serves photographs, and calls ``on_request`` with each path, and the port that asks for it, before it answers."""

    def __init__(self, on_request, port: int = 0):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                on_request(self.path, self.client_address[1])
                body = photograph(int(self.path.strip('/')))
                self.send_response(200)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args):
                pass

        super().__init__(('127.0.0.1', port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def handle_error(self, request, client_address):        # who asked is dead
        pass

    def write_list(self, file: Path, count: int) -> list[str]:
        addresses = [f'http://127.0.0.1:{self.server_port}/{number}' for number in range(count)]
        file.write_text('\n'.join(addresses))
        return addresses


def workers_under(root: int) -> list[int]:
    """The actors that classify, of a Ray that the process has started."""
    parents = {}
    for stat in Path('/proc').glob('[0-9]*/stat'):
        try:
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(')')[2].split()[1])
        except OSError:
            continue
    family, found = [root], []
    for pid in family:
        family += [child for child, parent in parents.items() if parent == pid]
        with suppress(OSError):
            if b'MapWorker' in Path(f'/proc/{pid}/cmdline').read_bytes():
                found.append(pid)
    return found


def kill_workers() -> int:
    """Kill the actors of this process's Ray; returns how many."""
    killed = 0
    for pid in workers_under(os.getpid()):
        with suppress(OSError):
            os.kill(pid, 9)
            killed += 1
    return killed


@pytest.mark.skipif(sys.platform != 'linux', reason='finds the workers under /proc')
def test_killed_workers_lose_and_double_nothing(two_cpus, tmp_path):
    asked, killed, turn = Counter(), [], threading.Lock()

    def kill_at_the_thirteenth(path, port):
        with turn:
            asked[path] += 1
            if sum(asked.values()) == 13:
                killed.append(kill_workers())

    server = Server(kill_at_the_thirteenth)
    addresses = server.write_list(tmp_path / 'list.txt', 30)
    done = classify_all(MODEL, tmp_path / 'list.txt', tmp_path / 'out', part_size=5, workers=2)
    server.shutdown()
    server.server_close()
    assert killed in ([1], [2]) and max(asked.values()) == 2        # what they were at was begun again
    rows = rows_in(tmp_path / 'out')
    assert [row['path'] for row in rows] == addresses and not any(row['error'] for row in rows) and done.images == done.classified == 30
    expected = igczoo.load(MODEL).classify([photograph(number) for number in range(30)], 1)
    assert [row['index'] for row in rows] == [answer[0].index for answer in expected]


def test_results_of_something_else_are_refused(two_cpus, tmp_path, capsys):
    files = write_files(tmp_path / 'photos', 3)
    write_files(tmp_path / 'others', 3)
    out = tmp_path / 'out'
    classify_all(MODEL, tmp_path / 'photos', out, k=2, workers=1)

    def refused(*arguments: str, data: str = 'photos') -> str:
        assert main(['batch', str(tmp_path / data), '-o', str(out), *arguments]) == 1
        err = capsys.readouterr().err
        assert err.count('\n') == 1 and err.startswith(f'igczoo batch: {out}: ')
        return err

    mine = '--model', MODEL
    assert 'k = 2, and this call is with k = 5' in refused(*mine)
    assert f'model {MODEL}, and this call is of the model igcnet18' in refused('-k', '2')
    assert 'others' in refused(*mine, '-k', '2', data='others')
    assert 'part size 1000, and' in refused(*mine, '-k', '2', '--part-size', '2')
    Path(files[0]).write_bytes(b'another image')
    assert 'the images have changed' in refused(*mine, '-k', '2')
    (out / 'mine.txt').write_text('')
    assert 'mine.txt' in refused(*mine, '-k', '2')
    assert sorted(path.name[:5] for path in out.iterdir()) == ['mine.', 'part-']


def test_what_could_not_be_opened_is_tried_again_where_that_is_asked_for(two_cpus, tmp_path, capsys):
    """Of a server that is not there at first."""
    server = Server(lambda path, port: None)
    addresses = server.write_list(tmp_path / 'list.txt', 4)
    port = server.server_address[1]
    server.shutdown()
    server.server_close()
    command = ['batch', str(tmp_path / 'list.txt'), '-o', str(tmp_path / 'out'), '--model', MODEL, '--part-size', '2', '--workers', '1']
    assert main(command) == 1       # not one was opened
    assert all(row['error'] for row in rows_in(tmp_path / 'out'))
    capsys.readouterr()
    assert main(command) == 1 and 'all had been done before' in capsys.readouterr().out
    server = Server(lambda path, port: None, port)
    assert main([*command, '--retry']) == 0
    server.shutdown()
    server.server_close()
    assert [row['path'] for row in rows_in(tmp_path / 'out')] == addresses and not any(row['error'] for row in rows_in(tmp_path / 'out'))


@pytest.mark.parametrize(('arguments', 'said'), [
    (['empty'], 'holds no image'),
    (['nonesuch'], 'no such file'),
    (['photos', '--model', 'nonesuch'], 'nonesuch'),
    (['photos', '--workers', '3'], 'Ray has 2 CPUs'),
    (['photos', '-o', 'photos/a/0.png'], 'is a file'),
    (['photos', '-o', 'photos'], 'has other files'),
])
def test_wrong_calls(two_cpus, tmp_path, monkeypatch, capsys, arguments, said):
    write_files(tmp_path / 'photos', 2)
    (tmp_path / 'empty').mkdir()
    monkeypatch.chdir(tmp_path)
    assert main(['batch', '--model', MODEL, '-o', 'out', *arguments]) == 1
    out, err = capsys.readouterr()
    assert said in err and err.count('\n') == 1 and not out


def test_ray_is_started_quietly_and_stopped(tmp_path):
    write_files(tmp_path / 'photos', 4)
    command = [sys.executable, '-m', 'igczoo', 'batch', 'photos', '-o', 'out', '--model', MODEL, '--part-size', '2']
    environment = {key: value for key, value in os.environ.items() if not key.startswith('RAY_')}
    environment['PYTHONPATH'] = str(Path(igczoo.__file__).parents[1])
    done = subprocess.run([*command, '--workers', '1'], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert done.stdout.startswith('out: 4 images, 0 of them errors; ') and 'workers: 1, ' in done.stdout
    assert [row['path'] for row in rows_in(tmp_path / 'out')] == ['photos/a/0.png', 'photos/a/3.png', 'photos/b/1.png', 'photos/c/2.png']


ALIVE = """
    import ray, time
    ray.init(log_to_driver=False, logging_level='ERROR')
    for _ in range(240):
        alive = [node for node in ray.nodes() if node['Alive']]
        if len(alive) == 2:
            break
        time.sleep(.5)
    print(len(alive), ray.get(ray.remote(lambda: 6 * 7).remote()))
"""


TOKEN = dict(RAY_AUTH_MODE='token', RAY_AUTH_TOKEN='0123456789abcdef' * 4)      # older versions of Ray have none


class Cluster:
    """Two nodes of one CPU each, started as on two machines, and ended with the block."""

    def __init__(self, stack: ExitStack):
        with socket.socket() as free:
            free.bind(('127.0.0.1', 0))
            self.address = f'127.0.0.1:{free.getsockname()[1]}'
        mine = {key: value for key, value in os.environ.items() if not key.startswith('RAY_') and not key.lower().endswith('_proxy')}
        self.environment = mine | TOKEN | dict(RAY_ADDRESS=self.address, RAY_USAGE_STATS_ENABLED='0',
                                               PYTHONPATH=str(Path(igczoo.__file__).parents[1]))
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix='ray', ignore_cleanup_errors=True))   # sockets need short names
        port = self.address.partition(':')[2]
        joins = [f'--port={port}', '--head', '--include-dashboard=false', f'--temp-dir={folder}'], [f'--address={self.address}']
        self.nodes = [stack.enter_context(self._started(*join)) for join in joins]
        assert self.ask() == '2 42'

    @contextmanager
    def _started(self, *how: str):
        """`ray start`, which stays until it is ended, and ends what it has started."""
        command = [sys.executable, '-m', 'ray.scripts.scripts', 'start', '--block', '--num-cpus=1', '--object-store-memory=100000000', *how]
        environment = {key: value for key, value in self.environment.items() if key != 'RAY_ADDRESS'}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            yield process
        finally:
            process.terminate()
            process.wait(60)

    def ask(self) -> str:
        """How many nodes are alive, and what a task computes."""
        command = [sys.executable, '-c', textwrap.dedent(ALIVE)]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()


def has_port(pid: int, port: int) -> bool:
    """Whether a process has an open connection from that port."""
    lines = [line.split() for line in Path('/proc/net/tcp').read_text().splitlines()[1:]]
    sockets = {f'socket:[{words[9]}]' for words in lines if int(words[1].rpartition(':')[2], 16) == port}
    with suppress(OSError):
        return any(os.readlink(file) in sockets for file in Path(f'/proc/{pid}/fd').iterdir())
    return False


@pytest.mark.skipif(sys.platform != 'linux', reason='finds the workers under /proc')
def test_a_cluster_that_ray_address_names(tmp_path):
    ray = pytest.importorskip('ray')
    asked, both = {0: [], 1: []}, threading.Event()

    def note(path, port):
        """By which node; while only one has asked, it is answered slowly."""
        for number, node in enumerate(cluster.nodes):
            if any(has_port(pid, port) for pid in workers_under(node.pid)):
                asked[number].append(path)
        if all(asked.values()):
            both.set()
        both.wait(5)

    with ExitStack() as stack:
        cluster = Cluster(stack)
        server = Server(note)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        addresses = server.write_list(tmp_path / 'list.txt', 24)
        command = [sys.executable, '-m', 'igczoo', 'batch', 'list.txt', '-o', 'out', '--model', MODEL, '--part-size', '2', '--json']

        def batch(environment: dict[str, str]) -> subprocess.CompletedProcess:
            return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)

        if hasattr(ray.exceptions, 'AuthenticationError'):
            done = batch({key: value for key, value in cluster.environment.items() if key not in TOKEN})
            assert done.returncode == 1 and done.stderr.count('\n') == 1, done.stderr
            assert f'RAY_ADDRESS={cluster.address}: is no cluster' in done.stderr and 'set RAY_AUTH_MODE=token' in done.stderr
        done = batch(cluster.environment)
        assert done.returncode == 0 and not done.stderr, done.stderr
        summary = json.loads(done.stdout)
        assert {key: summary[key] for key in ('images', 'errors', 'workers', 'cpus', 'machines')} == dict(
            images=24, errors=0, workers=2, cpus=1, machines=2)
        assert all(asked.values()) and sorted(asked[0] + asked[1]) == sorted(f'/{number}' for number in range(24))
        assert cluster.ask() == '2 42' and all(node.poll() is None for node in cluster.nodes)       # as it was before
    rows = rows_in(tmp_path / 'out')
    assert [row['path'] for row in rows] == addresses and not any(row['error'] for row in rows)
    expected = igczoo.load(MODEL).classify([photograph(number) for number in range(24)], 1)
    assert [row['index'] for row in rows] == [answer[0].index for answer in expected]


def test_the_page(two_cpus, tmp_path, monkeypatch):
    make_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    for arguments in commands('batch'):
        assert run_command(arguments).strip()
    for code in blocks('batch', 'python'):
        check_code(code)
