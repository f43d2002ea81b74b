"""The kernel compiled for ARM's 64-bit processors and run by an emulator computes what its own tests ask of it.

Needs `apt install g++-aarch64-linux-gnu qemu-user`. The library's calls are handed to kernel_driver.cpp, a program that reads and writes
tensors where ctypes would pass pointers. Of a call it reads, all as int64: the function's number; how many numbers the call has besides
tensors, and these; the length of the output; how many tensors there are, and of each its length and its numbers.
"""
import ctypes
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import test_kernels
import torch

from igczoo.deployment import kernels
from igczoo.deployment.kernels import build

COMPILER, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64'
MISSING = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f'{", ".join(MISSING)} missing: apt install g++-aarch64-linux-gnu qemu-user')
PROCESSORS = {      # number, and what the compiler may use
    'float': ('float', '-march=armv8-a'),
    'bfloat16': ('bfloat16', '-march=armv8-a'),
    'bfloat16 with its own instructions': ('bfloat16', '-march=armv8.6-a'),
}


class Library:
    """Has the functions of the compiled library, which run in the emulator."""

    def __init__(self, program: Path, dtype: torch.dtype):
        self.size = dtype.itemsize
        self.process = subprocess.Popen([EMULATOR, '-cpu', 'max', str(program)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=os.environ | {'OMP_WAIT_POLICY': 'passive'})     # threads that spin are slow to emulate

    def igc_unit(self, out, x, primary, secondary, bias, residual, N, H, W, m, M, L, k, stride, dilation, relu, threads):
        length = N * -(-H // stride) * -(-W // stride) * M * L
        tensors = (x, N * H * W * m * L), (primary, M * m * k * k * L), (secondary, M * L * L), (bias, M * L), (residual, length)
        self.call(0, (N, H, W, m, M, L, k, stride, dilation, relu, threads), out, length, tensors)

    def igc_stem(self, out, x, weight, bias, N, c, H, W, in_image, in_channel, in_row, in_column, C, threads):
        steps = (N, in_image), (c, in_channel), (H, in_row), (W, in_column)
        tensors = (x, 1 + sum((size - 1) * step for size, step in steps)), (weight, 49 * c * C), (bias, C)
        numbers = N, c, H, W, in_image, in_channel, in_row, in_column, C, threads
        self.call(1, numbers, out, N * -(-H // 4) * -(-W // 4) * C, tensors)

    def igc_room(self, *work):
        return 0    # the program makes its own

    def igc_residual_blocks(self, out, x, room, blocks, count, N, chunk_bytes, threads):
        first, numbers = blocks[0], [N, chunk_bytes, threads]
        tensors = [(x, N * first.height * first.width * first.in_planes * first.channels)]
        for b in blocks:
            m, M, L = b.in_planes, b.planes, b.channels
            tensors += [
                (b.primary1, M * m * b.kernel1 ** 2 * L), (b.secondary1, M * L * L), (b.bias1, M * L),
                (b.primary2, M * M * b.kernel2 ** 2 * L), (b.secondary2, M * L * L), (b.bias2, M * L),
                (b.projection, M * m * L), (b.projection_bias, M * L)]
            numbers += [getattr(b, name) for name, kind in b._fields_ if kind is ctypes.c_int64]
        self.call(2, numbers, out, N * -(-b.height // b.stride) * -(-b.width // b.stride) * M * L, tensors)

    def call(self, function, numbers, out, length, tensors):
        parts = [struct.pack(f'{len(numbers) + 4}q', function, len(numbers), *numbers, length, len(tensors))]
        for pointer, count in tensors:
            count = count if pointer else 0
            parts += [struct.pack('q', count), ctypes.string_at(pointer, count * self.size) if pointer else b'']
        self.process.stdin.write(b''.join(parts))
        self.process.stdin.flush()
        found = self.process.stdout.read(length * self.size)
        assert len(found) == length * self.size, f'the program ended with status {self.process.wait(10)}'
        ctypes.memmove(out, found, len(found))


@pytest.fixture(scope='module', params=PROCESSORS)
def library(request, tmp_path_factory):
    number, processor = PROCESSORS[request.param]
    program = tmp_path_factory.mktemp('arm') / 'driver'
    flags = [flag for flag in build.FLAGS if flag != '-shared']
    source = Path(__file__).with_name('kernel_driver.cpp')
    subprocess.run([COMPILER, *flags, processor, '-Wall', '-Werror', f'-DNUMBER={number}', f'-I{build.SOURCE.parent}', str(source), '-o',
                    str(program), '-static', '-lgomp', '-lpthread'], check=True)
    dtype = next(dtype for dtype, name in kernels.NUMBERS.items() if name == number)
    library = Library(program, dtype)
    yield dtype, library
    library.process.stdin.close()
    library.process.wait(10)
    library.process.stdout.close()


@pytest.fixture
def dtype(library, monkeypatch):
    """Of the tensors that the operators hand to the emulated kernel."""
    monkeypatch.setattr(kernels, '_kernels', dict([library]))
    return library[0]


def test_units(dtype):
    for shape in test_kernels.SHAPES[::2]:
        test_kernels.test_unit_is_the_layer(shape, dtype)


def test_blocks(dtype):
    for geometry in ([(1, 2)], [(4, 2)], [(2, 1), (2, 1), (2, 2), (2, 1), (2, 2)]):
        test_kernels.test_blocks_are_their_layers(geometry, 3, dtype)


def test_stems(dtype):
    for shape in ((3, 3, 37, 41, 24), (2, 1, 8, 9, 3), (1, 4, 1, 1, 17)):
        test_kernels.test_stem_is_convolution_and_pooling(shape, dtype)


def test_threads_and_batches_change_no_bit(dtype):
    test_kernels.test_threads_and_batches_change_no_bit(None, dtype)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_nan_comes_through(dtype, value):
    test_kernels.test_nan_comes_through(None, value, dtype, 18)


def test_bfloat16_is_rounded_to_the_nearest(dtype):
    if dtype is torch.bfloat16:
        for x in (1 + 2 ** -9, 1 + 3 * 2 ** -9, 2 ** -133, 3.4e38, float('nan')):
            test_kernels.test_bfloat16_is_rounded_to_the_nearest(None, x)
