"""What importing igczoo adds to importing timm, and how long `igczoo --help` and a first label take: medians over fresh processes.

    python benchmarks/import_time.py
"""
import statistics
import subprocess
import sys
import time
from pathlib import Path

RUNS = 7
PHOTOGRAPH = Path(__file__).parents[1] / 'examples' / 'pizza.jpg'
IMPORTS = {
    'torch': 'import torch', 'torchvision': 'import torchvision', 'timm': 'import timm', 'igczoo, then timm': 'import igczoo, timm',
    'igczoo alone': 'import igczoo', 'what classify needs': 'import igczoo.inference.classifier'}


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main() -> None:
    commands = {name: [sys.executable, '-c', code] for name, code in IMPORTS.items()}
    commands['igczoo --help'] = [sys.executable, '-m', 'igczoo.cli', '--help']
    commands['igczoo classify'] = [sys.executable, '-m', 'igczoo.cli', 'classify', str(PHOTOGRAPH)]
    commands['the same, --engine onnx'] = [*commands['igczoo classify'], '--engine', 'onnx']
    for command in commands.values():
        seconds(command)    # once unmeasured: bytecode and file cache
    times = {name: [] for name in commands}
    for _ in range(RUNS):
        for name, command in commands.items():
            times[name].append(seconds(command))
    for name, values in times.items():
        print(f'{name:24} {statistics.median(values):.2f} s')
    added = (b - a for a, b in zip(times['timm'], times['igczoo, then timm'], strict=True))
    print(f'{"igczoo adds":24} {statistics.median(added):.2f} s')


if __name__ == '__main__':
    main()
