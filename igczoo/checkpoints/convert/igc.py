"""The authors' ImageNet checkpoints as state dicts of `IGCNet`: which of their arrays is which of our tensors.

No array changes: convolution weights are (out, in / groups, height, width) in both, the classifier's (classes, features), and the channels
lie in the same order, since `interleave` is the authors' Reorder.
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ...nets.igcnet import IGCNet

__all__ = ['MODELS', 'key_table', 'to_state_dict']

# What the tensors of a module are called: in MXNet, and in PyTorch.
TENSORS = {
    'conv':   [('arg:{}_weight', '{}.weight')],
    'linear': [('arg:{}_weight', '{}.weight'), ('arg:{}_bias', '{}.bias')],
    'bn':     [('arg:{}_gamma', '{}.weight'), ('arg:{}_beta', '{}.bias'),
               ('aux:{}_moving_mean', '{}.running_mean'), ('aux:{}_moving_var', '{}.running_var')],
}

# What the modules are called: in the authors' graphs (network/*-symbol.json, where stages and blocks count from 1), and here (from 0).
IGC = (
    ('conv',   'g0_conv',                               'stem.conv'),
    ('bn',     'g0_bn',                                 'stem.bn'),
    ('conv',   'g{stage}_b{block}_conv{unit}_conv1',    'stages.{s}.{b}.unit{unit}.conv.primary'),
    ('conv',   'g{stage}_b{block}_conv{unit}_conv2',    'stages.{s}.{b}.unit{unit}.conv.secondary'),
    ('bn',     'g{stage}_b{block}_conv{unit}_bn',       'stages.{s}.{b}.unit{unit}.bn'),
    ('conv',   'g{stage}_b{block}_proj_conv',           'stages.{s}.{b}.shortcut.conv'),
    ('bn',     'g{stage}_b{block}_proj_bn',             'stages.{s}.{b}.shortcut.bn'),
    ('linear', 'fc_score',                              'head'),
)
REGULAR = (
    ('conv',   'g0',                                    'stem.conv'),
    ('bn',     'g0_bn',                                 'stem.bn'),
    ('conv',   'g{stage}_b{block}_conv{unit}',          'stages.{s}.{b}.unit{unit}.conv'),
    ('bn',     'g{stage}_b{block}_conv{unit}_bn',       'stages.{s}.{b}.unit{unit}.bn'),
    ('conv',   'g{stage}_b{block}_proj',                'stages.{s}.{b}.shortcut.conv'),
    ('bn',     'g{stage}_b{block}_proj_bn',             'stages.{s}.{b}.shortcut.bn'),
    ('linear', 'fc_score',                              'head'),
)
MODELS = {                              # the authors' checkpoint
    'igcnet18':          IGC,           # resnet_igc_imgnet_d18b100-0095.params
    'igcnet18_l16m16':   IGC,
    'igcnet18_l4m32':    IGC,
    'igc_regconv18_c64': REGULAR,
    'igc_regconv18_c69': REGULAR,
}


def key_table(modules: Iterable[tuple[str, str, str]], model: IGCNet) -> dict[str, str]:
    """The authors' name -> our name of every parameter and statistic of ``model``; ``modules`` is `IGC` or `REGULAR`.

    Raises:
        ValueError: the table leaves a tensor of the model out, or fills it twice.
    """
    targets = [key for key in model.state_dict() if not key.endswith('.num_batches_tracked')]
    places = [{'stage': s + 1, 's': s, 'block': b + 1, 'b': b, 'unit': unit}
              for s, stage in enumerate(model.stages) for b in range(len(stage)) for unit in (1, 2)]
    table = {}
    for place in places:
        for kind, theirs, ours in modules:
            for their_tensor, our_tensor in TENSORS[kind]:
                target = our_tensor.format(ours.format(**place))
                if target in targets:       # only some blocks have a projection
                    table[their_tensor.format(theirs.format(**place))] = target
    filled = Counter(table.values())
    if filled != Counter(targets):
        raise ValueError(f'key table: left out: {_some(set(targets) - set(filled))}; '
                         f'filled twice: {_some(key for key, n in filled.items() if n > 1)}')
    return table


def to_state_dict(arrays: dict[str, np.ndarray], modules: Iterable[tuple[str, str, str]], model: IGCNet) -> dict[str, Tensor]:
    """Rename a checkpoint's arrays to a complete state dict of ``model``, on the CPU; they share memory. The model is only read.

    MXNet does not count batches, so every `num_batches_tracked` is 0.

    Args:
        arrays: by the authors' names, as of `igczoo.checkpoints.convert.mxnet.read_params`.
        modules: `IGC` or `REGULAR`.
        model: of the checkpoint's architecture; may be on the meta device.

    Raises:
        ValueError: an array is missing, left over, of another shape or dtype, or not finite; names all of these.
    """
    targets = model.state_dict()
    table = key_table(modules, model)
    shared = {theirs: ours for theirs, ours in table.items() if theirs in arrays}
    problems = {
        'missing': [f'{theirs} (for {ours})' for theirs, ours in table.items() if theirs not in arrays],
        'left over': [theirs for theirs in arrays if theirs not in table],
        'of another shape or dtype': [
            f'{theirs} is {_kind(arrays[theirs])} where {ours} is {_kind(targets[ours])}'
            for theirs, ours in shared.items() if _kind(arrays[theirs]) != _kind(targets[ours])],
        'not finite': [theirs for theirs in shared if not np.isfinite(arrays[theirs]).all()],
    }
    if any(problems.values()):
        raise ValueError('; '.join(f'{len(keys)} {problem}: {_some(keys)}' for problem, keys in problems.items() if keys))
    filled = {ours: torch.from_numpy(arrays[theirs]) for theirs, ours in table.items()}
    return {key: filled[key] if key in filled else torch.zeros_like(target, device='cpu') for key, target in targets.items()}


def _kind(array: np.ndarray | Tensor) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"


def _some(keys: Iterable[str], most: int = 4) -> str:
    keys = iter(keys)
    shown = list(islice(keys, most))
    more = sum(1 for _ in keys)
    return ', '.join(shown) + (f' and {more} more' if more else '')
