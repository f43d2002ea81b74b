"""The one file in a zip of somebody else's, of which nothing is believed: neither names, nor sizes, nor how many there are."""
from __future__ import annotations

import os
import struct
import zipfile
import zlib
from pathlib import Path

__all__ = ['unpack']

END, END_SIZE = b'PK\5\6', 22       # of the record at the end of a zip, and the bytes of it without a comment
COMMENT_LIMIT = 2 ** 16
METHODS = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED


def unpack(path: str | os.PathLike, name: str, limit: int) -> bytes:
    """The content of a zip's only file; nothing is written, so that no name in the zip can become a path.

    Args:
        path: of the zip.
        name: what the file in it must be called.
        limit: the most bytes that it may have.

    Raises:
        ValueError: anything but a whole zip of one plain, unencrypted file of that name and no more bytes; says what was found.
        OSError: the zip cannot be read.
    """
    path = Path(path)
    if (entries := _entries(path)) != 1:    # before zipfile makes an object of each
        raise ValueError(f'{entries} files in the zip; it must have one, {name}')
    try:
        with zipfile.ZipFile(path) as archive:
            entry, *others = archive.infolist()
            if others or entry.filename != name:
                raise ValueError(f'{[entry.filename for entry in (entry, *others[:3])]} in the zip; it must have {name} alone')
            if entry.file_size > limit:
                raise ValueError(f'{name} in the zip is of {entry.file_size:,} bytes; it must have no more than {limit:,}')
            if entry.compress_type not in METHODS or entry.flag_bits & 1:
                raise ValueError(f'{name} in the zip is encrypted or packed by method {entry.compress_type}; it must be stored or deflated')
            with archive.open(entry) as file:
                return file.read(limit + 1)     # zipfile gives no more than file_size, and compares the CRC
    except (zipfile.BadZipFile, zlib.error, EOFError, struct.error, NotImplementedError) as error:
        raise ValueError(f'the zip is damaged: {error or type(error).__name__}') from None


def _entries(path: Path) -> int:
    """How many files the record at a zip's end counts; 0 where there is none."""
    with open(path, 'rb') as file:
        file.seek(-min(path.stat().st_size, END_SIZE + COMMENT_LIMIT), os.SEEK_END)
        tail = file.read()
    at = tail.rfind(END)
    return struct.unpack_from('<H', tail, at + 10)[0] if 0 <= at <= len(tail) - END_SIZE else 0
