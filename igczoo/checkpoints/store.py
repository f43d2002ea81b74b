"""Weights: a card in, the path of a file with the card's digest out.

The candidates, in this order:
    bundled  weights/ of this installation
    cache    on this machine: a copy left by an earlier call, or by huggingface_hub itself
    hub      `<namespace>/<model>.<tag>` on the Hugging Face hub, at the card's revision or else at main
    origin   somebody else's file at a pinned URL, converted here; such a checkpoint is never on the hub

Only the digest decides: no ETag, revision or file name is believed. `shelves` says where the copies lie. HF_ENDPOINT, HF_HOME,
HF_HUB_CACHE, HF_ASSETS_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub.
"""
from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from huggingface_hub import constants

from ..files import replacing
from .card import Card, weights_folder
from .digests import git_blob_sha1, known_digest, sha256
from .download import DownloadError, NotThereError, WrongFileError, download
from .hub import download_from_hub, hub_repo
from .shelves import FILE, HubShelf, OriginShelf, assets, hub_cache
from .unpack import unpack

__all__ = ['SOURCES', 'Copy', 'StoreError', 'fetch', 'locate']

SOURCES = 'bundled', 'cache', 'hub', 'origin'
NAMESPACE = 'igczoo'        # on the hub, unless IGCZOO_HUB says otherwise
CONFIG = 'config.json'
SLACK = 1 << 20             # bytes of names and statistics that a file of weights has beside them, at most

Shelf = HubShelf | OriginShelf


class StoreError(RuntimeError):
    """No verified file; the message names the checkpoint, each source tried and why it failed, and what to do."""


class Copy(NamedTuple):
    source: str     # 'bundled', 'cache' or 'folder'
    path: Path
    state: str      # 'ok', 'wrong digest' or 'absent'

    @classmethod
    def found(cls, source: str, path: Path, expected: str | None, rehash: bool = False) -> Copy:
        """What is at ``path``, where a file with the sha256 ``expected`` should be; ``rehash`` as for `locate`."""
        digest = known_digest(path, expected, rehash)
        return cls(source, path, 'absent' if digest is None else 'ok' if digest == expected else 'wrong digest')


def fetch(card: Card, sources: Sequence[str] | None = None, cache_dir: str | Path | None = None, namespace: str | None = None) -> Path:
    """The path of a verified model.safetensors; what is not on this machine is fetched.

    Args:
        card: says what the file must be.
        sources: those of `SOURCES` that may be used; None: IGCZOO_SOURCES (a comma list), or all. With 'hub' or 'origin' the copy it left
            in the cache is used without a request; 'cache' alone means nothing but this machine.
        cache_dir: instead of huggingface_hub's; nothing is written outside.
        namespace: on the hub, instead of IGCZOO_HUB or else 'igczoo'.

    Raises:
        StoreError: no source has the file. Without a network that takes 10 s at most, with HF_HUB_OFFLINE=1 no time.
    """
    shelf, allowed = _shelf(card, cache_dir, namespace), _allowed(sources)
    home, from_home = ('origin', _from_origin) if card.origin else ('hub', _from_hub)
    readers = {'bundled': _from_bundled, 'cache': _from_cache, home: from_home}
    reasons = []
    for source, read in readers.items():
        try:
            if source in allowed:
                return read(shelf)
            reasons.append(f'{source}: not among the sources allowed, see IGCZOO_SOURCES')
        except DownloadError as error:
            reasons.append(f'{source}: {error}')
        except OSError as error:
            reasons.append(f'{source}: cannot use {error.filename or shelf.folder}: {error.strerror or error}')
    raise StoreError(f"no verified {FILE} of {card.name}: {'; '.join(reasons)}. Use pretrained=False for a network without weights, "
                     f"pretrained_cfg_overlay=dict(file='...') for a file of your own, or another tag (igczoo list).")


def locate(card: Card, cache_dir: str | Path | None = None, namespace: str | None = None, rehash: bool = False) -> list[Copy]:
    """The copies on this machine; nothing is fetched or removed.

    Args:
        rehash: read every byte again, whatever was found before.
    """
    shelf = _shelf(card, cache_dir, namespace)
    cached = [Copy.found('cache', path, shelf.expected, rehash) for path in shelf.copies()] or [Copy('cache', shelf.folder, 'absent')]
    return [Copy.found('bundled', weights_folder() / card.name / FILE, shelf.expected, rehash), *cached]


def _shelf(card: Card, cache_dir: str | Path | None, namespace: str | None) -> Shelf:
    digest = card.origin.digest if card.origin else card.sha256
    if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', digest or ''):
        raise StoreError(f'{card.name}: its card has neither a sha256 nor an origin with a digest to check a file by')
    if card.origin:
        return OriginShelf(card, assets(cache_dir))
    repo = hub_repo(namespace or os.environ.get('IGCZOO_HUB') or NAMESPACE, card.name, 'IGCZOO_HUB', StoreError)
    return HubShelf(card, repo, hub_cache(cache_dir))


def _from_bundled(shelf: Shelf) -> Path:
    path = weights_folder() / shelf.card.name / FILE
    found = known_digest(path, shelf.card.sha256)
    if found is None:
        raise DownloadError('not part of this installation')
    if found != shelf.card.sha256:
        raise DownloadError(f'{path} has sha256 {found}, not {shelf.card.sha256}; install igczoo again')
    return path


def _from_cache(shelf: Shelf) -> Path:
    path, bad = shelf.verified()
    if bad and path is None:
        with suppress(OSError), shelf.turn():   # a cache that cannot be written keeps it
            path, _ = shelf.verified(drop=True)
    if path is None:
        raise DownloadError('; '.join(bad) or f'no copy in {shelf.root}')
    return path


def _from_hub(shelf: HubShelf) -> Path:
    def bring(part: Path) -> None:
        card = shelf.card
        if card.size is None:
            raise DownloadError('the card gives no size to bound a download by')
        for revision in shelf.revisions:
            try:
                commit = download_from_hub(shelf.repo, FILE, revision, part, card.size, sha256, card.sha256)
            except NotThereError as error:
                missing = error
                continue
            shelf.put(part, card.sha256, FILE, commit, revision)
            return _bring_config(shelf, part, commit, revision)
        raise missing

    return _fill(shelf, bring)


def _bring_config(shelf: HubShelf, part: Path, commit: str | None, revision: str) -> None:
    """Bring the config.json too, by which timm's `hf-hub:` knows the model; igczoo itself has the card, and does without where it fails."""
    own = weights_folder() / shelf.card.name / CONFIG
    with suppress(DownloadError, FileNotFoundError):
        digest, size = git_blob_sha1(own), own.stat().st_size
        try:
            download_from_hub(shelf.repo, CONFIG, commit or revision, part, size, git_blob_sha1, digest)
            shelf.put(part, digest, CONFIG, commit, revision)
        finally:
            part.unlink(missing_ok=True)


def _from_origin(shelf: OriginShelf) -> Path:
    def bring(part: Path) -> None:
        card, origin = shelf.card, shelf.card.origin
        download(_mirrored(origin.url), part, origin.size or _most(card), _digest_of(card), origin.digest, {'User-Agent': 'igczoo'},
                 card.name, exact=origin.size is not None)
        try:
            if origin.unpacked_sha1:
                _unpack(part, card)
            _convert(part, card)
            shelf.put(part)
        finally:
            part.unlink(missing_ok=True)

    return _fill(shelf, bring)


def _fill(shelf: Shelf, bring: Callable[[Path], None]) -> Path:
    """The cached copy, put there by ``bring`` where there is none, in one process at a time."""
    path, _ = shelf.verified()
    if path is not None:
        return path
    if constants.HF_HUB_OFFLINE:
        raise DownloadError('HF_HUB_OFFLINE is set, so nothing was asked for; unset it to fetch the file')
    with shelf.turn() as part:
        path, _ = shelf.verified(drop=True)
        if path is not None:
            return path
        bring(part)
        path, bad = shelf.verified()
    if path is None:
        raise DownloadError('; '.join(bad))
    return path


def _most(card: Card) -> int:
    """Bytes that no file of the card's weights has more of: they are stored in float64 at most."""
    return 8 * card.params + SLACK


def _digest_of(card: Card) -> Callable[[Path], str]:
    """Gives what the card pins of its origin's file."""
    if card.origin.git_blob_sha1:
        return git_blob_sha1

    def digest(path: Path) -> str:
        try:
            return hashlib.sha1(_packed(path, card), usedforsecurity=False).hexdigest()
        except ValueError as error:
            raise WrongFileError(f'{card.origin.url} gave no zip of one file: {error}') from None

    return digest


def _packed(path: Path, card: Card) -> bytes:
    """The file in a zip, which is called as the zip is, less its suffix."""
    return unpack(path, urlsplit(card.origin.url).path.rpartition('/')[2].removesuffix('.zip'), _most(card))


def _unpack(part: Path, card: Card) -> None:
    """Replace a zip, whose content is verified, by the file in it."""
    data = _packed(part, card)
    with replacing(part) as beside:
        beside.write_bytes(data)


def _convert(part: Path, card: Card) -> None:
    """Replace the origin's file by the state dict converted from it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from .convert import convert_checkpoint
    try:
        with replacing(part) as beside:     # with the mode the umask asks for, so that a second user can read it
            save_file(convert_checkpoint(part, card.model, card.origin.converter), beside, metadata={'format': 'pt'})
    except (ValueError, SafetensorError) as error:
        raise DownloadError(f'cannot convert {card.origin.url} in {part.parent}: {error}') from None


def _allowed(sources: Sequence[str] | None) -> Sequence[str]:
    where = 'IGCZOO_SOURCES' if sources is None else 'sources'
    given = (os.environ.get('IGCZOO_SOURCES') or SOURCES) if sources is None else sources
    words = [word.strip() for word in given.split(',')] if isinstance(given, str) else list(given)
    if not words or set(words) - set(SOURCES):
        raise StoreError(f'{where} is {given!r}; it must be one or more of {", ".join(SOURCES)}')
    return words


def _mirrored(url: str) -> str:
    """An origin's URL, with the scheme and host of IGCZOO_ORIGIN where that is set."""
    mirror = os.environ.get('IGCZOO_ORIGIN')
    if not mirror:
        return url
    scheme, host = urlsplit(mirror)[:2]
    if scheme not in ('http', 'https') or not host:
        raise DownloadError(f'IGCZOO_ORIGIN is {mirror!r}; it must be a scheme and a host like http://localhost:8000')
    return urlsplit(url)._replace(scheme=scheme, netloc=host).geturl()
