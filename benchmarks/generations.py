"""The three generations of nets side by side: checkpoints' parameters, multiply-adds and top-1, and images/s here, one Markdown table.

    python benchmarks/generations.py [CHECKPOINT ...] [--batch-sizes 1 64] [--rounds 7]

What is measured once stands on the checkpoints' cards; the rates are float32, of all nets in one process and in turns.
"""
import argparse

from igczoo.checkpoints.card import find_card
from igczoo.deployment.bench import PLAIN, bench, host

CHECKPOINTS = 'igc_resnet20_l24m2.cifar10', 'igcv2_14_c64.cifar10', 'igcv3_025_cifar.cifar10'


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('checkpoints', nargs='*', default=CHECKPOINTS)
    parser.add_argument('--batch-sizes', nargs='+', type=int, default=[1, 64])
    parser.add_argument('--rounds', type=int, default=7)
    arguments = parser.parse_args()
    cards = [find_card(name) for name in arguments.checkpoints]
    timings = bench([card.model for card in cards], None, arguments.batch_sizes, onnx=False, rounds=arguments.rounds)
    rates = {(timing.model, timing.form, timing.batch_size): timing.images_per_second for timing in timings}
    print(f'{host()}. Images a second: medians of {arguments.rounds} rounds, plain and deployed.\n')
    head = ('checkpoint', 'parameters', 'multiply-adds', 'top-1, %', *(f'images/s, batch {n}' for n in arguments.batch_sizes))
    rows = [head, ('---', *['---:'] * (len(head) - 1))]
    for card in cards:
        plain = [max(rates[card.model, form, n] for form in PLAIN) for n in arguments.batch_sizes]
        cells = [f'{slow:,.0f}, {rates[card.model, "deployed", n]:,.0f}' for slow, n in zip(plain, arguments.batch_sizes, strict=True)]
        rows.append((card.name, f'{card.params:,}', f'{card.macs / 1e6:.1f} M', f'{card.accuracy[0].top1:.2f}', *cells))
    print('\n'.join(f'| {" | ".join(row)} |' for row in rows))


if __name__ == '__main__':
    main()
