"""Fine-tuning: from photographs of any layout to a checkpoint folder, exactly again after a kill, and one line for what is wrong."""
import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import igczoo
import igczoo.training.finetune as module
from igczoo.checkpoints.card import read_card
from igczoo.checkpoints.publish import publish
from igczoo.cli import main
from igczoo.files import LOCK, alone_in
from igczoo.training import album
from igczoo.training.finetune import finetune
from igczoo.training.images import Squares, open_photographs, read_squares
from igczoo.training.split import copies_between, spread, stratified_split

NAME = 'igc_resnet20_l24m2'
COLOURS = {'blue': (60, 60, 190), 'green': (60, 190, 60), 'red': (190, 60, 60)}
BASE = 'igc_resnet20_l24m2.cifar10'


def photograph(colour, rng, size=(36, 40)) -> Image.Image:
    return Image.fromarray(np.clip(np.array(colour) + rng.normal(0, 30, (*size, 3)), 0, 255).astype(np.uint8))


def write_photographs(folder: Path, count: int, seed: int = 0, colours=COLOURS) -> Path:
    rng = np.random.default_rng(seed)
    for name, colour in colours.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            photograph(colour, rng).save(folder / name / f'{i:02}.png')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory) -> Path:
    return write_photographs(tmp_path_factory.mktemp('data') / 'photos', 20)


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline='', encoding='utf-8') as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope='module')
def run(photos, tmp_path_factory) -> Path:
    """A finished run."""
    out = tmp_path_factory.mktemp('runs') / 'mine'
    finetune(NAME, photos, out, epochs=3)
    return out


# --- what is left ---

def test_the_folder_is_a_checkpoint(run, photos):
    card = read_card(run / 'card.json')
    assert card.labels == ('blue', 'green', 'red') and card.model == NAME and card.tag == 'mine' and card.base == BASE
    accuracy, = card.accuracy
    rows = read_csv(run / 'split.csv')
    assert accuracy.n == sum(row['split'] == 'val' for row in rows) == 12 and accuracy.top1 > 70
    assert sum(row['split'] == 'train' for row in rows) == 48 and not any(row['note'] for row in rows)
    assert sorted(path.name for path in run.iterdir()) == [
        'README.md', 'calibration.png', 'card.json', 'config.json', 'confusion.png', 'curves.png', 'log.csv', 'model.safetensors',
        'settings.json', 'split.csv']
    clf = igczoo.load(run)
    assert clf.classify(photos / 'red' / '00.png', k=1)[0].label == 'red'
    theirs = timm.create_model(f'local-dir:{run}', pretrained=True).eval()
    x = clf.preprocess(Image.open(photos / 'red' / '00.png'))[None]
    assert torch.equal(theirs(x), clf.model(x))
    assert json.loads((run / 'config.json').read_text())['label_names'] == ['blue', 'green', 'red']
    assert publish(str(run), 'me').repo == f'me/{NAME}.mine'


def test_the_measured_accuracy_is_that_of_evaluate(run, photos, tmp_path):
    for row in read_csv(run / 'split.csv'):
        if row['split'] == 'val':
            target = tmp_path / 'val' / row['label'] / Path(row['file']).name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(row['file'], target)
    from igczoo.training.evaluate import evaluate
    assert evaluate(igczoo.load(run), tmp_path).accuracy.top1 == read_card(run / 'card.json').accuracy[0].top1


def test_a_finished_run_is_loaded_and_other_settings_are_refused(run, photos):
    before = (run / 'model.safetensors').stat().st_mtime_ns
    finetune(NAME, photos, run, epochs=3)
    assert (run / 'model.safetensors').stat().st_mtime_ns == before
    with pytest.raises(ValueError, match=r'holds a run of other settings .*epochs 3.*; name another folder'):
        finetune(NAME, photos, run, epochs=4)


def test_a_finished_run_of_other_photographs_is_refused(run, photos, tmp_path):
    shutil.copytree(run, tmp_path / 'mine')
    shutil.copytree(photos, tmp_path / 'photos')
    settings = tmp_path / 'mine' / 'settings.json'
    settings.write_text(settings.read_text().replace(str(photos), str(tmp_path / 'photos')))
    split = tmp_path / 'mine' / 'split.csv'
    split.write_text(split.read_text().replace(str(photos), str(tmp_path / 'photos')))
    finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=3)
    shutil.copy(photos / 'red' / '00.png', tmp_path / 'photos' / 'red' / 'more.png')
    with pytest.raises(ValueError, match=r'holds a finished run of other photographs than .* has now; name another folder'):
        finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=3)


def test_a_finished_run_of_other_labels_is_refused(photos, tmp_path):
    rows = [(path, path.parent.name, 'val' if path.stem > '16' else '') for path in sorted(photos.glob('*/*.png'))]
    listed, real = tmp_path / 'list.csv', tmp_path / 'real.txt'

    def write(rows) -> None:
        real.write_text('\n'.join(['file,label,split', *(','.join(map(str, row)) for row in rows)]))

    listed.symlink_to(real)     # whose name is no list's
    write(rows)
    for _ in range(2):
        finetune(NAME, listed, tmp_path / 'mine', freeze=True, report=False)
    for changed in ((rows[0][0], 'red', ''), (*rows[0][:2], 'val')):
        write([changed, *rows[1:]])
        with pytest.raises(ValueError, match='holds a finished run of other photographs than'):
            finetune(NAME, listed, tmp_path / 'mine', freeze=True, report=False)


def test_a_folder_beside_the_splits_is_none_among_the_photographs(photos, tmp_path):
    for split in ('train', 'val'):
        shutil.copytree(photos, tmp_path / 'data' / split)
    for _ in range(2):
        finetune(NAME, tmp_path / 'data', tmp_path / 'data' / 'mine', freeze=True, report=False)
    with pytest.raises(ValueError, match='lies in'):
        finetune(NAME, tmp_path / 'data', tmp_path / 'data' / 'val' / 'mine', freeze=True, report=False)


def test_the_data_may_be_named_otherwise_and_the_home_by_a_tilde(run, photos, tmp_path, monkeypatch):
    monkeypatch.chdir(photos.parent)
    monkeypatch.setenv('HOME', str(run.parent))
    assert finetune(NAME, 'photos', '~/mine', epochs=3).labels == ('blue', 'green', 'red')      # the finished run
    assert not (photos.parent / '~').exists()
    assert all(row['file'].startswith(str(photos)) for row in read_csv(run / 'split.csv'))


def test_a_folder_that_could_not_be_used_is_refused(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r'igcnet18: is the name of the checkpoint igcnet18\.tinyimagenet; give the folder another'):
        finetune(NAME, photos, 'igcnet18')
    with pytest.raises(ValueError, match=r'lies in .*, where the next call would take it for a class; name a folder elsewhere'):
        finetune(NAME, photos, photos / 'mine')
    with pytest.raises(ValueError, match="device is 'xpu', which cannot be used here"):
        finetune(NAME, photos, 'x', device='xpu')
    assert not list(tmp_path.iterdir()) and not (photos / 'mine').exists()


def test_what_a_killed_start_left_is_no_run(photos, tmp_path):
    settings = dict(model='x', data='y', size=3, epochs=1, minutes=None, freeze=False, pretrained=True, seed=0)
    (tmp_path / 'settings.json').write_text(json.dumps(settings))
    (tmp_path / '.checkpoint.pt.0123.part').write_bytes(b'half')
    finetune(NAME, photos, tmp_path, freeze=True, report=False)
    assert not list(tmp_path.glob('.*')) and (tmp_path / 'card.json').exists()


def test_a_folder_that_another_call_writes_to_is_left_alone(photos, tmp_path):
    out = tmp_path / 'mine'
    with alone_in(out):
        (out / 'settings.json').write_text('{}')
        (out / '.checkpoint.pt.0123.part').write_bytes(b'half')
        with pytest.raises(RuntimeError, match='mine: another igczoo writes there; wait for it, or name another folder'):
            finetune(NAME, photos, out, freeze=True, report=False)
        assert sorted(path.name for path in out.iterdir()) == ['.checkpoint.pt.0123.part', LOCK, 'settings.json']
    out = tmp_path / 'killed'
    out.mkdir()
    (out / LOCK).touch()        # of a call that was killed before it wrote anything
    finetune(NAME, photos, out, freeze=True, report=False)
    assert not list(out.glob('.*')) and (out / 'card.json').exists()


def test_settings_of_something_else_are_left_alone(photos, tmp_path):
    (tmp_path / 'settings.json').write_text('{"size": 3}')
    with pytest.raises(ValueError, match=r'is a folder of something else, which has a settings\.json too'):
        finetune(NAME, photos, tmp_path, freeze=True, report=False)
    assert [path.read_text() for path in tmp_path.iterdir()] == ['{"size": 3}']


@pytest.mark.skipif(sys.platform != 'linux', reason='other systems have not all of these names')
def test_names_of_any_letters(tmp_path):
    """A line break in a file's name is drawn as a space, and dollars are no formula; a class whose name cannot be shown is refused."""
    colours = {'$1_$': (60, 60, 190), 'a | b': (70, 70, 180), '\u0645\u06cc\u200c\u06a9': (9, 9, 9)}
    data = write_photographs(tmp_path / os.fsdecode(b'caf\xe9'), 6, colours=colours)
    (data / '$1_$' / '00.png').rename(data / '$1_$' / os.fsdecode(b'two\nlines \xe9.png'))
    finetune(NAME, data, tmp_path / 'mine', freeze=True)
    assert (tmp_path / 'mine' / 'confusion.png').exists()
    assert read_card(tmp_path / 'mine' / 'card.json').title.endswith('caf\udce9')
    assert 'lines \\udce9.png' in (tmp_path / 'mine' / 'split.csv').read_text(encoding='utf-8')
    finetune(NAME, data, tmp_path / 'mine', freeze=True)
    (data / 'a | b').rename(data / 'a\nb')
    with pytest.raises(ValueError, match=r"the class 'a\\nb' has letters that cannot be shown; rename it"):
        finetune(NAME, data, tmp_path / 'other', freeze=True)


def test_processors_without_mkldnn(monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    monkeypatch.setattr(torch.ops, 'mkldnn', None)
    assert module._is_fast_at_bf16(torch.device('cpu')) is False


def test_nets_of_timms_that_are_otherwise(photos, tmp_path):
    with pytest.raises(ValueError, match='timm:levit_128s: ends in tuple, not in one linear classifier, which fine-tuning needs'):
        finetune('timm:levit_128s', photos, tmp_path / 'x', pretrained=False)
    with pytest.raises(ValueError, match='timm:test_vit3: takes images of 160 pixels only, not of 128; leave the size out'):
        finetune('timm:test_vit3', photos, tmp_path / 'x', size=128, pretrained=False)
    finetune('timm:test_vit3', photos, tmp_path / 'mine', epochs=1, pretrained=False, report=False)
    assert read_card(tmp_path / 'mine' / 'card.json').preprocess.input_size == (3, 160, 160)
    assert igczoo.load(tmp_path / 'mine').model.pretrained_cfg['fixed_input_size']


def test_a_killed_run_resumes_to_the_same_bytes(run, photos, tmp_path, monkeypatch):
    save = module._Run.save

    def save_then_die(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Run, 'save', save_then_die)
    out = tmp_path / 'mine'
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            finetune(NAME, photos, out, epochs=3)
        assert not (out / 'model.safetensors').exists()
    monkeypatch.undo()
    finetune(NAME, photos, out, epochs=3)
    assert (out / 'model.safetensors').read_bytes() == (run / 'model.safetensors').read_bytes()
    assert [row['train_loss'] for row in read_csv(out / 'log.csv')] == [row['train_loss'] for row in read_csv(run / 'log.csv')]


def test_a_run_does_not_go_on_with_other_photographs(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / 'photos')
    save = module._Run.save

    def save_then_die(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(module._Run, 'save', save_then_die)
    with pytest.raises(KeyboardInterrupt):
        finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=3)
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r'holds a run of other settings .*data'):
        finetune(NAME, photos, tmp_path / 'mine', epochs=3)
    (tmp_path / 'photos' / 'red' / '00.png').unlink()
    with pytest.raises(ValueError, match='its run was begun with other photographs'):
        finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=3)
    assert (tmp_path / 'mine' / 'checkpoint.pt').exists()


def test_some_of_many_are_watched_and_choose_the_mixture(photos, tmp_path, monkeypatch):
    monkeypatch.setattr(album, 'LEAST_WATCHED', 10)
    finetune(NAME, photos, tmp_path / 'mine', epochs=2, report=False)
    rows = read_csv(tmp_path / 'mine' / 'split.csv')
    assert sum(row['note'] == 'watched' for row in rows) == 6 and all(row['split'] == 'train' for row in rows if row['note'])
    assert all(float(row['watched_loss']) > 0 for row in read_csv(tmp_path / 'mine' / 'log.csv'))
    fitted, kept = (load_file(tmp_path / name / 'model.safetensors') if name == 'mine' else finetune(
        NAME, photos, tmp_path / name, freeze=True, report=False).model.state_dict() for name in ('frozen', 'mine'))
    assert not torch.equal(fitted['stem.conv.weight'], kept['stem.conv.weight'])


def test_a_run_ends_early_where_the_watched_loss_does_not_fall():
    falling = [dict(watched_loss=1 / (i + 1)) for i in range(9)]
    risen = [dict(watched_loss=loss) for loss in (1, .5, .6, .7, .8, .9, 1.)]
    assert module._has_ended(risen, .6) and not module._has_ended(risen, .4) and not module._has_ended(falling, .6)
    assert not module._has_ended([dict(watched_loss='')] * 9, .9)


def test_freeze_fits_the_classifier_only(photos, tmp_path):
    finetune(NAME, photos, tmp_path / 'mine', freeze=True, report=False)
    trained, base = load_file(tmp_path / 'mine' / 'model.safetensors'), igczoo.load(BASE).model.state_dict()
    for key, value in trained.items():
        assert key.startswith('head') or torch.equal(value, base[key]), key
    assert read_card(tmp_path / 'mine' / 'card.json').accuracy[0].top1 > 70


def test_from_random_weights_and_one_of_timms_models(photos, tmp_path):
    finetune('timm:test_resnet', photos, tmp_path / 'theirs', epochs=1, pretrained=False, size=32, report=False)
    card = read_card(tmp_path / 'theirs' / 'card.json')
    assert card.base == 'random weights' and card.model == 'test_resnet'
    assert len(igczoo.load(tmp_path / 'theirs').classify(photos / 'red' / '00.png')) == 3
    publish(str(tmp_path / 'theirs'), 'me')
    with pytest.raises(ValueError, match='freeze keeps the layers as they are'):
        finetune(NAME, photos, tmp_path / 'x', freeze=True, pretrained=False)


def test_a_net_of_another_generation_and_its_folder(photos, tmp_path, capsys):
    finetune('timm:igcv2_20_c64', photos, tmp_path / 'first', epochs=1, pretrained=False, report=False)
    finetune(tmp_path / 'first', photos, tmp_path / 'second', freeze=True, report=False)
    card = read_card(tmp_path / 'second' / 'card.json')
    assert (card.model, card.base, card.params) == ('igcv2_20_c64', 'igcv2_20_c64.first', 90_122 - 7 * 257)
    assert 'IGCV2: Interleaved Structured Sparse' in (tmp_path / 'second' / 'README.md').read_text()
    photograph = photos / 'red' / '00.png'
    assert main(['classify', str(photograph), '--model', str(tmp_path / 'second'), '--json']) == 0
    said = json.loads(capsys.readouterr().out)[0]['predictions'][0]
    deployed = igczoo.load(tmp_path / 'second', deploy=True).classify(photograph, k=1)[0]
    assert said['label'] == deployed.label and abs(said['score'] - deployed.score) < 1e-3


def test_minutes_are_kept(photos, tmp_path):
    import time
    began = time.monotonic()
    finetune(NAME, photos, tmp_path / 'mine', minutes=.25, report=False)
    assert time.monotonic() - began < 2 * 15      # generous: other tests may run beside this one
    assert len(read_csv(tmp_path / 'mine' / 'log.csv')) >= 1
    with pytest.raises(ValueError, match='epochs and minutes both'):
        finetune(NAME, photos, tmp_path / 'x', epochs=1, minutes=1)


# --- what users have ---

def test_layouts_give_the_same_photographs(photos, tmp_path):
    whole, evaluation = open_photographs(photos)
    assert evaluation is None and whole.classes == ['blue', 'green', 'red'] and len(whole) == 60
    with open(tmp_path / 'list.csv', 'w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(('Image', 'Label', 'split'))
        writer.writerows((whole.name(i), whole.classes[whole.targets[i]], 'val' if i % 3 == 0 else 'train') for i in range(60))
    train, evaluation = open_photographs(tmp_path / 'list.csv')
    assert (len(train), len(evaluation)) == (40, 20) and train.classes == evaluation.classes == whole.classes
    assert np.array_equal(train[0][0], whole[1][0])
    for split, part in (('train', train), ('val', evaluation)):
        for i in range(len(part)):
            target = tmp_path / 'split' / split / part.classes[part.targets[i]] / f'{i}.png'
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(part.name(i), target)
    again, held = open_photographs(tmp_path / 'split')
    assert (len(again), len(held)) == (40, 20) and again.classes == whole.classes


def test_a_split_is_repeated_from_its_list(run, tmp_path):
    again = tmp_path / 'again.csv'
    rows = [row for row in read_csv(run / 'split.csv') if row['split'] != 'skipped']
    with open(again, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    train, evaluation = open_photographs(again)
    assert (len(train), len(evaluation)) == (48, 12)


@pytest.mark.parametrize(('own', 'photograph', 'size'), [
    (32, 500, 64), (32, 64, 64), (32, 63, 32), (96, 500, 160), (96, 159, 96), (224, 500, 224),
])
def test_small_nets_see_more_where_there_is_more(own, photograph, size):
    """The size that a net of its own size gets for photographs of a side."""
    assert module._best_size(own, [(Image.new('RGB', (photograph, photograph + 9)), 0)] * 30) == size


@pytest.mark.parametrize(('counts', 'colours'), [((1, 1, 1), 3), ((40, 2, 1), 3), ((6, 6), 2)])
def test_few_and_uneven_classes(tmp_path, counts, colours):
    rng = np.random.default_rng(0)
    for (name, colour), count in zip(list(COLOURS.items())[:colours], counts, strict=True):
        (tmp_path / 'photos' / name).mkdir(parents=True)
        for i in range(count):
            photograph(colour, rng).save(tmp_path / 'photos' / name / f'{i}.png')
    clf = finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=2, report=False)
    assert len(clf.labels) == colours and bool(read_card(tmp_path / 'mine' / 'card.json').accuracy) == (max(counts) > 1)
    rows = [row for row in read_csv(tmp_path / 'mine' / 'split.csv') if row['split'] == 'train']
    assert {row['label'] for row in rows} == set(clf.labels)        # every class trains


def test_damaged_photographs_are_left_out_and_listed(photos, tmp_path, capsys):
    shutil.copytree(photos, tmp_path / 'photos')
    (tmp_path / 'photos' / 'red' / '00.png').write_bytes(b'no image')
    finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', freeze=True, report=False)
    skipped, = (row for row in read_csv(tmp_path / 'mine' / 'split.csv') if row['split'] == 'skipped')
    assert skipped['file'].endswith('red/00.png') and 'no image that Pillow can read' in skipped['note']
    assert 'left out' in capsys.readouterr().err
    for path in (tmp_path / 'photos' / 'red').iterdir():
        path.write_bytes(b'no image')
    with pytest.raises(ValueError, match="no photograph of the class 'red' can be opened"):
        finetune(NAME, tmp_path / 'photos', tmp_path / 'other', freeze=True, report=False)
    assert not (tmp_path / 'other').exists()


def test_photographs_on_both_sides_are_reported(photos, tmp_path, capsys):
    rng = np.random.default_rng(3)
    scene = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)
    for split in ('train', 'val'):
        shutil.copytree(photos, tmp_path / 'photos' / split)
    scene.save(tmp_path / 'photos' / 'train' / 'red' / 'scene.png')
    scene.save(tmp_path / 'photos' / 'val' / 'red' / 'scene.jpg', quality=60)
    scene.save(tmp_path / 'photos' / 'val' / 'blue' / 'scene.png')
    finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', freeze=True, report=False)
    notes = {Path(row['file']).name: row['note'] for row in read_csv(tmp_path / 'mine' / 'split.csv') if row['split'] == 'val'}
    assert notes['scene.jpg'].startswith('nearly equal to') and notes['scene.png'].startswith('equal to')
    assert 'stand, equal or nearly so, among those to train on' in capsys.readouterr().err


def test_drawings_on_black_are_no_copies_of_each_other():
    def drawing(seed: int) -> np.ndarray:
        rng, image = np.random.default_rng(seed), np.zeros((8, 9), np.uint8)
        image[3:6, 3:6] = rng.integers(0, 90, (3, 3))
        return image

    thumbs = np.stack([drawing(seed) for seed in range(150)])
    squares = Squares(torch.empty(150, 3, 8, 8), list(range(150)), [], thumbs, list(range(150)))
    found = [(i, j) for i, j, _ in copies_between(squares, squares)]
    assert {(i, i) for i in range(150)} <= set(found) and len(found) < 156      # by their differences alone there were hundreds


def test_stratified_split_is_even_and_repeatable():
    targets = [0] * 50 + [1] * 5 + [2] * 2 + [3]
    train, held = stratified_split(targets, .2, seed=1)
    assert sorted(train + held) == list(range(58)) and (train, held) == stratified_split(targets, .2, seed=1)
    assert held != stratified_split(targets, .2, seed=2)[1]
    assert np.bincount([targets[row] for row in held], minlength=4).tolist() == [10, 1, 1, 0]
    assert stratified_split(targets, 0, seed=1)[1] == []


def test_rows_are_spread_over_the_classes():
    targets = [0] * 50 + [1] * 5 + [2] * 2 + [3]
    rows = spread(targets, 12, seed=1)
    assert rows == spread(targets, 12, seed=1) != spread(targets, 12, seed=2) and len(set(rows)) == 12
    assert [sorted(targets[row] for row in part) for part in (rows[:4], rows[4:7], rows[7:])] == [[0, 1, 2, 3], [0, 1, 2], [0, 0, 0, 1, 1]]
    assert sorted(spread(targets, 1000, seed=1)) == list(range(58))


def test_equal_fingerprints_are_found_in_sets_of_any_size(photos, monkeypatch):
    squares = read_squares(open_photographs(photos)[0], 8)
    import igczoo.training.split as split
    found = copies_between(squares, squares)
    assert {(i, i, True) for i in range(60)} <= set(found) or not found     # noise has little contrast in a thumbnail
    monkeypatch.setattr(split, 'MAX_PAIRS', 0)
    assert set(copies_between(squares, squares)) <= set(found)


def test_torchvisions_sets(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / 'cifar-100-python'
    folder.mkdir()
    import hashlib
    import pickle

    from torchvision.datasets import CIFAR100
    for name, count in (('train', 20), ('test', 4)):
        data = dict(data=rng.integers(0, 256, (count, 3072), dtype=np.uint8), fine_labels=[i % 2 for i in range(count)])
        (folder / name).write_bytes(pickle.dumps(data))
    (folder / 'meta').write_bytes(pickle.dumps(dict(fine_label_names=['apple', 'fish'])))
    digest = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    monkey = pytest.MonkeyPatch()
    monkey.setattr(CIFAR100, 'train_list', [['train', digest['train']]])
    monkey.setattr(CIFAR100, 'test_list', [['test', digest['test']]])
    monkey.setattr(CIFAR100, 'meta', {'filename': 'meta', 'key': 'fine_label_names', 'md5': digest['meta']})
    try:
        train, test = open_photographs(f'torchvision:CIFAR100:{tmp_path}')
    finally:
        monkey.undo()
    assert (len(train), len(test)) == (20, 4) and train.classes == ['apple', 'fish'] and train[1][0].size == (32, 32)
    for wrong in ('torchvision:Nonesuch:x', 'torchvision:CIFAR100', f'torchvision:CIFAR100:{tmp_path / "none"}'):
        with pytest.raises(ValueError, match='torchvision'):
            open_photographs(wrong)


# --- what is wrong is one line, and leaves nothing ---

@pytest.mark.parametrize(('name', 'content', 'message'), [
    ('list.csv', 'a,b\n1,2\n', "its head line is 'a,b'; it must name a column file"),
    ('list.csv', 'file,label\n', 'has no rows'),
    ('list.csv', 'file,label\nx.png,\n', 'list.csv, line 2: has no label'),
    ('list.csv', 'file,label,split\nx.png,cat,dev\n', "line 2: has the split 'dev'"),
    ('list.csv', 'file,label,split\nx.png,cat,val\n', 'no line is of the split train'),
    ('list.csv', 'file,label\nx.png,cat\ny.png,cat\n', r'has 1 class \(cat\)'),
    ('list.csv', 'file,label\nx.png,cat\ny.png,dog\nz.png,dog\nw.png,cat\n', 'no photograph of the class .* can be opened'),
    ('empty', None, 'give a folder that holds one folder of photographs a class'),
    ('missing', ..., 'is no folder, no CSV file and no Parquet file'),
])
def test_bad_data(tmp_path, name, content, message):
    data = tmp_path / name
    if content is None:
        data.mkdir()
    elif content is not ...:
        data.write_text(content)
    with pytest.raises(ValueError, match=message) as raised:
        finetune(NAME, data, tmp_path / 'mine', epochs=1)
    assert '\n' not in str(raised.value) and not (tmp_path / 'mine').exists()


def test_splits_of_different_sets_are_refused(photos, tmp_path):
    shutil.copytree(photos, tmp_path / 'photos' / 'train')
    write_photographs(tmp_path / 'photos' / 'val', 2, colours={'red': (200, 0, 0), 'grey': (90, 90, 90)})
    with pytest.raises(ValueError, match="the evaluation split has the class 'grey', the training split has not"):
        finetune(NAME, tmp_path / 'photos', tmp_path / 'mine', epochs=1)


def test_a_folder_of_something_else_is_left_alone(photos, tmp_path):
    (tmp_path / 'letters').mkdir()
    (tmp_path / 'letters' / 'a.txt').write_text('dear')
    with pytest.raises(ValueError, match='is a folder of something else'):
        finetune(NAME, photos, tmp_path / 'letters')
    assert [path.name for path in (tmp_path / 'letters').iterdir()] == ['a.txt']


def test_no_matplotlib_no_pictures(photos, tmp_path):
    code = f'''
import sys
sys.modules['matplotlib'] = None
import igczoo
igczoo.finetune('{NAME}', {str(photos)!r}, {str(tmp_path / "mine")!r}, freeze=True)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / 'mine').glob('*.png')) and (tmp_path / 'mine' / 'card.json').exists()


def test_scores_are_scaled_to_what_the_watched_photographs_say(tmp_path, monkeypatch):
    """The kept classifier is a multiple of the fitted one, and a better judge of itself."""
    monkeypatch.setattr(album, 'LEAST_WATCHED', 10)
    monkeypatch.setattr(module, 'LEAST_CALIBRATING', 10)
    photos = write_photographs(tmp_path / 'photos', 80, colours={'blue': (110, 110, 140), 'red': (140, 110, 110)})
    settings = dict(freeze=True, report=False)
    scaled = finetune(NAME, photos, tmp_path / 'scaled', **settings).model.head.weight
    monkeypatch.setattr(module, 'LEAST_CALIBRATING', 10_000)
    plain = finetune(NAME, photos, tmp_path / 'plain', **settings).model.head.weight
    ratio = scaled / plain
    assert ratio.std() < 1e-4 * ratio.mean() and ratio.mean() > 1
