"""The paper's comparison on CIFAR-10, run: regular convolutions against interleaved groups of as many parameters or fewer, by one recipe.

    python benchmarks/comparison.py train DATA [--seeds 0 1] [--runs runs/comparison]
    python benchmarks/comparison.py

The first trains what is not trained yet, goes on where it was stopped, and keeps the log of each finished run in benchmarks/comparison/.
The second prints a Markdown table from those logs and draws docs/figures/comparison.svg.
"""
import argparse
import csv
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import timm

from igczoo.checkpoints.model_card import count_macs, count_params
from igczoo.training.recipes import find_recipe
from igczoo.training.train import train

LOGS = Path(__file__).with_name('comparison')
FIGURE = Path(__file__).parents[1] / 'docs' / 'figures' / 'comparison.svg'
RECIPE = replace(find_recipe('cifar10_igc_resnet20_l24m2'), epochs=30)
NETS = {        # and what the paper calls them
    'igc_regconv20_w16': 'RegConv-W16',
    'igc_regconv20_w18': 'RegConv-W18',
    'igc_resnet20_l4m8': 'IGC-L4M8',
    'igc_resnet20_l24m2': 'IGC-L24M2',
}


class Result(NamedTuple):
    """What the runs of a net gave."""
    net: str
    params: int
    macs: int
    top1: list[float]       # after the last epoch, of each seed
    seconds: float          # of the quickest epoch


def train_all(data: str, seeds: list[int], runs: Path) -> None:
    """Every net by each seed, all nets by a seed before the next one."""
    for seed in seeds:
        for net in NETS:
            run = runs / f'{net}-{seed}'
            if (LOGS / f'{run.name}.csv').exists():
                continue
            train(replace(RECIPE, model=net), data, run, bf16=True, seed=seed)
            LOGS.mkdir(exist_ok=True)
            shutil.copyfile(run / 'log.csv', LOGS / f'{run.name}.csv')


def results() -> list[Result]:
    """By the logs that are there."""
    found = []
    for net in NETS:
        logs = [list(csv.DictReader(path.read_text().splitlines())) for path in sorted(LOGS.glob(f'{net}-*.csv'))]
        if logs:
            model = timm.create_model(net)
            size = (3, RECIPE.input_size, RECIPE.input_size)
            found.append(Result(net, count_params(model), count_macs(model, size), [float(log[-1]['top1']) for log in logs],
                                min(float(row['train_seconds']) for log in logs for row in log)))
    return found


def table(found: list[Result]) -> str:
    head = ('net', 'parameters', 'multiply-adds', 'top-1, %: mean', 'of each seed', 'seconds an epoch')
    rows = [head, ('---', *['---:'] * (len(head) - 1))]
    for net, params, macs, top1, seconds in found:
        rows.append((f'{NETS[net]} (`{net}`)', f'{params:,}', f'{macs / 1e6:.1f} M', f'{statistics.mean(top1):.2f}',
                     ', '.join(f'{value:.2f}' for value in top1), f'{seconds:.0f}'))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows)


def draw(found: list[Result]) -> None:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    with mpl.rc_context({'svg.hashsalt': 'igczoo', 'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False}):
        figure, columns = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
        for axes, field, unit, title in zip(columns, ('params', 'macs'), (1e3, 1e6), ('parameters, thousands', 'multiply-adds, millions'),
                                            strict=True):
            for result in found:
                x, colour = getattr(result, field) / unit, '#4477aa' if '-L' in NETS[result.net] else '#ee6677'
                axes.plot([x] * len(result.top1), result.top1, color=colour, marker='o', markersize=4, linewidth=1)
                axes.annotate(NETS[result.net], (x, statistics.mean(result.top1)), (6, 0), textcoords='offset points', fontsize=9,
                              va='center')
            axes.margins(x=.3)
            axes.set(xlabel=title, xlim=(0, None))
        columns[0].set_ylabel('top-1 on CIFAR-10, %')
        figure.tight_layout()
        figure.savefig(FIGURE, metadata={'Date': None})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command')
    command = commands.add_parser('train')
    command.add_argument('data')
    command.add_argument('--seeds', nargs='+', type=int, default=[0, 1])
    command.add_argument('--runs', type=Path, default=Path('runs/comparison'))
    arguments = parser.parse_args()
    if arguments.command == 'train':
        train_all(arguments.data, arguments.seeds, arguments.runs)
    found = results()
    if not found:
        parser.error(f'{LOGS}: has no logs yet; train first')
    print(table(found))
    draw(found)


if __name__ == '__main__':
    main()
