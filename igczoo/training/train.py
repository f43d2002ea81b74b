"""Training: one loop over a recipe, with atomic checkpoints from which a killed run goes on as if it had not been killed."""
from __future__ import annotations

import csv
import dataclasses
import io
import itertools
import json
import os
import pickle
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import timm
import torch
import torch.distributed as dist
from timm.data import create_transform
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import update_bn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..checkpoints.card import Card, Preprocess
from ..checkpoints.folder import CARD, WEIGHTS, folder_to_make, tag_for, write_checkpoint
from ..checkpoints.model_card import count_macs, count_params
from ..deployment.placement import check_placement
from ..files import alone_in, replacing
from ..inference.classifier import Classifier
from ..nets.net import Net
from .augment import Augmentation
from .evaluate import count_correct, evaluate_set
from .forms import training_form
from .images import open_split, stack_images
from .memory import keep_freed_memory
from .recipes import Recipe, teacher_fault
from .soft_labels import Lesson, SoftLabels, digest, distillation, sha256

__all__ = ['LOG', 'RUN', 'read_run', 'train', 'write_run']

LOG, RUN = 'log.csv', 'checkpoint.pt'


def train(
        recipe: Recipe,
        data: str | Path,
        out: str | Path,
        device: str | torch.device | None = None,
        form: Callable[[nn.Module, torch.device], nn.Module] = training_form,
        bf16: bool = False,
        compile: bool = False,
        seed: int = 0,
        minutes: float | None = None,
        start: nn.Module | None = None,
        base: str = 'random weights',
        teacher: Classifier | None = None,
) -> list[dict[str, float]]:
    """Train a recipe's model from the start, or from the last whole epoch in ``out``.

    Under torchrun every process takes its share of each batch. ``out`` gets checkpoint.pt and log.csv after each epoch and becomes, at the
    end, a checkpoint folder that `igczoo.load` takes: the weights of the last epoch, whatever the evaluation split says, with BatchNorm
    statistics measured anew over all training images, in windows as in training, of input_size. An epoch is evaluated at the recipe's size
    for it. A run in ``out`` of the same recipe but fewer epochs, stopped or finished, goes on as a warm restart: the learning rate rises to
    where the cosine of the longer run is by then, and so for the size.

    Args:
        recipe: what to train.
        data: a data set as `images.open_split` reads it; its evaluation split is measured after each epoch.
        out: folder of this run.
        device: where to compute; the first GPU if there is one, else the CPU.
        form: makes of the net and the device the module that computes: `training_form`, or another function of forms.py.
        bf16: mixed precision, bfloat16.
        compile: compile the training step's model by torch.compile.
        seed: of the initial weights, the order of images and their augmentation.
        minutes: end before the first epoch that would end later than this after the call, by the time the last one took; one epoch is
            trained in any case. A run that has not come to its end goes on by the next call.
        start: a net of the recipe's architecture and classes to begin with, and to train; None: one with random weights.
        base: what the card says the run began with.
        teacher: of the same classes, for a recipe that has one; what it says is kept in ``out``, which all processes must see.

    Returns:
        The rows of log.csv.

    Raises:
        RuntimeError: the loss is no number any more; or another call writes into ``out``.
        ValueError: the data set is one file, or has another number of classes than the model; ``out`` holds a run of other settings or
            images, or something else, or is called like a checkpoint; processes see different folders; there is a teacher too many, too few
            or of other classes; or there is no such device here.
    """
    began = time.perf_counter()
    keep_freed_memory()
    if fault := teacher_fault(recipe, teacher is not None):
        raise ValueError(fault)
    if Path(data).expanduser().is_file():
        raise ValueError(f'{data}: is one file, which would be trained on and measured by; give a folder with a training and an evaluation '
                         f'split')
    out = folder_to_make(out)
    device, rank, world = _join_processes(device)
    check_placement(device, torch.float32)
    torch.manual_seed(seed)
    net = timm.create_model(recipe.model, num_classes=recipe.num_classes) if start is None else start
    net = net.to(device, memory_format=torch.channels_last)
    train_set, eval_set = (open_split(data, train=split) for split in (True, False))
    _check(recipe, net, train_set, eval_set, teacher, data, world)
    stored_size = recipe.stored_size or recipe.input_size
    images, labels = (tensor.to(device) for tensor in stack_images(train_set, stored_size))
    eval_images, eval_labels = (tensor.to(device) for tensor in stack_images(eval_set, stored_size))
    augment = Augmentation(recipe, images)

    optimizer = create_optimizer_v2(net, 'nesterov', lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    updates_per_epoch = len(images) // recipe.batch_size
    scheduler = CosineLRScheduler(optimizer, t_initial=recipe.epochs * updates_per_epoch, t_in_epochs=False,
                                  warmup_t=round(recipe.warmup_epochs * updates_per_epoch))
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    soft_labels = SoftLabels(teacher, recipe, images, out, seed, bf16) if teacher else None
    seen = sha256(json.dumps(train_set.classes), str(tuple(images.shape)), images.cpu().numpy(), labels.cpu().numpy())
    settings = _settings(recipe, seed, seen, start, soft_labels)
    with alone_in(out) if rank == 0 else nullcontext():
        for left in out.glob('.*.part') if rank == 0 else ():       # of a run that was killed
            left.unlink()
        log = _resume(out, settings, net, optimizer, device, data)
        _check_processes(out, len(log), device)
        forward = form(net, device)
        if compile:
            forward.compile()
        model = DistributedDataParallel(forward) if world > 1 else forward

        for epoch in range(len(log), recipe.epochs):
            asked = time.perf_counter()
            lesson = soft_labels.of(epoch) if soft_labels else None
            started, sizes = time.perf_counter(), recipe.sizes_at(epoch)
            model.train()
            torch.manual_seed(seed + (epoch + 1) * 1_000_003)   # an epoch draws the same numbers in a whole run and in a resumed one
            order = torch.randperm(len(images))[:updates_per_epoch * recipe.batch_size].view(updates_per_epoch, world, -1)
            loss_sum = torch.zeros((), device=device)
            for step, batch in enumerate(tqdm(order, f'epoch {epoch + 1}/{recipe.epochs}', disable=None if rank == 0 else True)):
                scheduler.step_update(epoch * updates_per_epoch + step)
                numbers, x = batch[rank], _windows(augment, batch, rank, lesson, sizes)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    logits = model(x)
                    loss = criterion(logits, labels[numbers.to(device)])
                if lesson is not None:
                    taught = distillation(logits, lesson.logits[numbers].to(device), recipe.temperature)
                    loss = torch.lerp(loss, taught, recipe.teacher_share)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                loss_sum += loss.detach()
            if not loss_sum.isfinite():
                raise RuntimeError(f'{out}: the loss of epoch {epoch + 1} is {loss_sum.item()}; train by a smaller learning rate. '
                                   f'The checkpoint of epoch {epoch} is kept')
            train_seconds, size = time.perf_counter() - started, recipe.size_at(epoch)
            eval_batches = ((augment.whole(x, size), y) for x, y in zip(eval_images.split(500), eval_labels.split(500), strict=True))
            counts = torch.tensor(count_correct(forward.eval(), eval_batches, bf16), device=device)
            if world > 1:
                dist.all_reduce(loss_sum)
                dist.broadcast(counts, 0)       # by the statistics of the first process, which are those that are kept
            top1, top5 = counts.tolist()
            log.append(dict(
                epoch=epoch + 1, size=size, lr=optimizer.param_groups[0]['lr'],
                train_loss=round(loss_sum.item() / (world * updates_per_epoch), 4),
                top1=round(100 * top1 / len(eval_labels), 2), top5=round(100 * top5 / len(eval_labels), 2),
                train_seconds=round(train_seconds, 1)))
            if rank == 0:
                _save(out, settings, net, optimizer, log)
            now = time.perf_counter()
            if minutes is not None and _is_late(now - began + _next_seconds(recipe, epoch, now - asked), 60 * minutes, device):
                break
        if rank == 0 and len(log) == recipe.epochs:
            torch.manual_seed(seed)
            batches = torch.randperm(len(images)).split(recipe.batch_size)[:updates_per_epoch]     # whole ones, which weigh alike
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                update_bn((augment(batch[None], 0, recipe.input_size) for batch in batches), forward)
            _write(out, recipe, net, eval_set, str(data), seed, base, teacher)
    if world > 1:
        dist.destroy_process_group()
    return log


def _check(recipe: Recipe, net: nn.Module, train_set: Dataset, eval_set: Dataset, teacher: Classifier | None, data: str | Path,
           world: int) -> None:
    """Refuse sets that the net cannot learn from, and processes that a batch cannot be shared among."""
    if recipe.batch_size % world:
        raise ValueError(f'a batch of {recipe.batch_size} cannot be shared evenly among {world} processes; start as many as divide it')
    if len(train_set.classes) != net.num_classes:
        raise ValueError(f'{data}: has {len(train_set.classes)} classes, {recipe.model} of the recipe has {net.num_classes}')
    if train_set.classes != eval_set.classes:
        raise ValueError(f'{data}: its training split has other classes than its evaluation split, or in another order: '
                         f'{_first_difference(train_set.classes, eval_set.classes)}; give splits of one data set')
    if teacher and list(teacher.labels) != train_set.classes:
        raise ValueError(f'{teacher.name}: the teacher has other classes than {data}, or in another order: '
                         f'{_first_difference(teacher.labels, train_set.classes)}; name one of these classes')
    if len(train_set) < recipe.batch_size:
        raise ValueError(f'{data}: has {len(train_set)} training images, fewer than a batch of {recipe.batch_size}; give more, or a '
                         f'recipe of smaller batches')


def _windows(augment: Augmentation, batch: Tensor, rank: int, lesson: Lesson | None, sizes: tuple[int, ...]) -> Tensor:
    """What a process sees of a batch (processes, n): windows drawn anew, or those of a lesson."""
    size = sizes[torch.randint(len(sizes), ())] if len(sizes) > 1 else sizes[0]
    if lesson is None:
        x = augment(batch, rank, size)
    else:
        numbers = batch[rank]
        x = augment.cut(numbers, lesson.windows.at(numbers)._replace(mirrored=augment.mirror(batch.shape)[rank]), size)
    return augment.sharpen(x, batch, rank)


def _next_seconds(recipe: Recipe, epoch: int, seconds: float) -> float:
    """How long the next epoch will take, by the pixels of this one, counted from 0, that took ``seconds``; the run's end is in the last."""
    growth = (recipe.size_at(epoch + 1) / recipe.size_at(epoch)) ** 2
    last = recipe.epochs - 1
    return seconds * growth * (2 if epoch + 1 == last else 1) if epoch < last else 0.    # 2: statistics and the card


def _is_late(seconds: float, limit: float, device: torch.device) -> bool:
    """Whether it is later than the limit in any process, so that all of them end after the same epoch."""
    late = torch.tensor(float(seconds > limit), device=device)
    if dist.is_initialized():
        dist.all_reduce(late, dist.ReduceOp.MAX)
    return bool(late)


def _write(
        out: Path, recipe: Recipe, net: Net, eval_set: Dataset, data: str, seed: int, base: str, teacher: Classifier | None) -> None:
    """Measure the net as users will, and make ``out`` a checkpoint folder."""
    preprocess = Preprocess((3, recipe.input_size, recipe.input_size), *(tuple(value / 255 for value in values)
                                                                         for values in (recipe.mean, recipe.std)), 'bilinear', 1.)
    classifier = Classifier(net, create_transform(**dataclasses.asdict(preprocess), is_training=False), eval_set.classes)
    title = f'{recipe.model} on {Path(data).resolve().name}'
    write_checkpoint(out, Card(
        model=recipe.model, tag=tag_for(out), title=title, params=count_params(net), macs=count_macs(net, preprocess.input_size),
        labels=tuple(eval_set.classes), preprocess=preprocess, accuracy=(evaluate_set(classifier, eval_set, data).accuracy,),
        license='other', terms='', base=base,
        provenance=f'Trained from {base} by `igczoo train`{f", taught by {teacher.name}" if teacher else ""}, {recipe.epochs} epochs, '
                   f'seed {seed}; log.csv has each.',
        limits='It calls every image by one of its classes, also one that shows none of them.'), net.state_dict())


def _first_difference(these: list[str], those: list[str]) -> str:
    differing = next(pair for pair in itertools.zip_longest(these, those) if pair[0] != pair[1])
    return ' and '.join('none' if name is None else repr(name) for name in differing)


def _join_processes(device: str | torch.device | None) -> tuple[torch.device, int, int]:
    """The device of this process, its rank and the number of processes; joins those that torchrun started."""
    rank, world = int(os.environ.get('RANK', 0)), int(os.environ.get('WORLD_SIZE', 1))
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    if device.type == 'cuda' and device.index is None:
        device = torch.device('cuda', int(os.environ.get('LOCAL_RANK', 0)))
    if world > 1:
        dist.init_process_group('nccl' if device.type == 'cuda' else 'gloo')
    return device, rank, world


def _check_processes(out: Path, epochs: int, device: torch.device) -> None:
    """Raise ValueError where the processes go on from different epochs."""
    if not dist.is_initialized():
        return
    least, most = (torch.tensor(epochs, device=device) for _ in range(2))
    dist.all_reduce(least, dist.ReduceOp.MIN)
    dist.all_reduce(most, dist.ReduceOp.MAX)
    if least < most:
        raise ValueError(f'{out}: a process sees {least} epochs of the run there and another {most}; name a folder that all of them share')


def _settings(
        recipe: Recipe, seed: int, seen: str, start: nn.Module | None, soft_labels: SoftLabels | None) -> dict[str, Any]:
    """What a run is told by; without fields that keep their default, so that a run may go on when recipes have got another field."""
    fields = [field for field in dataclasses.fields(recipe) if getattr(recipe, field.name) != field.default]
    settings = dict(recipe={field.name: getattr(recipe, field.name) for field in fields}, seed=seed, images=seen)
    if start:
        settings['start'] = digest(start)
    if soft_labels:
        settings['teacher'] = soft_labels.teacher
    return settings


def _resume(out: Path, settings: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device,
            data: str | Path) -> list[dict]:
    """Load the last checkpoint of the run in ``out``, if there is one; returns its log."""
    checkpoint = read_run(out, device, ('settings', 'net', 'optimizer', 'log'))
    if checkpoint is None:
        if others := [name for name in (CARD, WEIGHTS, 'settings.json', LOG) if (out / name).exists()]:
            raise ValueError(f'{out}: has {others[0]} and no run to go on with; name another folder')
        return []
    done = checkpoint['settings']
    if done.setdefault('images', settings['images']) != settings['images']:     # which runs did not say before 0.2.0
        raise ValueError(f'{out}: is a run of other images or classes than {data} has now; give another folder')
    epochs = max(done['recipe']['epochs'], settings['recipe']['epochs'])    # a run may be made longer, not shorter
    if done | dict(recipe=done['recipe'] | dict(epochs=epochs)) != settings:
        raise ValueError(f'{out}: is a run of other settings, {done} and not {settings}; give another folder')
    net.load_state_dict(checkpoint['net'])
    optimizer.load_state_dict(checkpoint['optimizer'])
    return checkpoint['log']


def _save(out: Path, settings: dict[str, Any], net: nn.Module, optimizer: torch.optim.Optimizer, log: list[dict]) -> None:
    write_run(out, dict(settings=settings, net=net.state_dict(), optimizer=optimizer.state_dict(), log=log))


def read_run(out: Path, device: torch.device | str, keys: Sequence[str]) -> dict[str, Any] | None:
    """What `write_run` wrote, its tensors on a device; None where there is nothing.

    Raises:
        ValueError: it is damaged, or lacks one of the keys, as what something else wrote.
    """
    path = out / RUN
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
        if missing := set(keys) - set(state):
            raise KeyError(*missing)
    except (AttributeError, EOFError, KeyError, RuntimeError, TypeError, pickle.UnpicklingError) as error:
        raise ValueError(f'{path}: is damaged, or of another kind of run ({type(error).__name__}: {" ".join(str(error).split())[:200]}); '
                         f'name another folder') from None
    return state


def write_run(out: Path, state: dict[str, Any]) -> None:
    """What a run goes on from, as checkpoint.pt, and its rows so far, ``state['log']``, as log.csv."""
    with replacing(out / RUN) as file:
        torch.save(state, file)
    table = io.StringIO()
    writer = csv.DictWriter(table, state['log'][-1], lineterminator='\n')
    writer.writeheader()
    writer.writerows(state['log'])
    with replacing(out / LOG) as file:
        file.write_text(table.getvalue(), encoding='utf-8')
