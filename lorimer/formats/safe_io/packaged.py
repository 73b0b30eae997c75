"""Tensors in torch's own files, which pickle: only of a package that was installed, never of a file that a
person names."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor

from lorimer.errors import FileFormatError


def read_packaged_tensors(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a state dict, on the CPU. torch's restricted unpickler builds tensors alone, and runs no
    code of the file's.

    Raises:
        FileFormatError: it holds anything else, is broken, or holds NaN or infinity.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError) as error:
        raise FileFormatError(f"{path}: is no whole state dict of torch: {error}") from error
    if not isinstance(state, dict) or not all(isinstance(each, Tensor) for each in state.values()):
        raise FileFormatError(f"{path}: holds something else than tensors by name")
    wrong = [name for name, each in state.items() if not torch.isfinite(each).all()]
    if wrong:
        raise FileFormatError(f"{path}: tensor {wrong[0]!r} holds NaN or infinity")
    return state
