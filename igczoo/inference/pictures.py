"""Photographs with their labels drawn on, and contact sheets."""
from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple
from unicodedata import category

from PIL import Image, ImageDraw, ImageFont

from .prediction import Prediction

__all__ = ['INK', 'MOST_PIXELS', 'SIDE', 'WRONG', 'Tile', 'contact_sheet', 'labelled', 'one_line', 'thumbnail']

MOST_PIXELS = 1024      # of the longer side of a photograph with its labels or its heat
LINES = 3               # of labels on it, at most
SIDE, CAPTION, ACROSS, GAP = 160, 34, 6, 8      # pixels, and tiles in a row
TEXT = 10               # pixels, below a tile
FONTS = 'DejaVuSans.ttf', 'NotoSans-Regular.ttf', 'Arial.ttf'     # which systems have, with more letters than Pillow's own
INK, WRONG = '#222222', '#d1495b'


class Tile(NamedTuple):
    """A photograph of a contact sheet, and up to two lines below it, each with its colour."""
    image: Image.Image
    lines: Sequence[tuple[str, str]]


def labelled(image: Image.Image, predictions: Sequence[Prediction]) -> Image.Image:
    """A copy of a photograph, its longer side of 1024 pixels at most, with the likeliest labels on a dark band at its foot."""
    picture = thumbnail(image, MOST_PIXELS)
    size = max(11, picture.height // 28)
    shown = predictions[:LINES]
    band = Image.new('RGB', (picture.width, round(size * 1.4) * len(shown) + size // 2), 'black')
    top = picture.height - band.height
    picture.paste(Image.blend(picture.crop((0, top, picture.width, picture.height)), band, .65), (0, top))
    pen = ImageDraw.Draw(picture)
    for line, (label, score, _) in enumerate(shown):
        text, font = _shortened(pen, f'{score:.0%}  {label}', picture.width - size, size)
        pen.text((size // 2, top + size // 4 + line * round(size * 1.4)), text, fill='white', font=font)
    return picture


def contact_sheet(tiles: Iterable[Tile]) -> Image.Image:
    """Photographs side by side, six in a row, each 160 pixels at most, with its lines below it."""
    tiles = [(thumbnail(image), lines) for image, lines in tiles]       # one large photograph at a time is in memory
    down = -(-len(tiles) // ACROSS)
    sheet = Image.new('RGB', (min(len(tiles), ACROSS) * (SIDE + GAP) + GAP, down * (SIDE + CAPTION + GAP) + GAP), 'white')
    pen = ImageDraw.Draw(sheet)
    for place, (small, lines) in enumerate(tiles):
        left, top = GAP + place % ACROSS * (SIDE + GAP), GAP + place // ACROSS * (SIDE + CAPTION + GAP)
        sheet.paste(small, (left + (SIDE - small.width) // 2, top + (SIDE - small.height) // 2))
        for line, (text, colour) in enumerate(lines):
            text, font = _shortened(pen, text, SIDE, TEXT)
            pen.text((left, top + SIDE + 2 + 15 * line), text, fill=colour, font=font)
    return sheet


def thumbnail(image: Image.Image, side: int = SIDE) -> Image.Image:
    """A copy whose longer side has so many pixels at most."""
    small = image.copy()
    small.thumbnail((side, side))
    return small


def one_line(text: str) -> str:
    """Text with a space in place of line breaks and what else no font has, as bytes that are no text."""
    return ''.join(' ' if category(letter) in ('Cc', 'Cs', 'Zl', 'Zp') else letter for letter in text)


def _shortened(pen: ImageDraw.ImageDraw, text: str, width: float, size: int) -> tuple[str, ImageFont.FreeTypeFont]:
    """As much of the text as is so wide, in one line, and the font that it is so in."""
    text = one_line(text)
    font = ImageFont.load_default(size) if text.isascii() else _font_of_many_letters(size)
    while pen.textlength(text, font) > width and len(text) > 1:
        text = text[:-2].rstrip('.') + '.'
    return text, font


@cache
def _font_of_many_letters(size: int) -> ImageFont.FreeTypeFont:
    """One with accents, Greek and Cyrillic, matplotlib's or the system's, if there is one; Pillow's own has ASCII only."""
    matplotlib = find_spec('matplotlib')
    shipped = [Path(matplotlib.origin).parent / 'mpl-data' / 'fonts' / 'ttf' / FONTS[0]] if matplotlib else []
    for font in (*shipped, *FONTS):
        with suppress(OSError):
            return ImageFont.truetype(str(font), size)
    return ImageFont.load_default(size)
