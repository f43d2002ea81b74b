"""The paper's comparison on CIFAR-10, run: regular convolutions against interleaved groups of as many parameters or fewer, by one recipe.

    python benchmarks/comparison.py train DATA [--seeds 0 1] [--runs runs/comparison]
    python benchmarks/comparison.py

The first trains what is not trained yet, goes on where it was stopped, and keeps the log of each finished run in benchmarks/comparison/.
The second prints a Markdown table from those logs, of which docs/figures.py draws a figure.
"""
import argparse
import csv
import shutil
import statistics
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import timm

from igczoo.checkpoints.model_card import count_macs, count_params, markdown_table
from igczoo.training.recipes import find_recipe
from igczoo.training.train import train

LOGS = Path(__file__).with_name('comparison')
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
    return markdown_table([{
        'net': f'{NETS[net]} (`{net}`)', 'parameters': f'{params:,}', 'multiply-adds': f'{macs / 1e6:.1f} M',
        'top-1, %: mean': f'{statistics.mean(top1):.2f}', 'of each seed': ', '.join(f'{value:.2f}' for value in top1),
        'seconds, quickest epoch': f'{seconds:.0f}',
    } for net, params, macs, top1, seconds in found])


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
    print(table(found), end='')


if __name__ == '__main__':
    main()
