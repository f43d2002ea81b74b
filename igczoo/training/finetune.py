"""Fine-tuning: a checkpoint and somebody's own photographs in, a checkpoint of their classes out.

What `finetune` does, in the order it does it:

1. The photographs are decoded once, into squares of the net's input. A net for smaller images than 160 pixels gets up to 160, but
   no more than twice its own, where the photographs have them. Where nobody has split them, a fifth of each class is kept to measure by.
   Of classes of 200 a tenth is kept to watch by.
2. The new classifier is fitted alone, on the features that the net has of every photograph and its mirror image: a convex problem.
3. All layers are trained, by AdamW at rates that fall from the classifier to the stem, a cosine in all, on random and mirrored windows,
   four fifths as large as the net's input, because a window shows its part larger; labels are smoothed, and the classifier is held as
   small as in 2. What counts are the averaged weights (an exponential moving average). Where the watched loss has not fallen for a third
   of the run, the run ends.
4. The weights of 2 and 3 are mixed, in the parts that do best on the watched photographs (WiSE-FT: Wortsman et al., 2022), and the logits
   scaled so that scores can be believed, by the watched photographs; where there are none, by classifiers as in 2 that are each fitted
   without some of the photographs and asked about those.
5. The mixture is measured once, by the reader and the preprocessing of every other evaluation, and written as a checkpoint folder.
"""
from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.data import create_transform, resolve_model_data_config
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..checkpoints.card import Card, Preprocess, cards
from ..checkpoints.digests import sha256
from ..checkpoints.folder import CARD, folder_card, folder_to_make, resolve, tag_for, write_checkpoint
from ..checkpoints.model_card import count_macs, count_params
from ..deployment.placement import check_placement
from ..files import LOCK, alone_in, replacing
from ..inference.classifier import Classifier, load
from ..inference.photograph import ImageError
from .album import SPLIT, STORE, Album, check_photographs, read_album
from .augment import Augmentation
from .evaluate import evaluate_set
from .forms import training_form
from .images import FolderImages, open_photographs
from .memory import keep_freed_memory
from .train import LOG, RUN, read_run, write_run

__all__ = ['finetune']

LEAST_CALIBRATING = 50  # photographs to scale the logits by
FOLDS = 5               # parts of the photographs, of which a classifier is fitted without one
CALIBRATING = 500       # photographs that are enough to scale the logits by
IMAGES_SHOWN = 30_000   # to the net in a run, where neither epochs nor minutes are given
EPOCHS = 5, 100         # at least and at most, likewise
BATCH = 50
LEAST_BATCH = 16        # below it BatchNorm keeps the statistics it has
LEAST_SIZE = 160        # pixels, for nets that know such large things; from 32 to 64 features get better, beyond it worse
WINDOW = .8             # of the net's input, that it is trained on
RATE_FROM_SCRATCH = 2e-3
RATE, LAYER_DECAY, WEIGHT_DECAY = 6e-4, .75, .05
MIXTURES = .25, .5, .75, 1.     # shares of the trained weights, the first where nothing is watched
WARMUP = .05            # of the run
AVERAGING = .99
SMOOTHING = .1
MIN_AREA = .35          # of a photograph that a window takes
HEAD_PENALTY = 1e-2     # on the squares of the classifier's weights, of features scaled to one
HEAD_IMAGES = 20_000    # the classifier is fitted on, at most


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything that decides what is learnt, but the photographs themselves."""
    model: str
    data: str               # where the photographs are
    size: int               # pixels of the net's input
    epochs: int | None
    minutes: float | None
    freeze: bool
    pretrained: bool
    seed: int


def finetune(
        name: str | os.PathLike,
        data: str | Path,
        out: str | os.PathLike,
        *,
        epochs: int | None = None,
        minutes: float | None = None,
        freeze: bool = False,
        size: int | None = None,
        seed: int = 0,
        pretrained: bool = True,
        device: str | torch.device | None = None,
        bf16: bool | None = None,
        report: bool = True,
) -> Classifier:
    """Train a checkpoint further on photographs of other classes; this file's first lines say how.

    ``out`` becomes a checkpoint folder: config.json, model.safetensors, card.json with the measured accuracy, README.md (a model card),
    settings.json, split.csv (which photograph trained, watched or measured, and what was left out or stands on both sides), log.csv but
    with ``freeze``, and, where matplotlib is installed, pictures. A run in ``out`` of the same settings and photographs goes on from its
    last whole epoch, to the same bytes where ``minutes`` is not given.

    Args:
        name: what `igczoo.load` takes; or `timm:` and the name of one of timm's own models.
        data: as `images.open_photographs` reads it.
        out: folder to make.
        epochs: how often each photograph is shown; by default as often as makes 30,000 of all, 5 to 100 times.
        minutes: that everything together may take, instead.
        freeze: fit the classifier only; the other layers stay as they are.
        size: pixels of the net's input; by default the checkpoint's, or twice as many, up to 160, where the photographs have as many.
        seed: of the split, the order of photographs and their windows.
        pretrained: start from the checkpoint's weights; otherwise from random ones, of which every layer is trained alike.
        device: where to compute; the first GPU if there is one, else the CPU.
        bf16: mixed precision, bfloat16; None means where the device is fast at it.
        report: draw the pictures.

    Returns:
        The classifier in ``out``.

    Raises:
        ValueError: the photographs or their classes are wrong; ``out`` holds something else, lies among the photographs, or is called like
            a checkpoint; the settings contradict each other; the net does not end in one linear classifier; or there is no such device.
        RuntimeError: the loss is no number any more.
    """
    began = time.monotonic()
    keep_freed_memory()
    if epochs is not None and minutes is not None:
        raise ValueError('epochs and minutes both say how long to train; give one of them')
    if freeze and not pretrained:
        raise ValueError('freeze keeps the layers as they are, and random ones know nothing; give one of freeze and pretrained=False')
    device = torch.device(device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    check_placement(device, torch.float32)
    folder, place = folder_to_make(out), _place(data)
    bf16 = _is_fast_at_bf16(device) if bf16 is None else bf16
    net, preprocess, base = _start(os.fspath(name), pretrained, seed)
    photographs, evaluation = open_photographs(place)
    _check_apart(folder, photographs, evaluation, place)
    own = preprocess.input_size[-1]
    fixed = net.pretrained_cfg.get('fixed_input_size')
    if fixed and size not in (None, own):
        raise ValueError(f'{name}: takes images of {own} pixels only, not of {size}; leave the size out')
    size = size or (own if fixed else _best_size(own, photographs))
    preprocess = replace(preprocess, input_size=(3, size, size))
    settings = Settings(model=os.fspath(name), data=place, size=size, epochs=epochs, minutes=minutes,
                        freeze=freeze, pretrained=pretrained, seed=seed)
    with _Run.open(folder, settings) as run:
        if run.finished:
            check_photographs(folder, photographs, evaluation, place)
        else:
            album = read_album(photographs, evaluation, run.out, place, size, seed)
            net.reset_classifier(len(album.classes))
            net = net.to(device, memory_format=torch.channels_last)
            _Trainer(net, album, preprocess, settings, run, device, bf16).train(began)
            classifier = Classifier(net, create_transform(**asdict(preprocess), is_training=False), album.classes)
            _finish(run.out, classifier, album, preprocess, settings, base, data, report)
    return load(folder.resolve(), device=device)


def _place(data: str | Path) -> str:
    if str(data).startswith('torchvision:'):
        return str(data)
    path = Path(data).expanduser()
    return str(path.resolve() if path.is_dir() else path.parent.resolve() / path.name)      # a linked file has its own name and neighbours


def _check_apart(out: Path, photographs: Dataset, evaluation: Dataset | None, data: str) -> None:
    """Raise ValueError where the folder to make would be one of a class at the next call."""
    roots = [part.root for part in (photographs, evaluation) if isinstance(part, FolderImages)]
    if roots and evaluation is None:        # beside train/ alone it could be meant as a class too
        roots = [data]
    if any(out.resolve().is_relative_to(root) for root in roots):
        raise ValueError(f'{out}: lies in {data}, where the next call would take it for a class; name a folder elsewhere')


def _is_fast_at_bf16(device: torch.device) -> bool:
    if device.type == 'cpu':
        return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()    # not in torch for macOS
    return device.type == 'cuda' and torch.cuda.is_bf16_supported()


def _start(name: str, pretrained: bool, seed: int) -> tuple[nn.Module, Preprocess, Card | None]:
    """The net to begin with, how it sees images, and the card of its weights."""
    torch.manual_seed(seed)
    if name.startswith('timm:'):
        try:
            net, base = timm.create_model(name.removeprefix('timm:'), pretrained=pretrained), None
        except (RuntimeError, OSError, ValueError) as error:
            raise ValueError(f'{name}: {" ".join(str(error).split())[:300]}; --scratch starts from random weights') from None
    else:
        net = load(name).model
        _, folder = resolve(name)
        base = (folder and folder_card(folder)) or cards().get(f'{net.pretrained_cfg["architecture"]}.{net.pretrained_cfg.get("tag")}')
        if not pretrained:
            cfg = net.pretrained_cfg
            net = timm.create_model(net.pretrained_cfg['architecture'])
            net.pretrained_cfg = cfg
    if not isinstance(net.get_classifier(), nn.Linear):
        raise ValueError(f'{name}: ends in {type(net.get_classifier()).__name__}, not in one linear classifier, which fine-tuning needs; '
                         f'name another model')
    found = resolve_model_data_config(net)
    return net, Preprocess(tuple(found['input_size']), tuple(found['mean']), tuple(found['std']), found['interpolation'],
                           found['crop_pct'], found['crop_mode']), base


def _best_size(size: int, photographs: Dataset) -> int:
    """The checkpoint's size, or twice that, up to `LEAST_SIZE`, where a few photographs say that there is more to see."""
    larger = min(LEAST_SIZE, 2 * size)
    if size >= larger:
        return size
    sides = []
    for row in range(0, len(photographs), max(1, len(photographs) // 20)):
        with suppress(ImageError):
            sides.append(min(photographs[row][0].size))
    return larger if sides and median(sides) >= larger else size


# The run ------------------------------------------------------------------------------------------------------------------------------

@dataclass(frozen=True)
class _Run:
    """What a run keeps in its folder from epoch to epoch."""
    out: Path
    state: dict[str, Any] | None    # at the end of the last whole epoch

    @classmethod
    @contextmanager
    def open(cls, out: Path, settings: Settings) -> Iterator[_Run]:
        """Go on with the run in ``out``, or begin one; a folder made for a run that fails before its first epoch's end is removed.

        Raises:
            ValueError: there is a run of other settings, or something else.
            RuntimeError: another call writes there.
        """
        path = out / RUN
        is_new = not out.exists()
        there = {file.name for file in out.iterdir()} - {LOCK} if out.is_dir() else set()
        if there and 'settings.json' not in there:
            raise ValueError(f'{out}: is a folder of something else; name one that does not exist')
        with alone_in(out):
            for left in out.glob('.*.part'):     # of a run that was killed
                left.unlink()
            if 'settings.json' in there:
                done = json.loads((out / 'settings.json').read_text(encoding='utf-8'))
                if not isinstance(done, dict) or done.keys() != asdict(settings).keys():
                    raise ValueError(f'{out}: is a folder of something else, which has a settings.json too; name one that does not exist')
                if done != asdict(settings) and (path.exists() or (out / CARD).exists()):       # otherwise nothing has been done yet
                    differing = ', '.join(f'{key} {value}' for key, value in done.items() if asdict(settings).get(key) != value)
                    raise ValueError(f'{out}: holds a run of other settings ({differing}); name another folder')
            with replacing(out / 'settings.json') as file:
                file.write_text(json.dumps(asdict(settings), indent=1), encoding='utf-8')
            try:
                yield cls(out, read_run(out, 'cpu', ('log', 'updates', 'seconds', 'photographs', 'net', 'averaged', 'optimizer')))
            except BaseException:
                if is_new and not path.exists():
                    shutil.rmtree(out)
                raise

    @property
    def finished(self) -> bool:
        return (self.out / CARD).exists()

    def save(self, state: dict[str, Any]) -> None:
        write_run(self.out, state)


class _Trainer:
    """Trains a net on an album; the net has the kept weights at the end."""

    def __init__(self, net: nn.Module, album: Album, preprocess: Preprocess, settings: Settings, run: _Run, device: torch.device,
                 bf16: bool):
        self.net, self.album, self.settings, self.run, self.device, self.bf16 = net, album, settings, run, device, bf16
        self.augment = Augmentation(_Views.of(preprocess), album.images)
        self.batch = min(BATCH, len(album.images))
        self.model = training_form(net, device)
        self.window = max(32, round(settings.size * WINDOW / 32) * 32)      # whole maps throughout
        if settings.size <= 64 or net.pretrained_cfg.get('fixed_input_size'):
            self.window = settings.size
        self.scale = torch.zeros(())        # of the features, by which the classifier's weights are held small

    def train(self, began: float) -> None:
        unseen = None       # logits and labels of photographs that what gave the logits was not fitted on
        if self.settings.pretrained:
            unseen = self._fit_head()
        if not self.settings.freeze:
            self._train_all(began)
        if len(self.album.watched):
            unseen = self._watched_logits(self.model), self.album.watched_labels
        if unseen and len(unseen[0]) >= LEAST_CALIBRATING:
            self._calibrate(*unseen)

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        """uint8 (n, 3, side, side) -> pooled features, float32 (n, num_features)."""
        self.model.eval()
        rows = []
        for part in tqdm(images.split(100), 'features', disable=None, leave=False):
            x = self.augment.whole(part.to(self.device), self.settings.size)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                rows.append(self.net.forward_head(self.model.forward_features(x), pre_logits=True).float())
        return torch.cat(rows)

    def _fit_head(self) -> tuple[Tensor, Tensor]:
        """Fit the classifier on the features of photographs and their mirror images, scaled to mean 0 and deviation 1.

        Returns:
            Logits (n, classes) that classifiers fitted without them give some of the photographs, and their labels.
        """
        torch.manual_seed(self.settings.seed)
        rows = torch.randperm(len(self.album.images))[:HEAD_IMAGES]
        images, labels = self.album.images[rows], self.album.labels[rows].to(self.device)
        features = torch.stack([self._features(images), self._features(images.flip(3))])        # (2, n, num_features)
        mean, deviation = features.mean((0, 1)), features.std((0, 1)).clamp(min=1e-6)
        scaled, classes = (features - mean) / deviation, len(self.album.classes)
        weight, bias = _logistic_regression(scaled.flatten(0, 1), labels.repeat(2), classes)
        classifier, self.scale = self.net.get_classifier(), deviation
        with torch.no_grad():
            classifier.weight.copy_(weight / deviation)
            classifier.bias.copy_(bias - classifier.weight @ mean)

        fold = torch.empty_like(labels)
        fold[labels.argsort()] = torch.arange(len(labels), device=self.device) % FOLDS      # of each class about as many in each
        known = labels.bincount(minlength=classes)[labels] > 1                              # also without the photograph
        logits, asked = [], []
        for left_out in range(min(FOLDS, math.ceil(CALIBRATING * FOLDS / len(labels)))):
            others, these = fold != left_out, (fold == left_out) & known
            fitted = _logistic_regression(scaled[:, others].flatten(0, 1), labels[others].repeat(2), classes)
            logits.append(F.linear(scaled[0, these], *fitted))
            asked.append(labels[these])
        return torch.cat(logits).cpu(), torch.cat(asked).cpu()

    def _train_all(self, began: float) -> None:
        album, settings = self.album, self.settings
        averaged = ModelEmaV3(self.net, decay=AVERAGING, use_warmup=True)
        fitted = {key: value.clone() for key, value in self.net.state_dict().items()}
        decay = LAYER_DECAY if settings.pretrained else None
        rate = RATE if settings.pretrained else RATE_FROM_SCRATCH
        optimizer = create_optimizer_v2(self.net, 'adamw', lr=rate, weight_decay=WEIGHT_DECAY, layer_decay=decay)
        photographs = sha256(self.run.out / SPLIT)
        state = self.run.state or dict(log=[], updates=0, seconds=0., photographs=photographs)
        if state['photographs'] != photographs:
            raise ValueError(f'{self.run.out}: its run was begun with other photographs than {settings.data} has now; name another folder')
        if self.run.state:
            self.net.load_state_dict(state['net'])
            averaged.module.load_state_dict(state['averaged'])
            averaged.step = state['updates']
            optimizer.load_state_dict(state['optimizer'])
        clock = _Clock.of(settings, album, self.batch, began, state['seconds'])
        watch = training_form(averaged.module, self.device)
        images, labels = album.images, album.labels
        per_epoch = len(images) // self.batch
        epoch, log = len(state['log']), state['log']
        with tqdm(total=clock.total, initial=round(clock.done(state['updates'])), desc='finetune', disable=None, unit=clock.unit,
                  bar_format='{desc} {percentage:3.0f}% |{bar}| {elapsed}, {remaining} left{postfix}') as bar:
            while clock.progress(state['updates']) < 1 and not _has_ended(log, clock.progress(state['updates'])):
                torch.manual_seed(settings.seed + (epoch + 1) * 1_000_003)      # the same numbers in a whole run and in a resumed one
                self._set_mode()
                order, loss_sum, steps, started = torch.randperm(len(images)), 0., 0, time.monotonic()
                for rows in order[:per_epoch * self.batch].view(per_epoch, 1, self.batch):
                    if (progress := clock.progress(state['updates'])) >= 1:
                        break
                    _set_rate(optimizer, rate, progress)
                    loss_sum += self._update(rows, labels, optimizer)
                    averaged.update(self.net, step=state['updates'])
                    state['updates'] += 1
                    steps += 1
                    bar.n = min(clock.total, round(clock.done(state['updates'])))
                    if steps % 8 == 0:
                        bar.refresh()
                if not math.isfinite(loss_sum):
                    raise RuntimeError(f'{self.run.out}: the loss of epoch {epoch + 1} is {loss_sum}; the last whole epoch is kept')
                if not steps:
                    break
                epoch += 1
                loss, top1 = self._watch(watch)
                log.append(dict(epoch=epoch, train_loss=round(loss_sum / steps, 4), watched_loss=loss, watched_top1=top1,
                                seconds=round(time.monotonic() - started, 1)))
                bar.set_postfix_str(f', watched {top1} %' if top1 != '' else '')
                state |= dict(net=self.net.state_dict(), averaged=averaged.module.state_dict(), optimizer=optimizer.state_dict(),
                              seconds=clock.spent())
                self.run.save(state)
        self._mix(fitted, averaged.module.state_dict())

    def _mix(self, fitted: dict[str, Tensor], trained: dict[str, Tensor]) -> None:
        """Give the net the mixture of both that most watched photographs are right with, or the least loss where as many are."""
        def take(share: float) -> None:
            self.net.load_state_dict({
                key: value.lerp(trained[key], share) if value.is_floating_point() else trained[key] for key, value in fitted.items()})

        if not self.settings.pretrained:
            return take(1.)
        take(MIXTURES[0])
        if len(self.album.watched):
            scores = []
            for share in MIXTURES:
                take(share)
                loss, top1 = self._watch(self.model)
                scores.append((top1, -loss, share))
            take(max(scores)[-1])

    def _set_mode(self) -> None:
        self.model.train()
        if self.batch < LEAST_BATCH:
            for module in self.net.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()

    def _update(self, rows: Tensor, labels: Tensor, optimizer: torch.optim.Optimizer) -> float:
        x, y = self.augment(rows, 0, self.window).to(self.device), labels[rows[0]].to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            logits = self.model(x)
        loss = F.cross_entropy(logits.float(), y, label_smoothing=SMOOTHING)
        held = HEAD_PENALTY * (self.net.get_classifier().weight * self.scale).square().sum()
        optimizer.zero_grad()
        (loss + held).backward()
        optimizer.step()
        return loss.item()

    @torch.no_grad()
    def _calibrate(self, logits: Tensor, labels: Tensor) -> None:
        """Scale the logits, by the classifier's weights, so that these unseen ones' loss is least (Guo et al., 2017, temperature).

        Smoothed labels make scores too low; no image's best label changes.
        """
        scales = torch.logspace(-.5, 1, 61)
        best = min(scales.tolist(), key=lambda scale: F.cross_entropy(scale * logits, labels).item())
        for parameter in self.net.get_classifier().parameters():
            parameter.mul_(best)

    def _watch(self, model: nn.Module) -> tuple[float | str, float | str]:
        """Loss and top-1 in per cent on the watched photographs; '' where there are none."""
        if not len(self.album.watched):
            return '', ''
        found, y = self._watched_logits(model), self.album.watched_labels
        return round(F.cross_entropy(found, y).item(), 4), round(100 * (found.argmax(1) == y).float().mean().item(), 2)

    @torch.no_grad()
    def _watched_logits(self, model: nn.Module) -> Tensor:
        """float32 (w, classes) on the CPU."""
        model.eval()
        logits = []
        for part in self.album.watched.split(100):
            x = self.augment.whole(part.to(self.device), self.settings.size)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
                logits.append(model(x).float().cpu())
        return torch.cat(logits)


def _logistic_regression(features: Tensor, labels: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Weight (classes, num_features) and bias (classes,) of least loss on features (n, num_features): a convex problem."""
    weight, bias = (torch.zeros(shape, device=features.device, requires_grad=True) for shape in ((classes, features.shape[1]), classes))
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=60, line_search_fn='strong_wolfe')

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(F.linear(features, weight, bias), labels, label_smoothing=SMOOTHING)
        value = value + HEAD_PENALTY * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    return weight.detach(), bias.detach()


@dataclass(frozen=True)
class _Views:
    """What `Augmentation` must know, in its units."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool = True
    crop_padding: int = 0
    min_area: float = MIN_AREA
    sharpness: float = 1.

    @classmethod
    def of(cls, preprocess: Preprocess) -> _Views:
        return cls(*(tuple(255 * value for value in values) for values in (preprocess.mean, preprocess.std)))


@dataclass(frozen=True)
class _Clock:
    """How far a run has come, by its updates or by the time it may take."""
    updates: int | None     # in all
    seconds: float | None   # from ``began`` to the end of training
    began: float
    before: float           # seconds that were spent before the run was stopped

    @classmethod
    def of(cls, settings: Settings, album: Album, batch: int, began: float, before: float) -> _Clock:
        n = len(album.images)
        if settings.minutes is None:
            least, most = EPOCHS
            epochs = settings.epochs or min(max(math.ceil(IMAGES_SHOWN / n), least), most)
            return cls(epochs * (n // batch), None, began, before)
        so_far = time.monotonic() - began
        share = len(album.evaluation) / (n + len(album.evaluation))
        measuring = 2 * share * so_far + 8      # seconds: the photographs to measure by are read once more, and pictures drawn
        return cls(None, max(60 * settings.minutes - measuring, so_far + 1), began, before)

    def spent(self) -> float:
        return self.before + time.monotonic() - self.began

    def progress(self, updates: int) -> float:
        return updates / self.updates if self.updates else self.spent() / self.seconds

    @property
    def total(self) -> int:
        return self.updates or round(self.seconds)

    @property
    def unit(self) -> str:
        return 'updates' if self.updates else 's'

    def done(self, updates: int) -> float:
        return updates if self.updates else self.spent()


def _has_ended(log: list[dict], progress: float) -> bool:
    """Whether the watched loss has not fallen for a third of the run so far; never in the first half."""
    losses = [row['watched_loss'] for row in log]
    if progress < .5 or len(losses) < 6 or '' in losses:
        return False
    return len(losses) - 1 - losses.index(min(losses)) > len(losses) / 3


def _set_rate(optimizer: torch.optim.Optimizer, highest: float, progress: float) -> None:
    """A straight rise, then half a cosine to zero; timm has written into each group how much of it the layer gets."""
    rate = highest * min(progress / WARMUP + .01, 1) * .5 * (1 + math.cos(math.pi * min(progress, 1)))
    for group in optimizer.param_groups:
        group['lr'] = rate * group.get('lr_scale', 1.)


# The checkpoint -----------------------------------------------------------------------------------------------------------------------

def _finish(out: Path, classifier: Classifier, album: Album, preprocess: Preprocess, settings: Settings, base: Card | None,
            data: str | Path, report: bool) -> None:
    """Measure, and write the checkpoint; card.json, which says that the run is whole, at last."""
    net = classifier.model
    result = evaluate_set(classifier, album.evaluation, str(data)) if len(album.evaluation) else None    # of one photograph a class
    begun = (base.name if base else settings.model) if settings.pretrained else 'random weights'
    watched = len(album.watched)
    count = f'{len(album.images) + watched:,} photographs'
    card = Card(
        model=net.pretrained_cfg['architecture'], tag=tag_for(out), title=f'{net.pretrained_cfg["architecture"]} on {Path(data).stem}',
        params=count_params(net), macs=count_macs(net, preprocess.input_size), labels=tuple(album.classes), preprocess=preprocess,
        accuracy=(result.accuracy,) if result else (), base=begun,
        license=base.license if base else 'other', terms=base.terms if base else '',
        provenance=f'Fine-tuned by `igczoo finetune {settings.model}` from {begun} on {count} of {len(album.classes)} classes'
                   f'{" (the classifier only)" if settings.freeze else ""}, seed {settings.seed}; split.csv lists them'
                   f'{f", of which {watched:,} chose the mixture" if watched else ""}.',
        limits='It calls every photograph by one of its classes, also one that shows none of them. The accuracy is of photographs from the '
               'same collection; others may be harder.')
    if report and result:
        from .report import draw, is_installed
        if is_installed():
            draw(out, result, album.evaluation, settings.model, out / LOG)
    with suppress(PermissionError):     # of Windows, for it is still in use
        (out / STORE).unlink(missing_ok=True)
    write_checkpoint(out, card, net.state_dict())
    (out / RUN).unlink(missing_ok=True)

