"""The figures of the documentation, drawn from the package itself: layers, cards and logs.

    python docs/figures.py

demo.jpg is what tests/test_demo.py sees, with IGCZOO_SCREENSHOT=demo.png in the environment.
"""
import csv
import runpy
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

import igczoo
from igczoo.checkpoints.card import cards, weights_folder
from igczoo.deployment.bench import PLAIN
from igczoo.nets.layers import IGConv2d, interleave

FOLDER = Path(__file__).parent / 'figures'
EXAMPLES = Path(__file__).parents[1] / 'examples'
COLOURS = ['#4477aa', '#ee6677', '#228833', '#ccbb44', '#66ccee', '#aa3377']    # Paul Tol's bright scheme
GREY = '#777777'
STYLE = {'svg.hashsalt': 'igczoo', 'font.size': 10, 'axes.spines.top': False, 'axes.spines.right': False, 'figure.dpi': 100}


def connections(layer, channels: int) -> Tensor:
    """Which input channels (columns) each output channel (rows) of a layer is made from: bool (out, in), found by asking the layer."""
    with torch.no_grad():
        return layer(torch.eye(channels).view(channels, channels, 1, 1)).flatten(1).t() != 0     # image c has a one in channel c alone


def igc_layer(primary: int, secondary: int, kernel_size: int = 1) -> IGConv2d:
    """A layer whose weights are all one: only its structure is left."""
    layer = IGConv2d(primary * secondary, primary * secondary, primary, kernel_size)
    for parameter in layer.parameters():
        nn.init.ones_(parameter)
    return layer


def draw_block(primary: int = 3, secondary: int = 2) -> None:
    """The channels of an IGC layer from left to right; a line where one is made from another."""
    layer, channels = igc_layer(primary, secondary), primary * secondary
    steps = {
        'primary convolution\n(spatial, by partition)': layer.primary,
        'interleave': lambda x: interleave(x, primary),
        'secondary convolution\n(1x1, by partition)': layer.secondary,
        'interleave back': lambda x: interleave(x, secondary),
    }
    found = [connections(step, channels) for step in steps.values()]
    partition = torch.arange(channels) // secondary
    holds = [partition]                             # of each column, the primary partition that each place's channel belongs to
    for matrix, moves in zip(found, (False, True, False, True), strict=True):
        holds.append(holds[-1][matrix.int().argmax(1)] if moves else holds[-1])

    figure, axes = plt.subplots(figsize=(8.4, 3.1))
    for column, (name, matrix) in enumerate(zip(steps, found, strict=True)):
        for out, source in matrix.nonzero().tolist():
            colour = COLOURS[holds[column][source]]
            axes.plot([column + .07, column + .93], [-source, -out], color=colour, linewidth=1.4, zorder=1)
        axes.text(column + .5, .75, name, ha='center', va='bottom', fontsize=9)
    for column, held in enumerate(holds):
        axes.scatter([column] * channels, -torch.arange(channels), s=130, c=[COLOURS[i] for i in held], zorder=2, edgecolors='white')
    for first, size in ((0, secondary), (1, secondary), (2, primary), (3, primary), (4, secondary)):
        for start in range(0, channels, size):
            box = plt.Rectangle((first - .13, -start - size + .58), .26, size - .16, fill=False, edgecolor=GREY, linewidth=.8)
            axes.add_patch(box)
    axes.text(0, -channels + .2, f'L = {primary} primary\npartitions of\nM = {secondary} channels', ha='center', va='top', fontsize=9)
    axes.text(2.5, -channels + .2, f'M = {secondary} secondary partitions of L = {primary} channels,\none from each primary partition',
              ha='center', va='top', fontsize=9)
    axes.set(xlim=(-.5, 4.4), ylim=(-channels - 1.6, 1.9))
    axes.axis('off')
    save(figure, 'block')


def draw_kernel(primary: int = 8, secondary: int = 2) -> None:
    """The matrices of a 1x1 IGC layer with random weights, and the one that the layer is as a whole."""
    torch.manual_seed(0)
    layer, channels = IGConv2d(primary * secondary, primary * secondary, primary, 1), primary * secondary
    one_hot = torch.eye(channels).view(channels, channels, 1, 1)
    steps = {
        'primary': layer.primary, 'interleave': lambda x: interleave(x, primary), 'secondary': layer.secondary,
        'interleave back': lambda x: interleave(x, secondary), 'all four: the layer': layer}
    figure, columns = plt.subplots(1, len(steps), figsize=(8.4, 2.1))
    for axes, (name, step) in zip(columns, steps.items(), strict=True):
        with torch.no_grad():
            matrix = step(one_hot).flatten(1).t()
        limit = matrix.abs().max()
        axes.imshow(matrix, cmap='RdBu', vmin=-limit, vmax=limit, interpolation='nearest')
        axes.set_title(f'{name}\n{int((matrix != 0).sum())} numbers', fontsize=9)
        axes.set(xticks=[], yticks=[])
        for spine in axes.spines.values():
            spine.set(visible=True, color=GREY, linewidth=.6)
    figure.tight_layout()
    save(figure, 'kernel')


def draw_width(regular: int = 64) -> None:
    """How wide an IGC layer is that has no more weights than a regular 3x3 convolution, counted in the layers."""
    def weights(primary: int, secondary: int) -> int:
        return sum(p.numel() for p in IGConv2d(primary * secondary, primary * secondary, primary, device='meta').parameters())

    budget, found = 9 * regular * regular, {}
    for secondary in (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48):
        primary = max(count for count in range(1, 400) if weights(count, secondary) <= budget)
        found[secondary] = primary * secondary
    figure, axes = plt.subplots(figsize=(6, 3))
    axes.plot(list(found), list(found.values()), marker='o', color=COLOURS[0], label='IGC layer')
    axes.axhline(regular, color=COLOURS[1], label=f'regular convolution, {regular} channels')
    axes.set(xscale='log', xlabel='M, channels of a primary partition', ylabel='channels', ylim=(0, None),
             title=f'channels for at most {budget:,} weights')
    axes.set_xticks(list(found), map(str, found))
    axes.minorticks_off()
    axes.legend(frameon=False, loc=(.03, .25))
    save(figure, 'width')


def draw_cost() -> None:
    """Top-1 on ImageNet-1k as the weights' authors print it, against multiply-adds."""
    shown = [card for card in cards().values() if card.accuracy and card.accuracy[0].dataset.startswith('ImageNet')]
    figure, axes = plt.subplots(figsize=(6, 3.4))
    for generation, colour in (('igcnet', COLOURS[0]), ('igcv', COLOURS[1])):
        of_it = sorted((card.macs / 1e6, card.accuracy[0].top1, card.name) for card in shown if card.model.startswith(generation))
        for macs, top1, name in of_it:
            axes.scatter(macs, top1, color=colour)
            axes.annotate(name, (macs, top1), xytext=(5, -3), textcoords='offset points', fontsize=8)
    axes.set(xlabel='multiply-adds of one image, millions', ylabel='top-1, %', title="ImageNet-1k, as the weights' authors print it")
    axes.margins(x=.2, y=.15)
    axes.set_xlim(0, None)
    save(figure, 'cost')


def draw_training(name: str) -> None:
    """The curves of a run that a checkpoint came from, by its log."""
    with open(weights_folder() / name / 'log.csv', newline='', encoding='utf-8') as file:
        rows = list(csv.DictReader(file))
    epochs = [int(row['epoch']) for row in rows]
    figure, (above, below) = plt.subplots(2, 1, figsize=(6, 4), sharex=True)
    above.plot(epochs, [float(row['top1']) for row in rows], color=COLOURS[0])
    above.set(ylabel='top-1, %', title=name)
    below.plot(epochs, [float(row['train_loss']) for row in rows], color=COLOURS[1])
    below.set(ylabel='training loss', xlabel='epoch')
    below.xaxis.get_major_locator().set_params(integer=True)
    mark_sizes(above, epochs, [row.get('size') for row in rows])
    save(figure, f'training-{name}')


def draw_speed() -> None:
    """Images a second of what benchmarks/speed.py has measured: by batch on all threads, and by threads."""
    speed = runpy.run_path(str(FOLDER.parents[1] / 'benchmarks' / 'speed.py'))
    rows = speed['read_rows']()
    batches, counts = (sorted({getattr(row, field) for row in rows}) for field in ('batch', 'threads'))
    figure, (by_batch, by_threads) = plt.subplots(1, 2, figsize=(8.4, 3.4), sharey=True, width_ratios=(3, 2))
    shown = {'igcnet18, deployed': ('igcnet18', ['deployed']), 'igcnet18': ('igcnet18', PLAIN), 'timm resnet18': ('resnet18', PLAIN)}
    for (name, (model, forms)), colour in zip(shown.items(), COLOURS, strict=False):
        for dtype, line in (('float32', '-'), ('bfloat16', '--')):
            style = dict(linestyle=line, marker='o', markersize=3, color=colour, label=f'{name}, {dtype}')
            found = [speed['best'](rows, model, forms, dtype, batch, counts[-1]).speed for batch in batches]
            by_batch.plot(batches, found, **style)
            by_threads.plot(counts, [speed['best'](rows, model, forms, dtype, 8, count).speed for count in counts], **style)
    by_batch.set(xlabel=f'batch, on {counts[-1]} threads', ylabel=f'images a second at {rows[0].size} pixels', ylim=(0, None), xscale='log')
    by_batch.set_xticks(batches, map(str, batches))
    by_threads.set(xlabel='threads, batch 8', xticks=counts)
    by_batch.minorticks_off()
    figure.legend(*by_batch.get_legend_handles_labels(), frameon=False, fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(.5, .02))
    figure.tight_layout()
    save(figure, 'speed')


def draw_heat(photograph: Path = EXAMPLES / 'school_bus.jpg') -> None:
    """Where the default net looks."""
    igczoo.load('igcnet18').explain(photograph).picture().save(FOLDER / 'heat.jpg', quality=85)


def mark_sizes(axes: Axes, epochs: list[int], sizes: list[str | None]) -> None:
    """Say where the images grew."""
    for epoch, before, size in zip(epochs[1:], sizes, sizes[1:], strict=False):
        if size != before:
            axes.axvline(epoch - .5, color=GREY, linewidth=.8, linestyle=':')
            axes.annotate(f'{size} px', (epoch - .3, axes.get_ylim()[0]), fontsize=8, color=GREY, va='bottom')


def draw_comparison() -> None:
    """What benchmarks/comparison.py has found, where it has been run: each net's runs against what the net costs."""
    comparison = runpy.run_path(str(FOLDER.parents[1] / 'benchmarks' / 'comparison.py'))
    if not (found := comparison['results']()):
        return
    figure, columns = plt.subplots(1, 2, figsize=(8.4, 3.2), sharey=True)
    for axes, field, unit, title in zip(columns, ('params', 'macs'), (1e3, 1e6), ('parameters, thousands', 'multiply-adds, millions'),
                                        strict=True):
        for result in found:
            name, x = comparison['NETS'][result.net], getattr(result, field) / unit
            axes.plot([x] * len(result.top1), result.top1, color=COLOURS[not name.startswith('IGC')], marker='o', markersize=4, linewidth=1)
            axes.annotate(name, (x, sum(result.top1) / len(result.top1)), (6, 0), textcoords='offset points', fontsize=9, va='center')
        axes.margins(x=.3)
        axes.set(xlabel=title, xlim=(0, None))
    columns[0].set_ylabel('top-1 on CIFAR-10, %')
    figure.tight_layout()
    save(figure, 'comparison')


def save(figure: plt.Figure, name: str) -> None:
    figure.savefig(FOLDER / f'{name}.svg', bbox_inches='tight', metadata={'Date': None})
    plt.close(figure)


def main() -> None:
    mpl.use('Agg')
    mpl.rcParams.update(STYLE)
    FOLDER.mkdir(exist_ok=True)
    draw_block()
    draw_kernel()
    draw_width()
    draw_cost()
    draw_speed()
    draw_comparison()
    draw_heat()
    for card in cards().values():
        if (weights_folder() / card.name / 'log.csv').exists():
            draw_training(card.name)


if __name__ == '__main__':
    main()
