"""What is written from the cards: config.json and README.md of each folder of weights/, and the table of weights in the README.

`python -m igczoo.model_card` writes them all again; a test compares.
"""
from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import ImageNetInfo
from torch.utils.flop_counter import FlopCounterMode

from .card import Accuracy, Card, cards, weights_folder

__all__ = ['config_json', 'count_macs', 'count_params', 'model_card', 'weights_table']

TABLE_MARKS = '<!-- weights: written by python -m igczoo.model_card -->', '<!-- end of weights -->'
DATASET_IDS = {'cifar10': 'cifar10', 'tinyimagenet': 'zh-plus/tiny-imagenet', 'in1k': 'imagenet-1k'}     # on the hub, by tag


def config_json(card: Card) -> str:
    """The config.json of a hub repository in timm's layout."""
    model = timm.create_model(card.model, num_classes=card.num_classes, device='meta')
    labels = ImageNetInfo().label_descriptions() if isinstance(card.labels, str) else card.labels
    config: dict[str, Any] = dict(
        architecture=card.model, num_classes=card.num_classes, num_features=model.num_features, global_pool=model.global_pool.pool_type,
        label_names=labels, pretrained_cfg=asdict(card.preprocess) | dict(
            tag=card.tag, num_classes=card.num_classes, pool_size=_map_size(card), first_conv='stem.conv', classifier='head',
            license=card.license, description=card.title, paper_ids='arXiv:1707.02725'))
    return json.dumps(config, indent=1, ensure_ascii=False) + '\n'


def model_card(card: Card) -> str:
    """The README.md of a hub repository: YAML metadata, then what a user must know."""
    size = 'x'.join(map(str, card.preprocess.input_size[1:]))
    return f'''---
{_metadata(card)}---
# {card.name}

{card.title}. An Interleaved Group Convolution network (Zhang, Qi, Xiao, Wang: Interleaved Group Convolutions for Deep Neural Networks,
ICCV 2017, [arXiv:1707.02725](https://arxiv.org/abs/1707.02725)) for [timm](https://github.com/huggingface/pytorch-image-models).

| parameters | multiply-adds | input | classes | stored as |
|---|---|---|---|---|
| {card.params:,} | {card.macs:,} | {size} | {card.num_classes} | {card.dtype} |

## Use
```python
import igczoo                                   # pip install igczoo
classifier = igczoo.load('{card.name}')
print(classifier.classify('photograph.jpg', k=3))
import timm                                     # or by timm, with igczoo imported
model = timm.create_model('{card.name}', pretrained=True)
```

## Accuracy
| data | split | images | top-1 | 95 % interval | top-5 | by |
|---|---|---|---|---|---|---|
{''.join(_accuracy_row(accuracy) for accuracy in card.accuracy)}
## Where it comes from
{card.provenance}

## Limits
{card.limits}

## Terms
{card.license}. {card.terms}
'''


def weights_table(found: dict[str, Card]) -> str:
    """A Markdown table of checkpoints, one row each."""
    head = '| checkpoint | parameters | multiply-adds | top-1 | top-5 | measured on |\n|---|---|---|---|---|---|\n'
    return head + ''.join(_table_row(card) for card in sorted(found.values(), key=lambda card: card.name))


def count_params(model: torch.nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: torch.nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and the classifier for one image of ``input_size`` (channels, height, width)."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, *input_size))
    return counter.get_total_flops() // 2


def _map_size(card: Card) -> list[int]:
    """Height and width of the last map."""
    model = timm.create_model(card.model, num_classes=0, device='meta').eval()
    return list(model.forward_features(torch.empty(1, *card.preprocess.input_size, device='meta')).shape[-2:])


def _metadata(card: Card) -> str:
    lines = ['library_name: timm', 'pipeline_tag: image-classification', f'license: {card.license.lower()}', 'tags:', '- timm', '- igcnet',
             '- image-classification', 'datasets:', f'- {DATASET_IDS[card.tag]}']
    measured = [accuracy for accuracy in card.accuracy if accuracy.by == 'igczoo']
    if measured:
        lines += ['model-index:', f'- name: {card.name}', '  results:']
    for accuracy in measured:
        lines += ['  - task:', '      type: image-classification', '    dataset:', f'      name: {json.dumps(accuracy.dataset)}',
                  f'      type: {DATASET_IDS[card.tag]}', f'      split: {json.dumps(accuracy.split)}', '    metrics:', '    - type: accuracy',
                  f'      value: {accuracy.top1}', '      name: top-1 accuracy']
    return '\n'.join(lines) + '\n'


def _accuracy_row(accuracy: Accuracy) -> str:
    interval = '{}-{}'.format(*(f'{bound:.2f}' for bound in accuracy.top1_interval)) if accuracy.top1_interval else ''
    top5 = '' if accuracy.top5 is None else f'{accuracy.top5:.2f}'
    by = accuracy.by + (f': {accuracy.note}' if accuracy.note else '')
    return f'| {accuracy.dataset} | {accuracy.split} | {accuracy.n or ""} | {accuracy.top1:.2f} | {interval} | {top5} | {by} |\n'


def _table_row(card: Card) -> str:
    first = card.accuracy[0]
    source = '' if first.by == 'igczoo' else f' (printed by {first.by})'
    top5 = '' if first.top5 is None else f'{first.top5:.2f}'
    return (f'| `{card.name}` | {card.params / 1e6:.2f} M | {card.macs / 1e6:,.0f} M | {first.top1:.2f} | {top5} | '
            f'{first.dataset}, {first.split}{source} |\n')


def _write_all() -> None:
    for card in cards().values():
        folder = weights_folder() / card.name
        (folder / 'config.json').write_text(config_json(card), encoding='utf-8')
        (folder / 'README.md').write_text(model_card(card), encoding='utf-8')
    readme = Path(weights_folder()).parent / 'README.md'
    before, rest = readme.read_text(encoding='utf-8').split(TABLE_MARKS[0])
    after = rest.split(TABLE_MARKS[1])[1]
    readme.write_text(f'{before}{TABLE_MARKS[0]}\n{weights_table(cards())}{TABLE_MARKS[1]}{after}', encoding='utf-8')


if __name__ == '__main__':
    _write_all()
