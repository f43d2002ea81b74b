"""Labelled image sets for training and evaluation: Parquet files, folders of class folders, a CSV list, or torchvision's sets.

Every set has ``classes`` (names), ``targets`` (labels), gives (image, label) as torchvision's do, ``photograph(row, fit)`` opens
the image alone, as `photograph.open_image` says, and ``name(row)`` says what a row is called where a user reads of it.
"""
from __future__ import annotations

import bisect
import csv
import inspect
import itertools
import json
import os
import zlib
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from ..inference.ahead import ahead, thread_count
from ..inference.parts import FILE_COLUMNS
from ..inference.photograph import Fit, ImageError, find_images, open_image

__all__ = [
    'FolderImages',
    'ListedImages',
    'ParquetImages',
    'Part',
    'Squares',
    'TorchvisionImages',
    'open_photographs',
    'open_split',
    'read_squares',
    'stack_images',
]

EVALUATION_SPLITS = 'test', 'val', 'valid', 'validation'    # what data sets call the labelled split that training never sees
OTHER_SPELLINGS = 'training', 'testing'                     # of splits, which nothing here opens
LABEL_COLUMNS = 'label', 'class', 'target'      # what a CSV list's column of labels may be called


class _Photographs(Dataset):
    """What the sets have in common: an item is its photograph with its label."""
    targets: list[int]

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        raise NotImplementedError

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.photograph(index), self.targets[index]


class ParquetImages(_Photographs):
    """Images in Parquet files as Hugging Face's `datasets` writes them.

    The columns are image (bytes, path) and label, the class names stand in the metadata.

    Raises:
        ValueError: pyarrow is missing, a file has not this layout, files differ in their classes, there is no row, or a row's label is
            missing or none of the classes.
    """

    def __init__(self, files: list[Path]):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f"{files[0]}: reading Parquet needs pyarrow; install it by pip install 'igczoo[train]'") from None
        self.classes: list[str] = []
        self.targets: list[int] = []
        self.encoded = []           # of each file, its images' bytes
        for file in files:
            try:
                table = pyarrow.parquet.read_table(file)
                classes = json.loads(table.schema.metadata[b'huggingface'])['info']['features']['label']['names']
                image = table['image']      # in chunks, which of more than 2 GiB could not be one
                self.encoded.append(pyarrow.chunked_array([chunk.field('bytes') for chunk in image.chunks], image.type['bytes'].type))
                targets = table['label'].to_pylist()
            except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}: is no Parquet file with columns image (bytes, path) and label, and the class names under "
                                 f"'huggingface' in its metadata ({type(error).__name__}: {error})") from None
            if self.classes and classes != self.classes:
                raise ValueError(f'{file}: has other classes than {files[0]}, or the same in another order; write them by one list')
            self.classes = classes
            _check_labels(file, targets, len(classes))
            self.targets += targets
        self.files = files
        self.starts = list(itertools.accumulate(map(len, self.encoded), initial=0))     # the first row of each file
        if not self.targets:
            raise ValueError(f'{files[0]}: has no rows; give a file with images')

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        file, row = self._place(index)
        encoded = self.encoded[file][row].as_py()
        try:
            return open_image(b'' if encoded is None else encoded, fit)
        except ImageError as error:
            raise ImageError(f'{self.name(index)}: {error}') from None

    def name(self, index: int) -> str:
        file, row = self._place(index)
        return f'{self.files[file]}, row {row}'

    def _place(self, index: int) -> tuple[int, int]:
        file = bisect.bisect_right(self.starts, index) - 1
        return file, index - self.starts[file]


class _Unlabelled(ValueError):
    """Of a split whose labels are not given out; another may have them."""


def _check_labels(file: Path, targets: list[int | None], classes: int) -> None:
    for row, label in enumerate(targets):
        if label is None or not 0 <= label < classes:
            found = 'no label' if label is None else f'label {label}'
            unlabelled = ' (-1 is what splits without labels have)' if label == -1 else ''
            fault = _Unlabelled if label == -1 else ValueError
            raise fault(f'{file}, row {row}: has {found}{unlabelled}; with {classes} classes it must be 0 to {classes - 1}')


class ListedImages(_Photographs):
    """Photographs by their paths."""

    def __init__(self, files: Sequence[Path], targets: Sequence[int], classes: Sequence[str]):
        self.files, self.targets, self.classes = list(files), list(targets), list(classes)

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        return open_image(self.files[index], fit)

    def name(self, index: int) -> str:
        return str(self.files[index])


class FolderImages(ListedImages):
    """Photographs in one folder a class, at any depth below it. Pipes are left out, and linked folders, which may lead back.

    Raises:
        FileNotFoundError: there is no folder of a class.
        ImageError: a class has no photograph.
    """

    def __init__(self, folder: str | Path):
        self.root = Path(folder)
        classes = _folders(self.root)
        if not classes:
            raise FileNotFoundError('holds no folder of a class')
        found = [find_images(self.root / name) for name in classes]
        super().__init__([file for files in found for file in files],
                         [label for label, files in enumerate(found) for _ in files], classes)


class TorchvisionImages(_Photographs):
    """A classification set of torchvision's, opened as every photograph is."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset
        found = next((getattr(dataset, key) for key in ('targets', '_labels', 'labels', 'y') if hasattr(dataset, key)), None)
        self.targets = [int(label) for label in (found if found is not None else (dataset[i][1] for i in range(len(dataset))))]
        names = getattr(dataset, 'classes', None) or range(max(self.targets) + 1)
        self.classes = [', '.join(map(str, name)) if isinstance(name, tuple) else str(name) for name in names]

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        try:
            image = self.dataset[index][0]
        except OSError as error:        # of Pillow, for a damaged file
            raise ImageError(f'{self.name(index)}: cannot be opened ({" ".join(str(error).split())})') from None
        return open_image(image, fit)

    def name(self, index: int) -> str:
        return f'{type(self.dataset).__name__} {index}'


class Part(_Photographs):
    """Some rows of a set, perhaps by the numbers that other classes give the same names."""

    def __init__(self, whole: Dataset, rows: Sequence[int], classes: Sequence[str] | None = None):
        self.whole, self.rows = whole, list(rows)
        self.classes = list(whole.classes if classes is None else classes)
        self.targets = [whole.targets[row] for row in self.rows]
        if self.classes != list(whole.classes):     # where they are equal, two of them may have one name
            number = {name: index for index, name in enumerate(self.classes)}
            self.targets = [number[whole.classes[target]] for target in self.targets]

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        return self.whole.photograph(self.rows[index], fit)

    def name(self, index: int) -> str:
        return self.whole.name(self.rows[index])


class Cifar10Images(_Photographs, CIFAR10):
    """torchvision's CIFAR-10, opened as every photograph is."""

    def photograph(self, index: int, fit: Fit | None = None) -> Image.Image:
        return open_image(self.data[index], fit)

    def name(self, index: int) -> str:
        return f'{"train" if self.train else "test"} {index}'


def open_photographs(path: str | Path) -> tuple[Dataset, Dataset | None]:
    """Open a user's own photographs: the training split and the evaluation split, or everything and None where nobody has split them.

    Args:
        path: what `open_split` reads; or a folder of one folder a class, one of Parquet files of any names, one Parquet file; or a CSV
            file with a head line and columns file (relative to the CSV file), label and perhaps split (train, val, valid, validation or
            test); or `torchvision:NAME:ROOT`, a set of `torchvision.datasets` that lies in ROOT.

    Raises:
        ValueError: nothing readable is there, or its labels or classes are wrong; one line says what.
    """
    if str(path).startswith('torchvision:'):
        return _open_torchvision(str(path))
    path = Path(path).expanduser()
    if path.suffix.lower() == '.csv':
        return _open_list(path)
    if path.is_file() and path.suffix == '.parquet':
        return ParquetImages([path]), None
    if not path.is_dir():
        raise ValueError(f'{path}: is no folder, no CSV file and no Parquet file; give the folder that holds a folder a class')
    _check_splits(path)
    if _has_split(path, 'train') or (path / CIFAR10.base_folder).is_dir():
        train = open_split(path, train=True)
        evaluation = (path / CIFAR10.base_folder).is_dir() or any(_has_split(path, split) for split in EVALUATION_SPLITS)
        return train, open_split(path, train=False) if evaluation else None
    if files := sorted(path.glob('*.parquet')):
        return ParquetImages(files), None
    try:
        return FolderImages(path), None
    except (FileNotFoundError, ImageError) as error:
        raise ValueError(f'{path}: {" ".join(str(error).split())}; give a folder that holds one folder of photographs a class') from None


def _folders(path: Path) -> list[str]:
    """The names of the folders in a folder that are not hidden, as those of Jupyter and others are."""
    with os.scandir(path) as entries:
        return sorted(entry.name for entry in entries
                      if entry.is_dir() and not entry.name.startswith('.') and entry.name != '__MACOSX')     # of its zip files


def _check_splits(path: Path) -> None:
    """Raise ValueError where the names of folders could be meant as splits or as classes, or as splits that nothing here opens."""
    folders, known = _folders(path), ('train', *EVALUATION_SPLITS)
    others = [name for name in folders if name not in known]
    if others and all(name.lower() in (*known, *OTHER_SPELLINGS) for name in folders):
        raise ValueError(f'{path}: has the folder {others[0]}, which looks like a split and not like a class; splits are called train and '
                         f'{", ".join(EVALUATION_SPLITS[:-1])} or {EVALUATION_SPLITS[-1]}; rename it')
    if others and 'train' in folders and not any(_has_split(path, split) for split in EVALUATION_SPLITS):
        raise ValueError(f'{path}: has the folders train and {others[0]}, so that train may be a split or a class; rename train if it is a '
                         f'class, else give {path / "train"}')


def _has_split(path: Path, split: str) -> bool:
    return (path / split).is_dir() or any(path.glob(f'{split}-*.parquet'))


def _open_list(path: Path) -> tuple[Dataset, Dataset | None]:
    try:
        with open(path, newline='', encoding='utf-8-sig') as file:
            reader = csv.DictReader(file)
            heads = {(head or '').strip().lower(): head for head in reader.fieldnames or ()}
            rows = list(reader)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f'{path}: cannot be read as CSV ({error})') from None
    files, labels, splits = (next((heads[name] for name in names if name in heads), None)
                             for names in (FILE_COLUMNS, LABEL_COLUMNS, ('split',)))
    if files is None or labels is None:
        raise ValueError(f'{path}: its head line is {",".join(reader.fieldnames or ())!r}; it must name a column '
                         f'{" or ".join(FILE_COLUMNS)}, and one {" or ".join(LABEL_COLUMNS)}')
    if not rows:
        raise ValueError(f'{path}: has no rows; give a line for each photograph')
    parts: dict[str, list[tuple[Path, str]]] = {'train': [], 'evaluation': []}
    for number, row in enumerate(rows, start=2):
        name, label, split = (((column is not None and row.get(column)) or '').strip() for column in (files, labels, splits))
        if not name or not label:
            raise ValueError(f'{path}, line {number}: has no {"file" if not name else "label"}; fill it in or remove the line')
        if split and split not in ('train', *EVALUATION_SPLITS):
            raise ValueError(f'{path}, line {number}: has the split {split!r}; it must be train, {", ".join(EVALUATION_SPLITS)} or empty')
        parts['evaluation' if split in EVALUATION_SPLITS else 'train'].append((path.parent / name, label))
    if not parts['train']:
        raise ValueError(f'{path}: no line is of the split train; give some to train on')
    classes = sorted({label for rows in parts.values() for _, label in rows})
    train, evaluation = (ListedImages([file for file, _ in rows], [classes.index(label) for _, label in rows], classes)
                         for rows in parts.values())
    return train, evaluation if len(evaluation) else None


def _open_torchvision(spec: str) -> tuple[Dataset, Dataset | None]:
    _, name, root = (*spec.split(':', 2), '', '')[:3]
    kind = getattr(datasets, name, None)
    if not (inspect.isclass(kind) and issubclass(kind, datasets.VisionDataset) and root):
        raise ValueError(f'{spec!r}: must be torchvision:NAME:ROOT, NAME a set of torchvision.datasets such as Flowers102')
    wanted = inspect.signature(kind).parameters
    if 'train' in wanted:
        choices = ([dict(train=True)], [dict(train=False)])
    elif 'split' in wanted:
        choices = ([dict(split=split) for split in ('train', 'trainval')], [dict(split=split) for split in ('test', 'val', 'valid')])
    else:
        choices = ([{}], [])
    train, evaluation = (_first_that_opens(kind, root, options, spec) for options in choices)
    return train, evaluation


def _first_that_opens(kind: type, root: str, choices: list[dict], spec: str) -> Dataset | None:
    """The set by the first options it knows."""
    for options in choices:
        try:
            return TorchvisionImages(kind(root, **options))
        except ValueError:      # of a split it has not
            continue
        except (RuntimeError, OSError, ImportError, TypeError) as error:     # TypeError: of a set that has no single label an image
            raise ValueError(f'{spec}: {" ".join(str(error).split())[:300]}') from None
    if choices:
        raise ValueError(f'{spec}: has no split that is known here')
    return None


def open_split(path: str | Path, train: bool) -> Dataset:
    """Open the training or the evaluation split of the data set at ``path``. Photographs are opened by `photograph.open_image`.

    Args:
        path: one Parquet file, a folder of Parquet files (train-*.parquet; test-*, val-*, valid-* or validation-*), a folder with folders
            train/ and test/, val/, valid/ or validation/ of one folder a class, or the root torchvision keeps CIFAR-10 in.
        train: the training split, otherwise the evaluation split: of those there are the first whose images have labels, which folders
            beside train/ have by the names of its classes.

    Returns:
        A map-style data set of (image, label) with ``classes`` and ``targets``, as torchvision's; an image that cannot be opened is an
        ImageError that names the file, and in Parquet the row.

    Raises:
        ValueError: nothing readable is there; the message lists what was looked for, or says what is wrong with labels or classes.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == '.parquet':
        return ParquetImages([path])
    splits = ('train',) if train else EVALUATION_SPLITS
    unlabelled = None
    for split in splits:
        if files := sorted(path.glob(f'{split}-*.parquet')):
            try:
                return ParquetImages(files)
            except _Unlabelled as error:
                unlabelled = unlabelled or error
        elif (path / split).is_dir():
            try:
                dataset = FolderImages(path / split)
            except FileNotFoundError as error:
                unlabelled = unlabelled or ValueError(f'{path / split}: {error}')
                continue
            known = _folders(path / 'train') if (path / 'train').is_dir() else dataset.classes
            if not set(known).isdisjoint(dataset.classes):
                return dataset
            unlabelled = unlabelled or ValueError(f'{path / split}: its folder {dataset.classes[0]!r} is no class of {path / "train"}; '
                                                  f'sort its images into folders of those classes')
    if unlabelled:
        raise unlabelled from None
    if (path / CIFAR10.base_folder).is_dir():
        return Cifar10Images(path, train)
    looked_for = ', '.join(f'{split}-*.parquet, {split}/' for split in splits)
    raise ValueError(f'{path}: found no {"training" if train else "evaluation"} images; looked for {looked_for} and '
                     f'{CIFAR10.base_folder}/; give the folder that holds one of them')


def stack_images(dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """Decode a whole data set into memory.

    Args:
        dataset: as `open_split` gives it.
        size: pixels; an image of another size is resized by its short side (bilinear, antialiased) and cropped at the centre.

    Returns:
        images uint8 (n, 3, size, size), labels int64 (n,).
    """
    images = np.empty((len(dataset), size, size, 3), np.uint8)
    for i in range(len(dataset)):
        images[i] = _square(dataset[i][0], size)
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.tensor(dataset.targets)     # (n, H, W, 3) -> (n, 3, H, W)


def _square(image: Image.Image, size: int) -> Image.Image:
    if image.size == (size, size):
        return image
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    left, top = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))


class Squares(NamedTuple):
    """A decoded set."""
    images: Tensor                      # uint8 (n, 3, size, size)
    rows: list[int]                     # of the set
    skipped: list[tuple[str, str]]      # of each row left out its name, and why
    thumbs: np.ndarray                  # uint8 (n, 8, 9), grey, of the whole photographs
    sums: list[int]                     # of all their pixels, a checksum


def read_squares(dataset: Dataset, size: int, store: Path | None = None, fit: Fit | None = None) -> Squares:
    """Decode a set into memory or a file by as many threads as there are cores, leaving out images that cannot be opened.

    Sets that are compared must be opened for the same ``fit``: thumbs and sums are of the photographs as they are opened.

    Args:
        dataset: as `open_photographs` gives it.
        size: pixels; as `stack_images` has them.
        store: a file to keep the images in, mapped into memory, where they may be more than the memory holds.
        fit: what the photographs are opened for, as `photograph.open_image` says; by default for ``size``.
    """
    shape = (len(dataset), 3, size, size)
    images = np.empty(shape, np.uint8) if store is None else np.lib.format.open_memmap(store, 'w+', np.uint8, shape)

    def read(row: int) -> tuple[np.ndarray, np.ndarray, int] | ImageError:
        try:
            image = dataset.photograph(row, fit or Fit(size))
        except ImageError as error:
            return error
        thumb = np.asarray(image.convert('L').resize((9, 8), Image.Resampling.BOX))
        return np.asarray(_square(image, size)), thumb, zlib.crc32(image.tobytes(), image.width)

    rows, skipped, thumbs, sums = [], [], np.empty((len(dataset), 8, 9), np.uint8), []
    with closing(ahead(read, range(len(dataset)), thread_count())) as reading:
        for row, found in tqdm(reading, 'read photographs', len(dataset), disable=None, leave=False):
            if isinstance(found, ImageError):
                skipped.append((dataset.name(row), str(found)))
                continue
            square, thumbs[len(rows)], pixels = found
            images[len(rows)] = square.transpose(2, 0, 1)       # (H, W, 3) -> (3, H, W)
            rows.append(row)
            sums.append(pixels)
    return Squares(torch.from_numpy(images)[:len(rows)], rows, skipped, thumbs[:len(rows)], sums)
