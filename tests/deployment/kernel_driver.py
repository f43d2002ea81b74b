"""The kernel as kernel_driver.cpp has it, a program that reads and writes tensors where ctypes would pass pointers.

Of a call it reads, all as int64: the function's number; how many numbers the call has besides tensors, and these; the length of the output;
how many tensors there are, and of each its length and its numbers.
"""
import ctypes
import os
import struct
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from igczoo.deployment.kernels import build


def compile_driver(command: Sequence[str], number: str, program: Path) -> None:
    """Compile it for numbers of this type; ``command`` is the compiler with its options."""
    flags = [flag for flag in build.FLAGS if flag != '-shared']
    source = Path(__file__).with_name('kernel_driver.cpp')
    subprocess.run([*command[:1], *flags, '-Wall', '-Werror', f'-DNUMBER={number}', f'-I{build.SOURCE.parent}', str(source), '-o',
                    str(program), *command[1:], '-lgomp', '-lpthread'], check=True)


class Library:
    """Has the functions of the compiled library, which run in a process of their own as long as this is entered."""

    def __init__(self, command: Sequence[str | Path], dtype: torch.dtype, **environment: str):
        self.size = dtype.itemsize
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        env=os.environ | environment | {'OMP_WAIT_POLICY': 'passive'})  # threads that spin are slow

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()

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
