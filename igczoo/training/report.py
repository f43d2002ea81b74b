"""Pictures of a run and of an evaluation, and a page that holds the latter: learning curves; confusion, calibration, the worst mistakes."""
from __future__ import annotations

import base64
import csv
import html
import io
from importlib.util import find_spec
from pathlib import Path

from torch.utils.data import Dataset

from ..checkpoints.folder import CARD
from ..files import replacing
from ..inference.pictures import INK, WRONG, Tile, contact_sheet
from .evaluate import Evaluation, Guess

__all__ = ['check_predictions', 'check_report', 'draw', 'is_installed', 'write_predictions', 'write_report']

TILES = 24              # photographs on the sheet of mistakes
MOST_CLASSES = 40       # that a confusion matrix has names and numbers for
COLOUR, OTHER = '#2a78d6', WRONG
CAPTIONS = {'confusion.png': 'What is called what', 'calibration.png': 'How far scores can be believed',
            'mistakes.png': 'The worst mistakes'}


def is_installed() -> bool:
    """Whether matplotlib is there, by which all but the contact sheet are drawn."""
    return find_spec('matplotlib') is not None


def draw(folder: Path, result: Evaluation, photographs: Dataset, title: str, log: Path | None = None) -> list[Path]:
    """Write curves.png (of a log), confusion.png, calibration.png and mistakes.png into ``folder``, where matplotlib is installed.

    Args:
        folder: of the run or report; it exists.
        result: of ``photographs``.
        photographs: the set that was measured.
        title: what was measured.
        log: of the training, as `train.write_run` writes it, if there is one.

    Returns:
        The files.
    """
    pictures = {'confusion.png': _confusion(result, title), 'calibration.png': _calibration(result)}
    if log and log.exists():
        pictures = {'curves.png': _curves(log)} | pictures
    if mistakes := [(row, guess) for row, guess in enumerate(result.guesses) if not guess.is_right]:
        pictures['mistakes.png'] = _contact_sheet(mistakes, photographs)
    for name, data in pictures.items():
        with replacing(folder / name) as file:
            file.write_bytes(data)
    return [folder / name for name in pictures]


def write_predictions(path: str | Path, result: Evaluation) -> None:
    """A CSV line for each image: file, label, what it was called with which score, whether that is right, and the five best."""
    table = io.StringIO()
    writer = csv.writer(table, lineterminator='\n')
    writer.writerow(('file', 'label', 'prediction', 'score', 'correct', 'best five'))
    for guess in result.guesses:
        first = guess.predictions[0]
        best = '; '.join(f'{one.label} {one.score:.4f}' for one in guess.predictions)
        writer.writerow((guess.image, guess.label, first.label, f'{first.score:.6f}', int(guess.is_right), best))
    with replacing(Path(path).expanduser()) as file:
        file.write_text(table.getvalue(), encoding='utf-8', errors='backslashreplace')


def check_report(folder: str | Path) -> None:
    """Raise ValueError where `write_report` cannot draw or has no folder to write to, before what it is to show is computed."""
    if not is_installed():
        raise ValueError("pictures need matplotlib; install it by pip install 'igczoo[report]'")
    folder = Path(folder).expanduser()
    if (folder / CARD).exists():
        raise ValueError(f'{folder}: is a checkpoint, with pictures of its own; name another folder for the report')
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise ValueError(f'{folder}: {there} is a file; name a folder for the report')


def check_predictions(path: str | Path) -> None:
    """Raise ValueError where `write_predictions` has no folder to write to, or is given one."""
    path = Path(path).expanduser()
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f'{path}: {"is a folder" if path.is_dir() else f"there is no folder {path.parent}"}; name a file to write')


def write_report(folder: str | Path, result: Evaluation, photographs: Dataset, title: str) -> Path:
    """Write index.html, which holds all it shows, beside the pictures and predictions.csv; gives its path."""
    check_report(folder)
    folder = Path(folder).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(folder, result, photographs, title)
    write_predictions(folder / 'predictions.csv', result)
    accuracy, (low, high) = result.accuracy, result.accuracy.top1_interval
    rows = ''.join(f'<tr><td>{html.escape(one.label)}<td>{one.n:,}<td>{_cell(one.recall)}<td>{_cell(one.precision)}'
                   for one in result.classes)
    images = ''.join(f'<h2>{name}</h2><img alt="{name}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
                     for path in pictures for name in [CAPTIONS[path.name]])
    page = f'''<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}img{{max-width:100%}}
table{{border-collapse:collapse}}td,th{{padding:.2rem .8rem;border-bottom:1px solid #ddd;text-align:right}}
td:first-child,th:first-child{{text-align:left}}</style>
<h1>{html.escape(title)}</h1>
<p>{accuracy.n:,} images of {html.escape(accuracy.dataset)}: top-1 <b>{accuracy.top1:.2f} %</b> (95 % interval {low:.2f} to {high:.2f}),
top-5 {accuracy.top5:.2f} %, calibration error {result.calibration_error:.2f} %.</p>
{images}
<h2>Classes</h2><table><tr><th>class<th>images<th>recall, %<th>precision, %{rows}</table>
'''
    with replacing(folder / 'index.html') as file:
        file.write_text(page, encoding='utf-8', errors='backslashreplace')
    return folder / 'index.html'


def _cell(value: float | None) -> str:
    return '' if value is None else f'{value:.1f}'


def _figure(width: float, height: float):
    from matplotlib.figure import Figure  # no window, and no state that another figure shares
    figure = Figure((width, height), dpi=100, layout='constrained')
    return figure, figure.subplots()


def _png(figure) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format='png', metadata={'Software': None})
    return file.getvalue()


def _curves(log: Path) -> bytes:
    rows = list(csv.DictReader(io.StringIO(log.read_text(encoding='utf-8'))))
    epochs = [int(row['epoch']) for row in rows]
    figure, axes = _figure(7, 4)
    axes.plot(epochs, [float(row['train_loss']) for row in rows], color=COLOUR, label='loss in training')
    axes.set(xlabel='epoch', ylabel='loss', ylim=(0, None))
    handles = list(axes.lines)
    column = 'watched_top1' if 'watched_top1' in rows[0] else 'top1'
    if rows[0][column]:
        right = axes.twinx()
        right.plot(epochs, [float(row[column]) for row in rows], color=OTHER, label='top-1 of watched photographs, %')
        right.set(ylabel='top-1, %', ylim=(0, 100))
        handles += right.lines
    axes.legend(handles=handles, loc='lower right')
    return _png(figure)


def _confusion(result: Evaluation, title: str) -> bytes:
    labels = [one.label for one in result.classes]
    counts = [[result.confusion.get(label, {}).get(guess, 0) for guess in labels] for label in labels]
    shares = [[count / max(sum(row), 1) for count in row] for row in counts]
    names, title = [_plain(label) for label in labels], _plain(title)
    few = len(names) <= MOST_CLASSES
    side = 2.5 + .38 * len(names) if few else 10
    figure, axes = _figure(side + 1, side)
    axes.imshow(shares, cmap='Blues', vmin=0, vmax=1, aspect='equal', interpolation='nearest')
    axes.set(xlabel='called', ylabel='is', title=title)
    if few:
        axes.set_xticks(range(len(names)), names, rotation=60, ha='right')
        axes.set_yticks(range(len(names)), names)
        for i, row in enumerate(counts):
            for j, count in enumerate(row):
                if count:
                    axes.text(j, i, count, ha='center', va='center', fontsize=8, color='white' if shares[i][j] > .5 else 'black')
    return _png(figure)


def _plain(text: str) -> str:
    """Text that matplotlib draws as it is: of what lies between two dollars it would make a formula."""
    return text.replace('$', r'\$')


def _calibration(result: Evaluation, bins: int = 10) -> bytes:
    """Top-1 of the images whose score lies in each tenth; on the diagonal a score means what it says."""
    groups: list[list[bool]] = [[] for _ in range(bins)]
    for guess in result.guesses:
        groups[min(int(guess.predictions[0].score * bins), bins - 1)].append(guess.is_right)
    figure, axes = _figure(5, 4.5)
    axes.plot([0, 100], [0, 100], color='grey', linewidth=1, linestyle='--')
    places = [100 * (place + .5) / bins for place, group in enumerate(groups) if group]
    bars = axes.bar(places, [100 * sum(group) / len(group) for group in groups if group], width=90 / bins, color=COLOUR)
    axes.bar_label(bars, [len(group) for group in groups if group], fontsize=8)
    axes.set(xlabel='score, %', ylabel='of those are right, %', xlim=(0, 100), ylim=(0, 108),
             title=f'calibration error {result.calibration_error:.1f} %; numbers of images')
    return _png(figure)


def _contact_sheet(mistakes: list[tuple[int, Guess]], photographs: Dataset) -> bytes:
    """The photographs that were called wrong with the highest scores, each with what it is called and what it is."""
    worst = sorted(mistakes, key=lambda item: -item[1].predictions[0].score)[:TILES]
    sheet = contact_sheet(
        Tile(photographs[row][0], [(f'{guess.predictions[0].score:.0%} {guess.predictions[0].label}', WRONG), (f'is {guess.label}', INK)])
        for row, guess in worst)
    file = io.BytesIO()
    sheet.save(file, 'PNG')
    return file.getvalue()
