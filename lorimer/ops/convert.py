"""The same adapter in another file format, proved by reading it back."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from lorimer import registry
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError, UsageError
from lorimer.ops.files import in_precision, read, recognise

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def convert(
    source: str | Path,
    target: str | Path,
    *,
    to: str,
    dtype: str | torch.dtype | None = None,
    family: str | None = None,
) -> Path:
    """Write the adapter in `source` to `target` in the format `to`; returns the target's path.

    What was written is read back and held against what was read: the same layers, tensors to the bit and
    the same scales, hence the same update of every layer. An update that counts from a start other than
    zero becomes plain LoRA of twice the rank where the format knows no such start, which is exact.

    Args:
        to: a registered format's name.
        dtype: precision in the new file ("float32", "float16", "bfloat16"); by default as it is.
        family: the family of picture models that it is for, where the source does not say.

    Raises:
        FileFormatError: the source is broken, or the format cannot hold it. Nothing is written.
        UsageError: an unknown format, dtype or family, or the target is the source.
    """
    source, target = Path(source), Path(target)
    format = registry.get("format", to)
    if target.exists() and target.resolve() == source.resolve():
        raise UsageError(f"{target}: source and target are the same; name another target")
    if family is None:
        state = read(source)
    else:
        state = recognise(source).read_for(source, registry.get("family", family).name)
    if dtype is not None:
        state = in_precision(state, precision(dtype))
    format.write(state, target)
    require_same(format.kept(state), format.read(target), str(target))
    return target


def require_same(wanted: AdapterState, found: AdapterState, where: str) -> None:
    """Raise `FileFormatError` unless both adapters make the same update in every layer."""
    differing = [
        path for path in wanted.layers.keys() | found.layers.keys() if not _same(wanted, found, path)
    ]
    differing += [
        name for name in wanted.full.keys() | found.full.keys() if not _same_value(wanted, found, name)
    ]
    if wanted.method != found.method or wanted.config != found.config or differing:
        raise FileFormatError(
            f"{where}: was written but does not read back as the same adapter "
            f"({len(differing)} layers differ, e.g. {sorted(differing)[:1]}); do not use it"
        )


def _same(wanted: AdapterState, found: AdapterState, path: str) -> bool:
    """Tensors to the bit; the scale up to the rounding of an alpha kept in float32."""
    left, right = wanted.layers.get(path), found.layers.get(path)
    return (
        left is not None
        and right is not None
        and left.tensors.keys() == right.tensors.keys()
        and all(
            tensor.dtype == right.tensors[name].dtype and torch.equal(tensor, right.tensors[name])
            for name, tensor in left.tensors.items()
        )
        and left.rank == right.rank
        and (left.groups, left.stacked, left.kind) == (right.groups, right.stacked, right.kind)
        and math.isclose(left.alpha, right.alpha, rel_tol=1e-6)
    )


def _same_value(wanted: AdapterState, found: AdapterState, name: str) -> bool:
    """A parameter trained in full, to the bit."""
    left, right = wanted.full.get(name), found.full.get(name)
    return (
        left is not None
        and right is not None
        and left.rows == right.rows
        and left.value.dtype == right.value.dtype
        and torch.equal(left.value, right.value)
    )


def precision(dtype: str | torch.dtype) -> torch.dtype:
    """A precision by its name; `UsageError` for one that adapters are not kept in."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"unknown precision {dtype!r}; known: {', '.join(DTYPES)}")
    return DTYPES[dtype]
