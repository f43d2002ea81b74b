"""Checkpoints of other frameworks as state dicts of the models here."""
from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import Tensor

from ...nets.families import build, timm_cfg
from ..card import cards
from ..folder import CONFIG, WEIGHTS, folder_to_make
from . import igc, igcv3
from .keys import to_state_dict
from .mxnet import read_params
from .pytorchcv import read_pth

__all__ = ['SOURCES', 'convert_checkpoint', 'convert_folder', 'read_params']


class Source(NamedTuple):
    read: Callable[[str | os.PathLike], dict[str, np.ndarray]]
    models: dict[str, tuple[tuple[str, str, str], ...]]     # architecture -> what its modules are called


SOURCES = {
    'mxnet': Source(read_params, igc.CHECKPOINTS | igcv3.CHECKPOINTS),      # of the papers' authors
    'pytorchcv': Source(read_pth, igcv3.PYTORCHCV),
}


def convert_checkpoint(path: str | os.PathLike, model_name: str, source: str | None = None) -> dict[str, Tensor]:
    """The state dict of ``model_name`` from an MXNet checkpoint of the authors (`*.params`), or one of pytorchcv (`*.pth`, unzipped).

    Args:
        path: of the file; a .params file may be in any of the three formats MXNet has written, a .pth file in either of PyTorch's.
        model_name: the architecture the file was trained as, one of those that `SOURCES` has for the source.
        source: 'mxnet' or 'pytorchcv'; None goes by the file's name.

    Returns:
        Every key of the architecture, float32 (batch counters int64) on the CPU; `load_state_dict` takes it strictly.

    Raises:
        ValueError: another model name or source, a damaged file, or a file that does not hold exactly this model's arrays.
        OSError: the file cannot be read.
    """
    source = _source_of(path) if source is None else source
    if source not in SOURCES:
        raise ValueError(f'there is no converter {source!r}; there is one from each of {", ".join(SOURCES)}')
    read, models = SOURCES[source]
    if model_name not in models:
        raise ValueError(f'there is no conversion to {model_name!r} from {source}; there is one to each of {", ".join(models)}')
    arrays = read(path)
    model = build(model_name, device='meta')
    try:
        return to_state_dict(arrays, models[model_name], model)
    except ValueError as error:
        raise ValueError(f'{os.fspath(path)} is not a checkpoint of {model_name}: {error}') from None


def convert_folder(path: str | os.PathLike, model_name: str, out: str | os.PathLike) -> Path:
    """Convert a checkpoint to a folder of config.json and model.safetensors, as timm's local-dir: and the hub have it.

    Args:
        path, model_name: as for `convert_checkpoint`.
        out: the folder to make.

    Raises:
        ValueError, OSError: as `convert_checkpoint`, or ``out`` exists; no folder is left.
    """
    out = folder_to_make(out)
    if out.exists():
        raise ValueError(f'{out} exists; name a folder that does not')
    state_dict = convert_checkpoint(path, model_name)
    model = build(model_name)
    model.load_state_dict(state_dict)
    model.pretrained_cfg = {'architecture': model_name, **_cfg(model_name, _source_of(path))}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        whole = Path(beside) / 'whole'
        save_for_hf(model, whole, model_config={'label_names': ImageNetInfo().label_descriptions()}, safe_serialization=True)
        (whole / WEIGHTS).chmod((whole / CONFIG).stat().st_mode)       # safetensors lets nobody else read it, whatever the umask says
        os.replace(whole, out)
    return out


def _source_of(path: str | os.PathLike) -> str:
    name = os.fspath(path)
    if name.endswith('.zip'):
        raise ValueError(f'{name} is a zip; unpack it and give the file in it')
    return 'pytorchcv' if name.endswith('.pth') else 'mxnet'


def _cfg(model_name: str, source: str) -> dict[str, Any]:
    """The tag and preprocessing of the card of that net and source, or where there is none those of the net."""
    for card in cards().values():
        if card.model == model_name and card.origin and card.origin.converter == source:
            return {'tag': card.tag, **timm_cfg(model_name, **asdict(card.preprocess))}
    return {'tag': 'in1k', **timm_cfg(model_name)}
