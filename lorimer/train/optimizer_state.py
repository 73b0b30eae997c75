"""An optimiser's state as tensors and JSON instead of a pickle."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lorimer.errors import FileFormatError


def flatten_state(state: Any) -> tuple[dict[str, Tensor], Any]:
    """An optimiser's state dict as (tensors by name, plain data for JSON that refers to them).

    Tuples become lists, which optimisers take as well.
    """
    tensors: dict[str, Tensor] = {}

    def flat(value: Any, place: str) -> Any:
        if isinstance(value, Tensor):
            tensors[place] = value.detach()
            return {"tensor": place}
        if isinstance(value, dict):
            return {"items": [[key, flat(item, f"{place}.{key}")] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return [flat(item, f"{place}.{number}") for number, item in enumerate(value)]
        if isinstance(value, float) and not math.isfinite(value):
            return {"number": str(value)}  # JSON has no infinity
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"{place}: an optimiser's {type(value).__name__} cannot be saved")

    return tensors, flat(state, "optimizer")


def unflatten_state(tensors: dict[str, Tensor], data: Any) -> Any:
    """The inverse of `flatten_state`.

    Raises:
        FileFormatError: the data is of another shape, or refers to a tensor that is not there.
    """
    if isinstance(data, list):
        return [unflatten_state(tensors, item) for item in data]
    if not isinstance(data, dict):
        return data
    try:
        if "tensor" in data:
            return tensors[data["tensor"]]
        if "number" in data:
            return float(data["number"])
        return {key: unflatten_state(tensors, item) for key, item in data["items"]}
    except (KeyError, TypeError, ValueError) as error:
        raise FileFormatError(f"the optimiser's state in the checkpoint is broken: {error}") from error
