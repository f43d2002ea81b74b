"""Labelled image sets for training and evaluation: Parquet files, a folder of class folders, or torchvision's CIFAR-10."""
from __future__ import annotations

import io
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

__all__ = ['ParquetImages', 'open_split', 'stack_images']

EVALUATION_SPLITS = ('test', 'val', 'validation')   # what data sets call the labelled split that training never sees


class ParquetImages(Dataset):
    """Images in Parquet files as Hugging Face's `datasets` writes them.

    The columns are image (bytes, path) and label, the class names stand in the metadata. Like torchvision's data sets it has ``classes``
    (names), ``targets`` (labels) and gives ``(transform(image), label)``.

    Raises:
        ValueError: pyarrow is missing, or a file has not this layout.
    """

    def __init__(self, files: list[Path], transform: Callable[[Image.Image], Any] | None = None):
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError:
            raise ValueError(f"{files[0]}: reading Parquet needs pyarrow; install it by pip install 'igczoo[train]'") from None
        try:
            table = pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
            self.classes = json.loads(table.schema.metadata[b'huggingface'])['info']['features']['label']['names']
            self.encoded = table['image'].combine_chunks().field('bytes')
            self.targets = table['label'].to_pylist()
        except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{files[0]}: is no Parquet file with columns image (bytes, path) and label, and the class "
                             f"names under 'huggingface' in its metadata ({type(error).__name__}: {error})") from None
        self.transform = transform

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = Image.open(io.BytesIO(self.encoded[index].as_py())).convert('RGB')
        return (self.transform(image) if self.transform else image), self.targets[index]


def open_split(path: str | Path, train: bool, transform: Callable[[Image.Image], Any] | None = None) -> Dataset:
    """Open the training or the evaluation split of the data set at ``path``.

    Args:
        path: one Parquet file, a folder of Parquet files (train-*.parquet; test-* or val-*), a folder with folders train/ and test/ or val/
            of one folder a class, or the root torchvision keeps CIFAR-10 in.
        train: the training split, otherwise the evaluation split.
        transform: applied to each RGB image.

    Returns:
        A map-style data set of (image, label) with ``classes`` and ``targets``, as torchvision's.

    Raises:
        ValueError: nothing readable is there; the message lists what was looked for.
    """
    path = Path(path).expanduser()
    if path.is_file() and path.suffix == '.parquet':
        return ParquetImages([path], transform)
    splits = ('train',) if train else EVALUATION_SPLITS
    for split in splits:
        if files := sorted(path.glob(f'{split}-*.parquet')):
            return ParquetImages(files, transform)
        if (path / split).is_dir():
            try:
                return ImageFolder(str(path / split), transform)
            except FileNotFoundError as error:
                raise ValueError(f'{path / split}: {error}') from None
    if (path / CIFAR10.base_folder).is_dir():
        return CIFAR10(path, train, transform)
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
