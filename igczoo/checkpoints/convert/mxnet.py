"""Read the `.params` files of MXNet, without MXNet.

The layout, all little endian (mx.nd.save; src/ndarray/ndarray.cc, NDArray::Save)::

    file     u64 0x112, u64 0, u64 n, n arrays, u64 n, n names
    array    its shape (below), i32 device type, i32 device id, i32 dtype flag, the elements in C order
    name     u64 length, that many bytes

The shape is written in one of three ways, by the version of MXNet::

    LEGACY, to 0.10     u32 ndim, ndim x u32
    V1, 0.11            u32 0xF993FAC8, u32 ndim, ndim x i64
    V2, from 0.12       u32 0xF993FAC9, i32 storage type (0: dense), u32 ndim, ndim x i64
"""
from __future__ import annotations

import io
import math
import os
import struct
from typing import BinaryIO

import numpy as np

__all__ = ['read_params']

LIST_MAGIC = 0x112
V1_MAGIC = 0xF993FAC8
V2_MAGIC = 0xF993FAC9
DENSE = 0
MAX_NDIM = 32           # numpy's limit before 2.0
MAX_ARRAYS = 2 ** 16    # a network has hundreds; each costs some hundred bytes beside its elements, however few these are

# mshadow's type flags
DTYPES = {flag: np.dtype(name) for flag, name in enumerate(['<f4', '<f8', '<f2', '<u1', '<i4', '<i1', '<i8'])}


def read_params(source: str | os.PathLike | bytes) -> dict[str, np.ndarray]:
    """The named arrays of a `.params` file.

    No length the file states is believed before it is held against the bytes that are left, so the arrays never take more memory than
    the file.
    The device an array was saved from is ignored.

    Args:
        source: a path, or the content of the file.

    Returns:
        The arrays in the file's order, by their names as they stand there: 'arg:...' for parameters, 'aux:...' for statistics.

    Raises:
        ValueError: anything but a complete, dense, uniquely named list of arrays; says which byte of which file.
        OSError: the file cannot be read.
    """
    if isinstance(source, bytes):
        return _read_list(_Reader(io.BytesIO(source), 'params'))
    with open(source, 'rb') as file:
        return _read_list(_Reader(file, os.fspath(source)))


class _Reader:
    """Takes a file apart from front to back; `start` is where the item taken last began."""

    def __init__(self, file: BinaryIO, name: str):
        self.file = file
        self.name = name
        self.left = file.seek(0, os.SEEK_END)
        self.start = file.seek(0)

    def error(self, found: str, expected: str) -> ValueError:
        return ValueError(f'{self.name}: byte {self.start}: found {found}, expected {expected}')

    def take(self, size: int, what: str) -> np.ndarray:
        """The next ``size`` bytes."""
        self.start = self.file.tell()
        if size > self.left:
            raise self.error(f'{self.left} bytes to the end of the file', f'{size} bytes of {what}')
        data = np.empty(size, np.uint8)
        if self.file.readinto(data) != size:
            raise self.error('the end of the file, which has shrunk since it was opened', f'{size} bytes of {what}')
        self.left -= size
        return data

    def integers(self, layout: str, what: str) -> tuple[int, ...]:
        """The next little-endian integers; ``layout`` as in the struct module."""
        return struct.unpack('<' + layout, self.take(struct.calcsize('<' + layout), what))

    def integer(self, layout: str, what: str) -> int:
        return self.integers(layout, what)[0]


def _read_list(reader: _Reader) -> dict[str, np.ndarray]:
    magic, reserved = reader.integers('QQ', 'file header')
    if (magic, reserved) != (LIST_MAGIC, 0):
        raise reader.error(f'header {magic:#x}, {reserved:#x}', f'{LIST_MAGIC:#x}, 0x0 of an MXNet .params file')
    count = reader.integer('Q', 'number of arrays')
    if count > MAX_ARRAYS:
        raise reader.error(f'{count} arrays', f'at most {MAX_ARRAYS}')
    arrays = [_read_array(reader) for _ in range(count)]
    names = reader.integer('Q', 'number of names')
    if names != count:
        raise reader.error(f'{names} names', f'{count}, one for each array')
    named: dict[str, np.ndarray] = {}
    for array in arrays:
        name = _read_name(reader)
        if name in named:
            raise reader.error(f'{name!r} a second time', 'a name of its own for each array')
        named[name] = array
    if reader.left:
        reader.start = reader.file.tell()
        raise reader.error(f'{reader.left} more bytes', 'the end of the file after the last name')
    return named


def _read_array(reader: _Reader) -> np.ndarray:
    shape = _read_shape(reader)
    reader.integers('ii', 'device')
    flag = reader.integer('i', 'dtype flag')
    if flag not in DTYPES:
        raise reader.error(f'dtype flag {flag}', 'one of ' + ', '.join(f'{flag} ({dtype})' for flag, dtype in DTYPES.items()))
    data = reader.take(math.prod(shape) * DTYPES[flag].itemsize, f'elements of an array of shape {shape}')
    return data.view(DTYPES[flag]).reshape(shape)


def _read_shape(reader: _Reader) -> tuple[int, ...]:
    first = reader.integer('I', 'array header')
    if first in (V1_MAGIC, V2_MAGIC):
        if first == V2_MAGIC:
            storage = reader.integer('i', 'storage type')
            if storage != DENSE:
                raise reader.error(f'storage type {storage}', f'{DENSE}, dense; sparse arrays are not read')
        ndim, size = reader.integer('I', 'number of dimensions'), 'q'
    else:
        ndim, size = first, 'I'
    if not 1 <= ndim <= MAX_NDIM:
        raise reader.error(f'{ndim} dimensions ({ndim:#x})', f'1 to {MAX_NDIM}, or the mark of a V1 or V2 array')
    shape = reader.integers(size * ndim, 'dimensions')
    if min(shape) < 1:
        raise reader.error(f'shape {shape}', 'positive dimensions')
    return shape


def _read_name(reader: _Reader) -> str:
    length = reader.integer('Q', 'length of a name')
    data = reader.take(length, 'name').tobytes()
    try:
        name = data.decode('utf-8')
    except UnicodeDecodeError:
        name = ''
    if not name.isprintable() or not name:
        raise reader.error(f'{data[:40]!r} as a name', 'printable text in UTF-8')
    return name
