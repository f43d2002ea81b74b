"""What is generated from the cards is what lies in weights/ and in the README, reads as metadata, and promises nothing that is not so."""
import dataclasses
import json
import re
import shutil
from pathlib import Path

import pytest
import timm
import torch
from huggingface_hub import ModelCard
from timm.data import ImageNetInfo, resolve_model_data_config

from igczoo.checkpoints import model_card as module
from igczoo.checkpoints.card import Accuracy, Card, Comparison, Origin, Preprocess, Trained, cards, weights_folder
from igczoo.checkpoints.model_card import (
    TABLE_MARKS,
    comparison,
    config_json,
    count_macs,
    count_params,
    model_card,
    models_table,
    with_table,
)
from igczoo.nets import families
from igczoo.nets.families import VARIANTS

ROOT = Path(__file__).parents[2]
NAMES = sorted(cards())
SHIPPED = [name for name in NAMES if (weights_folder() / name / 'model.safetensors').exists()]
LABELS = tuple(ImageNetInfo().label_descriptions())
CARD = Card(
    'igc_resnet20_l24m2', 'cifar10', title='A net', params=157_498, macs=22_000_000, labels=('cat', 'dog'),
    preprocess=Preprocess((3, 32, 32), (.1, .2, .3), (.4, .5, .6), 'bilinear', .875), license='apache-2.0', terms='Cite them.',
    provenance='Trained here.', limits='Small images only.', sha256='5' * 64, size=1_234_567, recipe='the_recipe', accuracy=(
        Accuracy('CIFAR-10 (JPEG)', 'test', 'igczoo', 91.2, 99.75, 10_000, (90.63, 91.74)),
        Accuracy('CIFAR-10 (lossless)', 'part', 'igczoo', 92.),
        Accuracy('Others', 'test', 'igczoo', 80., None, 50, (66.96, 88.76), 'of the web'),
        Accuracy('CIFAR-10', 'test', 'the authors', 94.5, note='not measured here')))
FOREIGN = dataclasses.replace(
    CARD, tag='in1k', labels='imagenet-1k', license='unknown', accuracy=CARD.accuracy[3:], sha256=None, size=None, recipe=None,
    origin=Origin('https://example.com/net.params', 'the authors', 'mxnet', 'b' * 40, size=7_654_321))


def section(text: str, title: str) -> str:
    return re.search(rf'^## {title}\n(.*?)(?=^## |\Z)', text, re.MULTILINE | re.DOTALL)[1]


# The files of weights/

@pytest.mark.parametrize('name', NAMES)
def test_files_are_those_generated(name):
    for file, generate in {'config.json': config_json, 'README.md': model_card}.items():
        found = (weights_folder() / name / file).read_text(encoding='utf-8')
        assert found == generate(cards()[name]), f'{name}/{file} is old: run python -m igczoo.checkpoints.model_card'


def test_the_table_in_the_readme_is_the_one_generated():
    readme = (ROOT / 'README.md').read_text(encoding='utf-8')
    assert with_table(readme) == readme, 'the table is old: run python -m igczoo.checkpoints.model_card'
    table = readme.partition(TABLE_MARKS[0])[2].partition(TABLE_MARKS[1])[0]
    links = re.findall(r'\[`(.+?)`\]\((.+?)\)', table)
    assert links == [(name, f'weights/{name}/README.md') for name in (
        'igc_resnet20_l24m2.cifar10', 'igcnet18.tinyimagenet', 'igcv2_14_c64.cifar10', 'igcv3_025_cifar.cifar10', 'igcv3_100.pcv_in1k')]
    assert [line.split(' | ')[1] for line in table.splitlines() if '`igc' in line and '](' not in line] == ['`igcv2_100`']
    assert all((ROOT / target).is_file() for _, target in links)


@pytest.mark.parametrize('name', NAMES)
def test_metadata(name):
    card = cards()[name]
    data = ModelCard.load(weights_folder() / name / 'README.md').data
    assert (data.library_name, data.pipeline_tag, data.license) == ('timm', 'image-classification', card.license)
    assert data.metrics == ['accuracy']
    assert {'timm', 'igcnet'} <= set(data.tags) and len(data.datasets) == 1
    measured = [accuracy for accuracy in card.accuracy if accuracy.by == 'igczoo']
    assert [result.metric_value for result in data.eval_results or []] == [
        value for accuracy in measured for value in (accuracy.top1, accuracy.top5) if value is not None]


@pytest.mark.parametrize('name', NAMES)
def test_folders_load_by_timm(name):
    card, folder = cards()[name], weights_folder() / name
    model = timm.create_model(f'local-dir:{folder}', **({'pretrained': True} if name in SHIPPED else {'device': 'meta'}))
    assert type(model) is families.net_and_arguments(card.model)[0]
    assert (count_params(model), model.num_classes) == (card.params, card.num_classes)
    data = {key: tuple(value) if isinstance(value, list) else value for key, value in resolve_model_data_config(model).items()}
    assert data == dataclasses.asdict(card.preprocess)
    assert tuple(model.pretrained_cfg['label_names']) == (LABELS if card.labels == 'imagenet-1k' else card.labels)
    height, width = model.pretrained_cfg['pool_size']
    features = timm.create_model(card.model, device='meta').forward_features(torch.empty(1, *card.preprocess.input_size, device='meta'))
    assert features.shape == (1, model.num_features, height, width)


@pytest.mark.parametrize('name', SHIPPED)
def test_the_example_runs(name, tmp_path, monkeypatch, capsys):
    shutil.copy(sorted((ROOT / 'examples').glob('*.jpg'))[0], tmp_path / 'photograph.jpg')
    monkeypatch.chdir(tmp_path)
    code = re.search(r'```python\n(.*?)```', model_card(cards()[name]), re.DOTALL)[1]
    exec(code, found := {})
    predictions, shape = capsys.readouterr().out.splitlines()
    assert predictions.count('Prediction(') == 3 and shape == f'torch.Size([1, {found["model"].num_features}])'


# What a model card says

def test_metadata_has_measured_results_only():
    results = ModelCard(model_card(CARD)).data.eval_results
    assert [(result.dataset_name, result.dataset_type, result.dataset_split, result.metric_type, result.metric_name, result.metric_value)
            for result in results] == [
        ('CIFAR-10 (JPEG)', 'uoft-cs/cifar10', 'test', 'accuracy', 'top-1 accuracy, %', 91.2),
        ('CIFAR-10 (JPEG)', 'uoft-cs/cifar10', 'test', 'accuracy', 'top-5 accuracy, %', 99.75),
        ('CIFAR-10 (lossless)', 'uoft-cs/cifar10', 'part', 'accuracy', 'top-1 accuracy, %', 92.),
        ('Others', 'Others', 'test', 'accuracy', 'top-1 accuracy, %', 80.)]
    data = ModelCard(model_card(FOREIGN)).data
    assert data.eval_results is None and data.license == 'unknown' and data.datasets == ['ILSVRC/imagenet-1k']
    unheard = ModelCard(model_card(dataclasses.replace(CARD, tag='mine'))).data
    assert 'datasets' not in unheard.to_dict() and unheard.eval_results[0].dataset_type == 'mine'


def test_sections():
    text = model_card(CARD)
    assert '\n# igc_resnet20_l24m2.cifar10\n\nA net. An Interleaved Group Convolution network' in text
    for fact in ('157,498', '22,000,000', '3x32x32', 'crop_pct 0.875', '(0.1, 0.2, 0.3), (0.4, 0.5, 0.6)', '2: cat, dog',
                 f'1,234,567 bytes, float32, sha256 `{"5" * 64}`'):
        assert fact in text.partition('## Use')[0]
    assert section(text, 'Accuracy') == '''\
| data | split | images | top-1, % | 95 % interval (Wilson) | top-5, % | by | note |
| --- | --- | --- | --- | --- | --- | --- | --- |
| CIFAR-10 (JPEG) | test | 10,000 | 91.20 | 90.63 to 91.74 | 99.75 | `igczoo evaluate` |  |
| CIFAR-10 (lossless) | part |  | 92.00 |  |  | `igczoo evaluate` |  |
| Others | test | 50 | 80.00 | 66.96 to 88.76 |  | `igczoo evaluate` | of the web |
| CIFAR-10 | test |  | 94.50 |  |  | the authors | not measured here |

'''
    assert section(text, 'Where it comes from') == 'Trained here.\n\nThe recipe: `igczoo train the_recipe --data DATA --bf16`.\n\n'
    assert section(text, 'Limits') == 'Small images only.\n\n'
    assert section(text, 'Terms') == 'Licence of the weights: apache-2.0. Cite them.\n\n'
    assert '@inproceedings' in section(text, 'Citation') and len(section(text, 'Use').splitlines()) == 8


def test_what_others_give_is_said_to_be_theirs():
    text = model_card(FOREIGN)
    assert 'sha256' not in text and 'igczoo evaluate' not in text and '1000, named in config.json' in text
    assert section(text, 'Accuracy').splitlines()[0] == '| data | split | top-1, % | by | note |'    # no column without a value
    assert f'<https://example.com/net.params>, 7,654,321 bytes, git blob `{"b" * 40}`' in section(text, 'Where it comes from')
    origin = Origin('https://example.com/net.zip', 'somebody', 'pytorchcv', unpacked_sha1='c' * 40)
    said = section(model_card(dataclasses.replace(FOREIGN, origin=origin)), 'Where it comes from')
    assert f'The file: <https://example.com/net.zip>, SHA-1 of the file in it `{"c" * 40}`.' in said
    for model, key in (('igcnet18', 'zhang2017interleaved'), ('igcv2_100', 'xie2018igcv2'), ('igcv3_100', 'sun2018igcv3')):
        assert f'@inproceedings{{{key},' in section(model_card(dataclasses.replace(CARD, model=model)), 'Citation')


def test_sections_with_nothing_to_say_are_left_out():
    text = model_card(dataclasses.replace(CARD, accuracy=(), limits='', provenance='', recipe=None, terms=''))
    assert re.findall('^## (.*)', text, re.MULTILINE) == ['Use', 'Terms', 'Citation']
    assert section(text, 'Terms') == 'Licence of the weights: apache-2.0.\n\n' and ModelCard(text).data.eval_results is None


def test_comparison():
    """Parameters and multiply-adds are for the card's classes and input: the second net's 11,689,512 and 1,814,073,344 for 1000 and 224
    pixels become 11,689,512 - 998 * 513 and (1,814,073,344 - 1000 * 512) / 49 + 2 * 512."""
    nets = Trained('igc_resnet20_l24m2', 48.5, 1234.5, 'log.csv'), Trained('igc_regconv18_c64', 50., 99., 'b.csv')
    card = dataclasses.replace(CARD, comparison=Comparison('Both by 12 epochs.', 12, nets))
    assert comparison(card) == '''\
Both by 12 epochs.

| net | parameters | multiply-adds | top-1, % | seconds an epoch |
| --- | --- | --- | --- | --- |
| `igc_resnet20_l24m2` | 0.16 M | 29 M | 48.50 | 1,234 |
| `igc_regconv18_c64` | 11.18 M | 37 M | 50.00 | 99 |
'''
    assert section(model_card(card), 'Comparison') == comparison(card) + '\n'
    assert comparison(CARD) == '' and '## Comparison' not in model_card(CARD)


def test_config_json():
    config = json.loads(config_json(CARD))
    assert (config['architecture'], config['num_classes'], config['num_features'], config['label_names']) == (
        'igc_resnet20_l24m2', 2, 192, ['cat', 'dog'])
    cfg = config['pretrained_cfg']
    assert (cfg['tag'], cfg['num_classes'], cfg['input_size'], cfg['pool_size'], cfg['license']) == (
        'cifar10', 2, [3, 32, 32], [8, 8], 'apache-2.0')
    assert not {'url', 'hf_hub_id', 'file'} & set(cfg)
    assert set(cfg) <= {field.name for field in dataclasses.fields(timm.models.PretrainedCfg)}


@pytest.mark.parametrize('variant', VARIANTS)
def test_a_folder_of_any_net_has_the_classes_of_its_card(variant, tmp_path):
    (tmp_path / 'config.json').write_text(config_json(dataclasses.replace(CARD, model=variant)))
    model = timm.create_model(f'local-dir:{tmp_path}', device='meta')
    assert (model.num_classes, model.head.out_features, model.pretrained_cfg['label_names']) == (2, 2, ['cat', 'dog'])


# The table

def test_table():
    bare = dataclasses.replace(CARD, model='a_net', accuracy=())
    zipped = dataclasses.replace(
        FOREIGN, model='igcv3_025', origin=Origin('https://example.com/x.zip', 'somebody', 'pytorchcv', unpacked_sha1='c' * 40))
    found = {card.name: card for card in (FOREIGN, CARD, bare, zipped)}
    assert models_table(found, ['igcv3_025', 'igcv2_025', 'igc_regconv20_w16']) == '''\
| generation | model | parameters | multiply-adds | published top-1, % | measured top-1, % (95 % interval) | weights |
| --- | --- | --- | --- | --- | --- | --- |
|  | [`a_net.cifar10`](weights/a_net.cifar10/README.md) | 0.16 M | 22 M |  |  | 1.2 MB, here |
| IGCNet, ICCV 2017 | `igc_regconv20_w16` | 0.27 M | 41 M |  |  | none |
| IGCNet, ICCV 2017 | [`igc_resnet20_l24m2.cifar10`](weights/igc_resnet20_l24m2.cifar10/README.md) | 0.16 M | 22 M | \
94.50 (CIFAR-10, the authors) | 91.20 (90.63 to 91.74), CIFAR-10 (JPEG), 10,000 images | 1.2 MB, here |
| IGCNet, ICCV 2017 | [`igc_resnet20_l24m2.in1k`](weights/igc_resnet20_l24m2.in1k/README.md) | 0.16 M | 22 M | \
94.50 (CIFAR-10, the authors) |  | 7.7 MB, fetched from the authors |
| IGCV2, CVPR 2018 | `igcv2_025` | 0.73 M | 46 M | 54.90 (ImageNet-1k, ShuffleNet V2, table 8, of the authors' net) |  | none |
| IGCV3, BMVC 2018 | [`igcv3_025.in1k`](weights/igcv3_025.in1k/README.md) | 0.16 M | 22 M | 94.50 (CIFAR-10, the authors) |  | \
fetched from somebody |
'''
    assert models_table({}) == ''


def test_the_readme_has_what_the_first_net_of_each_generation_means_and_what_was_trained_here(monkeypatch):
    first = dataclasses.replace(FOREIGN, model='igcnet18', default=True)
    others = dataclasses.replace(first, tag='other', default=False), dataclasses.replace(first, model='igcnet18_l4m32')
    monkeypatch.setattr(module, 'cards', lambda: {card.name: card for card in (*others, first, CARD)})
    start, end = TABLE_MARKS
    assert CARD.origin is None and all(card.origin for card in (first, *others))
    assert with_table(start + end) == f'{start}\n{models_table({first.name: first, CARD.name: CARD}, ["igcv2_100", "igcv3_100"])}{end}'


def test_only_what_is_between_the_marks_changes(monkeypatch):
    monkeypatch.setattr(module, 'cards', lambda: {})
    start, end = TABLE_MARKS
    text = f'# Title\n{start}\nold\n{end}\nMore.\n'
    expected = f'# Title\n{start}\n{models_table({}, ["igcnet18", "igcv2_100", "igcv3_100"])}{end}\nMore.\n'
    assert with_table(text) == expected == with_table(expected)
    for wrong in ('', start, end, f'{end}\n{start}', text + text, f'{start}{end}{end}'):
        with pytest.raises(ValueError, match='the README must have the line'):
            with_table(wrong)


# Counts

def test_counts_by_hand():
    """Two convolutions and a classifier: weights, and weights times positions."""
    net = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.BatchNorm2d(8), torch.nn.Conv2d(8, 4, 1, 2, groups=2),
        torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    assert count_params(net) == 3 * 8 * 9 + 2 * 8 + (4 * 4 + 4) + (40 + 10)
    expected = 3 * 8 * 9 * 6 * 10 + 4 * 4 * 3 * 5 + 40
    assert count_macs(net, (3, 6, 10)) == count_macs(net.to('meta'), (3, 6, 10)) == expected
