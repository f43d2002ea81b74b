"""Photographs in, labels with scores out, whatever computes between."""
from __future__ import annotations

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence, Sized
from concurrent.futures import Future
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from .ahead import ahead, batches, thread_count
from .photograph import Fit, ImageError, find_images, image_name, open_image
from .prediction import Prediction

__all__ = ['Labeller', 'as_list', 'check_positive']

BATCH_SIZE = 8


class Labeller(ABC):
    """Opens photographs, has them computed in batches, and names their classes.

    An image may be anything `photograph.open_image` takes. A call takes one image, a list or tuple of them, or a folder, which stands for
    the list `photograph.find_images` makes of it.

    Several images go through threads, each of which decodes, preprocesses and computes a batch on its share of the cores: ``workers`` of
    them, by default as many as there are cores, 16 at most. With 0 of them all this is done in the caller's thread, where contexts such as
    torch.autocast reach it. Not more than (2 * workers + 1) * batch_size images have been taken and not been given back yet, and an image
    must not change in between.

    Attributes:
        name: 'arch.tag' of its checkpoint, or as much of that as is known.
        preprocess: an RGB PIL image -> what `logits_of` takes a list of. Called by several threads at once.
        labels: the name of each class, as a tuple.
        fit: what a photograph is opened for, as `photograph.open_image` takes it; None where every pixel is decoded.
    """
    name: str
    preprocess: Callable[[Image.Image], Any]
    labels: tuple[str, ...]
    fit: Fit | None

    @abstractmethod
    def logits_of(self, inputs: list[Any]) -> np.ndarray:
        """Of preprocessed images: float32 (N, classes). Called by several threads at once."""

    def classify(
            self, images: Any, k: int = 5, batch_size: int = BATCH_SIZE, on_error: str = 'raise', workers: int | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The likeliest classes of each image.

        Args:
            images: one image, a list or tuple of images, or a folder.
            k: how many classes; all of them where there are fewer.
            batch_size: images that are computed together, at most.
            on_error: 'raise', or 'skip' to give an image that cannot be opened no predictions, and say why in a UserWarning.
            workers: threads.

        Returns:
            Predictions, best first, for one image; otherwise the list of such lists, in the order of the images.

        Raises:
            ImageError: an image that cannot be opened, or a folder without images.
            ValueError: k or batch_size is not a positive integer, workers no integer from 0, or on_error is another word.
        """
        if on_error not in ('raise', 'skip'):
            raise ValueError(f"classify: on_error is {on_error!r}; it must be 'raise' or 'skip'")
        sources, single = as_list(images)
        results = []
        with closing(self.classify_each(sources, k, batch_size, workers)) as outcomes:
            for _, outcome in outcomes:
                if isinstance(outcome, ImageError):
                    if on_error == 'raise':
                        raise outcome
                    warnings.warn(f'skipped {outcome}', stacklevel=2)
                    outcome = []
                results.append(outcome)
        return results[0] if single else results

    def classify_each(
            self, images: Iterable[Any], k: int = 5, batch_size: int = BATCH_SIZE, workers: int | None = None,
    ) -> Generator[tuple[Any, list[Prediction] | ImageError], None, None]:
        """Classify any number of images as they come, one bad image stopping none of the others.

        ``dict(classifier.classify_each(find_images(folder)))`` says which file shows what.

        Args:
            images: any iterable of images, also an endless one; or a folder.
            k: how many classes; all of them where there are fewer.
            batch_size: images that are computed together, at most.
            workers: threads.

        Returns:
            A generator of pairs in the order of the images: the image as it was given, and its predictions, best first, or the
            ImageError that says why there are none. Closing it ends the threads.

        Raises:
            ImageError: a folder without images.
            ValueError: k or batch_size is not a positive integer, or workers no integer from 0.
        """
        check_positive(k=k, batch_size=batch_size)
        if isinstance(images, str | os.PathLike | bytes):       # going through it would give its letters
            images = as_list(images)[0]
        return self._each(images, batch_size, thread_count(workers), self.logits_of, partial(_best, self.labels, k))

    def _each(
            self, images: Iterable[Any], batch_size: int, workers: int, compute: Callable[[list[Any]], np.ndarray],
            outcome: Callable[[np.ndarray], Any],
    ) -> Generator[tuple[Any, Any], None, None]:
        """Each image with what ``outcome`` makes of its row of what ``compute`` gives for its batch, or with what is wrong with it."""
        if isinstance(images, Sized) and len(images) < 2:       # a single one has all cores
            workers = 0
        elif isinstance(images, Sized) and workers:             # each thread gets as many
            rounds = -(-len(images) // (workers * batch_size))
            batch_size = -(-len(images) // (workers * rounds))
        until: Future = Future()

        def work(batch: list[Any]) -> list[Any]:
            inputs = [self._input(image, until) for image in batch]
            good = [x for x in inputs if not isinstance(x, ImageError)]
            rows = iter(compute(good) if good else ())
            found = [x if isinstance(x, ImageError) else _finite(image, next(rows)) for image, x in zip(batch, inputs, strict=True)]
            return [row if isinstance(row, ImageError) else outcome(row) for row in found]

        with closing(ahead(work, batches(images, batch_size), workers, ending=lambda: until.set_result(None))) as worked:
            for batch, outcomes in worked:
                yield from zip(batch, outcomes, strict=True)

    def _input(self, image: Any, until: Future) -> Any:
        """The preprocessed image, or the ImageError that it is not one."""
        try:
            return self.preprocess(open_image(image, self.fit, until))
        except ImageError as error:
            return error


def _best(labels: Sequence[str], k: int, logits: np.ndarray) -> list[Prediction]:
    scores = np.exp(logits - logits.max(), dtype=np.float64)
    scores /= scores.sum()
    return [Prediction(labels[index], float(scores[index]), int(index)) for index in np.argsort(-logits, kind='stable')[:k]]


def _finite(image: Any, row: np.ndarray) -> np.ndarray | ImageError:
    """What is computed for an image, unless it holds something that is no number."""
    finite = np.isfinite(row)
    if finite.all():
        return row
    return ImageError(f'{image_name(image)}: the model gives {row[~finite][0]} for it, which is no score; its weights or the type it '
                      f'computes in are wrong')


def as_list(images: Any) -> tuple[Sequence[Any], bool]:
    """The images, and whether they are a single one."""
    if isinstance(images, list | tuple):
        return images, False
    if isinstance(images, str | os.PathLike) and os.path.isdir(os.path.expanduser(images)):
        return find_images(images), False
    return [images], True


def check_positive(**counts: int) -> None:
    """Raise ValueError where one is no positive integer."""
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f'{name} is {count!r}; it must be a positive integer')
