"""What is written from the cards: config.json and README.md of each folder of weights/, and the README's table.

`python -m igczoo.checkpoints.model_card` writes them all again; a test compares.
"""
from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable
from dataclasses import asdict
from functools import cache
from typing import Any

import timm
import torch
from huggingface_hub.utils import yaml_dump
from timm.data import ImageNetInfo
from torch.utils.flop_counter import FlopCounterMode

from ..nets.families import NETS, VARIANTS, build, paper, printed, timm_cfg
from .card import Accuracy, Card, Trained, cards, weights_folder

__all__ = [
    'TABLE_MARKS',
    'between',
    'comparison',
    'config_json',
    'count_macs',
    'count_params',
    'markdown_table',
    'model_card',
    'models_table',
    'net_of',
    'with_table',
]

TABLE_MARKS = '<!-- weights: written by python -m igczoo.checkpoints.model_card -->', '<!-- end of weights -->'
TRAINING_DATA = {   # tag -> on the hub
    'cifar10': 'uoft-cs/cifar10', 'tinyimagenet': 'zh-plus/tiny-imagenet', 'in1k': 'ILSVRC/imagenet-1k', 'pcv_in1k': 'ILSVRC/imagenet-1k'}


def config_json(card: Card) -> str:
    """The config.json of a hub repository in timm's layout."""
    model = net_of(card)
    labels = ImageNetInfo().label_descriptions() if isinstance(card.labels, str) else card.labels
    facts = dict(asdict(card.preprocess), num_classes=card.num_classes, license=card.license, description=card.title)
    if card.model in VARIANTS:
        pool, cfg = model.global_pool.pool_type, timm_cfg(card.model, **facts)
    else:
        own = ('first_conv', 'classifier', 'pool_size', 'fixed_input_size')
        pool, cfg = 'avg', {key: value for key, value in model.pretrained_cfg.items() if key in own} | facts
    config = dict(architecture=card.model, num_classes=card.num_classes, num_features=model.num_features, global_pool=pool,
                  label_names=labels, pretrained_cfg=dict(tag=card.tag) | cfg)
    return json.dumps(config, indent=1, ensure_ascii=False) + '\n'


def net_of(card: Card) -> torch.nn.Module:
    """The card's net without weights, on the meta device: one of this package, or timm's own that somebody has trained here."""
    if card.model in VARIANTS:
        return build(card.model, num_classes=card.num_classes, device='meta')
    with torch.device('meta'):
        return timm.create_model(card.model, num_classes=card.num_classes)


def model_card(card: Card) -> str:
    """The README.md of a hub repository: YAML metadata, then what a user must know. A section with nothing to say is left out."""
    sections = {
        'Use': _use(card),
        'Accuracy': _accuracy(card),
        'Comparison': comparison(card).rstrip(),
        'Where it comes from': _provenance(card),
        'Limits': card.limits,
        'Terms': f'Licence of the weights: {card.license}. {card.terms}'.strip(),
        'Citation': _citation(card.model) if card.model in VARIANTS else '',
    }
    body = ''.join(f'\n## {title}\n{text}\n' for title, text in sections.items() if text)
    metadata = yaml_dump(_metadata(card), sort_keys=False)
    introduction = _introduction(card.model) if card.model in VARIANTS else ''
    return f'---\n{metadata}---\n# {card.name}\n\n{card.title}. {introduction}\n{_facts(card)}{body}'


def models_table(found: dict[str, Card], variants: Iterable[str] = ()) -> str:
    """A Markdown table of checkpoints, one row each, and of those variants that have none."""
    trained = {card.model for card in found.values()}
    rows = {name: _checkpoint_row(card) for name, card in found.items()}
    rows |= {variant: _variant_row(variant) for variant in variants if variant not in trained}
    return markdown_table([rows[name] for name in sorted(rows)])


def comparison(card: Card) -> str:
    """What the card's comparison says, with a Markdown table; '' where there is none."""
    if card.comparison is None:
        return ''
    rows = [_comparison_row(card, net) for net in card.comparison.nets]
    return f'{card.comparison.conditions}\n\n{markdown_table(rows)}'


def with_table(readme: str) -> str:
    """The README's text with a table between its `TABLE_MARKS`: the first net of each generation, by what
    its bare name means, and all checkpoints that were trained here.

    Raises:
        ValueError: as `between`.
    """
    first = [next(iter(family.VARIANTS)) for family in NETS]
    table = models_table({name: card for name, card in cards().items() if not card.origin or (card.default and card.model in first)}, first)
    return between(readme, *TABLE_MARKS, f'\n{table}')


def between(readme: str, start: str, end: str, text: str) -> str:
    """The README's text with another one between two marks.

    Raises:
        ValueError: it has not each mark once, in their order.
    """
    if readme.count(start) != 1 or readme.partition(start)[2].count(end) != 1:
        raise ValueError(f'the README must have the line {start!r} and after it {end!r}, once each')
    before, _, rest = readme.partition(start)
    return f'{before}{start}{text}{end}{rest.partition(end)[2]}'


def count_params(model: torch.nn.Module) -> int:
    """Parameters, frozen ones too."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: torch.nn.Module, input_size: tuple[int, int, int]) -> int:
    """Multiply-adds of the convolutions and the classifier for one image of ``input_size`` (channels, height, width).

    A model on the meta device is counted without computing anything.
    """
    x = torch.zeros(1, *input_size, device=next(model.parameters()).device)
    counted = copy.deepcopy(model).eval().requires_grad_(False)     # it stops at a parameter that is an input and needs a gradient
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        counted(x)
    return counter.get_total_flops() // 2


def _introduction(variant: str) -> str:
    found = paper(variant)
    names = ', '.join(author.partition(',')[0] for author in found.authors.split(' and '))
    return (f'An Interleaved Group Convolution network ({names}: {found.title},\n{found.venue} {found.year}, '
            f'[arXiv:{found.arxiv}](https://arxiv.org/abs/{found.arxiv})) for [timm](https://github.com/huggingface/pytorch-image-models).\n')


def _citation(variant: str) -> str:
    found = paper(variant)
    key = f"{found.authors.partition(',')[0]}{found.year}{re.match('[A-Za-z0-9]+', found.title)[0]}".lower()
    return f'''```bibtex
@inproceedings{{{key},
  title = {{{found.title}}},
  author = {{{found.authors}}},
  booktitle = {{{found.venue}}},
  year = {{{found.year}}}
}}
```'''


def _metadata(card: Card) -> dict[str, Any]:
    """The hub's metadata. Its model-index has what was measured, never what others print."""
    measured = [accuracy for accuracy in card.accuracy if accuracy.by == 'igczoo']
    metadata = dict(library_name='timm', pipeline_tag='image-classification', license=card.license.lower(),
                    tags=['timm', *['igcnet'] * (card.model in VARIANTS), 'image-classification'])
    if card.tag in TRAINING_DATA:
        metadata['datasets'] = [TRAINING_DATA[card.tag]]
    metadata['metrics'] = ['accuracy']
    if measured:
        metadata['model-index'] = [dict(name=card.name, results=[_result(card, accuracy) for accuracy in measured])]
    return metadata


def _result(card: Card, accuracy: Accuracy) -> dict[str, Any]:
    name, own_name = (measured.dataset.partition(' (')[0] for measured in (accuracy, card.accuracy[0]))   # less '(the encoding)'
    metrics = [dict(type='accuracy', value=accuracy.top1, name='top-1 accuracy, %')]
    if accuracy.top5 is not None:
        metrics.append(dict(type='accuracy', value=accuracy.top5, name='top-5 accuracy, %'))
    kind = TRAINING_DATA.get(card.tag, card.tag) if name == own_name else name
    dataset = dict(name=accuracy.dataset, type=kind, split=accuracy.split)
    return dict(task=dict(type='image-classification'), dataset=dataset, metrics=metrics)


def _facts(card: Card) -> str:
    preprocess = card.preprocess
    names = ', named in config.json' if isinstance(card.labels, str) or card.num_classes > 20 else f': {", ".join(card.labels)}'
    facts = {
        'parameters': f'{card.params:,}',
        'multiply-adds of one image': f'{card.macs:,}',
        'input': f'{"x".join(map(str, preprocess.input_size))}, {preprocess.interpolation}, crop_pct {preprocess.crop_pct:g}, '
                 f'crop_mode {preprocess.crop_mode}',
        'mean, std of R, G, B in 0..1': f'{preprocess.mean}, {preprocess.std}',
        'classes': f'{card.num_classes}{names}',
    }
    if card.sha256:
        facts['model.safetensors'] = f'{card.size:,} bytes, {card.dtype}, sha256 `{card.sha256}`'
    return markdown_table([{'fact': fact, 'value': value} for fact, value in facts.items()])


def _use(card: Card) -> str:
    if card.base:
        return '''```python
import igczoo
classifier = igczoo.load('FOLDER')                              # where this file lies, or 'hf-hub:organisation/name'
print(classifier.classify('photograph.jpg', k=3))               # labels with scores, likeliest first
```'''
    return f'''```python
import igczoo, timm                                             # igczoo tells timm of its models
classifier = igczoo.load('{card.name}')
print(classifier.classify('photograph.jpg', k=3))               # labels with scores, likeliest first
print(classifier.embed('photograph.jpg').shape)                 # pooled features
model = timm.create_model('{card.name}', pretrained=True)
```'''


def _accuracy(card: Card) -> str:
    rows = [{
        'data': accuracy.dataset,
        'split': accuracy.split,
        'images': f'{accuracy.n:,}' if accuracy.n else '',
        'top-1, %': f'{accuracy.top1:.2f}',
        '95 % interval (Wilson)': _interval(accuracy),
        'top-5, %': '' if accuracy.top5 is None else f'{accuracy.top5:.2f}',
        'by': '`igczoo evaluate`' if accuracy.by == 'igczoo' else accuracy.by,
        'note': accuracy.note,
    } for accuracy in card.accuracy]
    return markdown_table(rows).rstrip()


def _provenance(card: Card) -> str:
    lines = [card.provenance]
    if card.recipe:
        lines.append(f'The recipe: `igczoo train {card.recipe} --data DATA --bf16`.')
    if card.origin:
        size = f', {card.origin.size:,} bytes' if card.origin.size else ''
        digest = 'git blob' if card.origin.git_blob_sha1 else 'SHA-1 of the file in it'
        lines.append(f'The file: <{card.origin.url}>{size}, {digest} `{card.origin.digest}`.')
    return '\n\n'.join(filter(None, lines))


def _checkpoint_row(card: Card) -> dict[str, str]:
    published, measured = ([one for one in card.accuracy if (one.by == 'igczoo') == ours] for ours in (False, True))
    size = card.origin.size if card.origin else card.size
    weights = [f'{size / 1e6:.1f} MB'] if size else []
    weights.append(f'fetched from {card.origin.by}' if card.origin else 'here')
    return _row(card.model, f'[`{card.name}`](weights/{card.name}/README.md)', card.params, card.macs,
                f'{published[0].top1:.2f} ({published[0].dataset}, {published[0].by})' if published else '',
                _measured(measured[0]) if measured else '', ', '.join(weights))


@cache
def _variant_row(variant: str) -> dict[str, str]:
    cfg, found = timm_cfg(variant), printed(variant)
    net = build(variant, num_classes=cfg['num_classes'], device='meta')
    return _row(variant, f'`{variant}`', count_params(net), count_macs(net, cfg['input_size']),
                f'{found.top1:.2f} (ImageNet-1k, {found.by})' if found else '', '', 'none')


def _row(variant: str, name: str, params: int, macs: int, published: str, measured: str, weights: str) -> dict[str, str]:
    """A net of another package is of no generation."""
    generation = f'{NETS[VARIANTS[variant]].__name__}, {paper(variant).venue} {paper(variant).year}' if variant in VARIANTS else ''
    return {'generation': generation, 'model': name, 'parameters': f'{params / 1e6:.2f} M', 'multiply-adds': f'{macs / 1e6:,.0f} M',
            'published top-1, %': published, 'measured top-1, % (95 % interval)': measured, 'weights': weights}


def _measured(accuracy: Accuracy) -> str:
    interval = f' ({_interval(accuracy)})' if accuracy.top1_interval else ''
    images = f', {accuracy.n:,} images' if accuracy.n else ''
    return f'{accuracy.top1:.2f}{interval}, {accuracy.dataset}{images}'


def _comparison_row(card: Card, net: Trained) -> dict[str, str]:
    model = build(net.model, num_classes=card.num_classes, device='meta')
    return {
        'net': f'`{net.model}`',
        'parameters': f'{count_params(model) / 1e6:.2f} M',
        'multiply-adds': f'{count_macs(model, card.preprocess.input_size) / 1e6:,.0f} M',
        'top-1, %': f'{net.top1:.2f}',
        'seconds an epoch': f'{net.epoch_seconds:,.0f}',
    }


def _interval(accuracy: Accuracy) -> str:
    return '{:.2f} to {:.2f}'.format(*accuracy.top1_interval) if accuracy.top1_interval else ''


def markdown_table(rows: list[dict[str, str]]) -> str:
    """A Markdown table without the columns that are empty in every row; '' where there is no row."""
    columns = [column for column in dict.fromkeys(column for row in rows for column in row) if any(row.get(column) for row in rows)]
    lines = [columns, ['---'] * len(columns), *([row.get(column, '') for column in columns] for row in rows)] if rows else []
    cells = ([cell.replace('|', '\\|') for cell in line] for line in lines)
    return ''.join(f'| {" | ".join(line)} |\n' for line in cells)


def _write_all() -> None:
    folder = weights_folder()
    for card in cards().values():
        (folder / card.name / 'config.json').write_text(config_json(card), encoding='utf-8')
        (folder / card.name / 'README.md').write_text(model_card(card), encoding='utf-8')
    readme = folder.parent / 'README.md'
    readme.write_text(with_table(readme.read_text(encoding='utf-8')), encoding='utf-8')


if __name__ == '__main__':
    _write_all()
