"""Labelled image sets for training and evaluation: Parquet files, a folder of class folders, or torchvision's CIFAR-10."""
from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.datasets import CIFAR10, ImageFolder

from ..inference.photograph import ImageError, find_images, open_image

__all__ = ['FolderImages', 'ParquetImages', 'open_split', 'stack_images']

EVALUATION_SPLITS = ('test', 'val', 'validation')   # what data sets call the labelled split that training never sees


class ParquetImages(Dataset):
    """Images in Parquet files as Hugging Face's `datasets` writes them.

    The columns are image (bytes, path) and label, the class names stand in the metadata. Like torchvision's data sets it has ``classes``
    (names), ``targets`` (labels) and gives ``(transform(image), label)``.

    Raises:
        ValueError: pyarrow is missing, a file has not this layout, files differ in their classes, there is no row, or a row's label is
            missing or none of the classes.
    """

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Any] | None = None):
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
                self.encoded.append(table['image'].combine_chunks().field('bytes'))
                targets = table['label'].to_pylist()
            except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{file}: is no Parquet file with columns image (bytes, path) and label, and the class names under "
                                 f"'huggingface' in its metadata ({type(error).__name__}: {error})") from None
            if self.classes and classes != self.classes:
                raise ValueError(f'{file}: has other classes than {files[0]}, or the same in another order; write them by one list')
            self.classes = classes
            _check_labels(file, targets, len(classes))
            self.targets += targets
        self.files, self.transform = files, transform
        self.starts = list(itertools.accumulate(map(len, self.encoded), initial=0))     # the first row of each file
        if not self.targets:
            raise ValueError(f'{files[0]}: has no rows; give a file with images')

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        file = bisect.bisect_right(self.starts, index) - 1
        row = index - self.starts[file]
        encoded = self.encoded[file][row].as_py()
        try:
            image = open_image(b'' if encoded is None else encoded)
        except ImageError as error:
            raise ImageError(f'{self.files[file]}, row {row}: {error}') from None
        return (self.transform(image) if self.transform else image), self.targets[index]


def _check_labels(file: Path, targets: list[int | None], classes: int) -> None:
    for row, label in enumerate(targets):
        if label is None or not 0 <= label < classes:
            found = 'no label' if label is None else f'label {label}'
            unlabelled = ' (-1 is what splits without labels have)' if label == -1 else ''
            raise ValueError(f'{file}, row {row}: has {found}{unlabelled}; with {classes} classes it must be 0 to {classes - 1}')


class FolderImages(ImageFolder):
    """Photographs in one folder a class, at any depth below it. Pipes are left out, and linked folders, which may lead back."""

    def __init__(self, folder: str | Path, transform: Callable[[Image.Image], Any] | None = None):
        super().__init__(str(folder), transform, loader=open_image)

    @staticmethod
    def make_dataset(directory, class_to_idx, extensions=None, is_valid_file=None, allow_empty=False) -> list[tuple[str, int]]:
        return [(str(path), index) for name, index in class_to_idx.items() for path in find_images(Path(directory, name))]


class Cifar10Images(CIFAR10):
    """torchvision's CIFAR-10, opened as every photograph is."""

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = open_image(self.data[index])
        return (self.transform(image) if self.transform else image), self.targets[index]


def open_split(path: str | Path, train: bool, transform: Callable[[Image.Image], Any] | None = None) -> Dataset:
    """Open the training or the evaluation split of the data set at ``path``. Photographs are opened by `photograph.open_image`.

    Args:
        path: one Parquet file, a folder of Parquet files (train-*.parquet; test-*, val-* or validation-*), a folder with folders train/ and
            test/, val/ or validation/ of one folder a class, or the root torchvision keeps CIFAR-10 in.
        train: the training split, otherwise the evaluation split: of those there are the first whose images have labels.
        transform: applied to each RGB image.

    Returns:
        A map-style data set of (image, label) with ``classes`` and ``targets``, as torchvision's; an image that cannot be opened is an
        ImageError that names the file, and in Parquet the row.

    Raises:
        ValueError: nothing readable is there; the message lists what was looked for, or says what is wrong with labels or classes.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == '.parquet':
        return ParquetImages([path], transform)
    splits = ('train',) if train else EVALUATION_SPLITS
    unlabelled = None
    for split in splits:
        if files := sorted(path.glob(f'{split}-*.parquet')):
            try:
                return ParquetImages(files, transform)
            except ValueError as error:
                if '(-1 is what splits' not in str(error):
                    raise
                unlabelled = unlabelled or error
        elif (path / split).is_dir():
            try:
                return FolderImages(path / split, transform)
            except FileNotFoundError as error:
                raise ValueError(f'{path / split}: {error}') from None
    if unlabelled:
        raise unlabelled
    if (path / CIFAR10.base_folder).is_dir():
        return Cifar10Images(path, train, transform)
    looked_for = ', '.join(f'{split}-*.parquet, {split}/' for split in splits)
    raise ValueError(f'{path}: found no {"training" if train else "evaluation"} images; looked for {looked_for} and '
                     f'{CIFAR10.base_folder}/; give the folder that holds one of them')


def stack_images(dataset: Dataset, size: int) -> tuple[Tensor, Tensor]:
    """Decode a whole data set into memory.

    Args:
        dataset: as `open_split` gives it, without a transform.
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
