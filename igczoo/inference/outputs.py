"""What `igczoo classify` writes beside its table, image by image as they come: CSV, JSON lines, pictures."""
from __future__ import annotations

import csv
import json
import os
import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from PIL import Image

from .photograph import ImageError, open_image
from .pictures import INK, SIDE, WRONG, Tile, contact_sheet, labelled, thumbnail
from .prediction import Prediction

__all__ = ['CsvOutput', 'JsonLinesOutput', 'Output', 'PictureOutput', 'as_dict']

SHEET = 60      # photographs on a contact sheet


def as_dict(image: str, outcome: Sequence[Prediction] | ImageError) -> dict[str, Any]:
    """What is said of an image where a program reads it."""
    if isinstance(outcome, ImageError):
        return dict(image=image, error=str(outcome))
    return dict(image=image, predictions=[prediction._asdict() for prediction in outcome])


class Output(ABC):
    """Takes the outcome of one image after another; `close` when there are no more."""

    @abstractmethod
    def write(self, image: str, outcome: Sequence[Prediction] | ImageError) -> None:
        """Write what an image shows, or why that is not known."""

    @abstractmethod
    def close(self) -> None:
        """Finish what has been written."""

    def __enter__(self) -> Output:
        return self

    def __exit__(self, *_) -> None:
        self.close()


class _Lines(Output):
    """Whole lines in a file, or on standard output for '-'; each is there before the next image."""

    def __init__(self, path: str):
        self.file: TextIO = sys.stdout if path == '-' else open(  # noqa: SIM115  closed by close
            Path(path).expanduser(), 'w', encoding='utf-8', errors='backslashreplace', newline='')

    def close(self) -> None:
        if self.file is not sys.stdout:
            self.file.close()


class JsonLinesOutput(_Lines):
    """A JSON object a line, as `--json` has them in its list."""

    def write(self, image: str, outcome: Sequence[Prediction] | ImageError) -> None:
        print(json.dumps(as_dict(image, outcome), ensure_ascii=False, allow_nan=False), file=self.file, flush=True)


class CsvOutput(_Lines):
    """A line an image: image, error, and label and score of each of the ``k`` likeliest classes."""

    def __init__(self, path: str, k: int):
        super().__init__(path)
        self.writer, self.k = csv.writer(self.file, lineterminator='\n'), k
        numbers = ['', *(f'_{rank}' for rank in range(2, k + 1))]
        self.writer.writerow(['image', 'error', *(f'{name}{number}' for number in numbers for name in ('label', 'score'))])

    def write(self, image: str, outcome: Sequence[Prediction] | ImageError) -> None:
        failed = isinstance(outcome, ImageError)
        found = [] if failed else [value for label, score, _ in outcome for value in (label, f'{score:.6f}')]
        self.writer.writerow([image, str(outcome) if failed else '', *found, *[''] * (2 * self.k - len(found))])
        self.file.flush()


def _bounded(name: str) -> str:
    """The beginning of a name that leaves room for more in the 255 bytes that a file's may have."""
    return os.fsencode(name)[:80].decode(errors='ignore')


class PictureOutput(Output):
    """A folder of the photographs with their labels drawn on, and contact sheets of 60 of them.

    Raises:
        ValueError: the folder is there already and not empty.
    """

    def __init__(self, folder: str):
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and (not self.folder.is_dir() or any(self.folder.iterdir())):
            raise ValueError(f'{folder}: is there already; name a folder that does not exist or is empty')
        self.folder.mkdir(parents=True, exist_ok=True)
        self.count, self.sheets, self.tiles = 0, 0, []

    def write(self, image: str, outcome: Sequence[Prediction] | ImageError) -> None:
        self.count += 1
        try:
            photograph = None if isinstance(outcome, ImageError) else open_image(image)
        except ImageError:      # a URL that answers no second time, or a file that is gone
            photograph = None
        if photograph is None:
            self._add(Tile(Image.new('RGB', (SIDE, SIDE), '#dddddd'), [(Path(image).name, INK), ('cannot be opened', WRONG)]))
            return
        first = outcome[0]
        # Two folders may hold files of one name: the number keeps them apart, and in order.
        labelled(photograph, outcome).save(self.folder / f'{self.count:05}_{_bounded(Path(image).stem)}.jpg', quality=90)
        self._add(Tile(thumbnail(photograph), [(f'{first.score:.0%} {first.label}', INK), (Path(image).name, INK)]))

    def close(self) -> None:
        if self.tiles:
            self._finish_sheet()

    def _add(self, tile: Tile) -> None:
        self.tiles.append(tile)
        if len(self.tiles) == SHEET:
            self._finish_sheet()

    def _finish_sheet(self) -> None:
        self.sheets += 1
        contact_sheet(self.tiles).save(self.folder / f'contact_sheet_{self.sheets:03}.jpg', quality=90)
        self.tiles = []
