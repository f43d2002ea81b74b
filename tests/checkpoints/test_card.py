"""Cards: what is written reads back equal, a malformed one says where, and every number of a shipped one is counted again."""
import csv
import dataclasses
import hashlib
import json
import re
from pathlib import Path

import pytest
import timm
import torch
from safetensors import safe_open

from igczoo.checkpoints import card as card_module
from igczoo.checkpoints.card import (
    Accuracy,
    Card,
    CardError,
    Comparison,
    Origin,
    Preprocess,
    Trained,
    card_json,
    cards,
    find_card,
    list_models,
    read_card,
    weights_folder,
    write_card,
)
from igczoo.checkpoints.model_card import count_macs, count_params
from igczoo.training.evaluate import wilson_interval
from igczoo.training.recipes import find_recipe

WORDS = dict(title='A net', license='apache-2.0', terms='Cite them.', provenance='Trained here, "well"; naïve.', limits='Many.')
PREPROCESS = Preprocess((3, 8, 8), (.5, .5, .5), (.2, .2, .2), 'bicubic', 1.)
SMALL = Card('net', 'data', params=1, macs=2, labels=('cat', 'chien'), preprocess=PREPROCESS, accuracy=(), **WORDS)
FULL = dataclasses.replace(
    SMALL, preprocess=dataclasses.replace(PREPROCESS, crop_mode='squash'), sha256='0' * 64, size=3, dtype='float16',
    accuracy=(Accuracy('set', 'test', 'igczoo', 90., 99.5, 1000, (88., 91.7), 'a note'), Accuracy('set', 'val', 'them', 80.)),
    revision='1' * 40, origin=Origin('https://example.com/x', 'them', 'mxnet', '2' * 40, size=4),
    label_ids=('n01', 'n02'), imagenet_indices=(5, 6),
    base='net.other', recipe='r', default=True, comparison=Comparison('Both by 9 epochs.', 9, (Trained('net', 80., 60., 'log.csv'),)))
ZIPPED = dataclasses.replace(FULL, origin=Origin('https://example.com/x.zip', 'them', 'pytorchcv', unpacked_sha1='3' * 40))


@pytest.fixture
def path(tmp_path) -> Path:
    return tmp_path / 'card.json'


@pytest.fixture
def installation(tmp_path, monkeypatch):
    """Puts cards where the package in tmp_path finds them."""
    def install(*found: Card) -> Path:
        for card in found:
            folder = tmp_path / 'weights' / card.name
            folder.mkdir(parents=True)
            write_card(card, folder / 'card.json')
        return tmp_path

    monkeypatch.setattr(card_module, '__file__', str(tmp_path / 'igczoo' / 'checkpoints' / 'card.py'))
    cards.cache_clear()
    yield install
    cards.cache_clear()


def test_folders_of_a_users_own_are_none_of_ours(installation):
    folder = installation(SMALL) / 'weights'
    for name in ('flowers', 'flowers.v2'):
        (folder / name).mkdir()
        write_card(dataclasses.replace(SMALL, model='resnet18', tag='flowers'), folder / name / 'card.json')
    (folder / 'broken').mkdir()
    (folder / 'broken' / 'card.json').write_text('{')
    assert list(cards()) == [SMALL.name]


# Reading and writing

@pytest.mark.parametrize('card', [SMALL, FULL, ZIPPED, dataclasses.replace(SMALL, labels='imagenet-1k')],
                         ids=['small', 'full', 'zipped', 'imagenet'])
def test_round_trip(path, card):
    write_card(card, path)
    assert read_card(path) == card and path.read_text(encoding='utf-8') == card_json(card)
    assert [file.name for file in path.parent.iterdir()] == ['card.json']


def test_the_round_trip_is_of_every_field():
    """FULL has no field at its default, so that none can be lost unseen."""
    for record in (FULL, FULL.preprocess, FULL.accuracy[0], FULL.origin, FULL.comparison, FULL.comparison.nets[0]):
        for field in dataclasses.fields(record):
            assert getattr(record, field.name) != field.default or getattr(ZIPPED.origin, field.name, None), field.name
    assert set(json.loads(card_json(FULL))) == {field.name for field in dataclasses.fields(Card)}


def test_fields_at_their_default_are_not_written():
    assert set(json.loads(card_json(SMALL))) == {field.name for field in dataclasses.fields(Card) if field.default is dataclasses.MISSING}


def test_integers_stand_for_floats(path):
    value = json.loads(card_json(FULL))
    value['accuracy'][0]['top1'] = 90
    path.write_text(json.dumps(value))
    assert read_card(path) == FULL and type(read_card(path).accuracy[0].top1) is float


def test_a_failed_write_leaves_the_old_card(path, monkeypatch):
    write_card(SMALL, path)
    monkeypatch.setattr('os.replace', lambda *_: (_ for _ in ()).throw(OSError(28, 'No space left on device')))
    with pytest.raises(OSError, match='No space'):
        write_card(FULL, path)
    assert read_card(path) == SMALL and [file.name for file in path.parent.iterdir()] == ['card.json']


def test_derived_facts():
    assert (SMALL.name, SMALL.num_classes) == ('net.data', 2)
    assert dataclasses.replace(SMALL, labels='imagenet-1k').num_classes == 1000


# Malformed cards

def change(*keys, to):
    """The full card with another value at a place in it; ... takes the value away."""
    value = record = json.loads(card_json(FULL))
    for key in keys[:-1]:
        record = record[key]
    if to is ...:
        del record[keys[-1]]
    else:
        record[keys[-1]] = to
    return json.dumps(value)


@pytest.mark.parametrize('text, message', [
    ('', 'Expecting value'),
    ('{"model": ', 'Expecting value'),
    ('[]', r'card is \[\]; it must be Card'),
    ('null', 'card is None'),
    ('{}', 'card lacks accuracy, labels, license, limits, macs, model, params, preprocess, provenance, tag, terms, title'),
    (change('params', to=...), 'card lacks params'),
    (change('preprocess', 'mean', to=...), 'card.preprocess lacks mean'),
    (change('origin', 'converter', to=...), 'card.origin lacks converter'),
    (change('accuracy', 1, 'by', to=...), r'card.accuracy\[1\] lacks by'),
    (change('colour', to='red'), 'card has an unknown colour; there are model, tag'),
    (change('preprocess', 'colour', to='red'), 'card.preprocess has an unknown colour; there are input_size'),
    (change('origin', 'sha1', to='x'), 'card.origin has an unknown sha1'),
    (change('params', to='8'), "card.params is '8'; it must be int"),
    (change('params', to=8.), 'card.params is 8.0; it must be int'),
    (change('params', to=True), 'card.params is True; it must be int'),
    (change('params', to=None), 'card.params is None; it must be int'),
    (change('title', to=None), 'card.title is None; it must be str'),
    (change('default', to=1), 'card.default is 1; it must be bool'),
    (change('size', to='3'), r"card.size is '3'; it must be int \| None"),
    (change('sha256', to=3), r'card.sha256 is 3; it must be str \| None'),
    (change('labels', to=3), r'card.labels is 3; it must be tuple\[str, ...\] \| str'),
    (change('labels', to='cat'), "card.labels is 'cat'; it must be a list of names, or 'imagenet-1k'"),
    (change('labels', 1, to=3), r'card.labels\[1\] is 3; it must be str'),
    (change('imagenet_indices', 0, to='5'), r"card.imagenet_indices\[0\] is '5'; it must be int"),
    (change('preprocess', to=[]), r'card.preprocess is \[\]; it must be Preprocess'),
    (change('preprocess', 'input_size', to=[3, 8]), r'card.preprocess.input_size is \[3, 8\]; it must be tuple\[int, int, int\]'),
    (change('preprocess', 'mean', 2, to='x'), r"card.preprocess.mean\[2\] is 'x'; it must be float"),
    (change('preprocess', 'crop_pct', to=None), 'card.preprocess.crop_pct is None; it must be float'),
    (change('accuracy', to={}), r'card.accuracy is {}; it must be tuple\[.*Accuracy, ...\]'),
    (change('accuracy', 0, 'top5', to='99'), r"card.accuracy\[0\].top5 is '99'; it must be float \| None"),
    (change('accuracy', 0, 'top1_interval', to=[88.]), r'card.accuracy\[0\].top1_interval is \[88.0\]; it must be tuple\[float, float\]'),
    (change('origin', to='https://example.com'), r"card.origin is 'https://example.com'; it must be .*Origin \| None"),
])
def test_a_malformed_card_says_where(path, text, message):
    path.write_text(text)
    with pytest.raises(CardError, match=message) as raised:
        read_card(path)
    assert str(raised.value).startswith(f'{path}: ') and '\n' not in str(raised.value)


def test_cards_that_cannot_be_read(path):
    with pytest.raises(CardError) as raised:
        read_card(path)
    assert str(raised.value) == f'{path}: there is no such file; name a folder that igczoo finetune, train or convert made'
    with pytest.raises(CardError, match='cannot be read: Is a directory'):
        read_card(path.parent)
    path.write_bytes(b'\xff{}')
    with pytest.raises(CardError, match=r"card\.json: 'utf-8' codec"):
        read_card(path)


# Finding

def test_names(installation):
    other = dataclasses.replace(SMALL, tag='other', default=True)
    alone = dataclasses.replace(SMALL, model='wide_net')
    installation(SMALL, other, alone)
    assert list(cards()) == ['net.other', 'net.data', 'wide_net.data']
    assert list_models() == ['net.data', 'net.other', 'wide_net.data']
    assert find_card('net') == find_card('net.other') == other and find_card('net.data') == SMALL
    for name, message in {
        'wide_net': 'wide_net has no default checkpoint; name one of wide_net.data',
        'xyz': "'xyz' is no checkpoint; there are net.data, net.other, wide_net.data",
    }.items():
        with pytest.raises(CardError) as raised:
            find_card(name)
        assert str(raised.value) == message
    with pytest.raises(CardError, match=r"'net\.oter' is no checkpoint; did you mean net\.other.*\? All there are: net\.data, net\."):
        find_card('net.oter')


def test_weights_lie_in_the_package_or_beside_it(installation):
    root = installation(SMALL)
    assert weights_folder() == root / 'weights'
    (root / 'igczoo').mkdir()
    (root / 'weights').rename(root / 'igczoo' / 'weights')
    (root / 'weights').mkdir()
    assert weights_folder() == root / 'igczoo' / 'weights' and list(cards()) == ['net.data']


def test_a_broken_card_in_weights_is_named(installation):
    root = installation(SMALL)
    (root / 'weights' / 'net.data' / 'card.json').write_text('{}')
    with pytest.raises(CardError, match=r'net\.data/card\.json: card lacks'):
        cards()


# The cards of this installation: what can be counted is counted again

SHIPPED = sorted(weights_folder().iterdir())
ORIGINS = {     # bytes and digest of others' files
    'igcnet18.in1k': (34679552, '1dee63a039d71a5bbe0ada0343372534538e7bd8'),
    'igcnet18_l16m16.in1k': (54273656, 'a96f44a0f7ae49241351efc451195e4fdf4d0bfc'),
    'igcnet18_l4m32.in1k': (49088632, 'e13f33740800f06378006b90da35d8edc971eabf'),
    'igcv3_100.in1k': (None, 'c4b0a995619676b526f41669d0fbff8886a79943'),
    'igcv3_100.pcv_in1k': (None, '12385791681f09adb3a08926c95471f332f538b6'),
    'igcv3_075.pcv_in1k': (None, '63f43cf8d334111d55d06f2f9bf7e1e4871d162c'),
    'igcv3_050.pcv_in1k': (None, '8c504f443283d8a32787275b23771082fcaab61b'),
    'igcv3_025.pcv_in1k': (None, 'c9f28301391601e5e8ae93139431a9e0d467317c'),
}


@pytest.fixture(params=SHIPPED, ids=lambda folder: folder.name)
def folder(request) -> Path:
    return request.param


@pytest.fixture
def shipped(folder) -> Card:
    return read_card(folder / 'card.json')


def test_names_of_folders(folder, shipped):
    assert folder.name == shipped.name and cards()[folder.name] == shipped


def test_parameters_and_multiply_adds(shipped):
    model = timm.create_model(shipped.model, num_classes=shipped.num_classes, device='meta')
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert (count_params(model), count_macs(model, shipped.preprocess.input_size)) == (shipped.params, shipped.macs)


def test_labels(shipped):
    assert shipped.labels == 'imagenet-1k' or len(set(shipped.labels)) == shipped.num_classes
    for values in (shipped.label_ids, shipped.imagenet_indices):
        assert values is None or len(set(values)) == shipped.num_classes
    assert shipped.imagenet_indices is None or set(shipped.imagenet_indices) <= set(range(1000))


def test_preprocessing(shipped):
    preprocess = shipped.preprocess
    assert preprocess.input_size[0] == 3 and min(preprocess.input_size) > 0 and 0 < preprocess.crop_pct <= 1
    assert all(0 < value < 1 for value in preprocess.mean + preprocess.std)
    assert preprocess.interpolation in ('bilinear', 'bicubic') and preprocess.crop_mode in ('center', 'squash', 'border')
    if shipped.recipe:
        recipe = find_recipe(shipped.recipe)
        assert recipe.model == shipped.model and (3, recipe.input_size, recipe.input_size) == preprocess.input_size
        assert [value / 255 for value in recipe.mean + recipe.std] == pytest.approx(preprocess.mean + preprocess.std, abs=1e-5)


def test_accuracies(shipped):
    assert shipped.accuracy
    for accuracy in shipped.accuracy:
        assert 0 < accuracy.top1 <= (accuracy.top5 or 100) <= 100
        assert (accuracy.by == 'igczoo') == (accuracy.n is not None) == (accuracy.top1_interval is not None)
        if accuracy.n:
            near = round(accuracy.n * accuracy.top1 / 100)
            counts = [count for count in range(near - 9, near + 10) if 0 <= count <= accuracy.n]
            intervals = [[round(100 * bound, 2) for bound in wilson_interval(count, accuracy.n)]
                         for count in counts if round(100 * count / accuracy.n, 2) == accuracy.top1]
            assert list(accuracy.top1_interval) in intervals


def test_comparisons(folder, shipped):
    """Of nets of this package, by their own logs, which show the same sizes epoch by epoch."""
    if shipped.comparison is None:
        return
    sizes = []
    for net in shipped.comparison.nets:
        with (folder / net.log).open(newline='') as file:
            rows = list(csv.DictReader(file))[:shipped.comparison.epochs]
        assert len(rows) == shipped.comparison.epochs and float(rows[-1]['top1']) == net.top1 and net.epoch_seconds > 0
        sizes.append([row['size'] for row in rows])
    assert sizes[0][-1] == str(shipped.preprocess.input_size[1]) and all(others == sizes[0] for others in sizes)
    assert shipped.model in {net.model for net in shipped.comparison.nets} and len(sizes) > 1


def test_weights_are_ours_and_whole_or_absent(folder, shipped):
    weights = folder / 'model.safetensors'
    if shipped.origin:
        assert not weights.exists() and shipped.sha256 is shipped.size is shipped.recipe is None
        assert shipped.license == {'the authors': 'unknown', 'pytorchcv': 'mit'}[shipped.origin.by]
        assert (shipped.origin.size, shipped.origin.digest) == ORIGINS[shipped.name]
        assert shipped.origin.converter == {'the authors': 'mxnet', 'pytorchcv': 'pytorchcv'}[shipped.origin.by]
        return
    assert (weights.stat().st_size, hashlib.sha256(weights.read_bytes()).hexdigest()) == (shipped.size, shipped.sha256)
    assert shipped.license == 'apache-2.0'
    state = timm.create_model(shipped.model, num_classes=shipped.num_classes, device='meta').state_dict()
    with safe_open(weights, 'pt') as file:
        assert set(file.keys()) == set(state)
        for name in file.keys():  # noqa: SIM118  no mapping
            tensor = file.get_tensor(name)
            expected = getattr(torch, shipped.dtype) if state[name].is_floating_point() else state[name].dtype
            assert (tensor.shape, tensor.dtype) == (state[name].shape, expected) and tensor.isfinite().all()


def test_only_weights_are_large(folder):
    assert {file.name for file in folder.iterdir()} >= {'card.json', 'config.json', 'README.md'}
    for file in folder.rglob('*'):
        assert file.name == 'model.safetensors' or file.stat().st_size < 1 << 20, file


def test_every_origin_is_shipped_and_every_default_is_one():
    assert {card.name for card in cards().values() if card.origin} == set(ORIGINS)
    for model in {card.model for card in cards().values()}:
        assert [card.default for card in cards().values() if card.model == model].count(True) == 1, model


def test_words(shipped):
    for field in ('title', 'license', 'terms', 'provenance', 'limits'):
        text = getattr(shipped, field)
        assert text and text == text.strip() and '\n' not in text and '|' not in text, field
    conditions = shipped.comparison.conditions if shipped.comparison else '.'
    assert conditions[-1] in '.:' and '\n' not in conditions and '|' not in conditions
    assert shipped.title[-1] != '.' and shipped.license == shipped.license.lower()


@pytest.mark.parametrize(('changes', 'message'), [
    (dict(model='a/b'), r"card.model is 'a/b'; it must be of letters"),
    (dict(model='..'), r"card.model is '..'; it must be of letters"),
    (dict(tag=''), r"card.tag is ''; it must be of letters"),
    (dict(tag='a.b'), r"card.tag is 'a.b'; it must be of letters"),
    (dict(labels=[]), 'card.labels is empty; it must name each class'),
    (dict(label_ids=['n1']), r'card.label_ids has 1 entries for \d+ classes'),
    (dict(params=0), 'card.params is 0; it must be at least 1'),
    (dict(size=-1), 'card.size is -1; it must be at least 1'),
    (dict(preprocess=dict(std=[1, 0, 1])), 'card.preprocess.std is .*; its numbers must be above 0'),
    (dict(preprocess=dict(std=[1, -1, 1])), 'card.preprocess.std is .*; its numbers must be above 0'),
    (dict(preprocess=dict(input_size=[3, 0, 5])), 'card.preprocess.input_size is .*; its numbers must be at least 1'),
    (dict(origin=dict(url='u', by='b', converter='mxnet')), 'card.origin must have either a git_blob_sha1 or an unpacked_sha1'),
    (dict(origin=dict(url='u', by='b', converter='mxnet', git_blob_sha1='1', unpacked_sha1='2')), 'and not both'),
    (dict(preprocess=dict(crop_pct=0)), 'card.preprocess.crop_pct is 0.0; it must be above 0 and at most 1'),
    (dict(preprocess=dict(mean=[10 ** 400, 0, 0])), r'card.preprocess.mean\[0\] is beyond every float'),
])
def test_impossible_values_are_refused(tmp_path, changes, message):
    given = json.loads(card_json(SMALL))
    given |= {field: given.get(field, {}) | value if isinstance(value, dict) else value for field, value in changes.items()}
    path = tmp_path / 'card.json'
    path.write_text(json.dumps(given))
    with pytest.raises(CardError, match=message) as caught:
        read_card(path)
    assert '\n' not in str(caught.value) and str(path) in str(caught.value)


@pytest.mark.parametrize(('text', 'message'), [
    ('[' * 100_000 + ']' * 100_000, 'nested too deeply'),
    ('{"a":' * 100_000 + '1' + '}' * 100_000, 'nested too deeply'),
    ('NaN', 'it has NaN, which is no number'),
    ('{"params": Infinity}', 'it has Infinity, which is no number'),
    ('{"params": ' + '9' * 5000 + '}', 'Exceeds the limit'),
])
def test_hostile_text_is_refused(tmp_path, text, message):
    path = tmp_path / 'card.json'
    path.write_text(text)
    with pytest.raises(CardError, match=message):
        read_card(path)


def test_a_number_beyond_every_float_is_refused(tmp_path):
    path = tmp_path / 'card.json'
    text = card_json(SMALL)
    number = re.search(r'"mean": \[\s*([0-9.]+)', text)
    path.write_text(text[:number.start(1)] + '1e999' + text[number.end(1):])
    with pytest.raises(CardError, match=r'card.preprocess.mean\[0\] is inf; it must be finite'):
        read_card(path)
