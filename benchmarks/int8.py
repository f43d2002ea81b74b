"""Int8 against float32 in ONNX Runtime on this CPU: accuracy, size of the file and images/s, in one Markdown table.

    python benchmarks/int8.py igcnet18=TINY_IMAGENET igc_resnet20_l24m2=CIFAR10 [--speed igcnet18 resnet18] [--size 224] [--batch-sizes 1 8]

Accuracy is that of checkpoints on the whole evaluation split, int8 by `igczoo export --int8` from the training split. Speed is that of nets
with random weights, timm's by the same tools, all in one process and in turns.
"""
import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median

import onnxruntime
import timm
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

import igczoo
from igczoo.deployment.bench import host
from igczoo.deployment.deploy import deploy
from igczoo.deployment.export import export, onnx_model, open_onnx, trace
from igczoo.deployment.quantize import export_int8, quantize
from igczoo.inference.onnx import OnnxClassifier
from igczoo.nets.igcnet import IGCNet
from igczoo.training.calibration import calibration_batches
from igczoo.training.evaluate import evaluate


def accuracies(name: str, data: str, folder: Path) -> list[tuple[str, ...]]:
    """Rows of the table: the checkpoint in float32 and in int8."""
    rows = []
    classifier = igczoo.load(name)
    for form in ('float32', 'int8'):
        file = folder / f'{name}-{form}.onnx'
        if form == 'float32':
            export(classifier, file)
        else:
            export_int8(classifier, file, *calibration_batches(classifier, data))
        found = evaluate(OnnxClassifier(file, threads=1), data).accuracy
        rows.append((name, form, f'{file.stat().st_size / 1e6:.1f}', f'{found.top1:.2f} of {found.n}'))
    return rows


def engines(name: str, size: int, folder: Path) -> dict[str, tuple[Path, Callable[[Tensor], Tensor]]]:
    """float32 and int8 of a net with random weights, calibrated on noise."""
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    floats, int8 = folder / f'{name}-random.onnx', folder / f'{name}-random-int8.onnx'
    floats.write_bytes(onnx_model(trace(deploy(model, portable=True) if isinstance(model, IGCNet) else model, (3, size, size)))
                       .SerializeToString())
    quantize(floats, int8, torch.randn(4, 2, 3, size, size))
    return {form: (file, open_onnx(file)) for form, file in (('float32', floats), ('int8', int8))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='*', metavar='NAME=DATA', help='whose accuracy to measure, and the data set')
    parser.add_argument('--speed', nargs='*', default=['igcnet18', 'resnet18'], help='nets to time (default: %(default)s)')
    parser.add_argument('--size', type=int, default=224, help='height and width of the images that are timed (default: %(default)s)')
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1, 8])
    parser.add_argument('--rounds', type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = [row for pair in arguments.checkpoints for row in accuracies(*pair.split('=', 1), Path(folder))]
        made = {(name, form): engine for name in arguments.speed for form, engine in engines(name, arguments.size, Path(folder)).items()}
        images = {n: torch.randn(n, 3, arguments.size, arguments.size) for n in arguments.batch_sizes}
        timers = {(key, n): Timer('run(x)', globals=dict(run=run, x=x)) for key, (_, run) in made.items() for n, x in images.items()}
        speeds: dict = {key: [] for key in timers}
        for _ in range(arguments.rounds):
            for (key, n), timer in timers.items():
                speeds[key, n].append(n / timer.blocked_autorange(min_run_time=.3).median)
        for (name, form), (file, _) in made.items():
            cells = [f'{median(found):.1f} ({min(found):.1f} to {max(found):.1f})' for found in (speeds[(name, form), n] for n in images)]
            rows.append((f'{name}, random weights', form, f'{file.stat().st_size / 1e6:.1f}', '', *cells))
    print(f'{host()}, ONNX Runtime {onnxruntime.__version__}. Top-1 in per cent; images a second at {arguments.size} pixels: median '
          f'(range) of {arguments.rounds} rounds.\n')
    head = 'model', 'form', 'MB', 'top-1', *(f'batch {n}' for n in arguments.batch_sizes)
    for row in (head, ('---',) * 2 + ('---:',) * (len(head) - 2), *(row + ('',) * (len(head) - len(row)) for row in rows)):
        print(f'| {" | ".join(row)} |')


if __name__ == '__main__':
    main()
