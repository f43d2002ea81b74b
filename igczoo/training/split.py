"""Which photographs train and which measure: a stratified split, and photographs that stand on both sides."""
from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from .images import Squares

__all__ = ['copies_between', 'spread', 'stratified_split']

NEAR = 3            # of the 64 bits of two photographs' fingerprints that may differ
NEAR_GREY = 6.      # grey levels that their thumbnails may differ by on average
LIKENESS = .99      # at least, their correlation; of drawings on black all else may be near
MAX_PAIRS = 1e9     # that are compared; beyond, only equal fingerprints are found
BITS = np.unpackbits(np.arange(1 << 16, dtype=np.uint16).view(np.uint8).reshape(-1, 2), axis=1).sum(1, dtype=np.uint8)   # set, of 16


def stratified_split(targets: Sequence[int], share: float, seed: int) -> tuple[list[int], list[int]]:
    """Two lists of rows, the second with about ``share`` of each class; of a class of one or two the first has one at least.

    Args:
        targets: the label of each row.
        share: 0..1; a class of two or more has one row at least in the second list, where the share is not 0.
        seed: the same seed gives the same lists.
    """
    held = [row for rows in _members(targets, seed) if len(rows) > 1 and share
            for row in rows[:min(max(1, round(share * len(rows))), len(rows) - 1)]]
    chosen = set(held)
    return [row for row in range(len(targets)) if row not in chosen], sorted(held)


def spread(targets: Sequence[int], count: int, seed: int) -> list[int]:
    """So many rows, or all there are: one of each class, then another of each that has more, and so on. Arguments as `stratified_split`."""
    turns = itertools.zip_longest(*_members(targets, seed))
    return [row for turn in turns for row in turn if row is not None][:count]


def _members(targets: Sequence[int], seed: int) -> list[list[int]]:
    """The rows of each class, in an order by chance."""
    members: dict[int, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(targets)).tolist():
        members.setdefault(targets[row], []).append(row)
    return list(members.values())


def copies_between(these: Squares, those: Squares) -> list[tuple[int, int, bool]]:
    """Photographs that stand in both sets, equal or nearly so.

    A fingerprint says of 64 places of a thumbnail whether they are brighter than their right neighbour; where two differ in a few bits at
    most, the thumbnails themselves are compared. Photographs without contrast are left out: they are all alike.

    Returns:
        (number in these, number in those, whether every pixel is the same) of each pair found.
    """
    prints, others = _fingerprints(these.thumbs), _fingerprints(those.thumbs)
    if len(prints) * len(others) <= MAX_PAIRS:
        pairs = []
        for start in range(0, len(prints), 256):
            differing = prints[start:start + 256, None] ^ others[None]
            bits = BITS[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(2, dtype=np.uint8)      # (256, m)
            rows, columns = np.nonzero(bits <= NEAR)
            pairs += zip((rows + start).tolist(), columns.tolist(), strict=True)
    else:
        places: dict[int, list[int]] = {}
        for column, key in enumerate(others.tolist()):
            places.setdefault(key, []).append(column)
        pairs = [(row, column) for row, key in enumerate(prints.tolist()) for column in places.get(key, ())]
    grey, other_grey = (found.thumbs.astype(np.float32) for found in (these, those))
    return [(i, j, these.sums[i] == those.sums[j]) for i, j in pairs
            if np.abs(grey[i] - other_grey[j]).mean() <= NEAR_GREY < min(grey[i].std(), other_grey[j].std())
            and np.corrcoef(grey[i].ravel(), other_grey[j].ravel())[0, 1] >= LIKENESS]


def _fingerprints(thumbs: np.ndarray) -> np.ndarray:
    """uint8 (n, 8, 9) -> uint64 (n,)."""
    bits = (thumbs[:, :, :-1] > thumbs[:, :, 1:]).reshape(len(thumbs), 64)
    return np.ascontiguousarray(np.packbits(bits, axis=1)).view(np.uint64).reshape(len(thumbs))
