"""The kernel is compiled once, kept with its digest, and never loaded when it has another; without it all works as before."""
import hashlib
import os
import subprocess
import sys
import tempfile
import time
from types import SimpleNamespace

import pytest
import torch
from batch_norms import randomise
from test_kernels import some_unit

from igczoo.deployment import kernels
from igczoo.deployment.deploy import deploy, forms_used
from igczoo.deployment.kernels import build
from igczoo.nets.igcnet import igc_resnet

pytestmark = pytest.mark.compile


@pytest.fixture
def unloaded(monkeypatch, tmp_path):
    """As in a new process with an empty cache, which is returned."""
    monkeypatch.setattr(kernels, '_kernels', {})
    monkeypatch.setattr(kernels, '_why_not', '')
    monkeypatch.setattr(build, 'FLAGS', ('-std=c++17', '-O0', '-fPIC', '-shared'))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    kernels._try.cache_clear()
    yield tmp_path / 'igczoo' / 'kernels'
    kernels._try.cache_clear()


def files(cache):
    """What the cache holds, without its locks."""
    return [path for path in cache.glob('*') if path.suffix != '.lock']


def forget(monkeypatch):
    monkeypatch.setattr(kernels, '_kernels', {})
    kernels._try.cache_clear()


def assert_works_without():
    assert '\n' not in kernels.why_not()
    tensors = some_unit()
    assert torch.equal(kernels.unit(*tensors), kernels.torch_unit(*tensors))


def test_nothing_is_compiled_unasked(compiled, unloaded):
    assert not kernels.load(build=False)
    assert 'is not there yet; igczoo.deployment.kernels.load(build=True) compiles it' in kernels.why_not()
    assert not unloaded.exists()
    assert_works_without()


def test_compiled_once_and_found_again(compiled, unloaded, monkeypatch):
    assert kernels.load(build=True)
    assert kernels.why_not() == ''
    assert sorted(path.suffix for path in files(unloaded)) == ['.sha256', '.so']
    forget(monkeypatch)
    monkeypatch.setattr(build, '_compile', None)
    assert kernels.load(build=False)
    tensors = some_unit()
    torch.testing.assert_close(kernels.unit(*tensors), kernels.torch_unit(*tensors), rtol=1e-4, atol=1e-4)


def test_each_type_has_a_kernel_of_its_own(compiled, unloaded):
    assert kernels.load(build=True, dtype=torch.bfloat16)
    assert kernels.takes(torch.empty(1, dtype=torch.bfloat16)) and not kernels.takes(torch.empty(1))
    assert not kernels.load(build=True, dtype=torch.float64)
    assert kernels.why_not() == 'the kernel is for torch.float32 and torch.bfloat16; this is torch.float64'
    assert kernels.load(build=False, dtype=torch.bfloat16)
    assert kernels.why_not() == ''


def test_tiles_that_are_not_used_are_told(compiled, monkeypatch):
    def igc_why_no_tiles():
        return b'for a reason'

    monkeypatch.setattr(kernels._kernels[torch.bfloat16], 'igc_why_no_tiles', igc_why_no_tiles)
    assert kernels.load(build=False, dtype=torch.bfloat16) and kernels.why_not() == 'for a reason'
    assert kernels.load(build=False, dtype=torch.float32) and kernels.why_not() == ''


def test_a_cache_that_cannot_be_written(compiled, unloaded, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    assert kernels.load(build=True), kernels.why_not()
    assert 'NotADirectoryError' in kernels.why_not() and 'compiled for this process alone' in kernels.why_not()
    assert [path.name for path in tmp_path.iterdir()] == ['file']


@pytest.mark.parametrize(('compiler', 'reason'), [
    ('no-such-compiler -O1', "the compiler that CXX names, 'no-such-compiler', is not there"),
    ('false', "CalledProcessError: Command '['false', '--version']'"),
    ('echo', 'echo wrote no file'),
    ('g++ "', "CXX is 'g++ \"', which is no command (No closing quotation)"),
])
def test_a_compiler_that_does_not_work(unloaded, monkeypatch, compiler, reason):
    monkeypatch.setenv('CXX', compiler)
    assert not kernels.load(build=True)
    assert reason in kernels.why_not()
    assert not files(unloaded)
    assert_works_without()


@pytest.mark.parametrize('message', ['No space left on device', 'Disk quota exceeded'])
def test_a_full_cache_is_passed_over_whatever_the_language(unloaded, monkeypatch, tmp_path, message):
    script = tmp_path / 'cxx'
    script.write_text(f'''#!/bin/sh
case "$*" in *--version*) echo 1; exit 0;; esac
[ "$LC_ALL" = C ] || {{ echo "Fehler: kein Platz" >&2; exit 1; }}
case "$*" in *{tempfile.gettempdir()}/igczoo-kernel-*) exec c++ "$@";; esac
echo "collect2: final close failed: {message}" >&2; exit 1
''')
    script.chmod(0o755)
    monkeypatch.setenv('CXX', str(script))
    monkeypatch.setenv('LC_ALL', 'de_DE.UTF-8')
    assert kernels.load(build=True), kernels.why_not()
    assert 'is full' in kernels.why_not() and 'compiled for this process alone' in kernels.why_not()


def test_no_compiler_at_all(unloaded, monkeypatch, tmp_path):
    monkeypatch.delenv('CXX', raising=False)
    monkeypatch.setenv('PATH', str(tmp_path))
    assert not kernels.load(build=True)
    assert 'no C++ compiler found' in kernels.why_not()
    assert_works_without()


@pytest.mark.parametrize(('system', 'reason'), [
    (dict(platform='darwin', byteorder='little'), 'the kernel is for Linux; this is darwin'),
    (dict(platform='win32', byteorder='little'), 'the kernel is for Linux; this is win32'),
    (dict(platform='linux', byteorder='big'), 'the kernel is for little-endian processors; this is s390x, which is not'),
])
def test_another_system(unloaded, monkeypatch, system, reason):
    monkeypatch.setattr(build, 'sys', SimpleNamespace(**system))
    monkeypatch.setattr(build.platform, 'machine', lambda: 's390x')
    monkeypatch.setattr(build, '_compiler', None)       # nobody is asked to compile
    net = igc_resnet(8, 24, 2).eval()
    randomise(net)
    fast, x = deploy(net), torch.randn(2, 3, 32, 32)
    assert kernels.why_not() == reason
    assert set(forms_used(fast).values()) == {'planar'}
    with torch.no_grad():
        torch.testing.assert_close(fast(x), net(x), rtol=1e-4, atol=1e-4)
    assert not unloaded.exists()
    assert_works_without()


@pytest.mark.parametrize(('machine', 'option'), [('x86_64', '-march=native'), ('aarch64', '-mcpu=native'), ('ppc64le', '-mcpu=native')])
def test_the_processor_is_named_as_its_compilers_do(unloaded, monkeypatch, machine, option):
    commands = []
    monkeypatch.setattr(build, '_compile', lambda command, out: commands.append(command))
    monkeypatch.setattr(build.platform, 'machine', lambda: machine)
    kernels.load(build=True)
    assert option in commands[0]


def test_a_compiler_that_does_not_know_the_processor(compiled, unloaded, monkeypatch, tmp_path):
    refuse = 'case "$*" in *native*) echo "error: bad value (native)" >&2; exit 1;; esac;'
    monkeypatch.setenv('CXX', str(write_compiler(tmp_path, before=refuse)))
    assert kernels.load(build=True) and kernels.why_not() == ''
    assert (tmp_path / 'count').read_text() == 'one\none\n'
    tensors = some_unit()
    torch.testing.assert_close(kernels.unit(*tensors), kernels.torch_unit(*tensors), rtol=1e-4, atol=1e-4)


def replace_source(monkeypatch, folder, text):
    source = folder / 'kernel.cpp'
    source.write_text(text)
    monkeypatch.setattr(build, 'SOURCE', source)


def test_a_source_that_does_not_compile(compiled, unloaded, monkeypatch, tmp_path):
    replace_source(monkeypatch, tmp_path, 'int main() { return undeclared; }')
    assert not kernels.load(build=True)
    assert 'could not compile the kernel (exit status 1)' in kernels.why_not()
    assert 'undeclared' in kernels.why_not()
    assert not files(unloaded)
    assert_works_without()


def test_a_library_without_threads(compiled, unloaded, monkeypatch, tmp_path):
    replace_source(monkeypatch, tmp_path, 'extern "C" void no_such_function(); extern "C" void igc_unit() { no_such_function(); }')
    assert not kernels.load(build=True)
    assert 'undefined symbol: no_such_function' in kernels.why_not()
    assert not files(unloaded)


FOREIGN = 'extern "C" __attribute__((constructor)) void start() { __builtin_trap(); }'


@pytest.mark.parametrize('damage', ['truncated', 'zeros', 'foreign', 'no record', 'garbage in the record', 'empty'])
def test_a_damaged_library_is_never_loaded_but_compiled_again(compiled, unloaded, monkeypatch, tmp_path, damage):
    assert kernels.load(build=True)
    library, = unloaded.glob('*.so')
    data, record = library.read_bytes(), library.with_suffix('.sha256')
    library.unlink()    # the one that is loaded stays as it is
    if damage == 'foreign':
        (tmp_path / 'foreign.cpp').write_text(FOREIGN)
        subprocess.run(['c++', '-shared', '-fPIC', str(tmp_path / 'foreign.cpp'), '-o', str(library)], check=True)
    else:
        library.write_bytes({'truncated': data[:len(data) // 2], 'zeros': bytes(len(data)), 'empty': b''}.get(damage, data))
    if damage == 'no record':
        record.unlink()
    elif damage == 'garbage in the record':
        record.write_bytes(b'\xff\x00garbage')
    forget(monkeypatch)
    assert not kernels.load(build=False) and f'{library} is damaged; ' in kernels.why_not()
    forget(monkeypatch)
    assert kernels.load(build=True) and kernels.why_not() == ''
    assert hashlib.sha256(library.read_bytes()).hexdigest() == record.read_text() and len(files(unloaded)) == 2


def test_a_cache_that_may_not_hold_programs(compiled, unloaded, monkeypatch):
    library = build._library

    def no_exec(path):
        if unloaded in path.parents:
            raise build.Unavailable('the compiled kernel does not load: failed to map segment from shared object')
        return library(path)

    monkeypatch.setattr(build, '_library', no_exec)
    assert kernels.load(build=True)
    assert kernels.why_not().startswith(f'{unloaded} cannot be used (the compiled kernel does not load: failed to map segment')
    assert not files(unloaded)


@pytest.mark.skipif(not hasattr(os, 'geteuid') or os.geteuid() != 0, reason='only root can mount a small file system')
def test_a_full_cache(compiled, unloaded, tmp_path):
    unloaded.mkdir(parents=True)
    mounted = subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=16k', 'none', str(unloaded)], capture_output=True)
    if mounted.returncode:
        pytest.skip('no file system can be mounted here')
    try:
        assert kernels.load(build=True)
        assert kernels.why_not().startswith(f'{unloaded} cannot be used (') and ' is full), so ' in kernels.why_not()
        assert not files(unloaded)
    finally:
        subprocess.run(['umount', str(unloaded)], check=True)


def test_a_cache_and_a_temporary_folder_that_are_both_of_no_use(compiled, unloaded, monkeypatch, tmp_path):
    (tmp_path / 'file').touch()
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'file'))
    monkeypatch.setattr('tempfile.tempdir', str(tmp_path / 'file'))
    assert not kernels.load(build=True)
    assert kernels.why_not().startswith(f'{tmp_path / "file"}') and ', nor can a temporary folder (' in kernels.why_not()
    assert_works_without()


PROCESS = """
import sys
from igczoo.deployment import kernels
from igczoo.deployment.kernels import build
build.FLAGS = ('-std=c++17', '-O0', '-fPIC', '-shared')
print(kernels.load(build=True), kernels.why_not())
"""


def start(cache, compiler):
    environment = os.environ | {'XDG_CACHE_HOME': str(cache), 'CXX': str(compiler), 'PYTHONPATH': str(build.SOURCE.parents[3])}
    return subprocess.Popen([sys.executable, '-c', PROCESS], env=environment, stdout=subprocess.PIPE, text=True)


def write_compiler(folder, before=''):
    """A compiler that keeps account of what it compiles."""
    compiler = folder / 'compiler'
    compiler.write_text(f'#!/bin/sh\n[ "$1" = --version ] || {{ echo one >> {folder}/count; {before} }}\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    return compiler


def test_cold_processes_compile_once(compiled, tmp_path):
    compiler = write_compiler(tmp_path)
    processes = [start(tmp_path, compiler) for _ in range(4)]
    assert [process.communicate(timeout=200)[0] for process in processes] == ['True \n'] * 4
    assert (tmp_path / 'count').read_text() == 'one\n'
    assert sorted(path.suffix for path in files(tmp_path / 'igczoo' / 'kernels')) == ['.sha256', '.so']


def test_a_killed_process_leaves_neither_a_lock_nor_its_folder(compiled, tmp_path):
    compiler = write_compiler(tmp_path, before=f'[ -e {tmp_path}/killed ] || sleep 100;')
    first = start(tmp_path, compiler)
    while not (tmp_path / 'count').exists():
        time.sleep(.05)
    cache = tmp_path / 'igczoo' / 'kernels'
    assert list(cache.glob('*.building*'))
    first.kill()
    first.communicate()
    (tmp_path / 'killed').touch()
    assert start(tmp_path, compiler).communicate(timeout=200)[0] == 'True \n'
    assert sorted(path.suffix for path in files(cache)) == ['.sha256', '.so']
