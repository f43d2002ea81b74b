"""Digests of files; one that had the right digest is read again only when its identity has changed."""
from __future__ import annotations

import hashlib
import time
from pathlib import Path

__all__ = ['git_blob_sha1', 'known_digest', 'sha256', 'stamp']

CLOCK_TICK = 20_000_000     # nanoseconds; a file system's clock may stand still for less

_known: dict[Path, tuple[str, list]] = {}   # sha256 and stamp of what this process has verified


def known_digest(path: Path, expected: str | None, rehash: bool = False) -> str | None:
    """A file's sha256; None: no file.

    Args:
        path: the file.
        expected: its sha256 if all is well. A file found to have it before, by this process, is not read again unless it has changed.
        rehash: read every byte, whatever was found before.

    Raises:
        OSError: the file cannot be read.
    """
    before = stamp(path)
    if before is None:
        return None
    if expected and not rehash and _known.get(path) == (expected, before):
        return expected
    found = sha256(path)
    if found == expected:
        if abs(time.time_ns() - before[-1]) < CLOCK_TICK:
            time.sleep(CLOCK_TICK / 1e9)    # from now on any write gives the file another time
        if stamp(path) == before:
            _known[path] = found, before
    return found


def stamp(path: Path) -> list | None:
    """What changes with a file's content: a write that puts st_mtime back still moves st_ctime. None: no file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def sha256(path: Path) -> str:
    """In hexadecimal digits, as everywhere here."""
    return _digest(path, hashlib.sha256())


def git_blob_sha1(path: Path) -> str:
    """What git, and the hub for a small file, calls a file by."""
    return _digest(path, hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False))


def _digest(path: Path, digest) -> str:
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
