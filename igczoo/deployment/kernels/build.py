"""The compiled kernel: compiled once on a machine, kept in the user's cache with its digest, and loaded only where that is right."""
from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from filelock import FileLock

from ...files import cache_folder, is_intact, keep

__all__ = ['compiled', 'cpu_features']

SOURCE = Path(__file__).with_name('kernel.cpp')
# No -ffast-math: NaN must come through. No -fopenmp: the source calls the threads of the library torch has loaded.
FLAGS = ('-std=c++17', '-O2', '-ffp-contract=fast', '-fno-exceptions', '-fPIC', '-shared')


FULL = 'No space left on device', 'Disk quota exceeded'


class Unavailable(Exception):
    """The kernel cannot be had here; the message says why, in one line."""


class CompilerError(Unavailable):
    """The compiler refuses the source, wherever it is to write."""


def compiled(number: str, build: bool, source: Path | None = None) -> tuple[ctypes.CDLL | None, str]:
    """The kernel, from the cache or compiled now.

    Args:
        number: the type of its numbers, as the source calls it.
        build: compile it where the cache has no good one.
        source: what to compile, beside the headers here; kernel.cpp where none is given.

    Returns:
        The library, or None; and why there is none, or why it was compiled for this process alone, in one line, else ''.
    """
    try:
        return _from_cache(source or SOURCE, number, build)
    except Unavailable as error:
        return None, str(error)
    except (OSError, subprocess.SubprocessError) as error:
        return None, _one_line(error)


def _from_cache(source: Path, number: str, build: bool) -> tuple[ctypes.CDLL, str]:
    if sys.platform != 'linux':
        raise Unavailable(f'the kernel is for Linux; this is {sys.platform}')
    if sys.byteorder != 'little':
        raise Unavailable(f'the kernel is for little-endian processors; this is {platform.machine()}, which is not')
    compiler = _compiler()
    version = subprocess.run([*compiler, '--version'], capture_output=True, check=True, timeout=60).stdout
    command = [*compiler, *FLAGS, _native(), f'-DNUMBER={number}', str(source)]
    texts = [path.read_bytes() for path in (source, *sorted(source.parent.glob('*.h')))]
    processor = platform.machine() + cpu_features()
    digest = hashlib.sha256(b'\0'.join([*texts, ' '.join(command[:-1]).encode(), version, processor.encode()])).hexdigest()
    cached = cache_folder('kernels') / f'{digest[:32]}.so'
    if not build:
        if not is_intact(cached):      # loading another could end the process
            found = 'is damaged' if cached.exists() else 'is not there yet'
            raise Unavailable(f'{cached} {found}; igczoo.deployment.kernels.load(build=True) compiles it')
        return _library(cached), ''
    try:
        return _compile_into_cache(command, cached) or _library(cached), ''
    except CompilerError:                       # wherever it is to write
        raise
    except (OSError, Unavailable) as error:     # full, read-only, noexec
        reason = f'{cached.parent} cannot be used ({_one_line(error)})'
    try:
        with tempfile.TemporaryDirectory(prefix='igczoo-kernel-') as folder:    # the library stays loaded though its folder goes
            fresh = Path(folder, cached.name)
            _compile(command, fresh)
            return _library(fresh), f'{reason}, so the kernel was compiled for this process alone'
    except (OSError, Unavailable) as error:
        raise Unavailable(f'{reason}, nor can a temporary folder ({_one_line(error)})') from None


def _compile_into_cache(command: list[str], cached: Path) -> ctypes.CDLL | None:
    """Compile what is not there yet, in one process at a time; None where it is. The system's lock dies with its holder."""
    if is_intact(cached):
        return None
    cached.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(cached.with_suffix('.lock')):
        for left in cached.parent.glob(f'{cached.stem}.building*'):     # of a killed one
            shutil.rmtree(left, ignore_errors=True)
        if is_intact(cached):      # another process has compiled it meanwhile
            return None
        folder = Path(tempfile.mkdtemp(prefix=f'{cached.stem}.building', dir=cached.parent))
        try:
            fresh = folder / cached.name
            _compile(command, fresh)
            library, data = _library(fresh), fresh.read_bytes()
            keep(cached, data)
            return library
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _compiler() -> list[str]:
    """The command of $CXX, or the first of the usual names that is there."""
    given = os.environ.get('CXX', '')
    try:
        chosen = shlex.split(given)
    except ValueError as error:
        raise Unavailable(f'CXX is {given!r}, which is no command ({error}); set it to a C++ compiler or unset it') from None
    if chosen:
        if shutil.which(chosen[0]) is None:
            raise Unavailable(f'the compiler that CXX names, {chosen[0]!r}, is not there; set CXX to a C++ compiler or unset it')
        return chosen
    for name in ('c++', 'g++', 'clang++'):
        if shutil.which(name):
            return [name]
    raise Unavailable('no C++ compiler found: looked for $CXX, c++, g++ and clang++; install one, or set CXX')


def _native() -> str:
    """The option for all of this processor's instructions; of other families than x86, compilers have it by another name."""
    return '-march=native' if platform.machine() in ('x86_64', 'AMD64', 'i686') else '-mcpu=native'


@functools.cache
def cpu_features() -> str:
    """Linux's line of what this processor can do, which `_native` depends on; '' where there is none."""
    cpuinfo = Path('/proc/cpuinfo')
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else ()
    return next((line for line in lines if line.startswith(('flags', 'Features'))), '')


def _compile(command: list[str], out: Path) -> None:
    def run(options: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run([*options, '-o', str(out)], capture_output=True, text=True, errors='replace', timeout=600,
                              env=os.environ | dict(LC_ALL='C'))        # whose messages are read below

    done = run(command)
    if done.returncode and 'native' in done.stderr:     # it does not know the option, or this processor: by what all of its family can do
        done = run([option for option in command if option != _native()])
    if done.returncode:
        lines = done.stderr.splitlines() or ['']
        error = next((line for line in lines if 'error' in line), lines[-1]).strip()
        if any(reason in done.stderr for reason in FULL):
            raise Unavailable(f'{out.parent} is full')
        raise CompilerError(f'{command[0]} could not compile the kernel (exit status {done.returncode}): {error}')
    if not out.is_file():
        raise CompilerError(f'{command[0]} wrote no file')


def _library(path: Path) -> ctypes.CDLL:
    """Load a compiled kernel; GOMP_parallel, which it lacks, is found among the libraries torch has loaded for all."""
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise Unavailable(f'the compiled kernel does not load: {error}') from error


def _one_line(error: Exception) -> str:
    return ' '.join(f'{error}'.split()) if isinstance(error, Unavailable) else ' '.join(f'{type(error).__name__}: {error}'.split())
