"""The training loop: what a run leaves, and that a killed run goes on as if nothing had happened."""
import csv
import dataclasses
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn

import igczoo
import igczoo.training.train
from igczoo.files import LOCK, alone_in
from igczoo.training.forms import as_written, planar_by_torch, training_form
from igczoo.training.images import open_split, stack_images
from igczoo.training.recipes import Recipe, find_recipe, list_recipes
from igczoo.training.train import train

RECIPE = Recipe(
    model='igc_resnet20_l24m2', input_size=16, mean=(120., 110., 100.), std=(60., 60., 60.), epochs=3, batch_size=8, lr=0.1,
    warmup_epochs=1, momentum=0.9, weight_decay=1e-3, label_smoothing=0.1, crop_padding=2, flip=True)
TAUGHT = dataclasses.replace(RECIPE, crop_padding=0, min_area=0.4, teacher_windows=2, teacher_share=.5, temperature=2.)
GROWING = dataclasses.replace(RECIPE, stored_size=8, growth=((0.3, 8), (0.6, 12)), crop_padding=0, min_area=0.4)


@pytest.fixture(scope='module')
def data(tmp_path_factory) -> Path:
    """Ten classes of noise around a colour each, four training images and two test images a class."""
    root = tmp_path_factory.mktemp('data')
    rng = np.random.default_rng(0)
    colours = rng.integers(40, 215, (10, 3))
    for split, count in (('train', 4), ('test', 2)):
        for label, colour in enumerate(colours):
            folder = root / split / f'class{label}'
            folder.mkdir(parents=True)
            for i in range(count):
                noisy = np.clip(colour + rng.normal(0, 20, (16, 16, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(noisy).save(folder / f'{i}.png')
    return root


def run(data: Path, out: Path, recipe: Recipe = RECIPE, **kwargs) -> dict[str, torch.Tensor]:
    train(recipe, data, out, device='cpu', **kwargs)
    return load_file(out / 'model.safetensors')


def card_of(out: Path) -> dict:
    return json.loads((out / 'card.json').read_text())


def read_log(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / 'log.csv').read_text())))


@pytest.mark.parametrize(('recipe', 'sizes'), [(RECIPE, ['16', '16', '16']), (GROWING, ['8', '12', '16'])], ids=['shifted', 'growing'])
def test_a_killed_run_resumes_exactly(data, tmp_path, monkeypatch, recipe, sizes):
    whole = run(data, tmp_path / 'whole', recipe)
    save, saves = igczoo.training.train._save, []

    def save_then_die(*args):
        save(*args)
        saves.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(igczoo.training.train, '_save', save_then_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / 'killed', recipe)
    monkeypatch.undo()
    resumed = run(data, tmp_path / 'killed', recipe)
    assert len(saves) == 2
    for key, expected in whole.items():
        assert torch.equal(resumed[key], expected), key
    logs = [read_log(tmp_path / name) for name in ('whole', 'killed')]
    for rows in logs:
        for row in rows:
            del row['train_seconds']
    assert logs[0] == logs[1]
    assert [row['epoch'] for row in logs[0]] == ['1', '2', '3'] and [row['size'] for row in logs[0]] == sizes
    assert not list(tmp_path.glob('*/*.part'))


@pytest.mark.parametrize(('model', 'form'), [
    ('igc_resnet20_l24m2', training_form), ('igcv2_14_c64', training_form), ('igc_resnet20_l24m2', planar_by_torch)])
def test_the_faster_form_learns_what_the_net_as_written_does(data, tmp_path, model, form):
    # a few gentle updates: training magnifies the last bit's differences, over the 97 normalisations of an IGCV3 too much for a test
    recipe = dataclasses.replace(RECIPE, model=model, epochs=1, lr=0.001)
    faster, plain = (run(data, tmp_path / form.__name__, recipe, form=form) for form in (form, as_written))
    for key, expected in plain.items():
        torch.testing.assert_close(faster[key], expected, rtol=1e-3, atol=1e-4, msg=f'{key} differs')


def test_statistics_are_those_of_the_training_images(data, tmp_path):
    weights = run(data, tmp_path / 'out', dataclasses.replace(RECIPE, epochs=1, crop_padding=0, flip=False))
    images, _ = stack_images(open_split(data, train=True), RECIPE.input_size)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (RECIPE.mean, RECIPE.std))
    y = torch.nn.functional.conv2d((images - mean) / std, weights['stem.conv.weight'], padding=1)
    torch.testing.assert_close(weights['stem.bn.running_mean'], y.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)


def test_a_run_without_time_ends_after_an_epoch_and_goes_on(data, tmp_path):
    whole = run(data, tmp_path / 'whole')
    for epochs in (1, 2):
        log = train(RECIPE, data, tmp_path / 'run', device='cpu', minutes=0)
        assert [row['epoch'] for row in log] == [*range(1, epochs + 1)] and not (tmp_path / 'run' / 'model.safetensors').exists()
    assert len(train(RECIPE, data, tmp_path / 'run', device='cpu', minutes=0)) == 3      # the last epoch's run comes to its end
    weights = load_file(tmp_path / 'run' / 'model.safetensors')
    assert all(torch.equal(weights[key], expected) for key, expected in whole.items())


def test_what_follows_an_epoch_takes_time_by_its_pixels_and_the_end_another_epochs():
    recipe = dataclasses.replace(RECIPE, epochs=4, growth=((.25, 8),), input_size=16)      # 8, 16, 16 and 16 pixels
    seconds = [igczoo.training.train._next_seconds(recipe, epoch, 10.) for epoch in range(4)]
    assert seconds == [40., 10., 20., 0.]


def test_a_taught_run_resumes_exactly_and_its_teacher_matters(data, tmp_path):
    run(data, tmp_path / 'teacher')
    run(data, tmp_path / 'other', seed=1)
    teacher, other = (igczoo.load(tmp_path / name) for name in ('teacher', 'other'))
    whole = run(data, tmp_path / 'whole', TAUGHT, teacher=teacher)
    train(TAUGHT, data, tmp_path / 'stopped', device='cpu', teacher=teacher, minutes=1e-9)
    assert len(read_log(tmp_path / 'stopped')) == 1
    with pytest.raises(ValueError, match='is a run of other settings'):
        train(TAUGHT, data, tmp_path / 'stopped', device='cpu', teacher=other)
    resumed = run(data, tmp_path / 'stopped', TAUGHT, teacher=teacher)
    by_other = run(data, tmp_path / 'by_other', TAUGHT, teacher=other)
    labels_only = run(data, tmp_path / 'labels', dataclasses.replace(TAUGHT, teacher_share=0.), teacher=teacher)
    by_labels = run(data, tmp_path / 'labels2', dataclasses.replace(TAUGHT, teacher_share=0.), teacher=other)
    assert all(torch.equal(resumed[key], value) for key, value in whole.items())
    assert 'Trained from random weights by `igczoo train`, taught by igc_resnet20_l24m2.teacher, 3 epochs' in card_of(
        tmp_path / 'whole')['provenance']
    assert not torch.equal(by_other['stem.conv.weight'], whole['stem.conv.weight'])
    assert torch.equal(by_labels['stem.conv.weight'], labels_only['stem.conv.weight'])


def test_a_teacher_too_many_or_of_other_classes_is_refused(data, tmp_path):
    run(data, tmp_path / 'teacher')
    teacher = igczoo.load(tmp_path / 'teacher')
    for recipe, given, message in ((TAUGHT, None, 'the recipe has a teacher; name one'),
                                   (RECIPE, teacher, 'the recipe has no teacher; leave it out')):
        with pytest.raises(ValueError, match=message):
            train(recipe, data, tmp_path / 'out', device='cpu', teacher=given)
    teacher.labels = (*teacher.labels[:-1], 'stranger')
    with pytest.raises(ValueError, match=r"the teacher has other classes than .*: 'stranger' and 'class9'; name one of these classes"):
        train(TAUGHT, data, tmp_path / 'out', device='cpu', teacher=teacher)
    assert not (tmp_path / 'out').exists()


def test_batches_of_the_last_epochs_have_mixed_sizes(data, tmp_path, monkeypatch):
    seen, cut = [], igczoo.training.train.Augmentation.__call__
    monkeypatch.setattr(igczoo.training.train.Augmentation, '__call__', lambda *arguments: seen.append(arguments[3]) or cut(*arguments))
    train(dataclasses.replace(GROWING, growth=((.3, 8),), mixed_sizes=(12, 16, 20)), data, tmp_path / 'out', device='cpu')
    steps = 40 // GROWING.batch_size
    assert seen[:steps] == [8] * steps and set(seen[steps:3 * steps]) == {12, 16, 20}
    assert [row['size'] for row in read_log(tmp_path / 'out')] == ['8', '16', '16']


def test_a_run_begins_with_the_net_it_is_given(data, tmp_path):
    torch.manual_seed(9)
    net = timm.create_model(RECIPE.model)
    with torch.no_grad():
        net.stem.bn.weight.fill_(7.)
    state = run(data, tmp_path / 'out', dataclasses.replace(RECIPE, lr=1e-9), start=net, base='a net')
    assert card_of(tmp_path / 'out')['base'] == 'a net' and 'Trained from a net by' in card_of(tmp_path / 'out')['provenance']
    torch.testing.assert_close(state['stem.bn.weight'], torch.full_like(state['stem.bn.weight'], 7.), rtol=1e-4, atol=0)


def test_it_learns(data, tmp_path):
    log = train(dataclasses.replace(RECIPE, epochs=16, label_smoothing=0.), data, tmp_path, device='cpu')
    assert log[-1]['train_loss'] < 0.7 * log[0]['train_loss']
    assert log[-1]['lr'] < 0.01 < max(row['lr'] for row in log)


def test_images_seen_and_evaluated_have_the_size_of_the_epoch(data, tmp_path, monkeypatch):
    seen = []
    create_model = timm.create_model

    def create_watched(*args, **kwargs):
        net = create_model(*args, **kwargs)
        net.stem.register_forward_pre_hook(lambda stem, inputs: seen.append((stem.training, *inputs[0].shape[1:])))
        return net

    monkeypatch.setattr(timm, 'create_model', create_watched)
    train(GROWING, data, tmp_path, device='cpu')
    statistics, measured = [(True, 3, 16, 16)] * 5, [(False, 3, 16, 16)] * 2      # and its multiply-adds are counted
    assert seen == [(training, 3, size, size) for size in (8, 12, 16) for training in [True] * 5 + [False]] + statistics + measured


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=2)
    train(recipe, data, tmp_path, device='cpu')
    for other, seed in ((dataclasses.replace(recipe, lr=0.2), 0), (dataclasses.replace(recipe, epochs=1), 0), (recipe, 1),
                        (dataclasses.replace(recipe, epochs=3, min_area=0.5), 0)):
        with pytest.raises(ValueError, match='is a run of other settings'):
            train(other, data, tmp_path, device='cpu', seed=seed)


def test_a_folder_that_another_run_writes_to_is_refused(data, tmp_path):
    with alone_in(tmp_path), pytest.raises(RuntimeError, match='another igczoo writes there; wait for it, or name another folder'):
        run(data, tmp_path)
    assert not list(tmp_path.iterdir())
    run(data, tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_run_of_other_images_or_classes_is_refused(data, tmp_path):
    train(RECIPE, data, tmp_path / 'run', device='cpu')
    before = {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()}
    shutil.copytree(data, tmp_path / 'renamed')
    for split in ('train', 'test'):
        (tmp_path / 'renamed' / split / 'class3').rename(tmp_path / 'renamed' / split / 'class3b')
    shutil.copytree(data, tmp_path / 'changed')
    some, other = sorted((tmp_path / 'changed' / 'train' / 'class3').iterdir())[:2]
    shutil.copy(other, some)
    for name in ('renamed', 'changed'):
        with pytest.raises(ValueError, match=f'run: is a run of other images or classes than .*{name} has now; give another folder'):
            train(RECIPE, tmp_path / name, tmp_path / 'run', device='cpu')
    assert {path.name: path.read_bytes() for path in (tmp_path / 'run').iterdir()} == before


@pytest.mark.parametrize('name', ['card.json', 'model.safetensors', 'settings.json', 'log.csv'])
def test_a_folder_of_something_else_is_left_alone(data, tmp_path, name):
    (tmp_path / name).write_text('mine')
    with pytest.raises(ValueError, match=f'has {name} and no run to go on with; name another folder'):
        train(RECIPE, data, tmp_path, device='cpu')
    assert [path.read_text() for path in tmp_path.iterdir()] == ['mine']


@pytest.mark.parametrize('content', [b'', b'junk that is no pickle', {'model': {}}, nn.Linear(1, 1), torch.zeros(3)],
                         ids=['empty', 'junk', 'a state', 'a module', 'a tensor'])
def test_a_checkpoint_of_something_else_is_named(data, tmp_path, content):
    path = tmp_path / 'checkpoint.pt'
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r'checkpoint\.pt: is damaged, or of another kind of run \(.*\); name another folder'):
        train(RECIPE, data, tmp_path, device='cpu')
    assert path.read_bytes() == before


def test_what_a_killed_run_was_writing_is_removed(data, tmp_path):
    (tmp_path / '.checkpoint.pt.0123.part').write_bytes(b'half')
    train(dataclasses.replace(RECIPE, epochs=1), data, tmp_path, device='cpu')
    assert not list(tmp_path.glob('.*'))


def test_statistics_are_of_whole_batches(data, tmp_path, monkeypatch):
    """59 images, of which the last 3 are in no batch."""
    (shutil.copytree(data, tmp_path / 'data') / 'train' / 'class0' / sorted(os.listdir(data / 'train' / 'class0'))[0]).unlink()
    sizes = []
    monkeypatch.setattr(igczoo.training.train, 'update_bn', lambda batches, net: sizes.extend(len(batch) for batch in batches))
    images = len(open_split(tmp_path / 'data', train=True))
    train(dataclasses.replace(RECIPE, epochs=1), tmp_path / 'data', tmp_path / 'out', device='cpu')
    assert images % 8 and sizes == [8] * (images // 8)


def test_a_longer_run_goes_on_from_a_finished_one(data, tmp_path):
    short = dataclasses.replace(RECIPE, epochs=2)
    first = train(short, data, tmp_path / 'run', device='cpu')
    log = train(RECIPE, data, tmp_path / 'run', device='cpu')
    whole = train(RECIPE, data, tmp_path / 'whole', device='cpu')
    assert log[:2] == first and len(log) == 3
    assert log[1]['lr'] < 0.01 < whole[1]['lr'] and log[2]['lr'] == whole[2]['lr']     # at its end the longer cosine has come down too
    assert [float(row['lr']) for row in read_log(tmp_path / 'run')] == [row['lr'] for row in log]
    with pytest.raises(ValueError, match='is a run of other settings'):
        train(short, data, tmp_path / 'run', device='cpu')      # it is the longer run now


def test_a_run_goes_on_when_recipes_and_logs_have_got_another_field(data, tmp_path):
    short = dataclasses.replace(RECIPE, epochs=1)
    train(short, data, tmp_path, device='cpu')
    checkpoint = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    assert {'growth', 'min_area', 'num_classes', 'stored_size'}.isdisjoint(checkpoint['settings']['recipe'])
    del checkpoint['log'][0]['size']
    torch.save(checkpoint, tmp_path / 'checkpoint.pt')
    train(dataclasses.replace(RECIPE, epochs=2), data, tmp_path, device='cpu')
    assert [(row['epoch'], row['size']) for row in read_log(tmp_path)] == [('1', ''), ('2', '16')]


def test_the_model_must_have_the_classes_of_the_data(data, tmp_path):
    for split in ('train', 'test'):
        (tmp_path / 'data' / split).mkdir(parents=True)
        for label in range(3):
            (tmp_path / 'data' / split / f'class{label}').symlink_to(data / split / f'class{label}')
    with pytest.raises(ValueError, match='has 3 classes, igc_resnet20_l24m2 of the recipe has 10'):
        train(RECIPE, tmp_path / 'data', tmp_path / 'out', device='cpu')
    weights = run(tmp_path / 'data', tmp_path / 'out', dataclasses.replace(RECIPE, epochs=1, num_classes=3))
    assert weights['head.weight'].shape[0] == 3


def test_two_processes_learn_as_one(data, tmp_path):
    """Data parallel over gloo: two processes of 4 images compute the update of one of 8, but for BatchNorm, which is by process."""
    script = tmp_path / 'script.py'
    recipe = dataclasses.replace(RECIPE, epochs=1)
    script.write_text(f'from igczoo.training.recipes import Recipe\nfrom igczoo.training.train import train\n'
                      f'train({recipe!r}, {str(data)!r}, {str(tmp_path / "two")!r}, device="cpu")\n')
    torchrun = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--local-addr=127.0.0.1', '--nproc-per-node=2', str(script)]
    environment = os.environ | dict(OMP_NUM_THREADS='1', PYTHONPATH=str(Path(igczoo.__file__).parents[1]), PYTHONWARNINGS='')
    result = subprocess.run(torchrun, env=environment, capture_output=True, text=True, timeout=240)
    assert result.returncode == 0, result.stderr
    two = load_file(tmp_path / 'two' / 'model.safetensors')
    train(recipe, data, tmp_path / 'one', device='cpu')
    one = load_file(tmp_path / 'one' / 'model.safetensors')
    torch.manual_seed(0)
    start = {key: value.detach() for key, value in timm.create_model(RECIPE.model).named_parameters()}
    moves = [torch.cat([(weights[key] - value).flatten() for key, value in start.items()]) for weights in (one, two)]
    assert torch.nn.functional.cosine_similarity(*moves, dim=0) > 0.5
    losses = [float(read_log(tmp_path / name)[0]['train_loss']) for name in ('one', 'two')]
    assert abs(losses[0] - losses[1]) < 0.3


def test_processes_that_cannot_share_a_batch_are_refused(data):
    train_set, eval_set = (open_split(data, train=split) for split in (True, False))
    with pytest.raises(ValueError, match='a batch of 8 cannot be shared evenly among 3 processes; start as many as divide it'):
        igczoo.training.train._check(RECIPE, timm.create_model(RECIPE.model), train_set, eval_set, None, data, 3)


def test_every_recipe_names_a_model_and_explains_itself():
    from importlib import import_module

    for name in list_recipes():
        recipe = find_recipe(name)
        assert timm.is_model(recipe.model)
        assert recipe.warmup_epochs < recipe.epochs / 2, f'{name} has little but warm-up'
        docstring = import_module(f'igczoo.training.recipes.{name}').__doc__
        assert 'igczoo train' in docstring and 'top-1' in docstring, f'{name} owes its cost, command and result'
        assert json.loads(json.dumps(dataclasses.asdict(recipe)))
    with pytest.raises(ValueError, match="recipe 'nonesuch' is unknown; there are "):
        find_recipe('nonesuch')


def test_a_recipe_grows_its_images_with_the_epochs():
    recipe = dataclasses.replace(RECIPE, epochs=20, input_size=128, growth=((0.55, 64), (0.85, 96)))
    assert [recipe.size_at(epoch) for epoch in range(20)] == [64] * 11 + [96] * 6 + [128] * 3
    assert {RECIPE.size_at(epoch) for epoch in range(3)} == {16}


def test_the_tiny_imagenet_twins_differ_in_the_model_and_the_schedules_length():
    igc, regular = (find_recipe(f'tinyimagenet_{name}') for name in ('igcnet18', 'regconv18'))
    assert regular == dataclasses.replace(igc, model='igc_regconv18_c64', epochs=regular.epochs, growth=regular.growth)
    assert regular.epochs < igc.epochs and [regular.size_at(epoch) for epoch in range(11)] == [igc.size_at(epoch) for epoch in range(11)]


def test_splits_of_other_classes_are_refused_before_anything_is_written(data, tmp_path):
    shutil.copytree(data, tmp_path / 'data')
    (tmp_path / 'data' / 'test' / 'class3').rename(tmp_path / 'data' / 'test' / 'class99')
    with pytest.raises(ValueError, match="other classes than its evaluation split, or in another order: 'class3' and 'class4'; give"):
        train(RECIPE, tmp_path / 'data', tmp_path / 'out', device='cpu')
    assert not (tmp_path / 'out').exists()


def test_a_single_file_is_refused_which_both_splits_would_be(tmp_path):
    pixels = io.BytesIO()
    Image.new('RGB', (16, 16)).save(pixels, 'PNG')
    table = pa.table(dict(image=[dict(bytes=pixels.getvalue(), path='')] * 10, label=list(range(10))))
    pq.write_table(table, tmp_path / 'all.parquet')
    with pytest.raises(ValueError, match=r'all\.parquet: is one file, which would be trained on and measured by; give a folder'):
        train(dataclasses.replace(RECIPE, batch_size=5), tmp_path / 'all.parquet', tmp_path / 'out', device='cpu')
    assert not (tmp_path / 'out').exists()


def test_fewer_images_than_a_batch_are_refused(data, tmp_path):
    with pytest.raises(ValueError, match='has 40 training images, fewer than a batch of 64'):
        train(dataclasses.replace(RECIPE, batch_size=64), data, tmp_path / 'out', device='cpu')
    assert not (tmp_path / 'out').exists()


def test_a_loss_that_is_no_number_ends_the_run_and_keeps_the_checkpoint(data, tmp_path):
    train(dataclasses.replace(RECIPE, epochs=1), data, tmp_path / 'out', device='cpu')
    checkpoint = tmp_path / 'out' / 'checkpoint.pt'
    state = torch.load(checkpoint)
    state['net']['stem.conv.weight'][0, 0, 0, 0] = float('nan')
    torch.save(state, checkpoint)
    before = checkpoint.read_bytes()
    with pytest.raises(RuntimeError, match=r'the loss of epoch 2 is nan; .* The checkpoint of epoch 1 is kept'):
        train(dataclasses.replace(RECIPE, epochs=2), data, tmp_path / 'out', device='cpu')
    assert checkpoint.read_bytes() == before
