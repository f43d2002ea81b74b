"""Files that are never half written: written beside their place, then put there in one step."""
from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ['replacing']


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
