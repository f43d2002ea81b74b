"""Photographs of a training split, by which an int8 export learns what to expect and is compared with float32."""
from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from ..inference.ahead import batches
from ..inference.classifier import Classifier
from .images import open_photographs
from .split import spread

__all__ = ['calibration_batches']

BATCH = 10      # images at a time


def calibration_batches(classifier: Classifier, data: str | Path, count: int = 500) -> tuple[Iterator[Tensor], Iterator[Tensor]]:
    """Batches (N, 3, H, W) of photographs to calibrate on, and of as many others to hold out, always the same ones.

    Args:
        classifier: its preprocessing is theirs.
        data: a data set as `images.open_photographs` reads it; of its training split, or of all photographs where they are not split.
        count: photographs in each of the two, spread evenly over the classes; half of all where there are fewer than both need.

    Raises:
        ValueError: there is no such data, or just one photograph; while it is read, an image that cannot be opened.
    """
    train = open_photographs(data)[0]
    rows = spread(train.targets, 2 * count, seed=0)
    if len(rows) < 2:
        raise ValueError(f'{data}: has one photograph to train on; int8 needs one to calibrate on and another to compare, better hundreds')
    half = len(rows) // 2
    return _batches(classifier, train, rows[:half], 'calibrate'), _batches(classifier, train, rows[half:], 'compare')


def _batches(classifier: Classifier, dataset: Dataset, rows: Sequence[int], what: str) -> Iterator[Tensor]:
    for part in batches(tqdm(rows, what, disable=None, leave=False), BATCH):
        yield torch.stack([classifier.preprocess(dataset.photograph(row, classifier.fit)) for row in part])
