"""A folder that training leaves: a checkpoint like those of weights/, which igczoo, timm's local-dir: and transformers load."""
from __future__ import annotations

import hashlib
import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..files import replacing
from .card import Card, CardError, find_card, read_card, write_card
from .digests import sha256

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ['CARD', 'CONFIG', 'WEIGHTS', 'folder_card', 'folder_path', 'folder_to_make', 'resolve', 'tag_for', 'write_checkpoint']

CARD, CONFIG, README, WEIGHTS = 'card.json', 'config.json', 'README.md', 'model.safetensors'


def write_checkpoint(folder: str | os.PathLike, card: Card, weights: dict[str, Tensor]) -> Card:
    """Write model.safetensors, config.json, README.md and at last card.json into ``folder``; each is whole or not there.

    Returns:
        The card with the size and digest of the weights, as it was written.
    """
    from safetensors.torch import save_file

    from .model_card import config_json, model_card  # here, for both import torch, and who looks at a folder need not wait for that
    folder = Path(folder)
    with replacing(folder / WEIGHTS) as file:
        save_file({key: value.detach().cpu().contiguous() for key, value in weights.items()}, file, metadata={'format': 'pt'})
    card = replace(card, size=(folder / WEIGHTS).stat().st_size, sha256=sha256(folder / WEIGHTS))
    for name, text in ((CONFIG, config_json(card)), (README, model_card(card))):
        with replacing(folder / name) as file:
            file.write_text(text, encoding='utf-8', errors='backslashreplace')      # of names that are not UTF-8
    write_card(card, folder / CARD)
    return card


def folder_path(name: str | os.PathLike) -> Path:
    """The folder that a name means, which may begin with timm's 'local-dir:' or with ~."""
    return Path(os.fspath(name).removeprefix('local-dir:')).expanduser()


def folder_to_make(name: str | os.PathLike) -> Path:
    """The folder that a checkpoint is to be written to, which may begin with ~.

    Raises:
        ValueError: a checkpoint of this package is called so, which the name would mean wherever one is loaded.
    """
    try:
        known = find_card(os.fspath(name))
    except CardError:
        return Path(name).expanduser()
    raise ValueError(f'{name}: is the name of the checkpoint {known.name}; give the folder another')


def resolve(name: str) -> tuple[str, Path | None]:
    """What timm calls the model that ``name`` means, and its folder if it is in one; the folder need not be there.

    Raises:
        CardError: it is no folder's name, and no checkpoint's; the message lists those there are.
    """
    if name.startswith('hf-hub:'):
        return name, None
    if name.endswith('.onnx'):
        raise CardError(f'{name}: is taken by igczoo classify and igczoo evaluate only; name the checkpoint that it was exported from')
    path = folder_path(name)
    if name.startswith('local-dir:') or len(path.parts) > 1:
        return f'local-dir:{path}', path
    try:
        return find_card(name).name, None
    except CardError:
        if name and path.is_dir():      # Path('') is the current folder
            return f'local-dir:{path}', path
        raise


def folder_card(name: str | os.PathLike) -> Card | None:
    """The card in a folder; None where ``name`` is no folder with one.

    Raises:
        CardError: there is one that cannot be read.
    """
    path = folder_path(name) / CARD
    return read_card(path) if os.fspath(name) and path.is_file() else None


def tag_for(folder: str | os.PathLike) -> str:
    """The folder's name as a card's tag, which may end a repository's name: letters, digits, _ and single - between them only.

    Names in other letters, which would be one, get a few digits of their digest.
    """
    name = Path(folder).resolve().name
    digest = '' if name.isascii() else f'_{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}'
    return re.sub('-+', '-', re.sub(r'[^A-Za-z0-9_-]+', '_', name) + digest).strip('-') or 'mine'
