"""Values that come from outside, checked: what a file says of ranks, alphas, methods and facts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from lorimer import registry
from lorimer.adapters._base import MAX_RANK, Method
from lorimer.errors import FileFormatError, UsageError
from lorimer.formats.safe_io import Header, read_safetensors, read_safetensors_header

MAX_BYTES = 16 * 2**30  # of an adapter's tensors


def header_of(path: Path) -> Header:
    """What a file's header says, for `detect`: an empty header where `path` is no sound safetensors file."""
    try:
        return read_safetensors_header(path) if path.is_file() else Header({}, {})
    except FileFormatError:
        return Header({}, {})


def read_adapter_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and header entries of an adapter's weight file.

    Raises:
        FileFormatError: the file is broken, or larger than any adapter.
    """
    return read_safetensors(path, max_bytes=MAX_BYTES)


def require_suffix(path: Path, suffix: str = ".safetensors") -> None:
    """Raise `FileFormatError` unless a single file is called so that programs recognise it."""
    if path.suffix != suffix:
        raise FileFormatError(f"{path}: must end in {suffix}, which is what programs look for")


def shown(keys: Iterable[str]) -> str:
    """Keys for an error message, at most twenty, and the count of the rest."""
    every = sorted(keys)
    more = f" and {len(every) - 20} more" if len(every) > 20 else ""
    return ", ".join(repr(key[:200]) for key in every[:20]) + more


def checked_rank(value: Any, where: str) -> int:
    """`value` as a rank from outside."""
    if type(value) is not int or not 1 <= value <= MAX_RANK:
        raise FileFormatError(
            f"{where}: rank must be a whole number from 1 to {MAX_RANK}, not {_brief(value)}"
        )
    return value


def checked_alpha(value: Any, where: str) -> float:
    """`value` as an alpha from outside."""
    if type(value) not in (int, float) or not abs(value) < 1e30:
        raise FileFormatError(f"{where}: alpha must be a finite number, not {_brief(value)}")
    return float(value)


def alpha_tensor(alpha: float) -> Tensor:
    """An alpha as single files carry it: a float32 number (float64 cannot be loaded onto every device)."""
    return torch.tensor(alpha, dtype=torch.float32)


def alpha_value(tensor: Tensor, where: str) -> float:
    """The alpha in a tensor of one number; 0.1 stored in float32 comes back as 0.1."""
    if tensor.numel() != 1:
        raise FileFormatError(f"{where}: alpha must be one number, not of shape {tuple(tensor.shape)}")
    value = tensor.item()
    if tensor.dtype == torch.float32:
        value = float(str(numpy.float32(value)))
    return checked_alpha(value, where)


def plain_number(value: float) -> int | float:
    """16.0 as 16: what other programs' readers expect of a whole alpha."""
    return int(value) if float(value).is_integer() else value


def checked_method(value: Any, where: str) -> str:
    """The name of an installed method, from outside."""
    if not isinstance(value, str) or value not in registry.names("method"):
        known = ", ".join(registry.names("method"))
        raise FileFormatError(f"{where}: its method {_brief(value)} is none that is installed: {known}")
    return value


def checked_components(value: Any, where: str) -> tuple[str, ...]:
    """Names of a model's components, from outside; plain ones, since folders are called after them."""
    names = value if isinstance(value, list) else [None]
    if not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise FileFormatError(f"{where}: components must be a list of plain names")
    return tuple(names)


def checked_config(method: type[Method], config: Any, where: str) -> dict[str, Any]:
    """A method's further fields from outside: known names, plain values."""
    if not isinstance(config, dict):
        raise FileFormatError(f"{where}: config must be a mapping, not {_brief(config)}")
    known = set(method.config_fields())
    if not config.keys() <= known:
        raise FileFormatError(f"{where}: {method.name} has no fields {shown(config.keys() - known)}")
    try:
        return method(**config).config()
    except (UsageError, TypeError) as error:
        raise FileFormatError(
            f"{where}: config {_brief(config)} does not fit {method.name}: {error}"
        ) from error


def checked_metadata(value: Any, where: str) -> dict[str, str]:
    """Facts from outside: text by text."""
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in value.values()):
        raise FileFormatError(f"{where}: metadata must map text to text")
    return value


def most_common(values: Iterable[Any]) -> Any:
    """The value that occurs most often, the first of equals."""
    return Counter(values).most_common(1)[0][0]


def _brief(value: Any) -> str:
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**30 else "a huge number"
    return text if len(text) <= 60 else text[:57] + "..."
