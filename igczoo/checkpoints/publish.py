"""A checkpoint onto the Hugging Face hub: check it, upload it, fetch it back, and only then write its commit into the card.

HF_TOKEN and HF_ENDPOINT mean what they mean to huggingface_hub.
"""
from __future__ import annotations

import hashlib
import re
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import shorten

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError  # of the HTTP library that this version of huggingface_hub uses
from safetensors import SafetensorError
from safetensors.torch import load

from .card import Card, card_json, cards, find_card, read_card, weights_folder, write_card
from .digests import sha256
from .download import DownloadError
from .folder import CARD, resolve
from .hub import download_from_hub, hub_repo
from .model_card import config_json, count_params, model_card, net_of
from .store import StoreError, fetch

__all__ = ['File', 'Publication', 'PublishError', 'publish']

WEIGHTS = 'model.safetensors'


class PublishError(RuntimeError):
    """Not published, or not verified; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class File:
    name: str
    size: int       # bytes
    sha256: str


@dataclass(frozen=True)
class Publication:
    """What a repository of the hub gets."""
    repo: str
    files: tuple[File, ...]
    revision: str | None = None     # the commit that has them; None where nothing was uploaded


def publish(card: Card | str, to: str, dry_run: bool = True) -> Publication:
    """Check a checkpoint and, unless ``dry_run``, publish it as the repository `<to>/<model>.<tag>`.

    The upload is one commit of model.safetensors, of config.json and README.md made from the card, and of card.json without a revision;
    other files of the repository stay. Each file is fetched again at that commit, the weights by the store, and only where all have the
    right bytes the commit goes into the card. Where the repository has the same files already no commit is made.

    Args:
        card: of the folder in weights/, or its name as `find_card` takes it, or a folder that training left.
        to: a user or an organisation on the hub.
        dry_run: check only; no request is made.

    Raises:
        CardError: there is no such card, or it cannot be read.
        PublishError: the weights are somebody else's or not what the card says, the hub refuses, or gives other bytes back. Unless the
            message says otherwise the card is as it was.
    """
    folder = None if isinstance(card, Card) else resolve(card)[1]
    path = (folder or weights_folder() / (card if isinstance(card, Card) else find_card(card)).name) / CARD
    found = read_card(path)
    if isinstance(card, Card) and card != found:
        raise PublishError(f'{path} is not the card given; write that one there first, or give the name {card.name!r}')
    repo = hub_repo(to, found.name, 'the user or organisation given', PublishError)
    contents = _contents(found, path.parent)
    files = tuple(File(name, len(data), _sha256(data)) for name, data in contents.items())
    if dry_run:
        return Publication(repo, files)
    revision = _upload(repo, contents)
    pinned = replace(found, revision=revision)
    _verify(pinned, to, repo, files)
    try:
        write_card(pinned, path)
    except OSError as error:
        raise PublishError(f'{repo} is published and verified, but {path} cannot be written ({error.strerror}): '
                           f'put in the revision {revision}') from None
    cards.cache_clear()
    return Publication(repo, files, revision)


def _contents(card: Card, folder: Path) -> dict[str, bytes]:
    """The files to upload, checked."""
    if card.origin:
        raise PublishError(f'{card.name} cannot be published: its weights are somebody else\'s ({card.origin.url}), licence {card.license}')
    try:
        weights = (folder / WEIGHTS).read_bytes()
    except OSError as error:
        raise PublishError(f'{folder / WEIGHTS}: cannot be read: {error.strerror}') from None
    try:
        _check_weights(card, weights)
    except (ValueError, RuntimeError, SafetensorError) as error:
        raise PublishError(f'{folder / WEIGHTS} is not what its card says: {shorten(str(error), 400)}') from None
    texts = {'config.json': config_json(card), 'README.md': model_card(card), 'card.json': card_json(replace(card, revision=None))}
    return {WEIGHTS: weights} | {name: text.encode(errors='backslashreplace') for name, text in texts.items()}


def _check_weights(card: Card, weights: bytes) -> None:
    """Raise ValueError, RuntimeError or SafetensorError unless size, digest, keys, shapes, dtype and count are the card's."""
    if (len(weights), _sha256(weights)) != (card.size, card.sha256):
        raise ValueError(f'it has {len(weights)} bytes and sha256 {_sha256(weights)}, not {card.size} and {card.sha256}')
    tensors = load(weights)
    model = net_of(card)
    model.load_state_dict(tensors, assign=True)
    dtypes = {str(tensor.dtype).removeprefix('torch.') for tensor in tensors.values() if tensor.is_floating_point()}
    if dtypes != {card.dtype}:
        raise ValueError(f'its tensors are {", ".join(sorted(dtypes))}, not {card.dtype}')
    if count_params(model) != card.params:
        raise ValueError(f'it has {count_params(model)} parameters, not {card.params}')


def _upload(repo: str, contents: dict[str, bytes]) -> str:
    """Make one commit of the files; its oid."""
    api = HfApi(library_name='igczoo')
    try:
        api.create_repo(repo, exist_ok=True)
        operations = [CommitOperationAdd(name, data) for name, data in contents.items()]
        revision = api.create_commit(repo, operations, commit_message=f'igczoo publish: {", ".join(contents)}').oid
    except (HTTPError, OSError, ValueError, RuntimeError) as error:
        reason = error.__cause__ or error if isinstance(error, RuntimeError) else error     # huggingface_hub wraps what stops a large file
        status = getattr(getattr(reason, 'response', None), 'status_code', None)
        if status in (401, 403):
            raise PublishError(f'{repo}: the hub refuses (HTTP {status}); set HF_TOKEN to a token that may write there') from None
        raise PublishError(f'{repo}: the upload failed ({type(reason).__name__}: {shorten(str(reason), 400)}); try again') from error
    if not re.fullmatch('[0-9a-f]{40}', revision):
        raise PublishError(f'{repo}: the hub calls the commit {revision!r}, which is no revision to pin')
    return revision


def _verify(card: Card, to: str, repo: str, files: tuple[File, ...]) -> None:
    """Fetch every file again at the card's revision, the weights as users get them."""
    try:
        with tempfile.TemporaryDirectory() as cache:
            fetch(card, sources=['hub'], cache_dir=cache, namespace=to)
            for file in files:
                if file.name != WEIGHTS:
                    download_from_hub(repo, file.name, card.revision, Path(cache) / file.name, file.size, sha256, file.sha256)
    except (StoreError, DownloadError, OSError) as error:
        raise PublishError(f'{repo} at {card.revision} could not be verified, so the card stays as it was: {error}') from None


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
