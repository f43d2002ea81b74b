"""One photograph from wherever it is, as 8-bit RGB; and the photographs in a folder."""
from __future__ import annotations

import concurrent.futures
import http.client
import io
import os
import string
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

__all__ = ['Fit', 'ImageError', 'as_given', 'find_images', 'image_name', 'is_url', 'open_image']

MAX_BYTES = 256 * 2**20     # of a file or a download
MAX_PIXELS = 89_478_485     # of the image, where Pillow begins to warn of decompression bombs
MAX_ASPECT = 1000           # long side to short: resizing the short side of a longer strip would make a huge image of it
MAX_SCANS = 100             # of a progressive JPEG; encoders write about ten
MARGIN = 6                  # what the shorter side of a JPEG that is decoded smaller has at least, in sides that it is resized to then
BAND_ROWS = 64              # of grey values that are scaled at a time
FETCH_SECONDS = 30          # for a whole download

SUFFIXES = (
    '.apng', '.avif', '.bmp', '.gif', '.jfif', '.jp2', '.jpe', '.jpeg', '.jpg', '.pbm', '.pgm', '.png', '.pnm', '.ppm', '.tga', '.tif',
    '.tiff', '.webp')

TURNS = {   # EXIF orientation -> what shows the image upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

class _Quiet:
    """No warnings in the threads that are inside, and all of them in the others.

    It stands in a filter of warnings where the pattern for a module's name does, and matches in these threads only: `catch_warnings` would
    change the filters of the whole process, and restore them when another thread had changed them too.
    """

    def __init__(self):
        self.lock, self.inside, self.ignore = threading.Lock(), [], ('ignore', None, Warning, self, 0)

    def __enter__(self) -> None:
        with self.lock:
            self.inside.append(threading.get_ident())
            if not warnings.filters or warnings.filters[0] != self.ignore:
                warnings.filters.insert(0, self.ignore)

    def __exit__(self, *error) -> None:
        with self.lock:
            self.inside.remove(threading.get_ident())
            while not self.inside and self.ignore in warnings.filters:      # it may have gone with somebody's catch_warnings
                warnings.filters.remove(self.ignore)

    def match(self, module: str) -> bool:
        return threading.get_ident() in self.inside


_quiet = _Quiet()


class _Turns:
    """One thread at a time inside with the same object: Pillow decodes an image when it is first used, which two threads must not do."""

    def __init__(self):
        self.lock, self.inside = threading.Lock(), {}      # id -> a lock, and how many threads are inside or wait

    @contextmanager
    def __call__(self, thing: Any) -> Iterator[None]:
        with self.lock:
            turn, users = self.inside.get(id(thing), (threading.Lock(), 0))
            self.inside[id(thing)] = turn, users + 1
        try:
            with turn:
                yield
        finally:
            with self.lock:
                turn, users = self.inside.pop(id(thing))
                if users > 1:
                    self.inside[id(thing)] = turn, users - 1


_turn_with = _Turns()


class ImageError(ValueError):
    """Something that cannot be opened as an image; the message is one line."""


class Fit(NamedTuple):
    """What will be done first with a photograph: its shorter side is resized to so many pixels, the longer one in proportion."""
    side: int
    resample: Image.Resampling = Image.Resampling.BILINEAR


def open_image(source: Any, fit: Fit | None = None, until: concurrent.futures.Future | None = None) -> Image.Image:
    """Open one image as it comes and bring it to 8-bit RGB.

    The EXIF orientation is applied and transparency is laid on white. Of an animation the first frame is taken, of a PIL image the frame
    at which it stands. Colour profiles are not applied, as they are not in training.

    A file that has all of its first frame's pixels opens, whatever else of it is missing.

    Grey images of more than 8 bits are scaled: 16-bit ones from 0..65535 to 0..255; 32-bit integers and floats, whose files do not say
    their range, from the first of 0..1 (floats only), 0..255 and 0..65535 that holds every pixel, otherwise from the darkest pixel to
    the brightest.

    Who says by ``fit`` what the image will be resized to gets large JPEG files so resized already, and much sooner: libjpeg computes 1/2,
    1/4 or 1/8 of the pixels across and down, the smallest share that leaves the shorter side MARGIN times ``fit.side`` at least, and these
    are resized. Where there is no such share, and of everything but JPEG files, every pixel is what it is without ``fit``.

    Args:
        source: a path; an http or https URL; the bytes of an image file; a PIL image, which is not changed; a uint8 numpy array (H, W) or
            (H, W, C); a torch tensor (C, H, W), uint8 or floating point in 0..1. C is 1, 3 (RGB) or 4 (RGBA).
        fit: as torchvision's Resize of one number does it.
        until: a URL is waited for no longer once this is done.

    Returns:
        A new PIL image of mode RGB.

    Raises:
        ImageError: there is no such file, it is no image, it is damaged, or it is larger than MAX_BYTES, MAX_PIXELS or MAX_ASPECT allow
            (checked before decoding); a URL does not deliver within FETCH_SECONDS; an array of another shape, type or range.
    """
    name = image_name(source)
    if isinstance(source, str) and is_url(source):
        source = _fetch(source, name, until)
    elif isinstance(source, str | os.PathLike):
        source = _read(source, name)
    with _quiet, _turn_with(source) if isinstance(source, Image.Image) else nullcontext():
        try:
            image = _to_pil(source, name)
            return _to_rgb(image, name, fit if isinstance(image, JpegImageFile) and image is not source else None)
        except ImageError:
            raise
        except Exception as error:  # a damaged file can make Pillow's readers raise anything
            found = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ImageError(f'{name}: is damaged or of an unsupported kind ({found}); get it again, or save it as JPEG or PNG') from error


def is_url(name: str) -> bool:
    """Whether a photograph of this name is fetched."""
    return name.lower().startswith(('http://', 'https://'))


def find_images(folder: str | os.PathLike) -> list[Path]:
    """The image files in a folder and the folders below it, sorted; known by suffix. Hidden ones and linked folders are left out.

    Raises:
        ImageError: there is no such folder, or no image in it.
    """
    if not os.fspath(folder) or not (root := Path(folder).expanduser()).is_dir():     # Path('') is the current folder
        raise ImageError(f'{image_name(folder)}: is no folder; give a folder of images')
    found = list(_walk(root))
    if not found:
        raise ImageError(f'{image_name(folder)}: holds no image; looked for files ending in {", ".join(SUFFIXES)}')
    return found


def _walk(root: Path) -> Iterator[Path]:
    """Regular files, also linked ones: a pipe would never end. Linked folders may lead back here, and unreadable ones are passed over.

    By name, a folder's files in its place, which is how paths sort.
    """
    waiting: list[Path | os.DirEntry] = [root]
    while waiting:
        entry = waiting.pop()
        if entry is root or entry.is_dir(follow_symlinks=False):
            with suppress(OSError), os.scandir(entry) as entries:
                waiting += sorted((one for one in entries if not one.name.startswith('.')), key=attrgetter('name'), reverse=True)
        elif os.path.splitext(entry.name)[1].lower() in SUFFIXES and (
                entry.is_file(follow_symlinks=False) or (entry.is_symlink() and os.path.isfile(entry))):
            yield Path(entry)


def image_name(source: Any) -> str:
    """What messages call the source: one line of bounded length."""
    if isinstance(source, Image.Image):
        source = getattr(source, 'filename', '') or f'PIL image of mode {source.mode}'
    if isinstance(source, str | os.PathLike):
        name = os.fsdecode(source)
        name = name if name.isprintable() and name else repr(name)
        return name if len(name) <= 300 else f'{name[:300]}...'
    if isinstance(source, bytes | bytearray | memoryview):
        return f'{type(source).__name__} of length {len(source)}'
    if hasattr(source, 'shape') and hasattr(source, 'dtype'):
        return f'{type(source).__name__} of shape {tuple(source.shape)} and type {source.dtype}'
    return type(source).__name__


# Where the bytes are ------------------------------------------------------------------------------------------------------------------

def as_given(path: str | os.PathLike) -> Path:
    """The path; ~ means a home only where no file is called so."""
    path = Path(os.fsdecode(path))
    return path if os.path.lexists(path) else path.expanduser()


def _read(path: str | os.PathLike, name: str) -> bytes:
    try:
        if not os.fsdecode(path):
            raise ImageError(f'{name}: is an empty name; give the path of an image file, or an http(s) URL')
        path = as_given(path)
        if path.is_dir():
            raise ImageError(f'{name}: is a folder; give the path of an image file')
        if path.exists() and not path.is_file():
            raise ImageError(f'{name}: is a device or pipe; give the path of an image file')
        _check_bytes(path.stat().st_size, name)
        return path.read_bytes()
    except FileNotFoundError:
        raise ImageError(f'{name}: there is no such file; give the path of an image file, or an http(s) URL') from None
    except ImageError:
        raise
    except (OSError, RuntimeError, ValueError) as error:    # RuntimeError: ~ of an unknown user; ValueError: a null character
        found = getattr(error, 'strerror', None) or error
        raise ImageError(f'{name}: cannot be read ({found}); check the path and its permissions') from error


def _fetch(url: str, name: str, until: concurrent.futures.Future | None) -> bytes:
    """The body of a URL, or an error, within FETCH_SECONDS and until it is not wanted any more.

    A socket's timeout bounds each wait for a packet only; the thread bounds the whole, resolving and redirections included.
    """
    body: concurrent.futures.Future[bytes] = concurrent.futures.Future()

    def work() -> None:
        try:
            body.set_result(_download(url, name))
        except Exception as error:
            body.set_exception(error)

    threading.Thread(target=work, daemon=True).start()
    concurrent.futures.wait([body] if until is None else [body, until], FETCH_SECONDS, concurrent.futures.FIRST_COMPLETED)
    try:
        return body.result(0)
    except ImageError:
        raise
    except urllib.error.HTTPError as error:
        error.close()
        found = f'the server answered {error.code} {error.reason}'
    except (TimeoutError, concurrent.futures.TimeoutError):
        found = f'the server did not deliver it within {FETCH_SECONDS} seconds'
    except (OSError, http.client.HTTPException, ValueError) as error:
        found = f'cannot be fetched ({getattr(error, "reason", None) or error or type(error).__name__})'
    raise ImageError(f'{name}: {" ".join(found.split())}; check the address, or save the image to a file and give its path')


def _download(url: str, name: str) -> bytes:
    deadline = time.monotonic() + FETCH_SECONDS
    url = urllib.parse.quote(url, safe=string.punctuation)       # letters beyond ASCII, and spaces
    request = urllib.request.Request(url, headers={'User-Agent': 'igczoo'})     # some sites refuse Python's own
    with urllib.request.urlopen(request, timeout=FETCH_SECONDS) as response:
        announced = response.length
        _check_bytes(announced or 1, name)
        body = bytearray()
        while chunk := response.read1(2**16):
            body += chunk
            _check_bytes(len(body), name)
            if time.monotonic() > deadline:
                raise TimeoutError
    if announced is not None and len(body) < announced:
        raise ImageError(f'{name}: the connection ended after {len(body):,} of {announced:,} bytes; try again')
    return bytes(body)


def _check_bytes(size: int, name: str) -> None:
    if size == 0:
        raise ImageError(f'{name}: is empty (0 bytes); get the image again')
    if size > MAX_BYTES:
        raise ImageError(f'{name}: has {size:,} bytes, more than the {MAX_BYTES:,} allowed; make a smaller copy of the image')


# From the source to a PIL image, not yet decoded --------------------------------------------------------------------------------------

def _to_pil(source: Any, name: str) -> Image.Image:
    if isinstance(source, bytes | bytearray | memoryview):
        image = _from_bytes(bytes(source), name)
    elif isinstance(source, Image.Image):
        image = source
    elif isinstance(source, np.ndarray):
        image = _from_array(source, name)
    elif (torch := sys.modules.get('torch')) and isinstance(source, torch.Tensor):      # nobody has a tensor who has not imported torch
        image = _from_array(_tensor_to_array(source, name, torch.uint8), name)
    else:
        raise ImageError(f'{name}: is no image; give a path, an http(s) URL, bytes, a PIL image, a numpy array or a torch tensor')
    _check_size(*image.size, name)
    return image


def _from_bytes(data: bytes, name: str) -> Image.Image:
    _check_bytes(len(data), name)
    try:
        image = Image.open(io.BytesIO(data))
    except UnidentifiedImageError:
        raise ImageError(f'{name}: is no image that Pillow can read ({len(data):,} bytes that begin with {data[:12]!r}); '
                         f'give a JPEG, PNG, WebP, GIF, TIFF or BMP file') from None
    except Image.DecompressionBombError as error:
        raise ImageError(f'{name}: is too large to be decoded safely ({error}); make a smaller copy of the image') from None
    if isinstance(image, JpegImageFile) and (scans := data.count(b'\xff\xda')) > MAX_SCANS:   # each is decoded over the whole image
        raise ImageError(f'{name}: has {scans} scans, more than the {MAX_SCANS} allowed; save it again as JPEG or PNG')
    if image.format == 'EPS':   # a program, which Pillow would have Ghostscript run
        raise ImageError(f'{name}: is PostScript, which is not run; save it as PNG')
    return image


def _tensor_to_array(tensor: Any, name: str, uint8: Any) -> np.ndarray:
    if tensor.ndim != 3:
        raise ImageError(f'{name}: must have the shape (C, H, W); of a batch, give the list of its images')
    if tensor.is_floating_point():
        tensor = tensor.detach().float()
        if tensor.numel() and not (tensor.amin() >= 0 and tensor.amax() <= 1):      # NaN is neither
            raise ImageError(f'{name}: has values from {tensor.amin():g} to {tensor.amax():g}; a floating-point image must be in 0..1')
        tensor = (tensor * 255).round().to(uint8)
    return tensor.permute(1, 2, 0).cpu().numpy()    # (C, H, W) -> (H, W, C)


def _from_array(array: np.ndarray, name: str) -> Image.Image:
    channels = 1 if array.ndim == 2 else array.shape[2] if array.ndim == 3 else 0
    if channels not in (1, 3, 4):
        raise ImageError(f'{name}: must be one image of 1, 3 or 4 channels, an array (H, W) or (H, W, C) or a tensor (C, H, W)')
    if array.dtype != np.uint8:
        raise ImageError(f'{name}: must be of type uint8, 0..255; scale and convert it')
    _check_size(array.shape[1], array.shape[0], name)   # Pillow cannot be asked: it fails on an empty array
    return Image.fromarray(np.ascontiguousarray(array.reshape(array.shape[:2]) if channels == 1 else array))


def _check_size(width: int, height: int, name: str) -> None:
    if min(width, height) < 1:
        raise ImageError(f'{name}: has no pixels ({width} x {height}); get the image again')
    if width * height > MAX_PIXELS:
        raise ImageError(f'{name}: has {width} x {height} pixels, more than the {MAX_PIXELS:,} allowed; make a smaller copy of the image')
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageError(f'{name}: is a strip of {width} x {height} pixels, longer than {MAX_ASPECT} to 1; crop it')


# From any mode to RGB -----------------------------------------------------------------------------------------------------------------

def _to_rgb(image: Image.Image, name: str, fit: Fit | None = None) -> Image.Image:
    """A new image, also where this one is RGB already; with ``fit`` of a JPEG file, as `open_image` says."""
    resized = _decode_smaller(image, fit) if fit else None
    image.load()    # a TIFF is turned upright here already
    turn = TURNS.get(_orientation(image))
    if image.mode.startswith('I') or image.mode == 'F':
        image = _grey_to_8_bits(image, name)
    if image.has_transparency_data:
        image = image.convert('RGBA')
        white = Image.new('RGB', image.size, 'white')
        white.paste(image, mask=image)
        image = white
    image = image.convert('RGB')
    if resized:
        image = image.resize(*resized)
    return image if turn is None else image.transpose(turn)


def _decode_smaller(image: JpegImageFile, fit: Fit) -> tuple[tuple[int, int], Image.Resampling, tuple[float, float, float, float]] | None:
    """Have a file decoded smaller, where it keeps enough; the size, filter and box by which it is resized then."""
    (width, height), short = image.size, min(image.size)
    for share in (8, 4, 2):
        if short >= share * MARGIN * fit.side and (drafted := image.draft(None, (width // share, height // share))):
            size = tuple(fit.side if side == short else int(fit.side * side / short) for side in (width, height))
            return size, fit.resample, drafted[1]       # the box ends within the last row and column where the sizes are no multiples
    return None


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:   # a damaged EXIF block, on which Pillow may raise anything, does not make the pixels worse
        return None


def _grey_to_8_bits(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    low, high = values.min().item(), values.max().item()
    if not np.isfinite([low, high]).all():
        raise ImageError(f'{name}: has pixels that are infinite or not a number; replace them by grey values')
    ranges = {'I': (255, 65535), 'F': (1, 255, 65535)}.get(image.mode, (65535,))
    low, high = next(((0, top) for top in ranges if low >= 0 and high <= top), (low, high))
    grey = np.empty(values.shape, np.uint8)
    for start in range(0, len(values), BAND_ROWS):      # in float64 all rows at once would take many times the image's own memory
        band = values[start:start + BAND_ROWS].astype(np.float64)
        grey[start:start + BAND_ROWS] = ((band - low) * (255 / max(high - low, 1e-300))).round()
    if isinstance(transparent := image.info.get('transparency'), int):      # of a PNG, the grey value that is; white, as elsewhere
        grey[values == transparent] = 255
    return Image.fromarray(grey)
