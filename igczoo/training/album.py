"""The photographs of a fine-tuning run: who trains, watches and measures, decoded, and written down in split.csv."""
from __future__ import annotations

import csv
import io
import sys
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..files import replacing
from ..inference.photograph import Fit
from ..inference.pictures import one_line
from .images import Part, read_squares
from .split import copies_between, stratified_split

__all__ = ['SPLIT', 'STORE', 'Album', 'check_photographs', 'read_album']

SPLIT, STORE = 'split.csv', '.photographs.npy'
EVALUATION_SHARE, WATCHED_SHARE = .2, .1
LEAST_WATCHED = 200     # photographs of the average class, below which none is spared to watch by: a tenth of 100 costs a point of top-1
MOST_WATCHED = 2000
MEMORY = 4 << 30        # bytes of photographs; more are kept in a file


class Album(NamedTuple):
    """The photographs of a run."""
    classes: list[str]
    images: Tensor          # uint8 (n, 3, side, side), to train on
    labels: Tensor          # int64 (n,)
    watched: Tensor         # uint8 (w, 3, side, side); none, where there are too few
    watched_labels: Tensor
    evaluation: Dataset     # undecoded, to measure by


def read_album(whole: Dataset, evaluation: Dataset | None, out: Path, data: str, size: int, seed: int) -> Album:
    """Split and decode; say in split.csv what became of each photograph.

    Args:
        whole: to train on, as `images.open_photographs` gives it.
        evaluation: to measure by, likewise; None: a share of ``whole``.
        out: folder of the run.
        data: what the photographs are called in messages.
        size: pixels of the net's input.
        seed: of the split.

    Raises:
        ValueError: there are fewer than two classes, one has no photograph that can be opened or a name that cannot be shown, or the splits
            have different ones.
    """
    _check_classes(whole, evaluation, data)
    classes, rows = list(whole.classes), list(range(len(whole)))
    if evaluation is None:
        rows, measured = stratified_split(whole.targets, EVALUATION_SHARE, seed)
        evaluation = Part(whole, measured)
    else:
        evaluation = Part(evaluation, range(len(evaluation)), classes)
    spared = WATCHED_SHARE if len(rows) >= LEAST_WATCHED * len(classes) else 0
    spared = min(spared, MOST_WATCHED / len(rows))
    kept, watched = stratified_split([whole.targets[row] for row in rows], spared, seed)
    train, watch = (Part(whole, [rows[i] for i in places]) for places in (kept, watched))

    store = out / STORE if len(train) * 3 * size * size > MEMORY else None
    shown, watching, measuring = read_squares(train, size, store), read_squares(watch, size), read_squares(evaluation, 8, fit=Fit(size))
    skipped = [*shown.skipped, *watching.skipped, *measuring.skipped]
    labels, watched_labels = (torch.tensor([part.targets[row] for row in read.rows], dtype=torch.long)
                              for part, read in ((train, shown), (watch, watching)))
    if lost := [name for index, name in enumerate(classes) if not (labels == index).any()]:
        raise ValueError(f'{data}: no photograph of the class {lost[0]!r} can be opened ({skipped[0][1]}); replace them')
    copies = {measuring.rows[i]: f'{"equal" if same else "nearly equal"} to {train.name(shown.rows[j])}'
              for i, j, same in copies_between(measuring, shown)}
    _write_split(out, [(train, shown.rows, {}), (watch, watching.rows, dict.fromkeys(watching.rows, 'watched')),
                       (evaluation, measuring.rows, copies)], skipped)
    if copies:
        print(f'{len(copies)} of the photographs to measure by stand, equal or nearly so, among those to train on: see {out / SPLIT}',
              file=sys.stderr)
    return Album(classes, shown.images, labels, watching.images, watched_labels, Part(evaluation, measuring.rows))


def _check_classes(whole: Dataset, evaluation: Dataset | None, data: str) -> None:
    classes = whole.classes
    counts = torch.bincount(torch.tensor(whole.targets), minlength=len(classes))
    if len(classes) < 2:
        raise ValueError(f'{data}: has {len(classes)} class ({", ".join(classes)}); a classifier needs two at least')
    if unfit := [name for name in classes if one_line(name) != name]:
        raise ValueError(f'{data}: the class {unfit[0]!r} has letters that cannot be shown; rename it')
    if empty := [name for name, count in zip(classes, counts.tolist(), strict=True) if not count]:
        raise ValueError(f'{data}: the class {empty[0]!r} has no photograph to train on; add some or remove the class')
    if evaluation is not None and (strangers := sorted(set(evaluation.classes) - set(classes))):
        raise ValueError(f'{data}: the evaluation split has the class {strangers[0]!r}, the training split has not; give splits of one set')


def _write_split(out: Path, parts: list[tuple[Part, list[int], dict[int, str]]], skipped: list[tuple[str, str]]) -> None:
    """A line for each photograph; ``parts`` are those that train, watch and measure, each with its rows and notes on them."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(('file', 'label', 'split', 'note'))
    for (part, rows, notes), split in zip(parts, ('train', 'train', 'val'), strict=True):
        writer.writerows((part.name(row), part.classes[part.targets[row]], split, notes.get(row, '')) for row in rows)
    writer.writerows((name, '', 'skipped', reason) for name, reason in skipped)
    with replacing(out / SPLIT) as file:
        file.write_text(_writable(table.getvalue()), encoding='utf-8')
    for name, reason in skipped[:5]:
        print(f'left out {name}: {reason.removeprefix(f"{name}: ")}', file=sys.stderr)
    if skipped[5:]:
        print(f'left out {len(skipped) - 5} more: see {out / SPLIT}', file=sys.stderr)


def check_photographs(out: Path, whole: Dataset, evaluation: Dataset | None, data: str) -> None:
    """Raise ValueError unless the photographs of a finished run are those that there are now, of the same labels and splits."""
    with open(out / SPLIT, encoding='utf-8', newline='') as file:
        rows = list(csv.DictReader(file))
    skipped = {row['file'] for row in rows if row['split'] == 'skipped'}
    known = {(row['file'], row['label'], row['split'] if evaluation else '') for row in rows if row['split'] != 'skipped'}
    found = {(_writable(part.name(row)), part.classes[part.targets[row]], split if evaluation else '')
             for part, split in ((whole, 'train'), (evaluation, 'val')) if part for row in range(len(part))}
    if skipped - {name for name, *_ in found} or known != {one for one in found if one[0] not in skipped}:
        raise ValueError(f'{out}: holds a finished run of other photographs than {data} has now; name another folder')


def _writable(text: str) -> str:
    """Text with what no file of text can hold, as of names that are not UTF-8, written as Python escapes it."""
    return text.encode('utf-8', 'backslashreplace').decode()
