"""Accuracy of a classifier: top-1 and top-5 with the number of images and a confidence interval, as a record for a card."""
from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from timm.data import ImageNetInfo
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..checkpoints.card import Accuracy, cards
from ..inference.ahead import ahead, batches, thread_count
from ..inference.labelling import Labeller
from ..inference.prediction import Prediction
from .images import open_split

__all__ = ['ClassScore', 'Evaluation', 'Guess', 'count_correct', 'evaluate', 'evaluate_set', 'wilson_interval']


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others."""
    label: str
    n: int                      # images of it
    recall: float | None        # per cent of its images that are called it; None where it has none
    precision: float | None     # per cent of the images called it that are of it; None where there are none


@dataclass(frozen=True)
class Guess:
    """What was made of one image."""
    image: str                  # its file, or Parquet file and row
    label: str                  # of the data
    index: int                  # of that class, by the classifier
    predictions: tuple[Prediction, ...]     # five at most, best first

    @property
    def is_right(self) -> bool:
        return self.predictions[0].index == self.index      # two classes may have one name


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Only classes that the data have are counted."""
    accuracy: Accuracy
    images_per_second: float    # decoding and preprocessing included
    classes: tuple[ClassScore, ...]
    confusion: dict[str, dict[str, int]]    # label -> what its images are called, most often first -> how many
    calibration_error: float    # per cent: ECE, the mean distance of score and top-1 in 15 bins of equal width
    guesses: tuple[Guess, ...]  # of every image, in the data's order


def evaluate(classifier: Labeller, data: str | Path, batch_size: int = 32, workers: int | None = None) -> Evaluation:
    """Measure a classifier on the evaluation split of a data set, with the classifier's own way to open and preprocess photographs.

    Args:
        classifier: as `igczoo.load` gives it, or an `inference.onnx.OnnxClassifier`.
        data: a data set as `images.open_split` reads it. Its classes are matched with the classifier's labels by name or by id.
        batch_size: images that go through the model together.
        workers: threads, as `Labeller` says.

    Raises:
        ValueError: there is no such data, or it has a class that the classifier has not, or has twice; an image cannot be opened; workers
            is no integer from 0.
        RuntimeError: a logit is infinite or not a number.
    """
    return evaluate_set(classifier, open_split(data, train=False), str(data), batch_size, workers)


def evaluate_set(classifier: Labeller, dataset: Dataset, data: str, batch_size: int = 32, workers: int | None = None) -> Evaluation:
    """`evaluate` on a set that is open, of the name ``data``."""
    to_label = torch.tensor(_match_classes(dataset.classes, classifier, data))
    labels = to_label[torch.tensor(dataset.targets)]

    def compute(rows: list[int]) -> Tensor:
        inputs = [classifier.preprocess(dataset.photograph(row, classifier.fit)) for row in rows]
        return torch.from_numpy(classifier.logits_of(inputs))                   # (N, classes)

    started = time.perf_counter()
    scores, indices, ranks = [], [], []
    with closing(ahead(compute, batches(range(len(dataset)), batch_size), thread_count(workers))) as computed:
        for rows, logits in tqdm(computed, 'evaluate', -(-len(dataset) // batch_size), disable=None, leave=False):
            _check_finite(logits)
            best = logits.topk(min(5, logits.shape[1])).indices                 # (N, 5)
            right = best == labels[rows, None]
            scores.append(logits.softmax(1).gather(1, best))
            indices.append(best)
            ranks.append(torch.where(right.any(1), right.int().argmax(1), 5))   # of its own label, 5 where that is not among the best
    seconds = time.perf_counter() - started
    scores, indices, ranks = torch.cat(scores), torch.cat(indices), torch.cat(ranks)
    n, top1, top5 = len(labels), int((ranks == 0).sum()), int((ranks < 5).sum())
    low, high = wilson_interval(top1, n)
    accuracy = Accuracy(
        dataset=Path(data).resolve().name, split='evaluation', by='igczoo', n=n, top1=round(100 * top1 / n, 2),
        top5=round(100 * top5 / n, 2), top1_interval=(round(100 * low, 2), round(100 * high, 2)))
    names = _distinct(classifier.labels)
    return Evaluation(
        accuracy, n / seconds, _class_scores(labels, indices[:, 0], names), _confusion(labels, indices[:, 0], names),
        round(100 * _calibration_error(scores[:, 0], ranks == 0), 2), tuple(
            Guess(dataset.name(row), classifier.labels[label], label, tuple(
                Prediction(classifier.labels[index], score, index) for index, score in zip(best, values, strict=True)))
            for row, (label, best, values) in enumerate(zip(labels.tolist(), indices.tolist(), scores.tolist(), strict=True))))


def _distinct(labels: Sequence[str]) -> list[str]:
    """The labels, those that several classes have with the number of the class."""
    times = Counter(labels)
    return [f'{label} ({index})' if times[label] > 1 else label for index, label in enumerate(labels)]


def _class_scores(labels: Tensor, called: Tensor, names: Sequence[str]) -> tuple[ClassScore, ...]:
    """Of the classes that images have or are called."""
    there, named, right = (torch.bincount(which, minlength=len(names)) for which in (labels, called, labels[labels == called]))
    return tuple(ClassScore(name, n, _per_cent(hits, n), _per_cent(hits, times)) for name, n, times, hits in zip(
        names, there.tolist(), named.tolist(), right.tolist(), strict=True) if n or times)


def _per_cent(part: int, whole: int) -> float | None:
    return round(100 * part / whole, 2) if whole else None


def _confusion(labels: Tensor, called: Tensor, names: Sequence[str]) -> dict[str, dict[str, int]]:
    counts = Counter(zip(labels.tolist(), called.tolist(), strict=True))
    table: dict[str, dict[str, int]] = {}
    for (label, guess), count in sorted(counts.items(), key=lambda item: (item[0][0], -item[1], item[0][1])):
        table.setdefault(names[label], {})[names[guess]] = count
    return table


def _calibration_error(scores: Tensor, right: Tensor, bins: int = 15) -> float:
    """Guo et al., On Calibration of Modern Neural Networks (2017), equation 3."""
    bin_of = (scores * bins).long().clamp(max=bins - 1)
    sums = [torch.zeros(bins, dtype=torch.float64).index_add_(0, bin_of, values.double()) for values in (scores, right)]
    return (sums[0] - sums[1]).abs().sum().item() / len(scores)


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
        _check_finite(logits)
        right = logits.topk(min(5, logits.shape[1])).indices == y[:, None]
        top1, top5 = top1 + right[:, 0].sum().item(), top5 + right.any(1).sum().item()
    return top1, top5


def _check_finite(logits: Tensor) -> None:
    if not logits.isfinite().all():
        raise RuntimeError(f'the model gives {logits[~logits.isfinite()][0].item()} for a logit, which is no score; its weights or the '
                           f'type it computes in ({logits.dtype}) are wrong')


def wilson_interval(successes: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, by default for 95 % confidence."""
    p, denominator = successes / n, 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / denominator, z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / denominator
    return centre - half, centre + half


def _match_classes(classes: list[str], classifier: Labeller, data: str | Path) -> list[int]:
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


def _label_ids(classifier: Labeller) -> tuple[str, ...]:
    """The WordNet id of each class, where the classes have them."""
    card = cards().get(classifier.name)
    if card and card.label_ids and len(card.label_ids) == len(classifier.labels):
        return card.label_ids
    imagenet = ImageNetInfo()
    return tuple(imagenet.label_names()) if classifier.labels == tuple(imagenet.label_descriptions()) else ()
