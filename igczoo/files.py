"""Files that are never half written: written beside their place, then put there in one step; those that are kept to be used again; and
folders that one process at a time writes to."""
from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ['LOCK', 'alone_in', 'cache_folder', 'is_intact', 'keep', 'replacing']

LOCK = '.igczoo.lock'


@contextmanager
def replacing(path: str | os.PathLike) -> Iterator[Path]:
    """Gives a path to write to; when the block ends without an error, what was written is on the disk and takes the place of ``path``.

    The file gets the mode that the umask asks for, whatever the library that writes it does. After an error nothing is left; only a
    process that is killed leaves its ``.<name>.<number>.part``.

    Raises:
        OSError: the folder is not there, cannot be written or is full; ``path`` is as it was.
    """
    path = Path(path)
    beside = path.with_name(f'.{path.name}.{uuid.uuid4().hex}.part')
    try:
        beside.touch()
        mode = beside.stat().st_mode & 0o777
        yield beside
        beside.chmod(mode)
        with open(beside, 'rb+') as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Makes the folder, and keeps other calls out of it while the block runs. The system's lock, on ``LOCK`` there, dies with its holder.

    Raises:
        ValueError: it is a file.
        RuntimeError: another call writes there.
        OSError: it cannot be made, or written to.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f'{folder}: is a file; name a folder')
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                with suppress(OSError):     # of Windows, where it is still in use and removed by filelock
                    (folder / LOCK).unlink()
    except Timeout:
        raise RuntimeError(f'{folder}: another igczoo writes there; wait for it, or name another folder') from None


def cache_folder(kind: str) -> Path:
    """Where files of a kind are kept that this package makes on a machine; it need not be there yet."""
    home = os.path.expanduser('~')      # where it is unknown, no folder: in the current one, or one that all share, others could put files
    kept = os.environ.get('XDG_CACHE_HOME') or os.path.join(home if os.path.isabs(home) else os.devnull, '.cache')
    return Path(kept, 'igczoo', kind)


def keep(path: Path, data: bytes) -> None:
    """Write a file, and beside it the digest that `is_intact` compares it with. One process at a time may do so."""
    for left in path.parent.glob(f'.{path.stem}.*.part'):       # of a process that was killed
        left.unlink(missing_ok=True)
    with replacing(path) as file:
        file.write_bytes(data)
    with replacing(path.with_suffix('.sha256')) as file:
        file.write_text(hashlib.sha256(data).hexdigest())


def is_intact(path: Path) -> bool:
    """Whether a file is there with the digest it was kept with."""
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest() == path.with_suffix('.sha256').read_text(encoding='ascii').strip()
    except (OSError, UnicodeDecodeError):
        return False
