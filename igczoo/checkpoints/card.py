"""Cards: one record a checkpoint, from which timm's cfg, config.json, the model card and the README's table are made.

The fields of `Card` are the schema of weights/<model>.<tag>/card.json.
"""
from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from ..files import replacing

__all__ = [
    'Accuracy', 'Card', 'CardError', 'Comparison', 'Origin', 'Preprocess', 'Trained', 'card_json', 'cards', 'find_card', 'list_models',
    'read_card', 'weights_folder', 'write_card',
]


class CardError(ValueError):
    """A card that cannot be read, or a name that is no card's."""


@dataclass(frozen=True)
class Preprocess:
    """How an image becomes the network's input, in the terms of timm's data config."""
    input_size: tuple[int, int, int]    # channels, height, width; pixels
    mean: tuple[float, float, float]    # of R, G, B in 0..1
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float                     # of the resized image's side that the crop keeps
    crop_mode: str = 'center'


@dataclass(frozen=True)
class Accuracy:
    """A measured accuracy, or a printed one."""
    dataset: str
    split: str
    by: str                             # 'igczoo' where `igczoo evaluate` gave it, else who printed it
    top1: float                         # per cent
    top5: float | None = None
    n: int | None = None                # images
    top1_interval: tuple[float, float] | None = None    # 95 %, Wilson score
    note: str = ''


@dataclass(frozen=True)
class Origin:
    """A file of somebody else's that the weights are converted from; one of the two digests pins it."""
    url: str
    by: str                             # whose file it is
    converter: str                      # 'mxnet' or 'pytorchcv'
    git_blob_sha1: str | None = None    # of the file
    unpacked_sha1: str | None = None    # of the one file in it, a zip that nobody has published the digest of
    size: int | None = None             # bytes of the file, where somebody has told

    @property
    def digest(self) -> str | None:
        return self.git_blob_sha1 or self.unpacked_sha1


@dataclass(frozen=True)
class Trained:
    """A net as a schedule has trained it."""
    model: str                          # architecture
    top1: float                         # per cent, that the run's log has for its last epoch
    epoch_seconds: float                # that an epoch of training takes
    log: str                            # the run's log, a file beside the card


@dataclass(frozen=True)
class Comparison:
    """Nets for the card's classes and input size, trained by one schedule."""
    conditions: str                     # what the schedule is, what top1 is of, and how epoch_seconds were measured
    epochs: int                         # of each log that are the schedule
    nets: tuple[Trained, ...]


@dataclass(frozen=True)
class Card:
    """Everything there is to say about one checkpoint."""
    model: str                          # architecture
    tag: str                            # what it was trained on
    title: str                          # one line: the paper's name of the net, and the data
    params: int                         # trainable
    macs: int                           # multiply-adds of one image of input_size: convolutions and the classifier
    labels: tuple[str, ...] | str       # the name of each class, or 'imagenet-1k'
    preprocess: Preprocess
    accuracy: tuple[Accuracy, ...]
    license: str
    terms: str                          # what the data ask of those who use the weights
    provenance: str                     # who trained it, on what, how
    limits: str                         # what it is not good for
    sha256: str | None = None           # of model.safetensors; None where it is made from the origin
    size: int | None = None             # bytes of model.safetensors
    dtype: str = 'float32'              # of the stored weights
    revision: str | None = None         # commit of the hub's repository, once published
    origin: Origin | None = None
    label_ids: tuple[str, ...] | None = None        # WordNet ids, where the classes have them
    imagenet_indices: tuple[int, ...] | None = None  # ImageNet-1k class numbers, likewise
    recipe: str | None = None           # the recipe it was trained by
    base: str | None = None             # what it was trained from, where that was its user's doing and not this package's
    comparison: Comparison | None = None
    default: bool = False               # what the bare architecture's name means

    @property
    def name(self) -> str:
        return f'{self.model}.{self.tag}'

    @property
    def num_classes(self) -> int:
        return 1000 if self.labels == 'imagenet-1k' else len(self.labels)


def weights_folder() -> Path:
    """Where this installation keeps weights/: inside the package of a wheel, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside = package / 'weights'
    return inside if inside.is_dir() else package.parent / 'weights'


@cache
def cards() -> dict[str, Card]:
    """Every card of this installation by name, default checkpoints first; of folders called as their checkpoints, for a user's are not."""
    found = [card for path in sorted(weights_folder().glob('*.*/card.json')) if (card := read_card(path)).name == path.parent.name]
    return {card.name: card for card in sorted(found, key=lambda card: (not card.default, card.name))}


def list_models() -> list[str]:
    """The names of all checkpoints, 'arch.tag', in alphabetical order."""
    return sorted(cards())


def find_card(name: str) -> Card:
    """The card of a checkpoint 'arch.tag', or of an architecture's default one.

    Raises:
        CardError: there is none; the message lists those there are, and first those of a similar name.
    """
    for card in cards().values():
        if name == card.name or (name == card.model and card.default):
            return card
    tags = [card.name for card in cards().values() if card.model == name]
    if tags:
        raise CardError(f'{name} has no default checkpoint; name one of {", ".join(tags)}')
    near = get_close_matches(name, list_models())
    meant = f'did you mean {" or ".join(near)}? All there are: ' if near else 'there are '
    raise CardError(f'{name!r} is no checkpoint; {meant}{", ".join(list_models())}')


def read_card(path: str | os.PathLike) -> Card:
    """Read a card.json.

    Raises:
        CardError: the file is not there, is no JSON, or its fields are not those of `Card`; the message names the file and the field.
    """
    try:
        card = _from_json(Card, json.loads(Path(path).read_text(encoding='utf-8'), parse_constant=_refuse_constant), 'card')
        _check(card)
        return card
    except FileNotFoundError:
        raise CardError(f'{path}: there is no such file; name a folder that igczoo finetune, train or convert made') from None
    except OSError as error:
        raise CardError(f'{path}: cannot be read: {error.strerror}') from None
    except RecursionError:
        raise CardError(f'{path}: is nested too deeply; a card is a record of a few levels') from None
    except (ValueError, TypeError) as error:
        raise CardError(f'{path}: {" ".join(str(error).split())[:500]}') from None


def _refuse_constant(name: str) -> None:
    raise ValueError(f'it has {name}, which is no number')


def _check(card: Card) -> None:
    """Raise ValueError where a field's value can be of no checkpoint; the message names the field."""
    preprocess = card.preprocess
    for field in ('model', 'tag'):
        if not re.fullmatch(r'[A-Za-z0-9_][A-Za-z0-9_-]*', value := getattr(card, field)):
            raise ValueError(f'card.{field} is {value!r}; it must be of letters, digits, _ and -, for it is part of a name and of a path')
    if isinstance(card.labels, str) and card.labels != 'imagenet-1k':
        raise ValueError(f"card.labels is {card.labels!r}; it must be a list of names, or 'imagenet-1k'")
    if not card.labels:
        raise ValueError('card.labels is empty; it must name each class')
    for field in ('label_ids', 'imagenet_indices'):
        if (values := getattr(card, field)) is not None and len(values) != card.num_classes:
            raise ValueError(f'card.{field} has {len(values)} entries for {card.num_classes} classes; it must have one for each')
    if min(preprocess.input_size) < 1:
        raise ValueError(f'card.preprocess.input_size is {preprocess.input_size}; its numbers must be at least 1')
    if not min(preprocess.std) > 0:
        raise ValueError(f'card.preprocess.std is {preprocess.std}; its numbers must be above 0')
    if not 0 < preprocess.crop_pct <= 1:
        raise ValueError(f'card.preprocess.crop_pct is {preprocess.crop_pct}; it must be above 0 and at most 1')
    if card.origin and bool(card.origin.git_blob_sha1) == bool(card.origin.unpacked_sha1):
        raise ValueError('card.origin must have either a git_blob_sha1 or an unpacked_sha1, and not both')
    for field in ('params', 'macs', 'size'):
        if (value := getattr(card, field)) is not None and value < 1:
            raise ValueError(f'card.{field} is {value}; it must be at least 1')


def write_card(card: Card, path: str | os.PathLike) -> None:
    """Write a card.json that `read_card` gives back equal, without fields that keep their default."""
    with replacing(path) as beside:
        beside.write_text(card_json(card), encoding='utf-8', errors='backslashreplace')      # of names that are not UTF-8


def card_json(card: Card) -> str:
    """What `write_card` writes."""
    return json.dumps(_to_json(card), indent=1, ensure_ascii=False) + '\n'


def _to_json(record: Any) -> Any:
    if dataclasses.is_dataclass(record):
        kept = [field for field in dataclasses.fields(record) if getattr(record, field.name) != field.default]
        return {field.name: _to_json(getattr(record, field.name)) for field in kept}
    return [_to_json(item) for item in record] if isinstance(record, tuple) else record


def _from_json(wanted: Any, value: Any, where: str) -> Any:
    """Build what the annotation ``wanted`` says from JSON; a TypeError says where it does not fit."""
    kinds = get_args(wanted) if isinstance(wanted, UnionType) else (wanted,)
    kind = next((kind for kind in kinds if type(value) in _json_types(kind)), None)
    if dataclasses.is_dataclass(kind):
        return _record_from_json(kind, value, where)
    if get_origin(kind) is tuple:
        items = get_args(kind)
        items = items[:1] * len(value) if items[-1] is Ellipsis else items
        if len(items) == len(value):
            return tuple(_from_json(item, element, f'{where}[{i}]') for i, (item, element) in enumerate(zip(items, value, strict=True)))
    elif kind is not None:
        return _finite(value, where) if kind is float else value
    raise TypeError(f'{where} is {value!r}; it must be {wanted if get_args(wanted) else wanted.__name__}')


def _finite(value: float, where: str) -> float:
    try:
        number = float(value)
    except OverflowError:
        raise ValueError(f'{where} is beyond every float; it must be finite') from None
    if not math.isfinite(number):     # 1e999
        raise ValueError(f'{where} is {number}; it must be finite')
    return number


def _json_types(kind: Any) -> tuple[type, ...]:
    """What `json` makes of a value of this kind."""
    if dataclasses.is_dataclass(kind):
        return (dict,)
    return (list,) if get_origin(kind) is tuple else (int, float) if kind is float else (kind,)


def _record_from_json(kind: Any, value: dict[str, Any], where: str) -> Any:
    hints = get_type_hints(kind)
    required = {field.name for field in dataclasses.fields(kind) if field.default is dataclasses.MISSING}
    if missing := sorted(required - set(value)):
        raise TypeError(f'{where} lacks {", ".join(missing)}')
    if unknown := sorted(set(value) - set(hints)):
        raise TypeError(f'{where} has an unknown {", ".join(unknown)}; there are {", ".join(hints)}')
    return kind(**{name: _from_json(hints[name], item, f'{where}.{name}') for name, item in value.items()})
