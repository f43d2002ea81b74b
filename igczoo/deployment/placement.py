"""Where a model computes, and in what."""
from __future__ import annotations

import torch

__all__ = ['check_placement']


def check_placement(device: str | torch.device, dtype: torch.dtype) -> None:
    """A ValueError where models cannot compute on this device or in this dtype."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ValueError(f'dtype is {dtype!r}; it must be a floating-point torch.dtype, as torch.float32')
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:     # AssertionError: torch was built without CUDA
        found = ' '.join(str(error).split())[:300]
        raise ValueError(f"device is '{device}', which cannot be used here ({found}); give another, as 'cpu'") from error
