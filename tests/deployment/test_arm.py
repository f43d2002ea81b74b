"""The kernel compiled for ARM's 64-bit processors and run by an emulator computes what its own tests ask of it.

Needs `apt install g++-aarch64-linux-gnu qemu-user`.
"""
import shutil

import pytest
import test_kernels
import torch
from kernel_driver import Library, compile_driver

from igczoo.deployment import kernels

COMPILER, EMULATOR = 'aarch64-linux-gnu-g++', 'qemu-aarch64'
MISSING = [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]
pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(bool(MISSING), reason=f'{", ".join(MISSING)} missing: apt install g++-aarch64-linux-gnu qemu-user')]
PROCESSORS = {      # number, and what the compiler may use
    'float': ('float', '-march=armv8-a'),
    'bfloat16': ('bfloat16', '-march=armv8-a'),
    'bfloat16 with its own instructions': ('bfloat16', '-march=armv8.6-a'),
}


@pytest.fixture(scope='module', params=PROCESSORS)
def library(request, tmp_path_factory):
    number, processor = PROCESSORS[request.param]
    program = tmp_path_factory.mktemp('arm') / 'driver'
    compile_driver([COMPILER, processor, '-static'], number, program)
    dtype = next(dtype for dtype, name in kernels.C_TYPES.items() if name == number)
    with Library([EMULATOR, '-cpu', 'max', program], dtype) as library:
        yield dtype, library


@pytest.fixture
def dtype(library, monkeypatch):
    """Of the tensors that the operators hand to the compile kernel."""
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
