"""Images a second on this CPU in float32, bfloat16 and int8, by batch and by threads: docs/speed.csv, and of it the README's table.

    python benchmarks/speed.py [--rounds 5] [--size 224]        # measures, some twenty minutes; then python docs/figures.py draws it
    python benchmarks/speed.py --table                          # writes the README's table again, from what was measured

Every form of every net stands in one process and runs once a round (`igczoo.deployment.bench`). Int8 is by ONNX Runtime, of the portable
deployed form where the net is of this package.
"""
import argparse
import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

import igczoo  # noqa: F401  registers the models
from igczoo.checkpoints.model_card import between
from igczoo.deployment.bench import PLAIN, Timing, bench, host
from igczoo.files import replacing

ROOT = Path(__file__).parents[1]
FILE = ROOT / 'docs' / 'speed.csv'
NETS = 'igcnet18', 'resnet18', 'mobilenetv2_100'
BATCHES = 1, 8, 32              # of the table
MORE_BATCHES = 2, 4, 16, 64     # of the plot
INT8 = 'ONNX Runtime, int8'
BEGIN, END = '<!-- speed: written by python benchmarks/speed.py -->\n', '<!-- end of speed -->'


@dataclass(frozen=True)
class Row:
    """A line of the file: one form of a net in one setting."""
    host: str
    size: int           # height and width of the images, pixels
    model: str
    form: str
    dtype: str
    batch: int
    threads: int
    speed: float        # images a second, of the median round
    low: float          # of the slowest round
    high: float


def measured(timing: Timing, where: str, size: int) -> Row:
    speeds = [timing.batch_size / seconds for seconds in timing.seconds]
    dtype = 'int8' if timing.form == INT8 else timing.dtype
    return Row(where, size, timing.model, timing.form, dtype, timing.batch_size, torch.get_num_threads(), *(
        round(found(speeds), 2) for found in (median, min, max)))


def measure(size: int, rounds: int) -> list[Row]:
    where, threads, dtypes = host(), torch.get_num_threads(), (torch.float32, torch.bfloat16)
    timings = bench(NETS, size, BATCHES, dtypes, int8=True, rounds=rounds)
    timings += bench(NETS[:2], size, MORE_BATCHES, dtypes, onnx=False, rounds=rounds)
    rows = [measured(timing, where, size) for timing in timings]
    for fewer in (n for n in (1, 2, 4, 8, 16, 32) if n < threads):
        torch.set_num_threads(fewer)
        rows += [measured(timing, where, size) for timing in bench(NETS[:2], size, (8,), dtypes, onnx=False, rounds=rounds)]
    torch.set_num_threads(threads)
    return rows


def write_rows(rows: Iterable[Row], path: Path = FILE) -> None:
    with replacing(path) as beside, open(beside, 'w', newline='', encoding='utf-8') as file:
        writer = csv.writer(file, lineterminator='\n')
        writer.writerow(Row.__dataclass_fields__)
        writer.writerows(vars(row).values() for row in rows)


def read_rows(path: Path = FILE) -> list[Row]:
    with open(path, newline='', encoding='utf-8') as file:
        return [Row(*(field.type(row[name]) for name, field in Row.__dataclass_fields__.items())) for row in csv.DictReader(file)]


def best(rows: Iterable[Row], model: str, forms: Iterable[str], dtype: str, batch: int, threads: int) -> Row | None:
    """The fastest of some forms of a net in a setting; None where none was measured."""
    forms = tuple(forms)
    found = [row for row in rows if (row.model, row.dtype, row.batch, row.threads) == (model, dtype, batch, threads) and row.form in forms]
    return max(found, key=lambda row: row.speed, default=None)


def readme_table(rows: list[Row]) -> str:
    """The README's: each net in its faster memory format and by ONNX Runtime, ours deployed by rule too."""
    settings, threads = [(dtype, batch) for dtype in ('float32', 'bfloat16', 'int8') for batch in BATCHES], max(row.threads for row in rows)
    lines = [('model', *(f'{dtype}, batch {batch}' for dtype, batch in settings)), ('---', *('---:' for _ in settings))]
    engine = ('ONNX Runtime', INT8)
    shown = [(NETS[0], NETS[0], PLAIN), (f'{NETS[0]}, deployed', NETS[0], ('deployed',)),
             (f'{NETS[0]}, deployed, in ONNX Runtime', NETS[0], engine)]
    for net in NETS[1:]:
        shown += [(f'timm {net}', net, PLAIN), (f'timm {net}, in ONNX Runtime', net, engine)]
    for name, model, forms in shown:
        found = [best(rows, model, forms, dtype, batch, threads) for dtype, batch in settings]
        lines.append((name, *('' if row is None else f'{row.speed:.0f}' if row.speed >= 100 else f'{row.speed:.1f}' for row in found)))
    return ''.join(f'| {" | ".join(line)} |\n' for line in lines)


def with_table(text: str, rows: list[Row]) -> str:
    """A README's text with the table of these rows in its place."""
    return between(text, BEGIN, END, readme_table(rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--table', action='store_true', help='measure nothing')
    arguments = parser.parse_args()
    if not arguments.table:
        write_rows(measure(arguments.size, arguments.rounds))
    rows, readme = read_rows(), ROOT / 'README.md'
    with replacing(readme) as beside:
        beside.write_text(with_table(readme.read_text(encoding='utf-8'), rows), encoding='utf-8')
    print(f'{rows[0].host}; images a second at {rows[0].size} pixels\n\n{readme_table(rows)}')


if __name__ == '__main__':
    main()
