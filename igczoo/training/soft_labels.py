"""What a teacher says of the training images, kept in files: its logits of a few windows of each, for many epochs.

Distillation (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2) by the windows that the teacher saw (Beyer et
al., "Knowledge distillation: A good teacher is patient and consistent", 2022): they are drawn once; whether they are mirrored, at what size
they are shown and how sharp is drawn in every epoch. To ask the teacher in each epoch anew would take about as long as the epoch.
"""
from __future__ import annotations

import hashlib
import itertools
import time
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

__all__ = ['Lesson', 'SoftLabels', 'digest', 'distillation', 'sha256']

BATCH = 256     # windows that the teacher sees together


class Lesson(NamedTuple):
    """A window of each training image, and the teacher's logits of it."""
    windows: Windows        # of n images
    logits: Tensor          # float16 (n, classes)


class SoftLabels:
    """The lessons of a run.

    Args:
        teacher: of the same classes as the training images.
        recipe: says which windows are drawn, and how many of each image, which epochs take in turn.
        images: uint8 (n, 3, side, side), the training images.
        folder: where the logits are kept, which all processes see; those of the same teacher, images and windows are taken from there.
        seed: of the windows.
        bf16: ask in mixed precision.

    Attributes:
        teacher: a digest of its weights and of what it sees of an image.
    """

    def __init__(self, teacher: Classifier, recipe: Recipe, images: Tensor, folder: Path, seed: int, bf16: bool = False):
        self.model, self.recipe, self.images, self.folder, self.seed, self.bf16 = teacher.model, recipe, images, folder, seed, bf16
        sees = resolve_model_data_config(teacher.model)
        self.size = sees['input_size'][-1]
        mean, std = (tuple(255 * value for value in sees[name]) for name in ('mean', 'std'))
        self.augment = Augmentation(replace(recipe, mean=mean, std=std), images)
        self.teacher = sha256(digest(teacher.model), str((self.size, mean, std)))
        self.seen = sha256(self.teacher, str((bf16, tuple(images.shape))), images.cpu().numpy())

    def of(self, epoch: int) -> Lesson:
        """The lesson of an epoch, counted from 0; the teacher is asked where there is no file of its logits yet, by one process for all."""
        turn = epoch % self.recipe.teacher_windows
        torch.manual_seed(self.seed + (turn + 1) * 2_000_003)
        windows = self.augment.draw((len(self.images),))
        path = self.folder / f'teacher-{sha256(self.seen, windows.sides.numpy(), windows.places.numpy())[:16]}.npy'
        if not path.exists() and (not dist.is_initialized() or dist.get_rank() == 0):
            with replacing(path) as file, file.open('wb') as stream:
                np.save(stream, self._ask(windows, f'teacher {turn + 1}/{self.recipe.teacher_windows}').numpy())
        while not path.exists():        # not by a collective, whose time is limited
            time.sleep(.1)
        return Lesson(windows, torch.from_numpy(np.load(path, mmap_mode='c')))

    @torch.no_grad()
    def _ask(self, windows: Windows, title: str) -> Tensor:
        """float16 (n, classes), on the CPU."""
        device, rows = self.images.device, []
        model = self.model.to(device, memory_format=torch.channels_last)
        for batch in tqdm(torch.arange(len(self.images)).split(BATCH), title, disable=None):
            with torch.autocast(device.type, torch.bfloat16, enabled=self.bf16):
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
    """SHA-256 of a net's parameters and buffers, with their names."""
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    return sha256(*itertools.chain.from_iterable((name, value.view(-1).view(torch.uint8).numpy()) for name, value in state.items()))


def sha256(*parts: str | np.ndarray) -> str:
    """Of texts and arrays one after another."""
    found = hashlib.sha256()
    for part in parts:
        found.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part))
    return found.hexdigest()
