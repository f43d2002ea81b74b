"""Accuracy of a classifier: top-1 and top-5 with the number of images and a confidence interval, as a record for a card."""
from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ..checkpoints.card import Accuracy, cards
from ..inference.classifier import Classifier
from .images import open_split

__all__ = ['Evaluation', 'count_correct', 'evaluate', 'wilson_interval']


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found."""
    accuracy: Accuracy
    images_per_second: float    # decoding and preprocessing included


def evaluate(classifier: Classifier, data: str | Path, batch_size: int = 256, workers: int = 0) -> Evaluation:
    """Measure a classifier on the evaluation split of a data set, with the classifier's own preprocessing.

    Args:
        classifier: as `classifier.load` gives it.
        data: a data set as `images.open_split` reads it. Its classes are matched with the classifier's labels by name or by id.
        batch_size: images at a time.
        workers: processes that decode; 0 decodes in this one.

    Raises:
        ValueError: there is no such data, or it has a class that the classifier has not, or has twice; an image cannot be opened.
        RuntimeError: a logit is infinite or not a number.
    """
    dataset = open_split(data, train=False, transform=classifier.preprocess)
    to_label = torch.tensor(_match_classes(dataset.classes, classifier, data))
    loader = DataLoader(dataset, batch_size, num_workers=workers)
    device, dtype = classifier.device, classifier.dtype
    started = time.perf_counter()
    top1, top5 = count_correct(
        classifier.network, ((x.to(device, dtype), to_label[y].to(device)) for x, y in tqdm(loader, 'evaluate', disable=None)))
    n, seconds = len(dataset), time.perf_counter() - started
    low, high = wilson_interval(top1, n)
    return Evaluation(Accuracy(
        dataset=Path(data).resolve().name, split='evaluation', by='igczoo', n=n,
        top1=round(100 * top1 / n, 2), top5=round(100 * top5 / n, 2),
        top1_interval=(round(100 * low, 2), round(100 * high, 2))), n / seconds)


@torch.inference_mode()
def count_correct(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], bf16: bool = False) -> tuple[int, int]:
    """How many images have their label first, and among the first five.

    Args:
        model: (N, 3, H, W) -> logits (N, classes), in evaluation mode.
        batches: of model input and int64 labels (N,).
        bf16: compute in mixed precision.

    Raises:
        RuntimeError: a logit is infinite or not a number.
    """
    top1 = top5 = 0
    for x, y in batches:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=bf16):
            logits = model(x)
        if not logits.isfinite().all():
            raise RuntimeError(f'the model gives {logits[~logits.isfinite()][0].item()} for a logit, which is no score; its weights or the '
                               f'type it computes in ({logits.dtype}) are wrong')
        right = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
        top1, top5 = top1 + right[:, 0].sum().item(), top5 + right.any(1).sum().item()
    return top1, top5


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, by default for 95 % confidence."""
    p, denominator = successes / n, 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / denominator, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return centre - half, centre + half


def _match_classes(classes: list[str], classifier: Classifier, data: str | Path) -> list[int]:
    """The classifier's index of each class of a data set: by position where all names are the same, else by name or by WordNet id."""
    if tuple(classes) == classifier.labels:
        return list(range(len(classes)))
    known: dict[str, list[int]] = {}
    for index, name in (*enumerate(classifier.labels), *enumerate(_label_ids(classifier))):
        known.setdefault(name, []).append(index)
    if strangers := [name for name in classes if name not in known]:
        raise ValueError(f'{data}: {len(strangers)} of its {len(classes)} classes, such as {strangers[0]!r}, are none of the classifier\'s '
                         f'{len(classifier.labels)} labels, such as {classifier.labels[0]!r}; give a data set of the same classes')
    if twice := [name for name in classes if len(set(known[name])) > 1]:
        raise ValueError(f'{data}: its class {twice[0]!r} is the name of {len(set(known[twice[0]]))} of the classifier\'s classes; '
                         f'name the classes by WordNet id, or give all {len(classifier.labels)} in their order')
    return [known[name][0] for name in classes]


def _label_ids(classifier: Classifier) -> tuple[str, ...]:
    """The WordNet id of each class, where the classes have them."""
    cfg = getattr(classifier.model, 'pretrained_cfg', None) or {}
    card = cards().get(f'{cfg.get("architecture")}.{cfg.get("tag")}')
    if card and card.label_ids and len(card.label_ids) == len(classifier.labels):
        return card.label_ids
    imagenet = ImageNetInfo()
    return tuple(imagenet.label_names()) if classifier.labels == tuple(imagenet.label_descriptions()) else ()
