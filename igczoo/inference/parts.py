"""The parts that very many images are classified in: which images each has, how they are read, and the Parquet file that comes of it.

The parts follow from the images alone, so that another call, or another machine, cuts them in the same way.
"""
from __future__ import annotations

import bisect
import csv
import hashlib
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checkpoints.digests import stamp
from .photograph import ImageError, as_given, find_images, image_name, is_url

if TYPE_CHECKING:
    import pyarrow

    from .classifier import Classifier

__all__ = ['Part', 'Rows', 'classify_part', 'plan_parts', 'read_notes', 'schema', 'write_part']

FILE_COLUMNS = 'file', 'image', 'path', 'filename', 'filepath'     # what a CSV list's column of photographs may be called
PLACE_COLUMNS = *FILE_COLUMNS, 'url'
NOTES = b'igczoo'       # the key in the metadata of a part, under which its JSON says what it is of
ROWS_AT_A_TIME = 64     # of a Parquet file in memory
LARGE = 20              # parts in a row group, from which on it is said that reading it takes long
BUFFER = 1 << 20        # bytes; without one, pyarrow reads whole row groups


class Rows(NamedTuple):
    """Consecutive rows of a Parquet file, all of one row group: of what is damaged, no more can be lost."""
    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class Part:
    """Some of the images, and the file that what they show is written to.

    Attributes:
        number: from 0, in the order of the images.
        digest: of the images' names, sizes and times of their last change, and of what ``run`` says in `plan_parts`.
        folder: what relative names are relative to.
        images: paths and URLs, or rows of Parquet files.
    """
    number: int
    digest: str
    folder: str
    images: Sequence[str] | Sequence[Rows]

    @property
    def name(self) -> str:
        return f'part-{self.number:06}-{self.digest[:16]}.parquet'

    def __len__(self) -> int:
        return sum(1 if isinstance(image, str) else image.stop - image.start for image in self.images)

    def to_json(self) -> str:
        return json.dumps(asdict(self))     # escapes the bytes of names that are no UTF-8

    @classmethod
    def from_json(cls, text: str) -> Part:
        fields = json.loads(text)
        return cls(**fields | dict(images=[image if isinstance(image, str) else Rows(*image) for image in fields['images']]))


def plan_parts(data: str | os.PathLike, size: int, run: str) -> list[Part]:
    """Cut images into parts.

    Args:
        data: a folder of images at any depth; a Parquet file with a column image (bytes, path), or a folder of such files; or a list of
            paths and URLs: a text file with one a line, or a CSV file of one column or with a column that is named as one of PLACE_COLUMNS.
            Paths in a list are relative to it.
        size: images a part; the last one has those that are left.
        run: what else a part's content depends on.

    Raises:
        ImageError: there is no image.
        ValueError: there is no such file, or it is of another kind; pyarrow cannot read it.
    """
    if not os.fspath(data):     # Path('') is the current folder
        raise ValueError("'': is no folder and no file; give a folder of images, Parquet files or a list")
    path = Path(data).expanduser()
    files = [path] if path.is_file() and path.suffix.lower() == '.parquet' else sorted(path.glob('*.parquet'))
    folder = Path.cwd()
    if files:
        if path.is_dir() and _has_photographs(path):
            raise ValueError(f'{image_name(data)}: holds both Parquet files and photographs; give a folder of one kind')
        groups = [rows for file in files for rows in _row_groups(file)]
        largest = max(groups, key=lambda rows: rows.stop - rows.start, default=None)
        if largest and (rows := largest.stop - largest.start) > LARGE * size:
            print(f'{image_name(largest.path)}: has {rows:,} rows in a row group, which each part reads from its start on, and that takes '
                  f'long; write the file anew by row groups of {size:,}, or take larger parts', file=sys.stderr)
        cut = _cut_rows(groups, size)
    else:
        if not path.is_dir():
            folder = path.parent.absolute()
        names = [str(file) for file in find_images(data)] if path.is_dir() else _listed(path)
        cut = (names[start:start + size] for start in range(0, len(names), size))
    parts = []
    for number, images in enumerate(cut):
        stamps = [_stamp(image if isinstance(image, str) else image.path, str(folder)) for image in images]
        digest = hashlib.sha256(json.dumps([run, images, stamps]).encode()).hexdigest()
        parts.append(Part(number, digest, str(folder), images))
    if not parts:
        raise ImageError(f'{image_name(data)}: holds no image')
    return parts


def _has_photographs(folder: Path) -> bool:
    try:
        return bool(find_images(folder))
    except ImageError:
        return False


def _row_groups(file: Path) -> list[Rows]:
    import pyarrow
    import pyarrow.parquet
    try:
        with pyarrow.parquet.ParquetFile(file) as opened:
            kind = opened.schema_arrow.field('image').type.field('bytes').type
            if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
                raise TypeError(f'image.bytes is {kind}')
            counts = [opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)]
            ends = list(itertools.accumulate(counts, initial=0))
            return [Rows(str(file), start, stop) for start, stop in itertools.pairwise(ends)]
    except (pyarrow.ArrowException, OSError, KeyError, AttributeError, TypeError) as error:
        found = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise ValueError(f'{image_name(file)}: is no Parquet file with a column image (bytes, path) ({found})') from None


def _cut_rows(groups: Iterable[Rows], size: int) -> Iterator[list[Rows]]:
    """Parts of so many rows, which may be of several row groups and files."""
    part, room = [], size
    for path, start, end in groups:
        while start < end:
            stop = min(end, start + room)
            part.append(Rows(path, start, stop))
            start, room = stop, room - (stop - start)
            if not room:
                yield part
                part, room = [], size
    if part:
        yield part


def _listed(path: Path) -> list[str]:
    """The names in a list, as they are written there."""
    try:
        if path.exists() and not path.is_file():
            raise ValueError('it is a device or pipe')
        text = path.read_text(encoding='utf-8-sig')
        if '\0' in text:
            raise ValueError('it has null characters')
        names = _column(path, text) if path.suffix.lower() == '.csv' else text.split('\n')
    except FileNotFoundError:
        raise ValueError(f'{image_name(path)}: there is no such file or folder; give a folder of images, Parquet files or a list') from None
    except (OSError, UnicodeDecodeError, ValueError, csv.Error) as error:
        raise ValueError(f'{image_name(path)}: cannot be read as a list of images ({error}); give a folder of images, a Parquet file, or a '
                         f'text or CSV file with a path or URL a line') from None
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ImageError(f'{image_name(path)}: lists no image; give a path or URL a line')
    return names


def _column(path: Path, text: str) -> list[str]:
    rows = [row for row in csv.reader(io.StringIO(text, newline='')) if row]
    head = [name.strip().lower() for name in rows[0]] if rows else []
    for name in PLACE_COLUMNS:
        if name in head:
            column = head.index(name)
            short = next((number for number, row in enumerate(rows, 1) if len(row) <= column or not row[column].strip()), None)
            if short:
                raise ValueError(f'row {short} has no {name}')
            return [row[column] for row in rows[1:]]
    others = re.split('[;\t]', ','.join(head))     # between columns, as some programs write them
    if any(len(row) > 1 for row in rows) or (len(others) > 1 and not set(others).isdisjoint(PLACE_COLUMNS)):
        raise ValueError(f'its head line is {",".join(rows[0])!r}; it must have commas between columns, and name a column '
                         f'{" or ".join(PLACE_COLUMNS)}')
    return [row[0] for row in rows]


def _place(name: str, folder: str) -> str:
    path = os.path.join(folder, name)
    return name if is_url(name) or (name.startswith('~') and not os.path.lexists(path)) else path


def _stamp(name: str, folder: str) -> list[int] | None:
    """Size and time of the last change of a file; a file that is copied elsewhere with its time keeps them."""
    with suppress(OSError, RuntimeError):       # of a folder that may not be read, a home that is unknown
        found = None if is_url(name) else stamp(as_given(_place(name, folder)))
        return found and found[2:4]
    return None


# A part's images, one at a time -------------------------------------------------------------------------------------------------------

def _open(part: Part) -> Iterator[tuple[str, int | None, str | bytes | ImageError]]:
    """Of each image its path, its row where it stands in a Parquet file, and what `open_image` takes."""
    for image in part.images:
        if isinstance(image, str):
            yield image, None, _place(image, part.folder)
        else:
            for row, encoded in zip(range(image.start, image.stop), _encoded(image, part.folder), strict=True):
                yield image.path, row, encoded


def _encoded(rows: Rows, folder: str) -> Iterator[bytes | ImageError]:
    """The bytes of as many images as there are rows; from where the file cannot be read, an error for each."""
    import pyarrow
    read = 0
    try:
        for encoded in itertools.islice(_read(os.path.join(folder, rows.path), rows), rows.stop - rows.start):
            yield encoded
            read += 1
        found = 'it has fewer rows than before'
    except (pyarrow.ArrowException, OSError) as error:
        found = ' '.join(str(error).split())[:300]
    for row in range(rows.start + read, rows.stop):
        yield ImageError(f'{image_name(rows.path)}, row {row}: cannot be read ({found}); get the file again')


def _read(file: str, rows: Rows) -> Iterator[bytes]:
    """What a file holds from ``rows.start`` to the end of its row group, whose rows before are read too, and passed over."""
    import pyarrow.parquet
    with pyarrow.parquet.ParquetFile(file, buffer_size=BUFFER) as opened:
        ends = list(itertools.accumulate(opened.metadata.row_group(group).num_rows for group in range(opened.metadata.num_row_groups)))
        group = bisect.bisect_right(ends, rows.start)
        passed = ends[group - 1] if group else 0
        for batch in opened.iter_batches(ROWS_AT_A_TIME, row_groups=[group] if group < len(ends) else [], columns=['image.bytes']):
            images = batch.column(0).field('bytes')
            for row in range(max(0, rows.start - passed), len(images)):
                yield images[row].as_py() or b''
            passed += len(images)


# What they show ----------------------------------------------------------------------------------------------------------------------

def schema() -> pyarrow.Schema:
    """The columns of a part. Where an image cannot be opened, ``error`` says why, and the others but path and row are null."""
    import pyarrow as pa
    return pa.schema([
        ('path', pa.string()),                  # as it is found or listed; of the Parquet file, where it stands in one
        ('row', pa.int64()),                    # of the Parquet file, otherwise null
        ('label', pa.string()),                 # the likeliest
        ('score', pa.float32()),                # its softmax probability, 0..1
        ('index', pa.int32()),                  # its number among the classes
        ('labels', pa.list_(pa.string())),      # the k likeliest, best first
        ('scores', pa.list_(pa.float32())),
        ('indices', pa.list_(pa.int32())),
        ('error', pa.string()),                 # null where there is none
    ])


def classify_part(classifier: Classifier, part: Part, k: int, batch_size: int, workers: int) -> pyarrow.Table:
    """Classify the images of a part, a few batches in memory: a table with the columns of `schema` and a row for each, in order."""
    import pyarrow as pa
    places: list[tuple[str, int | None]] = []
    unread: dict[int, ImageError] = {}

    def sources() -> Iterator[Any]:
        for path, row, source in _open(part):
            if isinstance(source, ImageError):
                unread[len(places)] = source
            places.append((path, row))
            if not isinstance(source, ImageError):
                yield source

    answers = [outcome for _, outcome in classifier.classify_each(sources(), k, batch_size, workers)]
    for number, error in sorted(unread.items()):
        answers.insert(number, error)
    rows = [_row(path, row, answer) for (path, row), answer in zip(places, answers, strict=True)]
    return pa.Table.from_pylist(rows, schema())


def _row(path: str, row: int | None, answer: Any) -> dict[str, Any]:
    place = dict(path=path.encode('utf-8', 'backslashreplace').decode(), row=row)      # of a name that is no UTF-8
    if isinstance(answer, ImageError):
        return place | dict(error=str(answer))
    labels, scores, indices = zip(*answer, strict=True)
    return place | dict(label=labels[0], score=scores[0], index=indices[0], labels=labels, scores=scores, indices=indices)


def write_part(table: pyarrow.Table, notes: dict[str, Any]) -> bytes:
    """The bytes of a Parquet file with the table and, in its metadata, notes and how many images and errors there are."""
    import pyarrow.parquet
    notes = notes | dict(images=len(table), errors=len(table) - table['error'].null_count)
    file = io.BytesIO()
    pyarrow.parquet.write_table(table.replace_schema_metadata({NOTES: json.dumps(notes)}), file, compression='zstd')
    return file.getvalue()


def read_notes(file: Path) -> dict[str, Any]:
    """What `write_part` noted in a file.

    Raises:
        ValueError: it is no such file.
    """
    import pyarrow
    import pyarrow.parquet
    try:
        return json.loads(pyarrow.parquet.read_schema(file).metadata[NOTES])
    except (pyarrow.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
        found = ' '.join(f'{type(error).__name__}: {error}'.split())[:300]
        raise ValueError(f'{file}: is no part of a batch ({found}); give another folder') from None
