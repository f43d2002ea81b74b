"""From a name to a classifier, and from photographs to labels with scores."""
from __future__ import annotations

import copy
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from safetensors import SafetensorError
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn
from torchvision.transforms import Compose, Resize

from ..checkpoints.folder import CONFIG, WEIGHTS, resolve
from ..deployment.deploy import deploy as deployed
from ..deployment.placement import check_placement
from .ahead import thread_count
from .explain import Explanation, explain
from .labelling import BATCH_SIZE, Labeller, as_list, check_positive
from .photograph import Fit, ImageError
from .prediction import Prediction

__all__ = ['Classifier', 'Prediction', 'deployed_as_asked', 'load']

PACKAGE = __name__.partition('.')[0]
FEW = 16        # images, from which on a deployed form saves more time than it takes to make
MANY = 5_000    # images, from which on that is so if a kernel must be compiled for it

_one_at_a_time = threading.Lock()   # of models that are compiled or not on a CPU: several batches on a GPU take memory and no less time


class Classifier(Labeller):
    """A model with the preprocessing and the class names of its checkpoint.

    What images may be and how they go through threads is said of `Labeller`. The model is put into evaluation mode.

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
        name: 'arch.tag' of its checkpoint, or as much of that as its model's pretrained_cfg says.
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
    def name(self) -> str:
        cfg = getattr(self.model, 'pretrained_cfg', None) or {}
        return '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))

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
        check_positive(batch_size=batch_size)
        rows = []
        with closing(self._each(as_list(images)[0], batch_size, thread_count(workers), self._features, torch.from_numpy)) as outputs:
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

    def logits_of(self, inputs: list[Tensor]) -> np.ndarray:
        return self._run(self.network, torch.stack(inputs)).numpy()

    @torch.inference_mode()
    def _run(self, forward: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
        with _one_at_a_time if self.device.type != 'cpu' or self._is_compiled() else nullcontext():
            self.network.eval()     # its user may have trained it since
            return forward(x.to(self.device, self.dtype)).float().cpu()

    def _is_compiled(self) -> bool:
        """By torch.compile(net), or by net.compile()."""
        return hasattr(self.network, '_orig_mod') or getattr(self.network, '_compiled_call_impl', None) is not None

    def _features(self, inputs: list[Tensor]) -> np.ndarray:
        network = self.network
        return self._run(lambda x: network.forward_head(network.forward_features(x), pre_logits=True), torch.stack(inputs)).numpy()


def _fit(preprocess: Callable[[Image.Image], Tensor]) -> Fit | None:
    """The resize that preprocessing begins with, if it is one of the shorter side."""
    first = preprocess.transforms[0] if isinstance(preprocess, Compose) and preprocess.transforms else None
    if not (type(first) is Resize and isinstance(first.size, int) and first.max_size is None):
        return None
    resample = Image.Resampling.__members__.get(first.interpolation.name)
    return None if resample is None else Fit(first.size, resample)


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
    source, folder = resolve(os.fspath(name))
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


def deployed_as_asked(classifier: Classifier, deploy: bool | None, images: int) -> Classifier:
    """A classifier that computes by its deployed form, or not.

    Args:
        classifier: by its plain form.
        deploy: whether; None: where its model can be deployed and there are FEW images at least, by a kernel that is compiled for it where
            there are MANY, and otherwise by one that has been compiled before or by torch's operators.
        images: how many it is for.

    Raises:
        ValueError: the model cannot be deployed, and shall be.
    """
    if deploy is False or (deploy is None and images < FEW):
        return classifier
    try:
        network = deployed(classifier.model, build=bool(deploy) or images >= MANY)
    except ValueError:
        if deploy:
            raise
        return classifier       # of a model that keeps statistics of another kind, or of another package
    other = copy.copy(classifier)
    other._deployed = network
    return other


def _check_folder(folder: Path) -> None:
    """Say what is wrong with a folder before timm, which would take other files for the weights, or any model of its own."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: there is no such folder; a repository on the hub is named 'hf-hub:org/name'")
    for file in (CONFIG, WEIGHTS):
        if not (folder / file).is_file():
            raise ValueError(f'{folder}: has no {file}; give a folder that igczoo finetune, train or convert made, or '
                             f'timm.models.save_for_hf(..., safe_serialization=True)')
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
