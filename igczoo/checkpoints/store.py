"""Weights: a card in, the path of a file with the card's digest out.

The candidates, in this order:
    bundled  weights/ of this installation
    cache    in huggingface_hub's cache directory: a copy left by an earlier call, or by huggingface_hub itself
    hub      `<namespace>/<model>.<tag>` on the Hugging Face hub, at the card's revision or else at main
    origin   somebody else's file at a pinned URL, converted here; such a checkpoint is never on the hub

Only the digest decides: no ETag, revision or file name is believed. A file is read once and then known by its size, inode and times, which
a record beside the cached copy tells other processes. Our copies lie in `<cache>/models--igczoo/snapshots/<digest>/`, where `hf cache`
lists and removes them. HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE and HF_TOKEN mean what they mean to huggingface_hub.
"""
from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from huggingface_hub import constants, get_token, hf_hub_url, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..files import replacing
from .card import Card, weights_folder
from .download import DownloadError, NotThereError, download

__all__ = ['SOURCES', 'Copy', 'StoreError', 'check_safetensors', 'fetch', 'hub_headers', 'locate']

SOURCES = 'bundled', 'cache', 'hub', 'origin'
NAMESPACE = 'igczoo'        # on the hub, unless IGCZOO_HUB says otherwise
FILE = 'model.safetensors'
CONVERSION = 1              # raise it when `igczoo.checkpoints.convert` makes something else of the same origin
HEADER_LIMIT = 10 << 20     # bytes; the largest network here needs 30 kB
LOCK_PATIENCE = 30.         # seconds without progress of the process that holds the lock
CLOCK_TICK = 20_000_000     # nanoseconds; a file system's clock may stand still for less

_known: dict[Path, dict] = {}   # what this process has verified, as `_note` puts it


class StoreError(RuntimeError):
    """No verified file; the message names the checkpoint, each source tried and why it failed, and what to do."""


class Copy(NamedTuple):
    source: str     # 'bundled' or 'cache'
    path: Path
    state: str      # 'ok', 'wrong digest' or 'absent'


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
    shelf, allowed, home = _Shelf.of(card, cache_dir, namespace), _allowed(sources), 'origin' if card.origin else 'hub'
    readers = {'bundled': _from_bundled, 'cache': _from_cache, home: _from_origin if card.origin else _from_hub}
    reasons = []
    for source, read in readers.items():
        try:
            if source in allowed:
                return read(shelf)
            reasons.append(f'{source}: not among the sources allowed, see IGCZOO_SOURCES')
        except DownloadError as error:
            reasons.append(f'{source}: {error}')
        except OSError as error:
            reasons.append(f'{source}: cannot use {error.filename or shelf.cache}: {error.strerror or error}')
    raise StoreError(f"no verified {FILE} of {card.name}: {'; '.join(reasons)}. Use pretrained=False for a network without weights, "
                     f"pretrained_cfg_overlay=dict(file='...') for a file of your own, or another tag (igczoo list).")


def locate(card: Card, cache_dir: str | Path | None = None, namespace: str | None = None, rehash: bool = False) -> list[Copy]:
    """The copies on this machine; nothing is fetched or removed.

    Args:
        rehash: read every byte again, whatever is on record.
    """
    shelf = _Shelf.of(card, cache_dir, namespace)
    places = [('bundled', weights_folder() / card.name / FILE, None), *(('cache', path, shelf.record) for path in shelf.copies())]
    found = [(source, path, _digest(path, shelf.expected, record, rehash)) for source, path, record in places]
    return [Copy(source, path, 'absent' if digest is None else 'ok' if digest == shelf.expected else 'wrong digest')
            for source, path, digest in found]


def check_safetensors(path: str | Path) -> None:
    """Raise StoreError unless the file is whole, well-formed safetensors; the header's length is bounded before the header is parsed."""
    from safetensors import SafetensorError, safe_open
    size = os.path.getsize(path)
    with open(path, 'rb') as file:
        header = int.from_bytes(file.read(8), 'little')
    if not 2 <= header <= min(size - 8, HEADER_LIMIT):
        raise StoreError(f'{path} is no safetensors file: it has {size:,} bytes and claims a header of {header:,}')
    try:
        with safe_open(path, 'pt'):
            pass
    except SafetensorError as error:
        raise StoreError(f'{path} is no safetensors file: {error}') from None


@dataclass(frozen=True)
class _Shelf:
    """Where the cached copies of one checkpoint are."""
    card: Card
    cache: Path
    repo: str       # on the hub

    @classmethod
    def of(cls, card: Card, cache_dir: str | Path | None, namespace: str | None) -> _Shelf:
        digest = card.origin.git_blob_sha1 if card.origin else card.sha256
        if not re.fullmatch('[0-9a-f]{40}|[0-9a-f]{64}', digest or ''):
            raise StoreError(f'{card.name}: its card has neither a sha256 nor an origin with a git_blob_sha1 to check a file by')
        repo = f'{namespace or os.environ.get("IGCZOO_HUB") or NAMESPACE}/{card.name}'
        try:
            validate_repo_id(repo)
        except HFValidationError as error:
            raise StoreError(f'{repo!r} is no name of a hub repository, see IGCZOO_HUB: {error}') from None
        return cls(card, Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute(), repo)

    @property
    def folder(self) -> Path:
        """Of our own copy. What the digest names cannot be changed by another card, nor another version of it."""
        key = f'{self.card.origin.git_blob_sha1}-{CONVERSION}' if self.card.origin else self.card.sha256
        return self.cache / 'models--igczoo' / 'snapshots' / key

    @property
    def record(self) -> Path:
        return self.folder / 'verified.json'

    @property
    def expected(self) -> str:
        """The sha256 a copy must have; a converted one's is the one on record."""
        return self.card.sha256 or str(_read_note(self.record).get('sha256', ''))

    @property
    def revisions(self) -> dict[str, None]:
        """Of the hub's repository; a mirror under another namespace has other commits, hence main."""
        return dict.fromkeys([self.card.revision or 'main', 'main'])

    def copies(self) -> Iterator[Path]:
        """Ours, then huggingface_hub's: of the revisions asked for, then of any other that somebody has fetched."""
        yield self.folder / FILE
        if self.card.origin:
            return
        found = (try_to_load_from_cache(self.repo, FILE, cache_dir=self.cache, revision=revision) for revision in self.revisions)
        snapshots = self.cache / repo_folder_name(repo_id=self.repo, repo_type='model') / 'snapshots'
        yield from dict.fromkeys(Path(path) for path in (*found, *sorted(snapshots.glob(f'*/{FILE}'))) if isinstance(path, str | Path))

    def verified(self, drop: bool = False) -> tuple[Path | None, list[str]]:
        """A good copy or None, and what is wrong with the others; those are removed where ``drop``."""
        expected, bad = self.expected, []
        for path in self.copies():
            try:
                found = _digest(path, expected, self.record)
            except OSError as error:    # of another user, who keeps it to himself
                bad.append(f'{path} cannot be read: {error.strerror}')
                continue
            if found and found == expected:
                return path, bad
            if found is not None:
                bad.append(f'{path} had sha256 {found}, not {expected}')
                if drop and path.resolve().name != found:   # else it is another version, whole, that huggingface_hub keeps
                    self._remove(path)
        return None, bad

    def _remove(self, path: Path | None) -> None:
        """Remove a bad copy; huggingface_hub's is a link, whose targets go too as far as they are in the cache."""
        while path and self.cache in path.parents:
            target = Path(os.path.abspath(path.parent / os.readlink(path))) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            path = target

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Wait for the lock of the folder; gives the partial file that only its holder writes."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock, part = FileLock(self.folder / 'lock'), self.folder / 'part'
        while not lock.is_locked:
            seen = _stamp(part)
            try:
                lock.acquire(timeout=LOCK_PATIENCE)
            except Timeout:
                if _stamp(part) == seen:
                    raise DownloadError(f'another process holds {lock.lock_file} and has not got on for {LOCK_PATIENCE:g} s; end it, or '
                                        f'give another cache_dir') from None
        try:
            yield part
        except OSError:     # a full disk: give the room back
            part.unlink(missing_ok=True)
            raise
        finally:
            lock.release()


def _from_bundled(shelf: _Shelf) -> Path:
    path = weights_folder() / shelf.card.name / FILE
    found = _digest(path, shelf.card.sha256)
    if found is None:
        raise DownloadError('not part of this installation')
    if found != shelf.card.sha256:
        raise DownloadError(f'{path} has sha256 {found}, not {shelf.card.sha256}; install igczoo again')
    return path


def _from_cache(shelf: _Shelf) -> Path:
    path, bad = shelf.verified()
    if bad and path is None:
        with suppress(OSError), shelf.turn():   # a cache that cannot be written keeps it
            path, _ = shelf.verified(drop=True)
    if path is None:
        raise DownloadError('; '.join(bad) or f'no copy in {shelf.cache}')
    return path


def _from_hub(shelf: _Shelf) -> Path:
    def bring(part: Path) -> None:
        card, headers = shelf.card, hub_headers()
        if card.size is None:
            raise DownloadError('the card gives no size to bound a download by')
        for revision in shelf.revisions:
            url = hf_hub_url(shelf.repo, FILE, revision=revision, endpoint=constants.ENDPOINT)
            try:
                return download(url, part, card.size, _sha256, card.sha256, headers, card.name)
            except NotThereError as error:
                missing = error
        raise missing

    return _fill(shelf, bring)


def hub_headers() -> dict[str, str]:
    """The headers of a request to the hub; huggingface_hub's own function for that asks the hub for something else first, unbounded."""
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {'User-Agent': 'igczoo'} | (dict(authorization=f'Bearer {token}') if token else {})


def _from_origin(shelf: _Shelf) -> Path:
    def bring(part: Path) -> None:
        origin, headers = shelf.card.origin, {'User-Agent': 'igczoo'}
        download(_mirrored(origin.url), part, origin.size, _git_blob_sha1, origin.git_blob_sha1, headers, shelf.card.name)
        _convert(part, shelf.card)

    return _fill(shelf, bring)


def _fill(shelf: _Shelf, bring: Callable[[Path], None]) -> Path:
    """The cached copy, made by ``bring`` where there is none, in one process at a time."""
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
        with open(part, 'rb+') as file:
            os.fsync(file.fileno())
        if not shelf.card.sha256:   # before the file: a converted one without its digest on record counts as bad
            _write_note(shelf.record, {'sha256': _sha256(part)})
        os.replace(part, shelf.folder / FILE)
        path, bad = shelf.verified()
    if path is None:
        raise DownloadError('; '.join(bad))
    return path


def _convert(part: Path, card: Card) -> None:
    """Replace the origin's file by the state dict converted from it."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    from .convert import convert_checkpoint
    try:
        if card.origin.converter != 'mxnet':
            raise ValueError(f'there is no converter {card.origin.converter!r}')
        with replacing(part) as beside:     # with the mode the umask asks for, so that a second user can read it
            save_file(convert_checkpoint(part, card.model), beside, metadata={'format': 'pt'})
            check_safetensors(beside)
    except (ValueError, SafetensorError, StoreError) as error:
        raise DownloadError(f'cannot convert {card.origin.url}: {error}') from None


def _digest(path: Path, expected: str | None, record: Path | None = None, rehash: bool = False) -> str | None:
    """A file's sha256; None: no file. A file that had the expected one is read again only where its identity has changed."""
    stamp = _stamp(path)
    if stamp is None:
        return None
    note = {'sha256': expected, 'file': stamp}
    if expected and not rehash and note in (_known.get(path), _read_note(record)):
        return expected
    found = _sha256(path)
    if found == expected:
        if abs(time.time_ns() - stamp[-1]) < CLOCK_TICK:
            time.sleep(CLOCK_TICK / 1e9)    # from now on any write gives the file another time
        if _stamp(path) == stamp:
            _known[path] = note
            with suppress(OSError):     # a cache that cannot be written goes without
                if record and _read_note(record) != note:
                    _write_note(record, note)
    return found


def _stamp(path: Path) -> list | None:
    """What changes with a file's content: a write that puts st_mtime back still moves st_ctime. None: no file."""
    try:
        stat = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return [str(path), stat.st_size, stat.st_ino, stat.st_mtime_ns, stat.st_ctime_ns]


def _hash(path: Path, digest) -> str:
    with open(path, 'rb') as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    return _hash(path, hashlib.sha256())


def _git_blob_sha1(path: Path) -> str:
    return _hash(path, hashlib.sha1(b'blob %d\0' % path.stat().st_size, usedforsecurity=False))


def _read_note(record: Path | None) -> dict:
    try:
        note = json.loads(record.read_bytes()) if record else {}
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def _write_note(record: Path, note: dict) -> None:
    record.parent.mkdir(parents=True, exist_ok=True)
    with replacing(record) as beside:
        beside.write_text(json.dumps(note), encoding='utf-8')


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
