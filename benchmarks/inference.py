"""Forward passes of IGC nets and of timm's, in every form, interleaved in one run: one Markdown table of images/s, ratios and memory.

    python benchmarks/inference.py [--models igcnet18 ...] [--dtypes float32 bfloat16] [--batch-sizes 1 8] [--rounds 5] [--compile] ...
    python benchmarks/inference.py --models igcv2_100 igcv3_100 --against mobilenetv1_100 mobilenetv2_100 ...

All forms of all models stand in one process and run once a round. Memory is measured in a fresh process for each of the models, as it is
written and deployed, and for the first of the others.
"""
import argparse

import torch

import igczoo  # noqa: F401  registers the models
from igczoo.deployment.bench import bench, host, peak_memory, table

OTHERS = ('resnet18', 'resnet34', 'mobilenetv2_100', 'mobilenetv3_large_100')
PEERS = {'igcv2_': 'mobilenetv1_100', 'igcv3_': 'mobilenetv2_100'}     # what a family's papers compare it with; others are with the first
MEASURED = ('plain, channels_last', 'deployed')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['igcnet18'])
    parser.add_argument('--against', nargs='*', default=OTHERS, help="models of timm: a family's peer to compare with, or the first")
    parser.add_argument('--size', type=int, default=224, help='height and width of the images of all models (default: %(default)s)')
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--batch-sizes', nargs='+', type=int, help='default: 1 8, on a GPU 64 256')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--compile', action='store_true')
    parser.add_argument('--onnx', action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument('--memory', action=argparse.BooleanOptionalAction, default=True)
    arguments = parser.parse_args()
    batch_sizes = arguments.batch_sizes or ([64, 256] if arguments.device.startswith('cuda') else [1, 8])
    names, memory = [*arguments.models, *arguments.against], {}
    for dtype in arguments.dtypes if arguments.memory else ():
        for name in names[:len(arguments.models) + 1]:
            for form in MEASURED if name in arguments.models else MEASURED[:1]:
                peaks = peak_memory(name, form, arguments.size, batch_sizes, getattr(torch, dtype), arguments.device)
                memory |= {(name, form, f'{dtype}, batch {n}'): peak for n, peak in (peaks or {}).items()}
    timings = bench(names, arguments.size, batch_sizes, [getattr(torch, dtype) for dtype in arguments.dtypes], arguments.device,
                    arguments.compile, arguments.onnx, rounds=arguments.rounds)
    print(f'{host(arguments.device)}. Images a second: median (range) of {arguments.rounds} rounds, and against the faster plain form.\n')
    references = {name: next((peer for family, peer in PEERS.items() if name.startswith(family) and peer in names), first)
                  for first in arguments.against[:1] for name in names if name != first}
    print(table(timings, references, memory))


if __name__ == '__main__':
    main()
