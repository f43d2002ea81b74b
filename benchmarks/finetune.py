"""What `igczoo finetune` reaches in a given time, from the pretrained net, from random weights, and by timm's resnet18 from random weights.

    python benchmarks/finetune.py DATA [--minutes 5 15] [--seeds 0 1 2]

Every run is a process of its own with the command's defaults; each top-1 is of the whole evaluation split.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import time
from statistics import mean

from igczoo.deployment.bench import host

STARTS = {
    'igcnet18.tinyimagenet': ['igcnet18'],
    'igcnet18.tinyimagenet, classifier only': ['igcnet18', '--freeze'],
    'igcnet18, random weights': ['igcnet18', '--scratch'],
    'timm resnet18 at 160 pixels, random weights': ['timm:resnet18', '--scratch', '--size', '160'],
}


def run(arguments: list[str], data: str, minutes: float, seed: int) -> tuple[float, float]:
    """Top-1 in per cent, and the minutes that the command took."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, '-m', 'igczoo', 'finetune', *arguments, '--data', data, '-o', f'{folder}/out', '--minutes', str(minutes),
                   '--seed', str(seed), '--json']
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return json.loads(done.stdout)['accuracy'][0]['top1'], (time.monotonic() - began) / 60


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('data')
    parser.add_argument('--minutes', type=float, nargs='+', default=[5, 15])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1, 2])
    parser.add_argument('--starts', nargs='+', choices=STARTS, default=list(STARTS))
    arguments = parser.parse_args()
    print(f'{host("cpu")}; {len(arguments.seeds)} seeds\n\n| start | minutes allowed | taken | top-1, % (range) |')
    print('| --- | ---: | ---: | ---: |')
    for minutes in arguments.minutes:
        for start in arguments.starts:
            found = [run(STARTS[start], arguments.data, minutes, seed) for seed in arguments.seeds]
            top1, taken = zip(*found, strict=True)
            print(f'| {start} | {minutes:g} | {mean(taken):.1f} | {mean(top1):.1f} ({min(top1):.1f} to {max(top1):.1f}) |', flush=True)


if __name__ == '__main__':
    main()
