"""Products of bfloat16 by tiles compute what those by vectors do, on a model of AMX's instructions, which few processors have.

amx_model.h has the instructions as functions that follow Intel's manual and end the process where a processor would refuse them. It runs
under AddressSanitizer where that is installed: a tile reads more rows and numbers than there are.
"""
import ctypes
import platform
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import test_kernels
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_driver import Library, compile_driver
from test_kernels import SHAPES, assert_close, image, numbers, some_stem, some_unit, to, use_threads

from igczoo.deployment import kernels
from igczoo.deployment.kernels import build

HERE = Path(__file__).parent
pytestmark = [
    pytest.mark.compile,
    pytest.mark.skipif(platform.machine() != 'x86_64' or shutil.which('g++') is None, reason='needs g++ on an x86-64 processor')]


class Tiled(Library):
    """The kernel with the model's tiles, of bfloat16."""

    def __init__(self, program, **environment):
        super().__init__([program], torch.bfloat16, ASAN_OPTIONS='detect_leaks=0', **environment)

    def account(self):
        """The products of tiles so far, how many threads have not released theirs, and why there are none."""
        found = ctypes.create_string_buffer(256)
        self.call(3, (), ctypes.addressof(found), 128, ())
        return *struct.unpack_from('2q', found), found.raw[16:].rstrip(b'\0').decode()


@pytest.fixture(scope='module')
def program(tmp_path_factory):
    program = tmp_path_factory.mktemp('amx') / 'driver'
    sanitizer = subprocess.run(['g++', '-print-file-name=libasan.so'], capture_output=True, text=True, check=True).stdout.strip()
    compile_driver(['g++', '-O1', '-march=native', f'-I{HERE}', '-DAMX_MODEL="amx_model.h"', *(['-lasan'] if '/' in sanitizer else [])],
                   'bfloat16', program)
    return program


@pytest.fixture(scope='module')
def tiled(program):
    with Tiled(program) as library, pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernels, '_kernels', {torch.bfloat16: library})
        yield library


def products(pixels, length, columns, pieces=1):
    """Of tiles, the fewest that compute all of a product."""
    return -(-pixels // 16) * pieces * -(-length // 32) * -(-columns // 16)


@pytest.fixture
def products_made(tiled):
    """Of tiles, since it was called last."""
    before = 0

    def made():
        nonlocal before
        after, configured, reason = tiled.account()
        assert configured == 0 and reason == ''
        new, before = after - before, after
        return new

    made()
    return made


@pytest.mark.parametrize('shape', SHAPES)
def test_units(program, monkeypatch, shape):
    """In a process of its own, whose memory is just what these take."""
    L, _, M, _, stride, _, N, H, W = shape
    with Tiled(program) as library, use_threads(1):
        before, *_ = library.account()
        monkeypatch.setattr(kernels, '_kernels', {torch.bfloat16: library})
        test_kernels.test_unit_is_the_layer(shape, torch.bfloat16)
        made = library.account()[0] - before
    least = 2 * M * products(N * -(-H // stride) * -(-W // stride), L, L)
    assert made >= least if L >= 16 else made == 0


@settings(max_examples=40, deadline=None)
@given(
    L=st.integers(16, 150), m=st.integers(1, 3), M=st.integers(1, 3), stride=st.integers(1, 2), N=st.integers(1, 3), H=st.integers(1, 12),
    W=st.integers(1, 12), threads=st.integers(1, 5), seed=st.integers(0, 2 ** 31))
def test_any_unit(tiled, L, m, M, stride, N, H, W, threads, seed):
    torch.manual_seed(seed)
    shapes = (M, m, 3, 3, L), (M, L, L), (M, L)
    tensors = image(N, m * L, H, W, dtype=torch.bfloat16), *(numbers(*shape, dtype=torch.bfloat16) for shape in shapes)
    before, *_ = tiled.account()
    with use_threads(threads):
        found = kernels.unit(*to(torch.bfloat16, tensors), None, True, stride)
    assert_close(found, kernels.torch_unit(*tensors, None, True, stride))
    assert tiled.account()[0] - before >= M * products(N * -(-H // stride) * -(-W // stride), L, L)


@pytest.mark.parametrize('geometry', [[(1, 2)], [(4, 2)], [(2, 1), (2, 1), (2, 2), (2, 1), (2, 2)]])
def test_blocks(products_made, geometry):
    test_kernels.test_blocks_are_their_layers(geometry, 3, torch.bfloat16)
    assert products_made() > 0


@pytest.mark.parametrize('shape', [(1, 3, 40, 70, 100), (3, 3, 37, 41, 24), (2, 1, 8, 9, 16), (1, 5, 9, 33, 40), (1, 4, 1, 1, 17),
                                   (2, 3, 5, 64, 9)])
def test_stems(products_made, shape):
    N, c, H, W, C = shape
    test_kernels.test_stem_is_convolution_and_pooling(shape, torch.bfloat16)
    least = 3 * N * -(-H // 2) * products(-(-W // 2), 7 * c, C, pieces=7)
    assert products_made() >= least if C >= 16 else products_made() == 0


@settings(max_examples=30, deadline=None)
@given(N=st.integers(1, 2), c=st.integers(1, 6), H=st.integers(1, 40), W=st.integers(1, 80), C=st.integers(16, 70),
       threads=st.integers(1, 5), seed=st.integers(0, 2 ** 31))
def test_any_stem(tiled, N, c, H, W, C, threads, seed):
    torch.manual_seed(seed)
    tensors = [numbers(*shape, dtype=torch.bfloat16) for shape in ((N, c, H, W), (7, 7, c, C), (C,))]
    with use_threads(threads):
        assert_close(kernels.stem(*to(torch.bfloat16, tensors)), kernels.torch_stem(*tensors))


def test_threads_and_batches_change_no_bit(products_made):
    test_kernels.test_threads_and_batches_change_no_bit(None, torch.bfloat16)
    assert products_made() > 0


@pytest.mark.parametrize('value', [float('nan'), -float('nan'), float('inf')])
@pytest.mark.parametrize('L', [17, 18, 69])
def test_nan_comes_through(tiled, value, L):
    test_kernels.test_nan_comes_through(None, value, torch.bfloat16, L)


def test_what_another_call_has_left_is_not_read(tiled):
    with use_threads(1):
        x, *weights = some_unit(L=64, dtype=torch.bfloat16)
        assert kernels.unit(torch.full_like(x, float('nan')), *weights).isnan().all()
        assert kernels.unit(*some_unit(L=37, dtype=torch.bfloat16)).isfinite().all()
        weight, bias = torch.ones(7, 7, 3, 40, dtype=torch.bfloat16), torch.zeros(40, dtype=torch.bfloat16)
        assert kernels.stem(torch.full((1, 3, 32, 160), float('nan'), dtype=torch.bfloat16), weight, bias).isnan().all()
        assert kernels.stem(torch.ones(1, 3, 32, 16, dtype=torch.bfloat16), weight, bias).isfinite().all()


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_what_is_not_finite_stays_where_it_is(tiled, value):
    x, *weights = some_unit(L=37, dtype=torch.bfloat16)
    spoilt = [weight.clone() for weight in weights]
    spoilt[1][:, :, 36] = value
    found, expected = kernels.unit(x, *spoilt), kernels.unit(x, *weights)
    kept = [channel for channel in range(74) if channel % 37 != 36]
    assert torch.equal(found[:, kept], expected[:, kept]) and not found[:, 36].isfinite().any()
    x[0, :, 3, 3] = value
    found = kernels.unit(x, torch.ones(2, 2, 1, 1, 37, dtype=torch.bfloat16), *weights[1:])
    assert not found[0, :, 3, 3].isfinite().any()
    assert found.isfinite().sum() == found.numel() - 74


@pytest.mark.parametrize(('kind', 'reason', 'tried'), [
    ('refused', 'the system refuses this process the tiles of AMX, so the kernel multiplies bfloat16 by vectors', False),
    ('wrong', 'a product by the tiles of AMX was wrong, so the kernel multiplies bfloat16 by vectors', True)])
def test_tiles_that_cannot_be_used(program, monkeypatch, kind, reason, tried):
    """Vectors do the work, and the reason is given."""
    with Tiled(program, AMX_MODEL_IS=kind) as library:
        before, _, found = library.account()
        assert found == reason and (before > 0) == tried
        monkeypatch.setattr(kernels, '_kernels', {torch.bfloat16: library})
        for operator, reference, tensors in ((kernels.unit, kernels.torch_unit, some_unit(L=37, dtype=torch.bfloat16)),
                                             (kernels.stem, kernels.torch_stem, some_stem(dtype=torch.bfloat16))):
            assert_close(operator(*tensors), reference(*to(torch.float64, tensors)))
        assert library.account()[0] == before


def test_the_instructions_themselves(tmp_path):
    """The source compiles for a processor that has them, into tiles of which none is kept in memory."""
    flags = [flag for flag in build.FLAGS if flag != '-shared']
    done = subprocess.run(['g++', *flags, '-O1', '-S', '-march=sapphirerapids', '-Wall', '-Werror', '-DNUMBER=bfloat16', str(build.SOURCE),
                           '-o', str(tmp_path / 'kernel.s')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    code = (tmp_path / 'kernel.s').read_text()
    for instruction in ('ldtilecfg', 'tilezero', 'tileloadd', 'tdpbf16ps', 'tilestored', 'tilerelease', 'syscall'):
        assert instruction in code, instruction


# The model itself -----------------------------------------------------------------------------------------------------------------------

PROGRAM = r'''
#include "amx_model.h"

int main(int, char** arguments) {
    const int which = std::atoi(arguments[1]);
    uint8_t config[64] = {1}, a[16][64], b[16][64];
    float c[16][16];
    const int rows[] = {5, 7, 5}, bytes[] = {20, 20, 28};           // c, b, a
    for (int tile = 0; tile < 3; ++tile) config[16 + 2 * tile] = bytes[tile], config[48 + tile] = rows[tile];
    if (which == 1) config[16] = 24;
    if (which == 2) config[48] = 17;
    if (which == 3) config[49] = 0;
    if (which == 4) config[0] = 2;
    if (which == 5) config[7] = 1;
    if (which == 6) config[56] = 1;
    if (which != 7) tiles_granted();
    if (which != 8) _tile_loadconfig(config);
    if (which == 9) _tile_release();
    if (which == 10) _tile_zero(3);
    std::fread(a, sizeof a, 1, stdin);
    std::fread(b, sizeof b, 1, stdin);
    std::fread(c, sizeof c, 1, stdin);
    _tile_loadd(0, c, 64);
    _tile_loadd(1, b, 64);
    _tile_loadd(2, a, 64);
    _tile_dpbf16ps(0, 2, which == 11 ? 2 : 1);
    _tile_stored(0, c, 64);
    _tile_release();
    std::fwrite(c, sizeof c, 1, stdout);
}
'''
REFUSED = ['shapes that do not fit', 'too large', 'without columns', 'a palette', 'a reserved byte', 'that there is not', 'permission',
           'not configured', 'not configured', 'not configured', 'with itself']


def test_the_model(tmp_path):
    """Its product of tiles smaller than they may be is right and touches nothing else; its refusals are the manual's."""
    (tmp_path / 'program.cpp').write_text(PROGRAM)
    subprocess.run(['g++', '-std=c++17', '-O1', '-Wno-unused-result', f'-I{HERE}', str(tmp_path / 'program.cpp'), '-o',
                    str(tmp_path / 'program')], check=True)
    torch.manual_seed(0)
    a, b, c = numbers(16, 32), numbers(16, 16, 2), numbers(16, 16)      # b: pairs of rows, columns, rows of a pair
    given = b''.join(bytes(tensor.untyped_storage()) for tensor in (a.bfloat16(), b.bfloat16(), c.float()))

    def run(which):
        return subprocess.run([str(tmp_path / 'program'), str(which)], input=given, capture_output=True)

    found = torch.frombuffer(bytearray(run(0).stdout), dtype=torch.float32).view(16, 16).double()
    a, b, expected = a.bfloat16().double(), b.bfloat16().double(), c.float().double()
    expected[:5, :5] += a[:5, :14] @ b[:7, :5].transpose(1, 2).flatten(0, 1)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    for which, reason in enumerate(REFUSED, 1):
        done = run(which)
        assert done.returncode < 0 and reason in done.stderr.decode(), (which, done)
