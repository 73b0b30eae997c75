"""From what a recipe or an adapter's file names to a detector."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError, UsageError
from lorimer.formats.safe_io import read_json
from lorimer.tasks._detector import Detector
from lorimer.tasks._language_files import model_place


def load_detector(
    name: str, names: Sequence[str], keep: bool, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> Detector:
    """The detector that is called `name`, with a head for the classes `names`.

    Args:
        keep: the base's own classes stay beside them.

    Raises:
        UsageError, FileFormatError, MissingDependencyError: there is none, or it cannot be loaded.
    """
    given = Path(name).expanduser()
    if "nanodet" in given.name.lower() and not given.is_dir():
        raise UsageError(f"model: there is no folder {name}; scripts/nanodet_weights.py makes a NanoDet's")
    place = Path(model_place(name))
    config = read_json(place / "config.json") if place.is_dir() else {}
    if isinstance(config, dict) and config.get("model_type") == "nanodet":
        from lorimer.tasks._nanodet import load_nanodet

        return load_nanodet(place, names, keep, torch.float32 if dtype == "auto" else dtype)
    from lorimer.tasks._transformers_detector import load_transformers_detector

    return load_transformers_detector(name, names, keep, dtype)


def fill_new(network: nn.Module, new: Mapping[str, Sequence[int] | None], state: AdapterState) -> None:
    """Give what a base lacks the values that were trained: there is no base to go back to, so that they hold
    at every strength.

    Raises:
        FileFormatError: they are of a head with other rows.
    """
    for path, rows in new.items():
        for name, parameter in network.get_submodule(path).named_parameters(prefix=path):
            trained = state.full.get(name)
            if trained is None:
                continue
            if trained.rows is not None and trained.rows != tuple(rows or ()):
                raise FileFormatError(
                    f"{name}: the adapter has rows that its base does not lack; is it another?"
                )
            learned = slice(None) if trained.rows is None else list(trained.rows)
            wanted, given = tuple(parameter.data[learned].shape), tuple(trained.value.shape)
            if given != wanted:
                raise FileFormatError(
                    f"{name}: the adapter's shape is {given}, its base's {wanted}; is it another?"
                )
            parameter.data[learned] = trained.value.to(parameter)
