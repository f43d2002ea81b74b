"""Tables of keys: which array of somebody else's checkpoint is which tensor of ours, each used once.

No array changes: convolution weights are (out, in / groups, height, width) everywhere, the classifier's (classes, features).
"""
from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from ...nets.net import Net

__all__ = ['key_table', 'to_state_dict']

COUNTER = '.num_batches_tracked'
# What the tensors of a module are called: in MXNet or, where the kind is 'torch', in PyTorch, and here.
TENSORS = {
    'conv':   [('arg:{}_weight', '{}.weight')],
    'linear': [('arg:{}_weight', '{}.weight'), ('arg:{}_bias', '{}.bias')],
    'bn':     [('arg:{}_gamma', '{}.weight'), ('arg:{}_beta', '{}.bias'),
               ('aux:{}_moving_mean', '{}.running_mean'), ('aux:{}_moving_var', '{}.running_var')],
    'torch':  [(f'{{}}.{tensor}',) * 2 for tensor in ('weight', 'bias', 'running_mean', 'running_var', 'num_batches_tracked')],
}


def key_table(modules: Iterable[tuple[str, str, str]], model: Net) -> dict[str, str]:
    """Their name -> our name of every parameter and statistic of ``model``.

    Args:
        modules: what modules are called: their kind, a key of `TENSORS`; their name; ours. Both names may use what `_places` gives.
        model: of the checkpoint's architecture; may be on the meta device.

    Raises:
        ValueError: the table leaves a tensor of the model out, or fills it twice.
    """
    targets = model.state_dict()
    table = {}
    for place in _places(model):
        for kind, theirs, ours in modules:
            for their_tensor, our_tensor in TENSORS[kind]:
                target = our_tensor.format(ours.format(**place))
                if target in targets:       # only some blocks have a projection
                    table[their_tensor.format(theirs.format(**place))] = target
    filled = Counter(table.values())
    left_out = [target for target in targets if target not in filled and not target.endswith(COUNTER)]     # MXNet counts no batches
    if left_out or max(filled.values()) > 1:
        raise ValueError(f'key table: left out: {_some(left_out)}; '
                         f'filled twice: {_some(key for key, n in filled.items() if n > 1)}')
    return table


def _places(model: Net) -> Iterable[dict[str, int]]:
    """Each block's place, as names count it: stages and blocks from 0 (s, b) and from 1 (stage, block), the two units of a block, and the
    sections that begin where the net strides after its first stage, with all their blocks from 1 (section, member)."""
    section = member = 0
    before_strides = {info['stage'] for info in model.feature_info}
    for s, stage in enumerate(model.stages):
        if s == 0 or s in before_strides:       # the stem is 0, and stage s - 1 is s
            section, member = section + 1, 0
        for b in range(len(stage)):
            member += 1
            for unit in (1, 2):
                yield dict(stage=s + 1, s=s, block=b + 1, b=b, unit=unit, section=section, member=member)


def to_state_dict(arrays: dict[str, np.ndarray], modules: Iterable[tuple[str, str, str]], model: Net) -> dict[str, Tensor]:
    """Rename a checkpoint's arrays to a complete state dict of ``model``, on the CPU; they share memory. The model is only read.

    Neither MXNet nor an old PyTorch counts batches: a `num_batches_tracked` that is not there is 0.

    Args:
        arrays: by their names.
        modules, model: as for `key_table`.

    Raises:
        ValueError: an array is missing, left over, of another shape or dtype, or not finite; names all of these.
    """
    targets = model.state_dict()
    table = key_table(modules, model)
    shared = {theirs: ours for theirs, ours in table.items() if theirs in arrays}
    problems = {
        'missing': [f'{theirs} (for {ours})' for theirs, ours in table.items() if theirs not in arrays and not ours.endswith(COUNTER)],
        'left over': [theirs for theirs in arrays if theirs not in table],
        'of another shape or dtype': [
            f'{theirs} is {_kind(arrays[theirs])} where {ours} is {_kind(targets[ours])}'
            for theirs, ours in shared.items() if _kind(arrays[theirs]) != _kind(targets[ours])],
        'not finite': [theirs for theirs in shared if not np.isfinite(arrays[theirs]).all()],
    }
    if any(problems.values()):
        raise ValueError('; '.join(f'{len(keys)} {problem}: {_some(keys)}' for problem, keys in problems.items() if keys))
    filled = {ours: torch.from_numpy(arrays[theirs]) for theirs, ours in shared.items()}
    return {key: filled[key] if key in filled else torch.zeros_like(target, device='cpu') for key, target in targets.items()}


def _kind(array: np.ndarray | Tensor) -> str:
    return f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"


def _some(keys: Iterable[str]) -> str:
    keys = iter(keys)
    shown = list(islice(keys, 4))
    more = sum(1 for _ in keys)
    return ', '.join(shown) + (f' and {more} more' if more else '')
