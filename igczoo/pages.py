"""What the command line shows a person of the checkpoints: plain text with aligned columns."""
from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from .checkpoints.card import Accuracy, Card, Comparison
from .checkpoints.store import Copy

if TYPE_CHECKING:
    from .training.evaluate import Evaluation

__all__ = ['card_list', 'card_page', 'columns', 'evaluation_page']

LABELS_SHOWN = 10
CLASSES_SHOWN, CONFUSIONS_SHOWN = 20, 5


def card_list(cards: Iterable[Card]) -> str:
    """One line a checkpoint, under a heading."""
    rows = [('checkpoint', 'parameters', 'multiply-adds', 'top-1, %', 'of')]
    for card in cards:
        first = card.accuracy[0] if card.accuracy else None
        measured = (f'{first.top1:.2f}', _data(first)) if first else ('', '')
        rows.append((card.name + ' *' * card.default, f'{card.params / 1e6:.2f} M', f'{card.macs / 1e6:,.0f} M', *measured))
    return columns(rows, right=(1, 2, 3)) + '\n\n* what the bare name of the architecture means'


def card_page(card: Card, copies: Sequence[Copy], width: int) -> str:
    """Everything on a card, and where copies of the weights are, wrapped to ``width`` characters."""
    sections = {
        '': _facts(card, width),
        'Accuracy': columns(_accuracy_rows(card.accuracy), right=(2, 3, 5)),
        'Comparison': _comparison(card.comparison, width),
        'Where it comes from': _paragraphs(card.provenance, width),
        'Limits': _paragraphs(card.limits, width),
        'Terms': _paragraphs(card.terms, width),
        'Copies': columns([(copy.source, copy.state, str(copy.path)) for copy in copies]),
    }
    body = '\n\n'.join(f'{title}\n{text}' if title else text for title, text in sections.items() if text)
    return f'{card.name}\n{textwrap.fill(card.title, width)}\n\n{body}'


def evaluation_page(name: str, result: Evaluation) -> str:
    """Accuracy, the classes (of many those that are found least), and what is taken for what most often."""
    accuracy, (low, high) = result.accuracy, result.accuracy.top1_interval
    head = (f'{name} on {accuracy.dataset}, {accuracy.n} images: top-1 {accuracy.top1:.2f} % (95 % interval {low:.2f} to {high:.2f}), '
            f'top-5 {accuracy.top5:.2f} %, calibration error {result.calibration_error:.2f} %, {result.images_per_second:.0f} images/s')
    worst = sorted((one for one in result.classes if one.n), key=lambda one: one.recall)[:CLASSES_SHOWN]
    rows = [('class', 'images', 'recall, %', 'precision, %'), *(
        (one.label, f'{one.n:,}', f'{one.recall:.1f}', '' if one.precision is None else f'{one.precision:.1f}') for one in worst)]
    mistakes = [(count, label, guess) for label, guesses in result.confusion.items() for guess, count in guesses.items() if guess != label]
    taken = [(label, 'is called', guess, f'{count} times') for count, label, guess in sorted(mistakes, reverse=True)[:CONFUSIONS_SHOWN]]
    left_out = sum(one.n > 0 for one in result.classes) - len(worst)
    more = f'\n  and {left_out} classes that are found more often' if left_out > 0 else ''
    return '\n\n'.join(filter(None, (head, columns(rows, right=(1, 2, 3)) + more, columns(taken, right=(3,)))))


def columns(rows: Sequence[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Rows of cells as aligned text, those of the columns in ``right`` at their right edge; columns that are empty are left out."""
    if not rows:
        return ''
    kept = [number for number in range(len(rows[0])) if any(row[number] for row in rows[1:] or rows)]
    widths = {number: max(len(row[number]) for row in rows) for number in kept}
    lines = ('  '.join(row[n].rjust(widths[n]) if n in right else row[n].ljust(widths[n]) for n in kept).rstrip() for row in rows)
    return '\n'.join(f'  {line}' for line in lines)


def _facts(card: Card, width: int) -> str:
    preprocess = card.preprocess
    channels, height, across = preprocess.input_size
    facts = {
        'parameters': f'{card.params:,}',
        'multiply-adds': f'{card.macs:,} an image',
        'classes': _classes(card),
        'input': f'{across} x {height} pixels, {channels} channels, {preprocess.interpolation}; the middle '
                 f'{preprocess.crop_pct * 100:g} % of the side'.replace('the middle 100 % of the side', 'the whole short side'),
        'mean, R G B': ' '.join(f'{value:g}' for value in preprocess.mean),
        'std, R G B': ' '.join(f'{value:g}' for value in preprocess.std),
        'weights': f'{card.size:,} bytes, {card.dtype}' if card.size else '',
        'sha256': card.sha256 or '',
        'fetched from': card.origin.url if card.origin else '',
        'licence': card.license,
        'recipe': f'igczoo train {card.recipe} --data DATA --bf16' if card.recipe else '',
        'on the hub': f'commit {card.revision}' if card.revision else '',
    }
    indent = max(map(len, facts)) + 4
    return '\n'.join(
        textwrap.fill(value, width, initial_indent=f'  {fact:{indent - 2}}', subsequent_indent=' ' * indent, break_long_words=False,
                      break_on_hyphens=False)
        for fact, value in facts.items() if value)


def _classes(card: Card) -> str:
    if isinstance(card.labels, str):
        return f'{card.num_classes}, those of {card.labels}'
    return f'{card.num_classes}: {", ".join(card.labels[:LABELS_SHOWN])}{", ..." if card.num_classes > LABELS_SHOWN else ""}'


def _accuracy_rows(accuracies: Sequence[Accuracy]) -> list[tuple[str, ...]]:
    if not accuracies:
        return []
    rows = [('data', 'split', 'images', 'top-1, %', '95 % interval', 'top-5, %', 'by', 'note')]
    for one in accuracies:
        interval = '{:.2f} to {:.2f}'.format(*one.top1_interval) if one.top1_interval else ''
        top5 = '' if one.top5 is None else f'{one.top5:.2f}'
        by = 'igczoo evaluate' if one.by == 'igczoo' else one.by
        rows.append((one.dataset, one.split, f'{one.n:,}' if one.n else '', f'{one.top1:.2f}', interval, top5, by, one.note))
    return rows


def _comparison(comparison: Comparison | None, width: int) -> str:
    if comparison is None:
        return ''
    rows = [(net.model, f'{net.top1:.2f}', f'{net.epoch_seconds:,.0f}') for net in comparison.nets]
    table = columns([('net', 'top-1, %', 'seconds an epoch'), *rows], right=(1, 2))
    return f'{_paragraphs(comparison.conditions, width)}\n{table}'


def _paragraphs(text: str, width: int) -> str:
    return '\n'.join(textwrap.fill(line, width, initial_indent='  ', subsequent_indent='  ', break_long_words=False,
                                   break_on_hyphens=False) for line in text.split('\n'))


def _data(accuracy: Accuracy) -> str:
    return f'{accuracy.dataset}, {accuracy.split}{"" if accuracy.by == "igczoo" else f" (printed by {accuracy.by})"}'
