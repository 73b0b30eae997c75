"""Merging an adapter into the files of a model, tensor by tensor.

However large the model, no more than a few of its tensors are in memory at a time. What the adapter leaves
alone is written as it was read.
"""

from __future__ import annotations

import json
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from lorimer.adapters._state import AdapterState
from lorimer.errors import UsageError
from lorimer.formats.safe_io import WeightFile, open_safetensors, write_safetensors_streamed
from lorimer.ops.fold import Folding
from lorimer.ops.stored import Contents, StoredModel, read_held

if TYPE_CHECKING:
    from lorimer.families._layout import Held

# Entries of a header that speak of the bytes of the file as it was.
_OUTDATED = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


@dataclass
class FilesReport:
    """What merging into files did.

    Attributes:
        merged: names of the parameters that changed.
        files: those that were written.
    """

    merged: list[str] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{len(self.merged)} parameters merged"


def merge_into_files(
    model: StoredModel,
    state: AdapterState,
    outputs: Mapping[Path, Path],
    *,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    source: str = "adapter",
) -> FilesReport:
    """Write the model's files with an adapter folded in.

    Args:
        outputs: file of the model -> where to write its merged copy. What the adapter changes must lie in
            these.
        dtype: precision of all tensors of floating point; None keeps each in its own.

    Raises:
        UsageError: the adapter changes what is in another file.
        FileFormatError: a file is broken, or the adapter does not fit the model. Each file is written whole
            or not at all.
        LorimerError: an adapter cannot be merged, or a merged weight would hold NaN or infinity.
    """
    with model.opened() as read:
        folding = Folding(model.skeleton, state, read, strength=strength, source=source)
        _require_within(model, folding, outputs)
        report = FilesReport()
        for path, output in outputs.items():
            with open_safetensors(path) as file:
                _write_merged(
                    file, model.contents[path], folding, output, dtype, _note(state, strength), report
                )
    return report


def write_merged_as(
    model: StoredModel,
    state: AdapterState,
    layout: Contents,
    output: Path,
    *,
    convolutions: tuple[str, ...] = (),
    marks: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
    strength: float = 1.0,
    dtype: torch.dtype | None = None,
    source: str = "adapter",
) -> FilesReport:
    """Write the model with an adapter folded in as one file of another layout: key -> what it holds.

    Args:
        convolutions: ends of the keys whose matrices are kept there as convolutions of kernel 1.
        marks: empty tensors whose mere names say something.
        metadata: entries of the header.

    Raises: as `merge_into_files`.
    """
    report = FilesReport(files=[output])
    with model.opened() as read:
        folding = Folding(model.skeleton, state, read, strength=strength, source=source)
        dtypes = _dtypes(model)
        layout = {key: held for key, held in layout.items() if not _is_twin(held, folding, read)}
        entries = {
            key: (dtype or dtypes[held[0].name], _joined_shape(held, key.endswith(convolutions)))
            for key, held in layout.items()
        }

        entries |= dict.fromkeys(marks, (torch.float32, (0,)))

        def tensor(key: str) -> Tensor:
            kind, shape = entries[key]
            joined = torch.empty(shape, dtype=torch.float32)
            for held in layout.get(key, ()):
                value = folding.value(held.name)
                if value is not None:
                    report.merged.append(held.name)
                held.write(joined, read[held.name]() if value is None else value)
            return joined.to(kind)

        write_safetensors_streamed(entries, tensor, output, {**(metadata or {}), **_note(state, strength)})
    return report


def _write_merged(
    file: WeightFile,
    contents: Contents,
    folding: Folding,
    output: Path,
    dtype: torch.dtype | None,
    note: dict[str, str],
    report: FilesReport,
) -> None:
    infos = file.header.tensors
    entries = {
        key: (dtype if dtype is not None and info.dtype.is_floating_point else info.dtype, info.shape)
        for key, info in infos.items()
    }

    def tensor(key: str) -> Tensor:
        value = file.read(key)
        held = [each for each in contents.get(key, ()) if each.name in folding.changed]
        return _folded(file, key, value, held, folding, report).to(entries[key][0])

    kept = {name: text for name, text in file.header.metadata.items() if name not in _OUTDATED}
    write_safetensors_streamed(entries, tensor, output, {**kept, **note})
    report.files.append(output)


def _folded(
    file: WeightFile, key: str, value: Tensor, held: list[Held], folding: Folding, report: FilesReport
) -> Tensor:
    """A file's tensor with what the adapter makes of the parameters in it."""
    changes = {each: folding.value(each.name) for each in held}
    changes = {each: change for each, change in changes.items() if change is not None}
    if not changes:
        return value
    wide = value.to(torch.float32, copy=True)
    for each, change in changes.items():
        assert change is not None
        read_held(file, key, each)  # its shape is as it should be
        each.write(wide, change)
        report.merged.append(each.name)
    return wide


def _require_within(model: StoredModel, folding: Folding, outputs: Mapping[Path, Path]) -> None:
    """Raise unless all that the adapter changes is in the files that are written."""
    written = {
        held.name for path in outputs for all_held in model.contents[path].values() for held in all_held
    }
    layers = {layer for layer, _ in folding.changed.values()}
    outside = sorted(layers - {folding.changed[name][0] for name in written & folding.changed.keys()})
    if outside:
        raise UsageError(
            f"the adapter changes {outside[0]!r} and {len(outside) - 1} other layers that are not in "
            f"{', '.join(str(path) for path in outputs)}; merge into a folder that has all parts"
        )


def _is_twin(all_held: tuple[Held, ...], folding: Folding, read: Container[str]) -> bool:
    """Whether the files keep a tensor under another of its names alone."""
    return all(
        held.name not in read and any(name in read for name in folding.names_of(held.name))
        for held in all_held
    )


def _dtypes(model: StoredModel) -> dict[str, torch.dtype]:
    """The precision in which files keep each parameter."""
    dtypes: dict[str, torch.dtype] = {}
    for path, contents in model.contents.items():
        with open_safetensors(path) as file:
            for key, all_held in contents.items():
                dtypes |= {held.name: file.header.tensors[key].dtype for held in all_held}
    return dtypes


def _joined_shape(all_held: tuple[Held, ...], is_convolution: bool) -> tuple[int, ...]:
    """The shape of a tensor that holds these parameters one below the other."""
    first = all_held[0]
    if not first.shape:
        return ()
    shape = (sum(held.shape[0] for held in all_held), *first.shape[1:])
    if first.transposed:
        shape = shape[::-1]
    return (*shape, 1, 1) if is_convolution and len(shape) == 2 else shape


def _note(state: AdapterState, strength: float) -> dict[str, str]:
    """What the header says of the adapter: its own name for itself, and no path."""
    facts = {name: state.metadata[name] for name in ("title", "trigger") if name in state.metadata}
    return {
        "format": "pt",
        "lorimer.merged": json.dumps({**facts, "method": state.method, "strength": strength}),
    }
