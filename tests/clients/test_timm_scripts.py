"""timm's train.py and validate.py with these models, and the parts that they are made of.

The scripts are in timm's repository and in none of its packages: IGCZOO_TIMM_SCRIPTS names a checkout of the installed version.
"""
import argparse
import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from docs_pages import blocks, make_photographs
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.models import load_checkpoint
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.task import ClassificationEvaluator, ClassificationTask, resume_task_checkpoint
from timm.utils import CheckpointSaver

import igczoo

pytestmark = [pytest.mark.clients, pytest.mark.filterwarnings('ignore')]       # timm's loader leaves files open

MODEL = 'igc_resnet20_l24m2'


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """photos/ of two classes, data/ with these as train/ and copies of them as val/, and my_model/, fine-tuned on photos/."""
    root = tmp_path_factory.mktemp('timm')
    make_photographs(root)
    (root / 'data').mkdir()
    (root / 'data' / 'train').symlink_to(root / 'photos')
    (root / 'data' / 'val').symlink_to(root / 'other_photos' / 'val')
    igczoo.finetune(MODEL, root / 'photos', root / 'my_model', freeze=True, report=False)
    return root


def loader_of(net: torch.nn.Module, data: Path, split: str):
    config = resolve_data_config({}, model=net)
    training = split == 'train'
    return create_loader(create_dataset('', root=str(data), split=split, is_training=training), batch_size=4, is_training=training,
                         num_workers=0, device=torch.device('cpu'), **config)


def validate(net: torch.nn.Module, data: Path) -> tuple[float, torch.Tensor]:
    """Top-1 in percent, and the probabilities."""
    evaluator, rows = ClassificationEvaluator(), []
    with torch.no_grad():
        for images, labels in loader_of(net, data, 'validation'):
            rows.append(net.eval()(images))
            evaluator.update(rows[-1], labels)
    return evaluator.compute()['top1'], torch.cat(rows).softmax(1)


def test_what_timm_trains_by(folder, tmp_path):
    """Its loader, task, moving average, layers' learning rates, schedule and checkpoints, and going on from one."""
    torch.manual_seed(0)
    net = timm.create_model(MODEL, pretrained=True, num_classes=2, drop_rate=.1)
    task = ClassificationTask(net, criterion_kwargs=dict(smoothing=.1), verbose=False)
    task.setup_ema(decay=.5)
    optimizer = create_optimizer_v2(net, 'sgd', lr=.02, weight_decay=1e-4, momentum=.9, layer_decay=.8)
    assert len({group['lr_scale'] for group in optimizer.param_groups}) > 5
    loader = loader_of(net, folder / 'data', 'train')
    schedule, epochs = create_scheduler_v2(optimizer, 'cosine', num_epochs=4, updates_per_epoch=len(loader))
    saver = CheckpointSaver(
        net, optimizer, argparse.Namespace(model=MODEL), checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path), task=task)
    for epoch in range(epochs):
        net.train()
        for images, labels in loader:
            optimizer.zero_grad()
            task(images, labels)['loss'].backward()
            optimizer.step()
            task.update_ema()
        saver.save_checkpoint(epoch, validate(task.get_trainable_module(ema=True).module, folder / 'data')[0])
        schedule.step(epoch + 1)
    top1, probabilities = validate(task.get_trainable_module(ema=True).module, folder / 'data')
    assert top1 > 90

    other = timm.create_model(MODEL, num_classes=2)
    load_checkpoint(other, str(tmp_path / 'last.pth.tar'))
    torch.testing.assert_close(validate(other, folder / 'data'), (top1, probabilities))
    again = ClassificationTask(timm.create_model(MODEL, num_classes=2), verbose=False)
    assert resume_task_checkpoint(again, str(tmp_path / 'last.pth.tar'), log_info=False) == epochs
    assert all(torch.equal(value, net.state_dict()[key]) for key, value in again.get_trainable_module().state_dict().items())


def test_what_timm_validates_by(folder):
    """The folder that fine-tuning leaves, by timm's loader and by ours."""
    top1, probabilities = validate(timm.create_model(f'local-dir:{folder / "my_model"}', pretrained=True), folder / 'data')
    ours = igczoo.load(folder / 'my_model')
    files = sorted((folder / 'data' / 'val').glob('*/*.jpg'))
    answers = [{one.index: one.score for one in answer} for answer in ours.classify(files, k=2)]
    torch.testing.assert_close(probabilities, torch.tensor([[answer[0], answer[1]] for answer in answers]), atol=2e-3, rtol=0)
    labels = sorted(path.name for path in (folder / 'data' / 'val').iterdir())
    assert top1 == 100 * sum(answer[labels.index(file.parent.name)] > .5 for file, answer in zip(files, answers, strict=True)) / len(files)


@pytest.fixture
def scripts() -> Path:
    folder = Path(os.environ.get('IGCZOO_TIMM_SCRIPTS', ''))
    if not (folder / 'train.py').is_file():
        pytest.skip("train.py and validate.py are in none of timm's packages; IGCZOO_TIMM_SCRIPTS must name a checkout of its repository "
                    f'at v{timm.__version__}')
    version = (folder / 'timm' / 'version.py').read_text()
    assert f"'{timm.__version__}'" in version, f'{folder} has {version.strip()}, and timm {timm.__version__} is installed'
    return folder.absolute()


def test_the_commands_of_the_page(folder, scripts):
    """They train, and the best checkpoint has the accuracy that the log says; a folder of one's own has the one that we measure."""
    (folder / 'pytorch-image-models').symlink_to(scripts)
    [commands] = blocks('with-others', 'sh')
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    environment = os.environ | dict(PATH=path, PYTHONPATH=str(Path(igczoo.__file__).parents[1]))
    done = subprocess.run(['bash', '-ec', commands], cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    with open(folder / 'runs' / 'mine' / 'summary.csv') as file:
        logged = [float(row['eval_top1']) for row in csv.DictReader(file)]
    _, trained, own = (json.JSONDecoder().raw_decode(text.lstrip())[0] for text in done.stdout.split('--result')[1:])    # of each command
    assert len(logged) >= 2 and trained['top1'] == pytest.approx(max(logged), abs=.01)
    top1, _ = validate(timm.create_model(f'local-dir:{folder / "my_model"}', pretrained=True), folder / 'data')
    assert own['top1'] == pytest.approx(top1, abs=.01)
