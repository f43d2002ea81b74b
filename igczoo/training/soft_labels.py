"""What a teacher says of the training images, kept in files: its logits of a few windows of each, for many epochs.

Distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2), where the student sees what the teacher saw
(Beyer et al., "Knowledge distillation: A good teacher is patient and consistent", 2022): the windows are drawn once, only whether they are
mirrored is drawn for every epoch. To ask the teacher in each epoch anew would take as long as to train a small student.
"""
from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from timm.data import resolve_model_data_config
from torch import Tensor, nn
from tqdm import tqdm

from ..files import replacing
from ..inference.classifier import Classifier
from .augment import Augmentation, Windows
from .recipes import Recipe

__all__ = ['Lesson', 'SoftLabels', 'digest', 'distillation']

BATCH = 256     # windows that the teacher sees together


class Lesson(NamedTuple):
    """A window of each training image, and the teacher's logits of it."""
    windows: Windows        # of n images
    logits: Tensor          # float16 (n, classes)


class SoftLabels:
    """The lessons of a run.

    Args:
        teacher: of the same classes as the training images.
        recipe: says which windows are drawn, how many of each image, and by what number of them an epoch differs from another.
        images: uint8 (n, 3, side, side), the training images.
        folder: where the logits are kept; those of the same teacher and windows that are there already are taken.
        seed: of the windows.
    """

    def __init__(self, teacher: Classifier, recipe: Recipe, images: Tensor, folder: Path, seed: int):
        self.model, self.recipe, self.images, self.folder, self.seed = teacher.model, recipe, images, folder, seed
        sees = resolve_model_data_config(teacher.model)
        self.digest = digest(teacher.model)
        self.size = sees['input_size'][-1]
        mean, std = (tuple(255 * value for value in sees[name]) for name in ('mean', 'std'))
        self.augment = Augmentation(replace(recipe, mean=mean, std=std), images)

    def of(self, epoch: int, bf16: bool = False) -> Lesson:
        """The lesson of an epoch, counted from 0; the teacher is asked where there is no file of its logits yet."""
        turn = epoch % self.recipe.teacher_windows
        torch.manual_seed(self.seed + (turn + 1) * 2_000_003)
        windows = self.augment.draw((len(self.images),))
        key = hashlib.sha256(self.digest.encode() + b''.join(values.numpy().tobytes() for values in (windows.sides, windows.places)))
        path = self.folder / f'teacher-{key.hexdigest()[:16]}.npy'
        if not path.exists() and (not dist.is_initialized() or dist.get_rank() == 0):
            with replacing(path) as file, file.open('wb') as stream:
                np.save(stream, self._ask(windows, f'teacher {turn + 1}/{self.recipe.teacher_windows}', bf16).numpy())
        if dist.is_initialized():
            dist.barrier()
        return Lesson(windows, torch.from_numpy(np.load(path, mmap_mode='c')))

    @torch.no_grad()
    def _ask(self, windows: Windows, title: str, bf16: bool) -> Tensor:
        """float16 (n, classes), on the CPU."""
        device, rows = self.images.device, []
        model = self.model.to(device, memory_format=torch.channels_last)
        for batch in tqdm(torch.arange(len(self.images)).split(BATCH), title, disable=None):
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                rows.append(model(self.augment.cut(batch, windows.at(batch), self.size)).half().cpu())
        return torch.cat(rows)


def distillation(logits: Tensor, of_teacher: Tensor, temperature: float) -> Tensor:
    """How far a student's softened scores are from the teacher's: the Kullback-Leibler divergence, times the temperature squared, which
    leaves gradients as large as those of labels.

    Args:
        logits: (N, classes).
        of_teacher: (N, classes).
        temperature: that both are divided by.

    Returns:
        A scalar, the mean over N.
    """
    ours, theirs = (F.log_softmax(values.float() / temperature, 1) for values in (logits, of_teacher))
    return temperature ** 2 * F.kl_div(ours, theirs, reduction='batchmean', log_target=True)


def digest(net: nn.Module) -> str:
    """SHA-256 of a net's parameters and buffers."""
    found = hashlib.sha256()
    for name, value in net.state_dict().items():
        found.update(name.encode() + value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return found.hexdigest()
