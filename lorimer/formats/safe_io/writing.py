"""Writing files, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats.safe_io.dtypes import DTYPE_NAMES
from lorimer.kernels.finite import is_finite

_TEMPORARY = ".lorimer-"  # how names of files that are being written begin


def write_safetensors(
    tensors: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file, whole or not at all. Equal input gives equal bytes.

    Raises:
        FileFormatError: a tensor holds NaN or infinity, or a type that the format lacks.
        LorimerError: the file cannot be written; a former file of that name is intact.
    """
    write_files_atomic({Path(path): safetensors_bytes(tensors, metadata)})


def safetensors_bytes(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> list[bytes | memoryview]:
    """The pieces of a safetensors file, to be written one after the other; tensors are not copied.

    Raises:
        FileFormatError: as `write_safetensors`.
    """
    # The format asks for alignment, hence wide types first.
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    pieces: list[bytes | memoryview] = []
    place = 0
    for name in names:
        tensor = tensors[name]
        end = place + tensor.nbytes
        header[name] = _entry(name, tensor.dtype, tensor.shape, place, end)
        pieces.append(_tensor_bytes(name, tensor))
        place = end
    return [*_header_bytes(header), *pieces]


def _entry(name: str, dtype: torch.dtype, shape: Sequence[int], begin: int, end: int) -> dict[str, Any]:
    """What a header says of a tensor."""
    if dtype not in DTYPE_NAMES:
        raise FileFormatError(f"tensor {name!r}: safetensors cannot hold {dtype}")
    return {"dtype": DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]}


def _header_bytes(header: Mapping[str, Any]) -> list[bytes]:
    """The length of the header, and the header."""
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [len(text).to_bytes(8, "little"), text]


def _tensor_bytes(name: str, tensor: Tensor) -> memoryview:
    """A tensor's numbers, which must be finite."""
    tensor = tensor.detach().cpu().contiguous()
    if not is_finite(tensor):
        raise FileFormatError(f"tensor {name!r} holds NaN or infinity and is not written")
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def write_safetensors_streamed(
    entries: Mapping[str, tuple[torch.dtype, tuple[int, ...]]],
    tensor: Callable[[str], Tensor],
    path: str | Path,
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write a safetensors file whose tensors are made one by one, so that they never lie in memory together;
    whole or not at all.

    Args:
        entries: name -> type and shape.
        tensor: gives the tensor of a name. It is asked once for each, in the order of `entries`, wide types
            first.

    Raises:
        FileFormatError: as `write_safetensors`; or a tensor is not what its entry says.
        LorimerError: the file cannot be written; a former file of that name is intact.
    """
    # A stable sort: files that were aligned keep their order.
    names = sorted(entries, key=lambda name: -entries[name][0].itemsize)
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    place = 0
    for name in names:
        dtype, shape = entries[name]
        end = place + math.prod(shape) * dtype.itemsize
        header[name] = _entry(name, dtype, shape, place, end)
        place = end

    def pieces() -> Iterator[bytes | memoryview]:
        yield from _header_bytes(header)
        for name in names:
            value = tensor(name)
            if (value.dtype, tuple(value.shape)) != entries[name]:
                raise FileFormatError(
                    f"tensor {name!r} is {value.dtype} {tuple(value.shape)}, not {entries[name]}"
                )
            yield _tensor_bytes(name, value)

    write_files_atomic({Path(path): pieces()})


def write_json(path: str | Path, value: Any) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        LorimerError: the file cannot be written; a former file of that name is intact.
    """
    write_bytes_atomic(path, json_bytes(value))


def json_bytes(value: Any) -> bytes:
    """A JSON text for people and programs: indented, UTF-8, NaN refused."""
    return (json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_bytes_atomic(path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all.

    Raises:
        LorimerError: the file cannot be written; a former file of that name is intact.
    """
    write_files_atomic({Path(path): [data]})


def write_files_atomic(files: Mapping[Path, Iterable[bytes | memoryview]]) -> None:
    """Write files that belong together: all are written and synced beside their places first, then
    renamed in the order given. Folders are made as needed. (A power cut between two renames leaves new
    files beside former ones; each of them is whole.)

    Raises:
        LorimerError: something cannot be written (disk full, no permission); former files are intact and
            no temporary file is left.
    """
    staged: dict[Path, Path] = {}
    try:
        for path, pieces in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            if path.is_dir():
                raise IsADirectoryError(f"{path} is a folder")
            staged[path] = path.parent / f"{_TEMPORARY}{secrets.token_hex(8)}.tmp"
            _stage(staged[path], pieces)
        for path, temporary in staged.items():
            _rename(temporary, path)
        for folder in {path.parent for path in files}:
            _fsync_folder(folder)
    except OSError as error:
        names = ", ".join(str(path) for path in files)
        raise LorimerError(f"{names}: could not be written: {error}") from error
    finally:
        for temporary in staged.values():
            temporary.unlink(missing_ok=True)


def publish_folder(staged: Path, place: Path) -> None:
    """Rename a folder of files that are synced already to its place, which is free, and make that last.

    Raises:
        LorimerError: it cannot be renamed; `staged` is where it was.
    """
    try:
        _fsync_folder(staged)
        _rename(staged, place)
        _fsync_folder(place.parent)
    except OSError as error:
        raise LorimerError(f"{place}: could not be put in place: {error}") from error


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writes left in `folder` and below; only for one who alone writes there."""
    for temporary in folder.rglob(f"{_TEMPORARY}*.tmp"):
        temporary.unlink()


def _stage(temporary: Path, pieces: Iterable[bytes | memoryview]) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(temporary, flags, 0o666), "wb") as file:
        for piece in pieces:
            _write(file, piece)
        file.flush()
        _fsync(file.fileno())


# The steps that the operating system can fail at, one function each, for fault tests to stand in for.


def _write(file: IO[bytes], data: bytes | memoryview) -> None:
    file.write(data)


def _fsync(descriptor: int) -> None:
    os.fsync(descriptor)


def _rename(source: Path, target: Path) -> None:
    source.replace(target)


def _fsync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        _fsync(descriptor)
    finally:
        os.close(descriptor)
