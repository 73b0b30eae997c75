"""Reading files that may be broken or hostile.

Everything a header says is checked against the file's real size before memory is taken for a tensor, so
a reader takes at most about what the file itself takes. Broken input of any kind gives one
`FileFormatError`.
"""

from __future__ import annotations

import json
import math
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lorimer.errors import FileFormatError
from lorimer.formats.safe_io.dtypes import DTYPES
from lorimer.kernels.finite import is_finite

# Parsed JSON takes up to some 25 times its bytes; no real header comes near this (the format allows 100 MB).
MAX_HEADER_BYTES = 25_000_000
MAX_JSON_BYTES = 16_000_000
MAX_WEIGHT_BYTES = 64 * 2**30
MAX_DIMENSIONS = 8

PICKLE_SUFFIXES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})

# What a file that is not safetensors often is: first bytes -> its name.
_PICKLE_MAGIC = {b"PK\x03\x04": "a zip archive, as torch.save writes", b"\x80": "a Python pickle"}
_OTHER_MAGIC = {
    b"GGUF": "a GGUF file",
    b"version ": "a Git LFS pointer instead of the file itself; run: git lfs pull",
    b"<": "a web page instead of the file itself; download it again",
    b"{": "a JSON file",
}


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies in a file: `begin` and `end` count from the end of the header."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class Header:
    """A checked safetensors header: name -> place, in the order of the bytes, and free text entries."""

    tensors: dict[str, TensorInfo]
    metadata: dict[str, str]


def read_safetensors_header(path: str | Path) -> Header:
    """The header of a safetensors file, checked against the file's size; no tensor is read.

    Raises:
        FileFormatError: not a safetensors file, broken, or not a plain file in its folder.
    """
    path = Path(path)
    with _open_weights(path) as file:
        return _header(file, path)[0]


def read_safetensors(
    path: str | Path, *, max_bytes: int = MAX_WEIGHT_BYTES
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors of a safetensors file, on the CPU, and its metadata.

    Args:
        max_bytes: refuse files with more tensor bytes than this, before any is read.

    Raises:
        FileFormatError: as `read_safetensors_header`, or a tensor holds NaN or infinity.
    """
    path = Path(path)
    with _open_weights(path) as file:
        header, start = _header(file, path)
        total = max((info.end for info in header.tensors.values()), default=0)
        if total > max_bytes:
            raise FileFormatError(f"{path}: holds {total:,} bytes of tensors; at most {max_bytes:,} are read")
        file.seek(start)
        tensors = {name: _read_tensor(file, path, name, info) for name, info in header.tensors.items()}
    return tensors, header.metadata


@dataclass(frozen=True)
class WeightFile:
    """An open safetensors file: its checked header, and its tensors one by one, so that a large file never
    lies in memory as a whole."""

    path: Path
    header: Header
    _file: IO[bytes]
    _start: int

    def read(self, name: str) -> Tensor:
        """One tensor, on the CPU.

        Raises:
            FileFormatError: it holds NaN or infinity, or the file was cut short meanwhile.
        """
        info = self.header.tensors[name]
        self._file.seek(self._start + info.begin)
        return _read_tensor(self._file, self.path, name, info)


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[WeightFile]:
    """A safetensors file, to read tensors from one by one.

    Raises:
        FileFormatError: as `read_safetensors_header`.
    """
    path = Path(path)
    with _open_weights(path) as file:
        header, start = _header(file, path)
        yield WeightFile(path, header, file, start)


def read_json(path: str | Path, *, max_bytes: int = MAX_JSON_BYTES) -> Any:
    """The value in a JSON file: at most `max_bytes`, no key twice, no NaN.

    Raises:
        FileFormatError: there is no such file, it is not a plain file in its folder, too large or not JSON.
    """
    path = Path(path)
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise FileFormatError(
                f"{path}: larger than {max_bytes:,} bytes, which no JSON file here should be"
            )
        data = file.read(size)
    return _parse_json(data, str(path))


def parse_json(text: str, where: str) -> Any:
    """The value in a JSON text such as a metadata entry, under the rules of `read_json`; `where` names it."""
    return _parse_json(text.encode(), where)


def pieces_of(path: str | Path, size: int = 2**24) -> Iterator[bytes]:
    """The bytes of a plain file, piece by piece.

    Raises:
        FileFormatError: there is no such file, or it is not a plain file in its folder.
    """
    with _open(Path(path)) as file:
        while piece := file.read(size):
            yield piece


def _open_weights(path: Path) -> IO[bytes]:
    """A weight file for reading; kinds that can run code are refused by name."""
    if path.suffix.lower() in PICKLE_SUFFIXES:
        raise FileFormatError(_pickle_message(path, f"{path.suffix} files are pickles"))
    return _open(path)


def _open(path: Path) -> IO[bytes]:
    """A plain file for reading: no folder, pipe or device, and no link out of its own folder."""
    try:
        real = path.resolve(strict=True)
        if not real.is_relative_to(_link_root(path)):
            raise FileFormatError(
                f"{path}: a link that leaves its folder (to {real}); copy the file or name its real path"
            )
        # Without O_NONBLOCK, opening a pipe that nobody writes to would wait for ever.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = os.fdopen(os.open(real, flags), "rb")
    except IsADirectoryError as error:
        raise FileFormatError(f"{path}: a folder, not a file") from error
    except (OSError, RuntimeError, ValueError) as error:  # RuntimeError: links in a ring; ValueError: a NUL
        reason = (
            "there is no such file" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        )
        raise FileFormatError(f"{path}: {reason}") from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise FileFormatError(f"{path}: not a plain file")
    return file


def _link_root(path: Path) -> Path:
    """The folder that a link at `path` must stay in: its own, or in the cache of a model hub, where
    `snapshots/<revision>/file` points to `blobs/<hash>`, the repository's."""
    parent = path.parent.resolve()
    for folder in (parent, *parent.parents):
        if folder.parent.name == "snapshots" and (folder.parent.parent / "blobs").is_dir():
            return folder.parent.parent
    return parent


def _header(file: IO[bytes], path: Path) -> tuple[Header, int]:
    """The checked header and the place in the file where tensors begin."""
    size = os.fstat(file.fileno()).st_size
    prefix = file.read(8)
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or length > min(size - 8, MAX_HEADER_BYTES):
        raise FileFormatError(_not_safetensors(path, prefix, size))
    raw = file.read(length)
    if len(raw) != length or not raw.startswith(b"{"):
        raise FileFormatError(f"{path}: its header is not a JSON object; the file is broken")
    parsed = _parse_json(raw, f"{path}: header")
    metadata = parsed.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path}: header: __metadata__ must map text to text")
    infos = {name: _tensor_info(path, name, entry) for name, entry in parsed.items()}
    ordered = dict(sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)))
    place = 0
    for name, info in ordered.items():
        if info.begin != place:
            kind = "overlaps the one before" if info.begin < place else "leaves a gap before it"
            raise FileFormatError(f"{path}: tensor {name!r} {kind}; the file is broken")
        place = info.end
    start = 8 + length
    if start + place != size:
        what = "is cut short" if start + place > size else "has bytes behind its last tensor"
        raise FileFormatError(f"{path}: {what}: {size:,} bytes, its header speaks of {start + place:,}")
    return Header(ordered, metadata), start


def _tensor_info(path: Path, name: str, entry: Any) -> TensorInfo:
    """One header entry, checked in itself."""

    def broken(what: str) -> FileFormatError:
        return FileFormatError(f"{path}: tensor {name!r}: {what}")

    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise broken("its header entry must hold dtype, shape and data_offsets")
    dtype = DTYPES.get(entry["dtype"]) if isinstance(entry["dtype"], str) else None
    if dtype is None:
        raise broken(f"unknown dtype {str(entry['dtype'])[:40]!r}")
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not _is_sizes(shape) or len(shape) > MAX_DIMENSIONS:
        raise broken(f"its shape must be a list of at most {MAX_DIMENSIONS} whole numbers")
    if not _is_sizes(offsets) or len(offsets) != 2:
        raise broken("data_offsets must be two whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise broken(f"shape {shape} of {entry['dtype']} does not take the {end - begin} bytes it is given")
    return TensorInfo(dtype, tuple(shape), begin, end)


def _is_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _read_tensor(file: IO[bytes], path: Path, name: str, info: TensorInfo) -> Tensor:
    """The next tensor in the file; the place was checked to be contiguous."""
    if info.begin == info.end:
        return torch.empty(info.shape, dtype=info.dtype)
    buffer = bytearray(info.end - info.begin)
    if file.readinto(buffer) != len(buffer):  # type: ignore[attr-defined]
        raise FileFormatError(f"{path}: was cut short while it was read")
    tensor = torch.frombuffer(buffer, dtype=info.dtype).view(info.shape)
    if sys.byteorder != "little":
        raise FileFormatError(f"{path}: reading weights needs a little-endian machine")
    if not is_finite(tensor):
        raise FileFormatError(f"{path}: tensor {name!r} holds NaN or infinity")
    return tensor


def _parse_json(data: bytes, where: str) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice")
        return found

    def refuse(text: str) -> None:
        raise ValueError(f"{text} is not JSON")

    try:
        value = json.loads(data.decode(), object_pairs_hook=unique, parse_constant=refuse)
        if b"\\u" in data:  # half a character written as \ud800 cannot be shown or written again
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except RecursionError as error:
        raise FileFormatError(f"{where}: nested too deeply") from error
    except ValueError as error:  # bad UTF-8, bad JSON, numbers of thousands of digits
        raise FileFormatError(f"{where}: not valid JSON: {str(error)[:200]}") from error


def _not_safetensors(path: Path, prefix: bytes, size: int) -> str:
    length = int.from_bytes(prefix, "little")
    if len(prefix) == 8 and length <= MAX_HEADER_BYTES:  # which no other kind of file begins with
        return f"{path}: cut off: it is {size:,} bytes long, its header alone {length:,}; download it again"
    for magic, what in _PICKLE_MAGIC.items():
        if prefix.startswith(magic):
            return _pickle_message(path, f"it is {what}")
    for magic, what in _OTHER_MAGIC.items():
        if prefix.startswith(magic):
            return f"{path}: not a safetensors file but {what}"
    return f"{path}: not a safetensors file, or broken (header length out of range, {size:,} bytes)"


def _pickle_message(path: Path, why: str) -> str:
    return (
        f"{path}: refused, {why}, and a pickle can run any code on this machine. Ask its author for a "
        ".safetensors file, or convert it where nothing can be harmed: "
        'safetensors.torch.save_file(torch.load(path, weights_only=True), "adapter.safetensors")'
    )
