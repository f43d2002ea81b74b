"""The training loop: what a run leaves, and that a killed run goes on as if nothing had happened."""
import csv
import dataclasses
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import igczoo.train
from igczoo.recipes import Recipe, find_recipe, list_recipes
from igczoo.train import Augmentation, train

RECIPE = Recipe(
    model='igc_resnet20_l24m2', input_size=16, mean=(120., 110., 100.), std=(60., 60., 60.), epochs=3, batch_size=8, lr=0.1,
    warmup_epochs=1, momentum=0.9, weight_decay=1e-3, label_smoothing=0.1, crop_padding=2, flip=True)


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


def read_log(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((out / 'log.csv').read_text())))


def test_a_killed_run_resumes_exactly(data, tmp_path, monkeypatch):
    whole = run(data, tmp_path / 'whole')
    save, saves = igczoo.train._save, []

    def save_then_die(*args):
        save(*args)
        saves.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr(igczoo.train, '_save', save_then_die)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(data, tmp_path / 'killed')
    monkeypatch.undo()
    resumed = run(data, tmp_path / 'killed')
    assert len(saves) == 2
    for key, expected in whole.items():
        assert torch.equal(resumed[key], expected), key
    logs = [read_log(tmp_path / name) for name in ('whole', 'killed')]
    for rows in logs:
        for row in rows:
            del row['train_seconds']
    assert logs[0] == logs[1]
    assert [row['epoch'] for row in logs[0]] == ['1', '2', '3']
    assert not list(tmp_path.glob('*/*.part'))


def test_planar_and_grouped_forms_learn_the_same(data, tmp_path):
    recipe = dataclasses.replace(RECIPE, epochs=1, lr=0.01)     # a few gentle updates: training magnifies the last bit's differences
    planar, grouped = (run(data, tmp_path / str(form), recipe, planar=form) for form in (True, False))
    for key, expected in grouped.items():
        torch.testing.assert_close(planar[key], expected, rtol=1e-3, atol=1e-4, msg=f'{key} differs')


def test_it_learns(data, tmp_path):
    log = train(dataclasses.replace(RECIPE, epochs=8, label_smoothing=0.), data, tmp_path, device='cpu')
    assert log[-1]['train_loss'] < 0.5 * log[0]['train_loss']
    assert log[-1]['lr'] < 0.01 < max(row['lr'] for row in log)


def test_a_folder_of_another_run_is_refused(data, tmp_path):
    train(dataclasses.replace(RECIPE, epochs=1), data, tmp_path, device='cpu')
    with pytest.raises(ValueError, match='is a run of other settings'):
        train(dataclasses.replace(RECIPE, epochs=1, lr=0.2), data, tmp_path, device='cpu')


def test_a_data_set_of_other_classes_is_refused(data, tmp_path):
    (tmp_path / 'data').mkdir()
    for split in ('train', 'test'):
        (tmp_path / 'data' / split).mkdir()
        (tmp_path / 'data' / split / 'only').symlink_to(data / split / 'class0')
    with pytest.raises(ValueError, match='has 1 classes, igc_resnet20_l24m2 of the recipe has 10'):
        train(RECIPE, tmp_path / 'data', tmp_path / 'out', device='cpu')


def test_two_processes_learn_as_one(data, tmp_path):
    """Data parallel over gloo: two processes of 4 images compute the update of one of 8, but for BatchNorm, which is by process."""
    script = tmp_path / 'script.py'
    recipe = dataclasses.replace(RECIPE, epochs=1)
    script.write_text(f'from igczoo.recipes import Recipe\nfrom igczoo.train import train\n'
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


def test_augmentation_shifts_and_mirrors_within_the_padding():
    recipe = dataclasses.replace(RECIPE, input_size=8, mean=(0., 0., 0.), std=(1., 1., 1.))
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(1, 3, 8, 8)
    augment = Augmentation(recipe, images)
    torch.manual_seed(0)
    x = augment(torch.zeros(1, 400, dtype=torch.int64), 0)
    padded = torch.nn.functional.pad(images.float(), (2, 2, 2, 2))
    windows = [padded[0, :, i:i + 8, j:j + 8] for i in range(5) for j in range(5)]
    allowed = {tuple(window.flatten().tolist()) for w in windows for window in (w, w.flip(2))}
    drawn = {tuple(image.flatten().tolist()) for image in x}
    assert drawn == allowed     # all 25 shifts, both ways round, and nothing else


def test_every_recipe_names_a_model_and_explains_itself():
    from importlib import import_module

    for name in list_recipes():
        recipe = find_recipe(name)
        assert timm.is_model(recipe.model)
        docstring = import_module(f'igczoo.recipes.{name}').__doc__
        assert 'igczoo train' in docstring and 'top-1' in docstring, f'{name} owes its cost, command and result'
        assert json.loads(json.dumps(dataclasses.asdict(recipe)))
    with pytest.raises(ValueError, match="recipe 'nonesuch' is unknown; there are "):
        find_recipe('nonesuch')
