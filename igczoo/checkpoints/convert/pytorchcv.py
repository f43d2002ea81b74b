"""Read the `.pth` files of pytorchcv: pickled dictionaries of tensors, none of whose code is run."""
from __future__ import annotations

import os
import pickle
import warnings

import numpy as np
import torch
from torch import Tensor

__all__ = ['read_pth']


def read_pth(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """The named arrays of a `.pth` file, of old or new format.

    Raises:
        ValueError: the file is damaged, or holds anything beside named dense tensors.
        OSError: the file cannot be read.
    """
    path = os.fspath(path)
    with open(path, 'rb'):      # a file that cannot be read is no damaged one
        pass
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')     # of formats that it may not know: it reads them or raises
            found = torch.load(path, map_location='cpu', weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        kind = 'asks for code to be run, which is not done' if isinstance(error, pickle.UnpicklingError) else 'is damaged'
        raise ValueError(f'{path}: is no file of tensors alone: it {kind}') from None
    if not isinstance(found, dict) or not all(isinstance(key, str) and _is_plain(value) for key, value in found.items()):
        raise ValueError(f'{path}: holds {type(found).__name__} of other things than named tensors; it must be a state dict')
    return {key: value.numpy() for key, value in found.items()}


def _is_plain(value: object) -> bool:
    return isinstance(value, Tensor) and value.layout == torch.strided and value.device.type == 'cpu' and not value.is_quantized \
        and value.dtype != torch.bfloat16
