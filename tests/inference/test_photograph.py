"""One image from any source and of any kind is 8-bit RGB as its format defines it, or one clear line."""
import concurrent.futures
import contextlib
import http.server
import io
import itertools
import os
import random
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from torchvision.transforms import InterpolationMode, Resize

from igczoo.inference import photograph
from igczoo.inference.photograph import Fit, ImageError, find_images, open_image


def pixels(source) -> np.ndarray:
    image = open_image(source)
    assert (type(image), image.mode) == (Image.Image, 'RGB')
    return np.asarray(image)


def encode(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width: int, height: int, depth: int, colour: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG file written by hand, so that its pixels are what the specification says and not what Pillow does."""
    header = struct.pack('>IIBBBBB', width, height, depth, colour, 0, 0, 0)
    parts = [(b'IHDR', header), *chunks, (b'IDAT', zlib.compress(rows)), (b'IEND', b'')]
    return b'\x89PNG\r\n\x1a\n' + b''.join(
        struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)) for kind, data in parts)


@pytest.fixture(scope='module')
def photo() -> Image.Image:
    """Noise would hide nothing, but no lossy format keeps it: a smooth picture, not square, with no symmetry."""
    y, x = np.mgrid[:30, :44]
    return Image.fromarray(np.stack([5 * x, 8 * y, 3 * x + 4 * y], axis=2).astype(np.uint8))


# Sources

def test_every_source_gives_the_same_pixels(photo, tmp_path):
    expected, data = np.asarray(photo), encode(photo, 'PNG')
    path = tmp_path / 'a photo.png'
    path.write_bytes(data)
    tensor = torch.from_numpy(expected.copy()).permute(2, 0, 1)
    sources = {
        'path': path, 'text': str(path), 'bytes': data, 'bytearray': bytearray(data), 'memoryview': memoryview(data),
        'PIL image': photo, 'PIL image of bytes': Image.open(io.BytesIO(data)),
        'array': expected, 'strided array': expected[::-1, ::-1].copy()[::-1, ::-1], 'opaque array': np.asarray(photo.convert('RGBA')),
        'tensor': tensor, 'float tensor': tensor / 255, 'double tensor': (tensor.double() / 255).requires_grad_()}
    for name, source in sources.items():
        np.testing.assert_array_equal(pixels(source), expected, err_msg=name)


def test_home_folder_is_expanded(photo, tmp_path, monkeypatch):
    photo.save(tmp_path / 'photo.png')
    monkeypatch.setenv('HOME', str(tmp_path))
    np.testing.assert_array_equal(pixels('~/photo.png'), np.asarray(photo))


def test_grey_and_transparent_arrays():
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    expected = np.repeat(grey[:, :, None], 3, axis=2)
    for source in (grey, grey[:, :, None], torch.from_numpy(grey)[None], torch.from_numpy(grey)[None] / 255):
        np.testing.assert_array_equal(pixels(source), expected)
    clear = np.zeros((3, 4, 4), np.uint8)
    for source in (clear, torch.from_numpy(clear).permute(2, 0, 1)):
        assert (pixels(source) == 255).all()


def test_float_tensors_are_rounded():
    assert pixels(torch.tensor([[[0, .1, .6, .9999]]], dtype=torch.float16))[0, :, 0].tolist() == [0, 25, 153, 255]
    assert pixels(torch.tensor([[[0, .1001, .599, .9999]]]))[0, :, 0].tolist() == [0, 26, 153, 255]


def test_the_result_shares_nothing_with_the_source():
    array, image = np.zeros((3, 4, 3), np.uint8), Image.new('RGB', (4, 3))
    results = open_image(array), open_image(image)
    array[:] = 9
    image.paste('white', (0, 0, 4, 3))
    assert not any(np.asarray(result).any() for result in results)


def test_callers_image_is_not_changed(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [photo, photo.transpose(Image.Transpose.ROTATE_180)]
    image = Image.open(io.BytesIO(encode(frames[0], 'WEBP', save_all=True, append_images=frames[1:], lossless=True, exif=exif)))
    image.seek(1)
    image.load()
    before = (image.mode, image.size, image.tell(), dict(image.info), image.tobytes())
    np.testing.assert_array_equal(pixels(image), np.rot90(np.asarray(frames[1]), -1))
    assert (image.mode, image.size, image.tell(), dict(image.info), image.tobytes()) == before

    palette = photo.quantize(8)
    palette.info['transparency'] = 3
    before = (palette.mode, dict(palette.info), palette.tobytes(), palette.getpalette())
    open_image(palette)
    assert (palette.mode, dict(palette.info), palette.tobytes(), palette.getpalette()) == before


# Kinds

STORED = {      # EXIF orientation -> the upright array (H, W, C) as the camera stored it: where its row 0 and column 0 are seen
    1: lambda up: up,                                           # top, left
    2: lambda up: up[:, ::-1],                                  # top, right
    3: lambda up: up[::-1, ::-1],                               # bottom, right
    4: lambda up: up[::-1],                                     # bottom, left
    5: lambda up: up.transpose(1, 0, 2),                        # left, top
    6: lambda up: up.transpose(1, 0, 2)[::-1],                  # right, top
    7: lambda up: up.transpose(1, 0, 2)[::-1, ::-1],            # right, bottom
    8: lambda up: up.transpose(1, 0, 2)[:, ::-1],               # left, bottom
}


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'JPEG'])
@pytest.mark.parametrize('orientation', STORED)
def test_exif_orientation(photo, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    up = np.asarray(photo)
    options = {'WEBP': {'lossless': True}, 'JPEG': {'quality': 100, 'subsampling': 0}}.get(kind, {})
    data = encode(Image.fromarray(np.ascontiguousarray(STORED[orientation](up))), kind, exif=exif, **options)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_allclose(pixels(source).astype(int), up, atol=4 if kind == 'JPEG' else 0)


def test_orientation_of_16_bit_grey():
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.arange(6, dtype=np.uint16).reshape(2, 3) * 257
    np.testing.assert_array_equal(pixels(encode(Image.fromarray(stored), 'PNG', exif=exif))[..., 0], np.rot90(stored, -1) // 257)


def test_damaged_exif_is_ignored(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    cut = encode(photo, 'JPEG', exif=exif.tobytes()[:-8])
    with pytest.warns(UserWarning, match='Corrupt EXIF'):
        Image.open(io.BytesIO(cut)).getexif()
    assert open_image(cut).size == photo.size
    assert pixels(png(1, 1, 8, 0, b'\0\7', (b'eXIf', b'no exif at all'))).tolist() == [[[7, 7, 7]]]


RED, HALF = [255, 0, 0], [255, 127, 127]     # HALF: red of alpha 128 on white
PNGS = {    # two pixels each: depth, colour type, the row, further chunks -> RGB
    '1-bit': (1, 0, b'\x40', [], [[0] * 3, [255] * 3]),
    '2-bit grey': (2, 0, b'\x60', [], [[85] * 3, [170] * 3]),
    'grey': (8, 0, b'\x07\xf0', [], [[7] * 3, [240] * 3]),
    'grey with a transparent level': (8, 0, b'\x07\xf0', [(b'tRNS', b'\0\7')], [[255] * 3, [240] * 3]),
    'grey and alpha': (8, 4, b'\x07\xff\x07\x00', [], [[7] * 3, [255] * 3]),
    '16-bit grey': (16, 0, struct.pack('>2H', 257 * 7, 65535), [], [[7] * 3, [255] * 3]),
    '16-bit grey with a transparent level': (
        16, 0, struct.pack('>2H', 257 * 7, 514), [(b'tRNS', struct.pack('>H', 514))], [[7] * 3, [255] * 3]),
    '16-bit grey and alpha': (16, 4, struct.pack('>4H', 257 * 7, 65535, 0, 0), [], [[7] * 3, [255] * 3]),
    'RGB': (8, 2, bytes([*RED, 1, 2, 3]), [], [RED, [1, 2, 3]]),
    'RGB with a transparent colour': (8, 2, bytes([*RED, 1, 2, 3]), [(b'tRNS', struct.pack('>3H', 1, 2, 3))], [RED, [255] * 3]),
    '16-bit RGB': (16, 2, struct.pack('>6H', 65535, 0, 0, 257, 514, 771), [], [RED, [1, 2, 3]]),
    'RGBA': (8, 6, bytes([*RED, 255, *RED, 128]), [], [RED, HALF]),
    'palette': (8, 3, b'\1\0', [(b'PLTE', bytes([1, 2, 3, *RED]))], [RED, [1, 2, 3]]),
    'palette with alpha': (8, 3, b'\1\0', [(b'PLTE', bytes([1, 2, 3, *RED])), (b'tRNS', b'\x00\x80')], [HALF, [255] * 3]),
}


@pytest.mark.parametrize('name', PNGS)
def test_png_of_every_colour_type(name):
    depth, colour, row, chunks, expected = PNGS[name]
    data = png(2, 1, depth, colour, b'\0' + row, *chunks)
    for source in (data, Image.open(io.BytesIO(data))):
        np.testing.assert_allclose(pixels(source)[0].astype(int), expected, atol=1)


@pytest.mark.parametrize('kind', ['JPEG', 'TIFF'])
def test_cmyk(kind):
    ink = np.zeros((16, 16, 4), np.uint8) + np.array([200, 30, 0, 51], np.uint8)
    data = encode(Image.frombytes('CMYK', (16, 16), ink.tobytes()), kind)
    expected = [(255 - c) * (255 - 51) / 255 for c in (200, 30, 0)]
    np.testing.assert_allclose(pixels(data)[8, 8].astype(int), expected, atol=3)


GREYS = {   # values -> levels
    '16-bit, dark': (np.array([[0, 200, 257 * 9]], np.uint16), [0, 1, 9]),
    '16-bit, whole range': (np.array([[0, 32896, 65535]], np.uint16), [0, 128, 255]),
    '32-bit integers that are 8-bit': (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),
    '32-bit integers that are 16-bit': (np.array([[0, 32896, 65535]], np.int32), [0, 128, 255]),
    '32-bit integers, large': (np.array([[-2**31, 0, 2**31 - 1]], np.int32), [0, 128, 255]),
    '32-bit integers, close together': (np.array([[2**30, 2**30 + 51, 2**30 + 255]], np.int32), [0, 51, 255]),
    '32-bit integers, all equal': (np.array([[-5, -5, -5]], np.int32), [0, 0, 0]),
    'floats in 0..1': (np.array([[0, .2, 1]], np.float32), [0, 51, 255]),
    'floats in 0..255': (np.array([[0, 99.6, 255]], np.float32), [0, 100, 255]),
    'floats in 0..65535': (np.array([[0, 32896, 65535]], np.float32), [0, 128, 255]),
    'floats of their own range': (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
}


@pytest.mark.parametrize('name', GREYS)
def test_grey_of_more_than_8_bits_is_scaled(name):
    values, expected = GREYS[name]
    image = Image.fromarray(values)
    for source in (image, encode(image, 'TIFF')):
        assert pixels(source)[0].tolist() == [[level] * 3 for level in expected]


def test_big_endian_16_bit_tiff():
    entries = [(256, 3, 1, 2 << 16), (257, 3, 1, 1 << 16), (258, 3, 1, 16 << 16), (259, 3, 1, 1 << 16), (262, 3, 1, 1 << 16),
               (273, 4, 1, 8), (277, 3, 1, 1 << 16), (278, 3, 1, 1 << 16), (279, 4, 1, 4)]
    directory = struct.pack('>H', len(entries)) + b''.join(struct.pack('>HHII', *entry) for entry in entries) + bytes(4)
    data = b'MM\0*' + struct.pack('>I', 12) + struct.pack('>2H', 257 * 3, 65535) + directory
    assert Image.open(io.BytesIO(data)).mode == 'I;16B'
    assert pixels(data)[0].tolist() == [[3] * 3, [255] * 3]


@pytest.mark.parametrize('kind', ['GIF', 'PNG', 'WEBP'])
def test_first_frame_of_an_animation(kind):
    frames = [Image.new('RGB', (8, 6), colour) for colour in ('red', 'lime', 'blue')]
    data = encode(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    assert (pixels(data) == RED).all()


@pytest.mark.parametrize('mode', ['YCbCr', 'HSV', 'RGBX', 'PA', 'RGBa'])
def test_rarer_modes_of_pil_images(mode):
    image = Image.new('RGBA' if mode == 'RGBa' else 'RGB', (3, 2), 'red')
    image = image.quantize(2).convert('PA') if mode == 'PA' else image.convert(mode)
    np.testing.assert_allclose(pixels(image).astype(int), np.zeros((2, 3, 3)) + RED, atol=2)


def test_no_warning_escapes_and_the_filters_stay(photo):
    exif = Image.Exif()
    exif[0x0112] = 6
    palette = png(2, 1, 8, 3, b'\0\1\0', (b'PLTE', bytes([1, 2, 3, *RED])), (b'tRNS', b'\x00\x80'))
    noisy = [encode(photo, 'JPEG', exif=exif.tobytes()[:-8]), palette] * 20
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        before = list(warnings.filters)
        threads = [threading.Thread(target=lambda: [open_image(data) for data in noisy]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert warnings.filters == before
    assert not caught


# Sizes

@pytest.fixture(scope='module')
def large() -> Image.Image:
    """A photograph of 1600 x 1200 pixels, smooth and with grain."""
    y, x = np.mgrid[:1200, :1600]
    smooth = np.stack([x / 8, y / 6, 120 + 100 * np.sin(x / 90) * np.cos(y / 70)], axis=2)
    return Image.fromarray((smooth + np.random.default_rng(0).normal(0, 5, smooth.shape)).clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize('size, side, share', [
    ((1600, 1200), 25, 8), ((1600, 1200), 26, 4), ((1600, 1200), 50, 4), ((1600, 1200), 51, 2), ((1600, 1200), 100, 2),
    ((1600, 1200), 101, 1), ((1600, 1200), None, 1), ((1199, 1590), 50, 2), ((1200, 1599), 50, 4), ((1600, 25), 2, 2), ((1600, 23), 2, 1)])
def test_a_large_jpeg_is_decoded_no_smaller_than_promised(large, monkeypatch, size, side, share):
    """To six times what it is resized to."""
    draft, drafted = JpegImageFile.draft, []
    monkeypatch.setattr(JpegImageFile, 'draft', lambda image, *args: drafted.append(draft(image, *args)) or drafted[-1])
    data = encode(large.resize(size), 'JPEG', progressive=side == 26)
    image = open_image(data, side and Fit(side))
    if share == 1:
        assert not drafted
        np.testing.assert_array_equal(np.asarray(image), pixels(data))
    else:
        [(_, box)] = drafted
        assert box == (0, 0, size[0] / share, size[1] / share) and image.size == Resize(side)(Image.new('L', size)).size


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
@pytest.mark.parametrize('resample', [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize('size, side', [((1591, 1193), 37), ((1190, 1599), 37), ((1593, 1197), 74)])
def test_what_is_decoded_smaller_shows_the_same_in_its_place(large, mode, resample, size, side):
    """A shift by a tenth of a pixel shows at the edges of the squares."""
    y, x = np.mgrid[:size[1], :size[0]]
    squares = np.asarray(large.resize(size)) // 2 + 100 * ((x // 50 + y // 50) % 2)[..., None]
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.fromarray(squares.astype(np.uint8)).convert(mode)
    data = encode(image, 'JPEG', quality=95, exif=exif, icc_profile=b'profile', **{'subsampling': 0} if mode == 'RGB' else {})
    found, whole = open_image(data, Fit(side, resample)), open_image(data)
    expected = Resize(side, InterpolationMode[resample.name])(whole)
    assert (found.size, found.mode) == (expected.size, 'RGB') and found.size != whole.size
    difference = np.abs(np.asarray(found).astype(int) - np.asarray(expected))
    assert difference.max() < 8 and difference.mean() < 1 and np.asarray(found).std() > 25


def test_everything_but_jpeg_files_has_the_same_pixels(large, photo):
    sources = [encode(large, kind, **options) for kind, options in (
        ('PNG', {}), ('WEBP', {'lossless': False}), ('TIFF', {'compression': 'jpeg'}), ('BMP', {}))]
    sources += [encode(photo, 'JPEG'), np.asarray(large), torch.from_numpy(np.asarray(large).copy()).permute(2, 0, 1)]
    for source in sources:
        np.testing.assert_array_equal(np.asarray(open_image(source, Fit(16))), np.asarray(open_image(source)))
    image = Image.open(io.BytesIO(encode(large, 'JPEG')))       # the caller's, not to be changed
    assert open_image(image, Fit(16)).size == image.size == large.size


def test_a_photograph_with_a_second_picture_in_it(large):
    data = encode(large, 'MPO', save_all=True, append_images=[large.rotate(180)])
    assert Image.open(io.BytesIO(data)).format == 'MPO'
    small, whole = open_image(data, Fit(75)), open_image(data)
    assert (small.size, whole.size) == ((100, 75), large.size)
    assert np.abs(np.asarray(whole.resize((100, 75), Image.Resampling.BILINEAR)).astype(int) - np.asarray(small)).max() < 4


def test_a_large_jpeg_that_is_cut_off_is_an_error_at_any_size(large, tmp_path):
    data = encode(large, 'JPEG')
    for size in (len(data) // 2, len(data) - 2000):
        for side in (None, 75):
            with one_line('truncated'):
                open_image(data[:size], side and Fit(side))


def test_the_size_is_checked_before_it_is_made_smaller():
    with one_line('12000 x 12000'):
        open_image(encode(Image.new('L', (12000, 12000)), 'JPEG'), Fit(8))


# Errors

@contextlib.contextmanager
def one_line(*parts: str):
    with pytest.raises(ImageError) as caught:
        yield
    message = str(caught.value)
    assert '\n' not in message and len(message) < 600
    for part in parts:
        assert part in message


def test_paths_that_are_no_image_file(tmp_path, photo):
    (tmp_path / 'empty.jpg').touch()
    (tmp_path / 'text.jpg').write_text('<!DOCTYPE html>')
    (tmp_path / 'huge.jpg').touch()
    os.truncate(tmp_path / 'huge.jpg', photograph.MAX_BYTES + 1)     # a hole, no data
    os.mkfifo(tmp_path / 'pipe.jpg')
    cases = {
        'missing.jpg': 'no such file', 'empty.jpg': 'is empty', 'text.jpg': '<!DOCTYPE', 'huge.jpg': 'more than the', 'pipe.jpg': 'pipe',
        '': 'is a folder', 'empty.jpg/photo.jpg': 'Not a directory', 'x' * 300: 'too long'}
    for name, found in cases.items():
        for path in (tmp_path / name, str(tmp_path / name)):
            with one_line(str(tmp_path / name)[:300], found):
                open_image(path)
    with one_line("'line\\nbreak.jpg'", 'no such file'):
        open_image('line\nbreak.jpg')
    with one_line('null'):
        open_image('a\0b')
    with one_line('~nobody-of-this-name/x.jpg'):
        open_image('~nobody-of-this-name/x.jpg')


@pytest.mark.skipif(os.geteuid() == 0, reason='root may read every file')
def test_unreadable_file(tmp_path, photo):
    photo.save(tmp_path / 'photo.png')
    (tmp_path / 'photo.png').chmod(0)
    with one_line('photo.png', 'Permission denied'):
        open_image(tmp_path / 'photo.png')


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF', 'BMP', 'PPM'])
def test_truncated_file(kind, photo, tmp_path):
    data = encode(photo, kind)
    path = tmp_path / 'photo'
    for size in (len(data) // 2, len(data) * 2 // 3, 20):
        path.write_bytes(data[:size])
        for source, name in ((path, str(path)), (data[:size], f'bytes of length {size}')):
            with one_line(name):
                open_image(source)


def test_truncated_file_of_a_pil_image(photo, tmp_path):
    path = tmp_path / 'photo.jpg'
    path.write_bytes(encode(photo, 'JPEG')[:-100])
    with Image.open(path) as image, one_line(str(path), 'truncated'):
        open_image(image)


@pytest.mark.parametrize('size, found', [
    ((30000, 30000), '900000000 pixels'), ((12000, 12000), '12000 x 12000'), ((5000, 4), '5000 x 4'), ((3, 90000), '3 x 90000')])
def test_absurd_sizes_are_refused_before_decoding(size, found):
    with one_line(found):
        open_image(png(*size, 8, 2, b''))


def test_absurd_sizes_of_other_sources():
    for source in (np.broadcast_to(np.uint8(0), (12000, 12000)), torch.zeros(1, 1, 1, dtype=torch.uint8).expand(1, 12000, 12000)):
        with one_line('12000 x 12000'):
            open_image(source)
    with one_line('0 x 4'):
        open_image(Image.new('RGB', (0, 4)))


def test_small_and_long_images_within_the_limits():
    assert open_image(np.zeros((1, 1), np.uint8)).size == (1, 1)
    assert open_image(np.zeros((1, 1000), np.uint8)).size == (1000, 1)


def test_postscript_is_not_run():
    with one_line('PostScript'):
        open_image(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\n')


def test_closed_image(photo):
    image = Image.open(io.BytesIO(encode(photo, 'PNG')))
    image.close()
    with one_line('PIL image of mode RGB'):
        open_image(image)


@pytest.mark.parametrize('source, found', [
    (np.zeros((4, 4, 3)), 'uint8'), (np.zeros((3, 5, 5), np.uint8), '(3, 5, 5)'), (np.zeros((2, 4, 4, 3), np.uint8), '(2, 4, 4, 3)'),
    (np.zeros((0, 4, 3), np.uint8), 'no pixels'), (np.zeros(3, np.uint8), '(3,)'), (np.zeros((4, 4), bool), 'bool'),
    (torch.zeros(2, 3, 4, 4), 'list'), (torch.zeros(4, 4), '(C, H, W)'), (torch.zeros(5, 5, 3), '(5, 5, 3)'),
    (torch.zeros(3, 4, 4).long(), 'torch.int64'), (torch.full((3, 4, 4), 1.5), '1.5'), (torch.full((3, 4, 4), -.1), '-0.1'),
    (torch.full((3, 4, 4), torch.nan), 'nan'), (torch.zeros(3, 0, 4), 'no pixels'), (torch.zeros(0, 4, 4), '(0, 4, 4)'),
    (Image.fromarray(np.float32([[0, np.nan]])), 'not a number'), (Image.fromarray(np.float32([[0, np.inf]])), 'infinite'),
    (None, 'NoneType'), (7, 'int'), (iter(()), 'tuple_iterator'), (b'', 'empty')])
def test_objects_that_are_no_image(source, found):
    with one_line(found):
        open_image(source)


@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'GIF', 'WEBP', 'TIFF'])
def test_damage_gives_an_image_or_one_line(kind, photo):
    """Whatever bytes are altered, there is an RGB image or an ImageError."""
    draw, whole = random.Random(0), encode(photo, kind)
    outcomes = set()
    for _ in range(150):
        data = bytearray(whole)
        for _ in range(draw.choice([1, 3, 10])):
            data[draw.randrange(min(len(data), draw.choice([64, 10**6])))] = draw.randrange(256)
        try:
            outcomes.add(open_image(bytes(data)).mode)
        except ImageError as error:
            assert '\n' not in str(error)
            outcomes.add('ImageError')
    assert outcomes == {'RGB', 'ImageError'}


# URLs

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'

    def log_message(self, *args):
        pass

    def answer(self, status: int, body: bytes, length: int | None = None, **headers: str) -> None:
        self.send_response(status)
        self.send_header('Content-Length', str(len(body) if length is None else length))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        body, path = self.server.body, self.path.lstrip('/')
        self.close_connection = True
        if path == 'photo':
            self.answer(200, body)
        elif path == 'moved':
            self.answer(302, b'', Location='/photo')
        elif path == 'loop':
            self.answer(302, b'', Location='/loop')
        elif path == 'away':
            self.answer(302, b'', Location='file:///etc/hostname')
        elif path == 'page':
            self.answer(200, b'<html>not found</html>')
        elif path == 'empty':
            self.answer(200, b'')
        elif path == 'cut':
            self.answer(200, body[:-10], len(body))
        elif path == 'announced':
            self.answer(200, b'', 10**12)
        elif path == 'endless':
            self.send_response(200)
            self.end_headers()
            with contextlib.suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**12))
        elif path == 'silent':
            self.server.released.wait(20)
        elif path == 'drip':
            with contextlib.suppress(OSError):
                for letter in itertools.cycle(b'HTTP/1.1 200 OK\r\nX: y' + b'z' * 1000):
                    self.wfile.write(bytes([letter]))
                    if self.server.released.wait(.05):
                        break
        elif path == 'garbage':
            self.wfile.write(b'\0' * 20)
        else:
            self.answer(404, b'nothing here')


@pytest.fixture(scope='module')
def server(photo):
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler) as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv('no_proxy', '127.0.0.1')
        server.body, server.released, server.daemon_threads = encode(photo, 'PNG'), threading.Event(), True
        threading.Thread(target=server.serve_forever, args=(.02,), daemon=True).start()
        yield server
        server.released.set()
        server.shutdown()


@pytest.fixture
def url(server):
    return f'http://127.0.0.1:{server.server_port}/'


def test_photo_at_a_url(url, photo):
    for address in (url + 'photo', url + 'moved', url.upper() + 'photo'):
        np.testing.assert_array_equal(pixels(address), np.asarray(photo))


@pytest.mark.parametrize('path, found', [
    ('nothing', '404'), ('page', '<html>'), ('empty', 'empty'), ('cut', 'bytes'), ('announced', 'more than'),
    ('loop', '302'), ('away', '302'), ('garbage', 'cannot be fetched'), ('white space, caf\u00e9', '404')])
def test_url_without_an_image(url, path, found):
    with one_line(url + path, found):
        open_image(url + path)


def test_address_without_a_server(url):
    with http.server.HTTPServer(('127.0.0.1', 0), Handler) as closed:
        port = closed.server_port
    for address in (f'http://127.0.0.1:{port}/a.jpg', 'http://', 'https://127.0.0.1:x/', url.replace('http:', 'https:')):
        with one_line(address, 'cannot be fetched'):
            open_image(address)


def test_endless_body(url, monkeypatch):
    monkeypatch.setattr(photograph, 'MAX_BYTES', 10**5)
    with one_line(url + 'endless', 'more than the 100,000 allowed'):
        open_image(url + 'endless')


@pytest.mark.parametrize('path', ['silent', 'drip'])
def test_server_that_never_ends(url, path, monkeypatch):
    monkeypatch.setattr(photograph, 'FETCH_SECONDS', .3)
    with one_line(url + path, 'within 0.3 seconds'):
        open_image(url + path)


def test_a_server_is_waited_for_no_longer_than_it_is_wanted(url):
    until = concurrent.futures.Future()
    threading.Timer(.1, until.set_result, (None,)).start()
    with one_line(url + 'silent'):
        open_image(url + 'silent', until=until)
    assert until.done()


# Folders

def test_images_are_found_in_the_order_of_their_paths(tmp_path):
    draw = random.Random(0)
    for _ in range(60):
        path = tmp_path.joinpath(*(''.join(draw.choices('aB. -_é', k=3)) + 'x' for _ in range(draw.randrange(3))), f'{draw.random()}.jpg')
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    seen = {path for path in tmp_path.rglob('*.jpg') if not any(part.startswith('.') for part in path.relative_to(tmp_path).parts)}
    assert find_images(tmp_path) == sorted(seen) and len(seen) > 40


def test_find_images(tmp_path):
    names = ['b.JPG', 'a.png', 'c/d.webp', 'c/a.tiff', 'notes.txt', 'c/e', '.hidden.jpg', '.trash/f.jpg', 'g.jpg/h.gif']
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / 'c' / 'round').symlink_to(tmp_path)
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ['a.png', 'b.JPG', 'c/a.tiff', 'c/d.webp', 'g.jpg/h.gif']
    assert find_images(str(tmp_path)) == find_images(tmp_path)


def test_folder_without_images(tmp_path):
    (tmp_path / 'notes.txt').touch()
    with one_line(str(tmp_path), 'holds no image', '.jpg'):
        find_images(tmp_path)
    for name in ('notes.txt', 'missing'):
        with one_line(name, 'is no folder'):
            find_images(tmp_path / name)


def progressive_jpeg(scans):
    """One whose last scan is repeated."""
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert('RGB').save(file, 'JPEG', progressive=True)
    data = file.getvalue()
    last = data.rindex(b'\xff\xda')
    return data[:-2] + data[last:-2] * (scans - data.count(b'\xff\xda')) + data[-2:]


def test_a_jpeg_of_many_scans_is_refused():
    assert open_image(progressive_jpeg(100)).size == (64, 64)
    with pytest.raises(ImageError, match='has 5000 scans, more than the 100 allowed'):
        open_image(progressive_jpeg(5000))


PEAK = """
import io, resource, sys
import numpy as np
from PIL import Image
from igczoo.inference.photograph import open_image
kind, side = sys.argv[1], 4000
if kind == 'grey':
    image, suffix = Image.fromarray(np.zeros((side, side), np.uint16)), 'PNG'
elif kind == 'float':
    image, suffix = Image.fromarray(np.zeros((side, side), np.float32)), 'TIFF'
elif kind == 'WebP':
    image, suffix = Image.new('RGB', (side, side)), 'WEBP'
else:
    image, suffix = Image.new(kind, (side, side)), 'PNG'
file = io.BytesIO()
image.save(file, suffix, **(dict(compression='tiff_deflate') if suffix == 'TIFF' else dict(lossless=True) if suffix == 'WEBP' else {}))
data = file.getvalue()
del image, file
import gc; gc.collect()
with open('/proc/self/clear_refs', 'w') as refs:
    refs.write('5')     # the peak so far is forgotten
def status(key):
    return int(next(line.split()[1] for line in open('/proc/self/status') if line.startswith(key))) * 1024
before = status('VmRSS')
result = open_image(data)
print((status('VmHWM') - before) / (3 * side * side))
"""


@pytest.mark.skipif(not os.path.exists('/proc/self/clear_refs'), reason='reads the peak of memory from /proc')
@pytest.mark.parametrize('kind', ['grey', 'float', 'RGBA', 'LA', 'RGB', 'L', 'WebP'])
def test_memory_is_at_most_six_times_that_of_the_pixels(kind):
    done = subprocess.run([sys.executable, '-c', PEAK, kind], capture_output=True, text=True, cwd=Path(photograph.__file__).parents[2])
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 6


def test_grey_values_are_scaled_as_all_at_once():
    values = np.random.default_rng(0).integers(0, 65536, (200, 30)).astype(np.uint16)
    found = np.asarray(open_image(Image.fromarray(values)))
    assert np.array_equal(found, np.repeat((values.astype(np.float64) * (255 / 65535)).round().astype(np.uint8)[..., None], 3, 2))


class Meeting(Image.Image):
    """An image whose pixels come only while another thread decodes one too."""
    barrier = threading.Barrier(2, timeout=20)

    def load(self):
        self.barrier.wait()
        return super().load()


def test_threads_decode_side_by_side_and_filters_are_as_before():
    def work(results):
        image = Image.new('RGB', (4, 4))
        image.__class__ = Meeting
        results.append(open_image(image).size)

    before, results = list(warnings.filters), []
    threads = [threading.Thread(target=work, args=(results,)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [(4, 4)] * 2 and warnings.filters == before


def test_pipes_links_and_the_empty_name(tmp_path):
    Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
    os.mkfifo(tmp_path / 'b.png')
    (tmp_path / 'loop').symlink_to(tmp_path)
    (tmp_path / 'c.png').symlink_to(tmp_path / 'a.png')
    (tmp_path / 'd.png').symlink_to(tmp_path / 'nonesuch')
    assert [path.name for path in find_images(tmp_path)] == ['a.png', 'c.png']
    with pytest.raises(ImageError, match="'': is no folder"):
        find_images('')
