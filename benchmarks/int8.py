"""Int8 beside float32 on the whole evaluation split of a data set, in ONNX Runtime: top-1 and size of the file, in one Markdown table.

    python benchmarks/int8.py igcnet18=TINY_IMAGENET igc_resnet20_l24m2=CIFAR10

By `igczoo export --int8` from the training split, and `igczoo evaluate` of the file. How fast int8 is stands in benchmarks/speed.py.
"""
import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

import onnxruntime

import igczoo
from igczoo.deployment.export import export
from igczoo.deployment.quantize import export_int8
from igczoo.inference.onnx import OnnxClassifier
from igczoo.training.calibration import calibration_batches
from igczoo.training.evaluate import evaluate


def rows(name: str, data: str, folder: Path) -> Iterator[tuple[str, ...]]:
    """Of the table: the checkpoint in float32 and in int8."""
    classifier = igczoo.load(name)
    files = folder / f'{name}-float32.onnx', folder / f'{name}-int8.onnx'
    export(classifier, files[0])
    export_int8(classifier, files[1], *calibration_batches(classifier, data))
    for form, file in zip(('float32', 'int8'), files, strict=True):
        found = evaluate(OnnxClassifier(file, threads=1), data).accuracy
        yield name, form, f'{file.stat().st_size / 1e6:.1f}', f'{found.top1:.2f}', f'{found.n:,}'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='+', metavar='NAME=DATA', help='a checkpoint, and the data set')
    arguments = parser.parse_args()
    print(f'ONNX Runtime {onnxruntime.__version__}\n')
    print('| checkpoint | form | MB | top-1, % | images |\n| --- | --- | ---: | ---: | ---: |')
    with tempfile.TemporaryDirectory() as folder:
        for pair in arguments.checkpoints:
            for row in rows(*pair.split('=', 1), Path(folder)):
                print(f'| {" | ".join(row)} |', flush=True)


if __name__ == '__main__':
    main()
