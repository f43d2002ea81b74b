"""Where the copies of a checkpoint lie on this machine, and how one is put there.

What comes from the hub lies where huggingface_hub looks for it, so that `hf cache`, `hf_hub_download` and timm's `hf-hub:` see it:

    <cache>/models--<namespace>--<model>.<tag>/blobs/<digest>
                                              /snapshots/<commit>/model.safetensors -> ../../blobs/<digest>
                                              /refs/main                            the commit

What is made here of somebody else's file lies in huggingface_hub's folder for other libraries' files:

    <assets>/igczoo/<model>.<tag>/<digest on the card's origin>-<version of the conversion>/model.safetensors
"""
from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.file_download import repo_folder_name

from ..files import replacing
from .card import Card
from .digests import known_digest, sha256, stamp
from .download import DownloadError

__all__ = ['FILE', 'HubShelf', 'OriginShelf']

FILE = 'model.safetensors'
CONVERSION = 1              # raise it when `igczoo.checkpoints.convert` makes something else of the same origin
LOCK_PATIENCE = 30.         # seconds without progress of the process that holds the lock


class _Shelf:
    """The copies of one checkpoint: those there are, what each must be, and one process's turn to put another there."""
    folder: Path        # that all of them lie in
    root: Path          # the cache, outside of which nothing is removed
    part: Path          # the partial file, that only the process whose turn it is writes
    lock: Path
    expected: str       # sha256 of a good copy

    def copies(self) -> Iterator[Path]:
        """Every copy there may be, the likeliest first."""
        raise NotImplementedError

    def verified(self, drop: bool = False) -> tuple[Path | None, list[str]]:
        """A good copy or None, and what is wrong with the others; those are removed where ``drop``."""
        expected, bad = self.expected, []
        for path in self.copies():
            try:
                found = known_digest(path, expected)
            except OSError as error:    # of another user, who keeps it to himself
                bad.append(f'{path} cannot be read: {error.strerror}')
                continue
            if found and found == expected:
                return path, bad
            if found is not None:
                bad.append(f'{path} had sha256 {found}, not {expected}')
                if drop and not (path.is_symlink() and Path(os.readlink(path)).name == found):      # else it is another version, whole
                    self._remove(path)
        return None, bad

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """Wait for the lock; gives the partial file. An error of the disk removes it, which gives the room back."""
        self.lock.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.lock, mode=0o664)      # a second user of the cache may wait for it, as for huggingface_hub's own
        while not lock.is_locked:
            seen = self._progress()
            try:
                lock.acquire(timeout=LOCK_PATIENCE)
            except Timeout:
                if self._progress() == seen:
                    raise DownloadError(f'another process holds {self.lock} and has not got on for {LOCK_PATIENCE:g} s; end it, or '
                                        f'give another cache_dir') from None
        try:
            self.part.parent.mkdir(parents=True, exist_ok=True)
            yield self.part
        except OSError:
            self.part.unlink(missing_ok=True)
            raise
        finally:
            with suppress(OSError):     # where nothing came: an empty repository is one that huggingface_hub complains of
                self.part.parent.rmdir()
                self.folder.rmdir()
            lock.release()

    def _progress(self) -> list:
        """What changes while a process fetches the file, which may be huggingface_hub, whose partial files have longer names."""
        return [stamp(path) for path in sorted(self.part.parent.glob(f'{self.part.stem}*'))]

    def _remove(self, path: Path | None) -> None:
        """Remove a bad copy; huggingface_hub's is a link, whose targets go too as far as they are the repository's own."""
        while path and self.folder in path.parents:
            target = Path(os.path.abspath(path.parent / os.readlink(path))) if path.is_symlink() else None
            path.unlink(missing_ok=True)
            path = target


@dataclass(frozen=True)
class HubShelf(_Shelf):
    """Of a checkpoint that has a repository on the hub.

    Args:
        card: with the file's sha256.
        repo: `<namespace>/<name>`.
        root: huggingface_hub's cache.
    """
    card: Card
    repo: str
    root: Path

    @property
    def folder(self) -> Path:
        return self.root / repo_folder_name(repo_id=self.repo, repo_type='model')

    @property
    def lock(self) -> Path:
        return self.root / '.locks' / self.folder.name / f'{self.expected}.lock'

    @property
    def part(self) -> Path:
        return self.folder / 'blobs' / f'{self.expected}.incomplete'

    @property
    def expected(self) -> str:
        return self.card.sha256

    @property
    def revisions(self) -> list[str]:
        """To ask the hub for; a mirror under another namespace has other commits, hence main."""
        return list(dict.fromkeys([self.card.revision or 'main', 'main']))

    def copies(self) -> Iterator[Path]:
        """Of the revisions to ask for, then of any other that somebody has fetched."""
        found = (try_to_load_from_cache(self.repo, FILE, cache_dir=self.root, revision=revision) for revision in self.revisions)
        snapshots = sorted((self.folder / 'snapshots').glob(f'*/{FILE}'))
        yield from dict.fromkeys(Path(path) for path in (*found, *snapshots) if isinstance(path, str | Path))

    def put(self, part: Path, digest: str, name: str, commit: str | None, revision: str) -> None:
        """Make the verified file ``part`` the repository's file ``name`` at a commit, as huggingface_hub would.

        The commit gets the name ``revision``. One asked for by its number becomes main where main is not known, because `hf cache prune`
        removes commits without a name; likewise the stand-in for a commit whose number the server has not told.
        """
        snapshot = commit or self.expected[:40]
        blob, link = self.folder / 'blobs' / digest, self.folder / 'snapshots' / snapshot / name
        os.replace(part, blob)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        try:
            link.symlink_to(os.path.relpath(blob, link.parent))
        except OSError:     # a file system without links
            os.replace(blob, link)
        named = commit not in (None, revision)
        reference = self.folder / 'refs' / (revision if named else 'main')
        if named or not reference.exists():
            reference.parent.mkdir(parents=True, exist_ok=True)
            with replacing(reference) as beside:
                beside.write_text(snapshot)


@dataclass(frozen=True)
class OriginShelf(_Shelf):
    """Of a checkpoint that is converted from somebody else's file.

    Args:
        card: with the origin and its digest.
        root: huggingface_hub's assets, which `cached_assets_path` gives folders of.
    """
    card: Card
    root: Path

    @property
    def folder(self) -> Path:
        """What the digest names cannot be changed by another card, nor by another version of it."""
        return self.root / 'igczoo' / self.card.name / f'{self.card.origin.digest}-{CONVERSION}'

    @property
    def lock(self) -> Path:
        return self.folder / 'lock'

    @property
    def part(self) -> Path:
        return self.folder / 'part'

    @property
    def record(self) -> Path:
        return self.folder / 'verified.json'

    @property
    def expected(self) -> str:
        """What is on record since the conversion."""
        try:
            note = json.loads(self.record.read_bytes())
        except (OSError, ValueError):
            return ''
        return str(note.get('sha256', '')) if isinstance(note, dict) else ''

    def copies(self) -> Iterator[Path]:
        yield self.folder / FILE

    @contextmanager
    def turn(self) -> Iterator[Path]:
        """And remove what a process killed during its turn has left, but the partial download, which is continued."""
        with super().turn() as part:
            for path in self.folder.iterdir():
                if re.fullmatch(r'\..*\.part', path.name):
                    path.unlink(missing_ok=True)
            yield part

    def put(self, part: Path) -> None:
        """Make ``part`` the checkpoint. Its digest goes on record before it: a file without one counts as bad."""
        with replacing(self.record) as beside:
            beside.write_text(json.dumps({'sha256': sha256(part)}), encoding='utf-8')
        os.replace(part, self.folder / FILE)


def hub_cache(cache_dir: str | Path | None) -> Path:
    """huggingface_hub's cache, or the folder in its place."""
    return Path(cache_dir or constants.HF_HUB_CACHE).expanduser().absolute()


def assets(cache_dir: str | Path | None) -> Path:
    """huggingface_hub's assets; with a folder in the place of the cache, that folder's: nothing is written outside."""
    return Path(cache_dir).expanduser().absolute() / 'assets' if cache_dir else Path(constants.HF_ASSETS_CACHE).expanduser().absolute()
