"""From a name to a classifier, and from photographs to labels with scores."""
from __future__ import annotations

import copy
import itertools
import json
import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterable, Sized
from concurrent.futures import Future
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import Compose, Resize

from ..checkpoints.card import find_card
from ..checkpoints.folder import folder_path
from ..deployment.deploy import deploy as deployed
from ..deployment.placement import check_placement
from .ahead import ahead, batches, thread_count
from .explain import Explanation, explain
from .photograph import Fit, ImageError, find_images, image_name, open_image
from .prediction import Prediction

__all__ = ['Classifier', 'Prediction', 'deployed_as_asked', 'load']

BATCH_SIZE = 8
PACKAGE = __name__.partition('.')[0]

_one_at_a_time = threading.Lock()   # of models that are compiled or not on a CPU: several batches on a GPU take memory and no less time


class Classifier:
    """A model with the preprocessing and the class names of its checkpoint.

    An image may be anything `photograph.open_image` takes. A call takes one image, a list or tuple of them, or a folder, which stands for
    the list `photograph.find_images` makes of it. The model is put into evaluation mode.

    Several images go through threads, each of which decodes, preprocesses and computes a batch on its share of the cores: ``workers`` of
    them, by default as many as there are cores. With 0 of them all this is done in the caller's thread, where contexts such as
    torch.autocast reach it. Not more than (2 * workers + 1) * batch_size images have been taken and not been given back yet, and an image
    must not change in between.

    Args:
        model: a timm model, (N, 3, H, W) -> logits (N, classes). On a CPU it is called by several threads at once, unless it is compiled.
        preprocess: an RGB PIL image -> float32 (3, H, W), likewise.
        labels: the name of each class.
        deploy: compute by the faster form that `igczoo.deploy` makes of the model as it is now. It has weights of its own: what is
            done to the model later changes nothing here, and a model that is trained on needs a new Classifier.
        exact: decode every pixel of a photograph. Otherwise large JPEG files are decoded smaller, as `photograph.open_image` says, where
            the preprocessing begins with torchvision's Resize of one number.

    Attributes:
        model, preprocess, labels: as given, labels as a tuple.
        fit: what a photograph is opened for, as `photograph.open_image` takes it; None where every pixel is decoded.
        network: what computes, the model or its deployed form.
        device, dtype: of the network's weights.

    Raises:
        ValueError: there are not as many labels as classes, or as `igczoo.deploy`.
    """

    def __init__(
            self, model: nn.Module, preprocess: Callable[[Image.Image], Tensor], labels: Iterable[str], deploy: bool = False,
            exact: bool = False):
        self.model = model.eval()
        self._deployed = deployed(model) if deploy else None
        self.preprocess = preprocess
        self.fit = None if exact else _fit(preprocess)
        self.labels = tuple(labels)
        num_classes = getattr(model, 'num_classes', len(self.labels))
        if len(self.labels) != num_classes:
            raise ValueError(f'there are {len(self.labels)} labels for a model of {num_classes} classes; give one for each class')

    @property
    def network(self) -> nn.Module:
        return self.model if self._deployed is None else self._deployed

    @property
    def device(self) -> torch.device:
        return self._weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self._weight.dtype

    @property
    def _weight(self) -> Tensor:
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        return next(tensor for tensor in tensors if tensor.is_floating_point())

    def classify(
            self, images: Any, k: int = 5, batch_size: int = BATCH_SIZE, on_error: str = 'raise', workers: int | None = None,
    ) -> list[Prediction] | list[list[Prediction]]:
        """The likeliest classes of each image.

        Args:
            images: one image, a list or tuple of images, or a folder.
            k: how many classes; all of them where there are fewer.
            batch_size: images that go through the model together, at most.
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
        sources, single = _as_list(images)
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
            images: any iterable of images, also an endless one.
            k: how many classes; all of them where there are fewer.
            batch_size: images that go through the model together, at most.
            workers: threads.

        Returns:
            A generator of pairs in the order of the images: the image as it was given, and its predictions, best first, or the
            ImageError that says why there are none. Closing it ends the threads.

        Raises:
            ValueError: k or batch_size is not a positive integer, or workers no integer from 0.
        """
        _check_positive(k=k, batch_size=batch_size)
        return self._each(images, batch_size, thread_count(workers), self.network, partial(self._best, k=k))

    def embed(self, images: Any, batch_size: int = BATCH_SIZE, workers: int | None = None) -> Tensor:
        """What the model's classifier sees of each image: its pooled features.

        Args:
            images: one image, a list or tuple of images, or a folder.
            batch_size: images that go through the model together, at most.
            workers: threads.

        Returns:
            float32 (n, num_features) on the CPU; n is 1 for one image.

        Raises:
            ImageError: an image that cannot be opened, or a folder without images.
            ValueError: batch_size is not a positive integer, or workers no integer from 0.
        """
        _check_positive(batch_size=batch_size)
        rows = []
        with closing(self._each(_as_list(images)[0], batch_size, thread_count(workers), self._features, lambda row: row)) as outputs:
            for _, output in outputs:
                if isinstance(output, ImageError):
                    raise output
                rows.append(output)
        return torch.stack(rows) if rows else torch.empty(0, self.model.num_features)

    def logits(self, x: Tensor) -> Tensor:
        """Of preprocessed images (N, 3, H, W): float32 (N, classes) on the CPU."""
        return self._run(self.network, x)

    def explain(self, image: Any, label: str | int | None = None) -> Explanation:
        """Where the net looked: a heat map over a photograph, for the likeliest label or a named one; see `explain.explain`."""
        return explain(self, image, label)

    def _each(
            self, images: Iterable[Any], batch_size: int, workers: int, forward: Callable[[Tensor], Tensor],
            outcome: Callable[[Tensor], Any],
    ) -> Generator[tuple[Any, Any], None, None]:
        """Each image with what ``outcome`` makes of its row of what ``forward`` gives for its batch, float32 on the CPU, or with what is
        wrong with it."""
        if isinstance(images, Sized) and len(images) < 2:       # a single one has all threads of torch
            workers = 0
        elif isinstance(images, Sized) and workers:             # each thread gets as many
            rounds = -(-len(images) // (workers * batch_size))
            batch_size = -(-len(images) // (workers * rounds))
        until: Future = Future()

        def work(batch: list[Any]) -> list[Any]:
            inputs = [self._input(image, until) for image in batch]
            good = [x for x in inputs if isinstance(x, Tensor)]
            rows = iter(self._run(forward, torch.stack(good)) if good else ())
            found = [_finite(image, next(rows)) if isinstance(x, Tensor) else x for image, x in zip(batch, inputs, strict=True)]
            return [outcome(row) if isinstance(row, Tensor) else row for row in found]

        with closing(ahead(work, batches(images, batch_size), workers)) as worked:
            try:
                for batch, outcomes in worked:
                    yield from zip(batch, outcomes, strict=True)
            finally:
                until.set_result(None)

    def _input(self, image: Any, until: Future) -> Tensor | ImageError:
        try:
            return self.preprocess(open_image(image, self.fit, until))
        except ImageError as error:
            return error

    @torch.inference_mode()
    def _run(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with _one_at_a_time if self.device.type != 'cpu' or hasattr(self.network, '_orig_mod') else nullcontext():
            self.network.eval()     # its user may have trained it since
            return forward(x.to(self.device, self.dtype)).float().cpu()

    def _features(self, x: Tensor) -> Tensor:
        return self.network.forward_head(self.network.forward_features(x), pre_logits=True)

    def _best(self, logits: Tensor, k: int) -> list[Prediction]:
        scores, indices = logits.softmax(0).topk(min(k, len(logits)))
        return [Prediction(self.labels[index], score, index) for score, index in zip(scores.tolist(), indices.tolist(), strict=True)]


def _fit(preprocess: Callable[[Image.Image], Tensor]) -> Fit | None:
    """The resize that preprocessing begins with, if it is one of the shorter side."""
    first = preprocess.transforms[0] if isinstance(preprocess, Compose) and preprocess.transforms else None
    if not (type(first) is Resize and isinstance(first.size, int) and first.max_size is None):
        return None
    resample = Image.Resampling.__members__.get(first.interpolation.name)
    return None if resample is None else Fit(first.size, resample)


def _finite(image: Any, row: Tensor) -> Tensor | ImageError:
    """What a model gives for an image, unless it holds something that is no number."""
    if row.isfinite().all():
        return row
    found = row[~row.isfinite()][0].item()
    return ImageError(f'{image_name(image)}: the model gives {found} for it, which is no score; its weights or the type it computes in are '
                      f'wrong')


def load(
        name: str | os.PathLike,
        device: str | torch.device = 'cpu',
        dtype: torch.dtype = torch.float32,
        cache_dir: str | os.PathLike | None = None,
        deploy: bool = False,
        exact: bool = False,
) -> Classifier:
    """Load a checkpoint with its preprocessing and class names.

    Args:
        name: 'arch.tag'; 'arch', which means its default checkpoint; a folder, or 'local-dir:' and a folder, that holds config.json and
            model.safetensors as `timm.models.save_for_hf` writes them; or 'hf-hub:org/name'. A name with a slash in it is a folder.
        device: where the model computes.
        dtype: in what the model computes.
        cache_dir: folder that downloads are kept in, instead of the usual cache.
        deploy: compute by the deployed form of the model, as `Classifier` says.
        exact: decode every pixel of a photograph, likewise.

    Raises:
        CardError: the name is no checkpoint's; the message lists those there are.
        StoreError: no source has the verified weights.
        ValueError: the folder lacks a file, or its files do not fit together or are not of a model of this package; the repository cannot
            be read; the model takes images of other than 3 channels; there is no such device here; the dtype
            is no floating-point one; with ``deploy``, the model cannot be deployed.
    """
    check_placement(device, dtype)
    source, folder = _resolve(os.fspath(name))
    if folder:
        _check_folder(folder)
    try:
        model = timm.create_model(source, pretrained=True, cache_dir=cache_dir).to(device, dtype)
        if (channels := resolve_model_data_config(model)['input_size'][0]) != 3:
            raise ValueError(f'it takes images of {channels} channels, and photographs have 3')
        preprocess = create_transform(**resolve_model_data_config(model), is_training=False)
        classifier = Classifier(model, preprocess, _labels(model), exact=exact)
    except (RuntimeError, KeyError, TypeError, ValueError, AttributeError, SafetensorError, OSError) as error:
        if ':' not in source:   # a checkpoint of this package, whose errors say all
            raise
        advice = 'config.json and model.safetensors must fit' if folder else 'check its name and the network'
        raise ValueError(f'{folder or source}: cannot be loaded ({_one_line(error)}); {advice}') from error
    return Classifier(model, preprocess, classifier.labels, deploy=True, exact=exact) if deploy else classifier


def deployed_as_asked(classifier: Classifier, deploy: bool | None) -> Classifier:
    """A classifier that computes by its deployed form, or not; with None, where its model can be deployed, without compiling for it.

    Raises:
        ValueError: the model cannot be deployed, and shall be.
    """
    if deploy is False:
        return classifier
    try:
        network = deployed(classifier.model, build=bool(deploy))
    except ValueError:
        if deploy:
            raise
        return classifier       # of a model that keeps statistics of another kind, or of another package
    other = copy.copy(classifier)
    other._deployed = network
    return other


def _resolve(name: str) -> tuple[str, Path | None]:
    """What timm calls the model that ``name`` means, and its folder if it is in one."""
    if name.startswith('hf-hub:'):
        return name, None
    path = folder_path(name)
    if name.startswith('local-dir:') or len(path.parts) > 1:
        return f'local-dir:{path}', path
    try:
        return find_card(name).name, None
    except ValueError:
        if name and path.is_dir():      # Path('') is the current folder
            return f'local-dir:{path}', path
        raise


def _check_folder(folder: Path) -> None:
    """Say what is wrong with a folder before timm, which would take other files for the weights, or any model of its own."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; a repository on the hub is named 'hf-hub:org/name'")
    for file in ('config.json', 'model.safetensors'):
        if not (folder / file).is_file():
            raise ValueError(f'{folder}: has no {file}; give a folder that timm.models.save_for_hf(..., safe_serialization=True) wrote')
    try:
        architecture = json.loads((folder / 'config.json').read_text(encoding='utf-8'))['architecture']
        package = timm.models.model_entrypoint(architecture).__module__.partition('.')[0]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise ValueError(f'{folder / "config.json"}: names no known architecture ({type(error).__name__}: {_one_line(error)})') from error
    if package != PACKAGE and not (folder / 'card.json').is_file():     # with a card it is one of timm's that was trained here
        raise ValueError(f'{folder / "config.json"}: names the model {architecture!r}, which is not of {PACKAGE}; load it by timm')


def _labels(model: nn.Module) -> tuple[str, ...]:
    names = model.pretrained_cfg.get('label_names')
    if names is None and model.num_classes == 1000:
        names = ImageNetInfo().label_descriptions()
    return tuple(map(str, range(model.num_classes) if names is None else names))


def _one_line(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return text if len(text) <= 300 else f'{text[:300]}...'


def _as_list(images: Any) -> tuple[Iterable[Any], bool]:
    """The images, and whether they are a single one."""
    if isinstance(images, list | tuple):
        return images, False
    if isinstance(images, str | os.PathLike) and os.path.isdir(os.path.expanduser(images)):
        return find_images(images), False
    return [images], True


def _check_positive(**counts: int) -> None:
    for name, count in counts.items():
        if not isinstance(count, int) or isinstance(count, bool) or count < 1:
            raise ValueError(f'{name} is {count!r}; it must be a positive integer')
