"""Labels by ONNX Runtime, without PyTorch, whose import takes longer than everything else that a first photograph waits for."""
from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image

from .. import __version__
from ..checkpoints.card import card_json, find_card
from ..checkpoints.digests import sha256
from ..checkpoints.folder import CONFIG, WEIGHTS, resolve
from ..files import cache_folder, is_intact, keep
from .labelling import Labeller
from .photograph import Fit

__all__ = ['OnnxClassifier', 'Preprocessing', 'cached_export']


class OnnxClassifier(Labeller):
    """What a file that `igczoo export` wrote says of photographs: float32 or int8, on the CPU.

    What images may be and how they go through threads is said of `Labeller`.

    Args:
        path: an .onnx file with the metadata that `igczoo.deployment.export.export` says.
        exact: decode every pixel of a photograph. Otherwise large JPEG files are decoded smaller, as `photograph.open_image` says.
        threads: that compute a batch; by default as many as there are cores, which is for one batch after the other.

    Raises:
        RuntimeError: ONNX Runtime is missing.
        ValueError: there is no such file, it is no ONNX model, or not one of `igczoo export`.
    """

    def __init__(self, path: str | os.PathLike, exact: bool = False, threads: int = 0):
        path = Path(path).expanduser()
        self._session = _open(path, threads)
        self.name, self.labels, self.preprocess = _facts(self._session, path)
        self.fit = None if exact else self.preprocess.fit

    def logits_of(self, inputs: list[np.ndarray]) -> np.ndarray:
        return self._session.run(None, {'image': np.stack(inputs)})[0]


class Preprocessing:
    """timm's evaluation transform by Pillow and numpy, equal to it in every bit: resize the shorter side, crop at the centre, normalise.

    Args: as `timm.data.create_transform` takes them.

    Raises:
        ValueError: the input is not square, or the crop or interpolation is of another kind.
    """

    def __init__(self, input_size: list[int], mean: list[float], std: list[float], interpolation: str, crop_pct: float, crop_mode: str):
        _, height, self.side = input_size
        resample = Image.Resampling.__members__.get(interpolation.upper())
        if height != self.side or crop_mode != 'center' or resample is None:
            raise ValueError(f'an input of {height} x {self.side} pixels, by {interpolation} and a crop of mode {crop_mode}; '
                             'it must be square, by a filter of Pillow and a crop at the center')
        self.fit = Fit(math.floor(self.side / crop_pct), resample)
        self.mean, self.std = (np.array(three, np.float32)[:, None, None] for three in (mean, std))

    def __call__(self, image: Image.Image) -> np.ndarray:
        """An RGB image -> float32 (3, side, side)."""
        short = min(image.size)
        width, height = (self.fit.side if one == short else int(self.fit.side * one / short) for one in image.size)
        image = image.resize((width, height), self.fit.resample)
        left, top = (round((one - self.side) / 2) for one in (width, height))
        pixels = np.asarray(image.crop((left, top, left + self.side, top + self.side)), np.float32)     # (H, W, 3)
        return (pixels.transpose(2, 0, 1) / np.float32(255) - self.mean) / self.std


PREPROCESSING = 'input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode'


def _runtime() -> Any:
    try:
        return import_module('onnxruntime')
    except ImportError:
        raise RuntimeError("onnxruntime is missing; pip install 'igczoo[export]'") from None


def _open(path: Path, threads: int) -> Any:
    """An InferenceSession."""
    runtime = _runtime()
    if not path.is_file():
        raise ValueError(f'{path}: there is no such file; igczoo export makes one')
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3      # errors, which are raised too
    try:
        return runtime.InferenceSession(os.fspath(path), options, providers=['CPUExecutionProvider'])
    except Exception as error:      # of onnxruntime, whose classes have nothing in common
        found = ' '.join(str(error).split())[:300]
        raise ValueError(f'{path}: is no ONNX model that can be run ({found}); make it by igczoo export') from None


def _facts(session: Any, path: Path) -> tuple[str, tuple[str, ...], Preprocessing]:
    """The checkpoint's name, labels and preprocessing, checked as far as the wrong of them would give wrong labels."""
    found = session.get_modelmeta().custom_metadata_map
    try:
        facts = {key: json.loads(found[key]) for key in (*PREPROCESSING, 'name', 'labels')}
        preprocess = Preprocessing(*(facts[key] for key in PREPROCESSING))
        (image,), (logits,) = session.get_inputs(), session.get_outputs()
        wanted, classes = facts['input_size'], len(facts['labels'])
        if image.name != 'image' or image.shape[1:] != wanted or logits.shape[1:] != [classes]:
            raise ValueError(f'it takes {image.name} {image.shape} and gives {logits.shape}, for an input of {wanted} and {classes} labels')
    except KeyError as error:
        raise ValueError(f'{path}: its metadata has no {error.args[0]}; make the file by igczoo export') from None
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise ValueError(f'{path}: is not as igczoo export writes it ({error}); make it anew') from None
    return facts['name'], tuple(facts['labels']), preprocess


def cached_export(name: str, before: Callable[[], None] = lambda: None) -> Path:
    """The ONNX file of a checkpoint, made by the first call and kept in the cache.

    Args:
        name: as for `igczoo.load`, of an installed checkpoint or a folder.
        before: called where it must be made, which takes some fifteen seconds.

    Raises:
        ValueError: as `igczoo.load`; or the name is of a repository on the hub, which would have to be asked each time.
        RuntimeError: as `igczoo.deployment.export.export`; or the cache cannot be written.
    """
    source, folder = resolve(name)
    if source.startswith('hf-hub:'):
        raise ValueError(f'{name}: is on the hub; igczoo export {name} -o FILE.onnx, and give --model FILE.onnx')
    files = [path for path in (folder / CONFIG, folder / WEIGHTS) if path.is_file()] if folder else []
    parts = map(sha256, files) if folder else [card_json(find_card(source))]    # which has the digest of the weights, or of their origin
    digest = hashlib.sha256('\0'.join([__version__, *parts]).encode()).hexdigest()
    cached = cache_folder('onnx') / f'{digest[:32]}.onnx'
    if not is_intact(cached):
        _runtime()      # or the export would name a file that nobody has asked for
        before()
        _export(name, cached)
    return cached


def _export(name: str, cached: Path) -> None:
    from ..deployment.export import export
    from .classifier import load
    classifier = load(name)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cached.with_suffix('.lock')), tempfile.TemporaryDirectory() as folder:
            if not is_intact(cached):       # another process has made it meanwhile
                fresh = Path(folder, cached.name)
                export(classifier, fresh)
                keep(cached, fresh.read_bytes())
    except OSError as error:
        raise RuntimeError(f'{cached.parent}: cannot be written ({error.strerror or error}); set XDG_CACHE_HOME to another folder, or '
                           f'igczoo export {name} -o FILE.onnx and give --model FILE.onnx') from None
