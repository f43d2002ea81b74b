"""Folders in pieces that travel where large files do not: a tar archive cut into parts, with SHA-256 digests of it and of them."""
import hashlib
import io
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SUMS = 'SHA256SUMS'


def split(folder: Path, out: Path, mib: int, leave_out: tuple[str, ...] = ()) -> int:
    """Write a folder, without the files so named, as pieces of ``mib`` MiB at most into a new folder; returns how many there are."""
    folder = folder.resolve()
    if not folder.is_dir():
        raise ValueError(f'{folder}: is no folder; give the one to split')
    file, size = io.BytesIO(), mib << 20
    with tarfile.open(fileobj=file, mode='w', dereference=True) as tar:
        tar.add(folder, '.', filter=lambda member: None if Path(member.name).name in leave_out else member)
    archive = file.getbuffer()
    starts = range(0, len(archive), size)
    parts = {f'{folder.name}.tar': archive} | {f'{folder.name}.tar.{i:02}': archive[start:start + size] for i, start in enumerate(starts)}
    with new_folder(out) as beside:
        for name in [*parts][1:]:
            (beside / name).write_bytes(parts[name])
        sums = [f'{hashlib.sha256(part).hexdigest()}  {name}\n' for name, part in parts.items()]
        (beside / SUMS).write_text(''.join(sums), encoding='utf-8')
    return len(starts)


def join(pieces: Path, out: Path) -> None:
    """Make the folder again that `split` has split.

    Raises:
        ValueError: a piece is missing or another, or the list of them; or ``out`` is there. Nothing is written then.
    """
    (whole, name), *listed = read_sums(pieces)
    archive = io.BytesIO()
    for digest, piece in listed:
        if not (pieces / piece).is_file():
            raise ValueError(f'{pieces / piece}: is missing, {SUMS} has it; bring it too')
        archive.write(_checked((pieces / piece).read_bytes(), digest, pieces / piece))
    if hashlib.sha256(archive.getbuffer()).hexdigest() != whole:
        raise ValueError(f'{pieces / SUMS}: its {len(listed)} pieces are not the whole of {name}; bring it again')
    archive.seek(0)
    with new_folder(out) as folder, tarfile.open(fileobj=archive) as tar:
        tar.extractall(folder, filter='data')


def read_sums(pieces: Path) -> list[list[str]]:
    """Digest and name, of the archive first, then of its pieces in their order."""
    if not (pieces / SUMS).is_file():
        raise ValueError(f'{pieces}: has no {SUMS}; give a folder of pieces')
    sums = [line.split(maxsplit=1) for line in (pieces / SUMS).read_text(encoding='utf-8', errors='replace').splitlines()]
    if {len(line) for line in sums} != {2}:
        raise ValueError(f'{pieces / SUMS}: is no list of digests and names; bring it again')
    return sums


def _checked(data: bytes, digest: str, path: Path) -> bytes:
    if (found := hashlib.sha256(data).hexdigest()) != digest:
        raise ValueError(f'{path}: sha256 {found[:12]} is not {digest[:12]} of {SUMS}; bring it again')
    return data


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Gives a folder to fill, which becomes ``path`` when the block ends without an error; else nothing is left."""
    if path.exists():
        raise ValueError(f'{path}: is there already; name a folder that is not')
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{path.name}.', dir=path.parent) as beside:
        (Path(beside) / path.name).mkdir()
        yield Path(beside) / path.name
        (Path(beside) / path.name).rename(path)
