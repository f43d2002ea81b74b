"""Checkpoints of other frameworks as state dicts of the models here."""
from __future__ import annotations

import os
import tempfile
from pathlib import Path

from timm.data import ImageNetInfo
from timm.models import save_for_hf
from torch import Tensor

from ...nets.families import build, timm_cfg
from .igc import MODELS, to_state_dict
from .mxnet import read_params

__all__ = ['MODELS', 'convert_checkpoint', 'convert_folder', 'read_params']


def convert_checkpoint(path: str | os.PathLike, model_name: str) -> dict[str, Tensor]:
    """The state dict of ``model_name`` from one of the authors' MXNet checkpoints (`*.params`).

    Args:
        path: of the .params file, in any of the three formats MXNet has written.
        model_name: the architecture the file was trained as, one of `MODELS`.

    Returns:
        Every key of the architecture, float32 (batch counters int64) on the CPU; `load_state_dict` takes it strictly.

    Raises:
        ValueError: another model name, a damaged file, or a file that does not hold exactly this model's arrays.
        OSError: the file cannot be read.
    """
    if model_name not in MODELS:
        raise ValueError(f'there is no conversion to {model_name!r}; there is one to each of {", ".join(MODELS)}')
    arrays = read_params(path)
    model = build(model_name, device='meta')
    try:
        return to_state_dict(arrays, MODELS[model_name], model)
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
    out = Path(out)
    if out.exists():
        raise ValueError(f'{out} exists; name a folder that does not')
    state_dict = convert_checkpoint(path, model_name)
    model = build(model_name)
    model.load_state_dict(state_dict)
    model.pretrained_cfg = {'architecture': model_name, 'tag': 'in1k', **timm_cfg(model_name)}
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent) as beside:
        whole = Path(beside) / 'whole'
        save_for_hf(model, whole, model_config={'label_names': ImageNetInfo().label_descriptions()}, safe_serialization=True)
        os.replace(whole, out)
    return out
