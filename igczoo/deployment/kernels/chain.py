"""Units one after another in the kernel (chain.h)."""
import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from . import CHUNK_BYTES, _kernels

__all__ = ['run_chain']


def run_chain(kind: str, out: Tensor, x: Tensor, units: Sequence[ctypes.Structure]) -> None:
    """Write the last unit's output to ``out``; maps are in channels_last memory.

    Args:
        kind: 'inverted' or 'sparse'.
        units: of that kind, as the kernel lays them out; what they point to must live until this returns.
    """
    if out.numel():
        kernel, work = _kernels[x.dtype], ((type(units[0]) * len(units))(*units), len(units), len(x), CHUNK_BYTES)
        room = torch.empty(getattr(kernel, f'igc_{kind}_room')(*work), dtype=x.dtype)
        getattr(kernel, f'igc_{kind}_units')(out.data_ptr(), x.data_ptr(), room.data_ptr(), *work, torch.get_num_threads())
