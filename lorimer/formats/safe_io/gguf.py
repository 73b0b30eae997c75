"""Reading GGUF files that may be broken or hostile.

Layout, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), little-endian:

    "GGUF", version, number of tensors, number of values
    values      name, type, value: numbers, text, lists
    tensors     name, number of dimensions, dimensions (the fastest first), type, offset
    the data    from the next multiple of the alignment on; each tensor at its offset from there

Only what adapters are kept in is read: float32, float16, bfloat16.
"""

from __future__ import annotations

import math
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from lorimer.errors import FileFormatError
from lorimer.formats.safe_io.reading import (
    MAX_DIMENSIONS,
    MAX_HEADER_BYTES,
    TensorInfo,
    _open_weights,
    _read_tensor,
)

GGUF_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_DTYPES = {0: torch.float32, 1: torch.float16, 30: torch.bfloat16}
_ALIGNMENT = "general.alignment"


@dataclass(frozen=True)
class GgufFile:
    """tensors: name -> tensor, with dimensions as torch has them; values: what else the file says."""

    tensors: dict[str, Tensor]
    values: dict[str, Any]


def read_gguf_values(path: str | Path) -> dict[str, Any]:
    """What a GGUF file says beside its tensors; none of these is read.

    Raises:
        FileFormatError: not a GGUF file, broken, or not a plain file in its folder.
    """
    path = Path(path)
    with _open_weights(path) as file:
        return _Header(file, path).values()


def read_gguf(path: str | Path, *, max_bytes: int) -> GgufFile:
    """All tensors of a GGUF file, on the CPU, and its values.

    Args:
        max_bytes: refuse files with more tensor bytes than this, before any is read.

    Raises:
        FileFormatError: as `read_gguf_values`, a tensor is of another type, or holds NaN or infinity.
    """
    path = Path(path)
    with _open_weights(path) as file:
        header = _Header(file, path)
        values = header.values()
        infos = header.tensors()
        start = _aligned(file.tell(), _alignment(values, path))
        size = os.fstat(file.fileno()).st_size
        total = sum(info.end - info.begin for info in infos.values())
        if total > max_bytes:
            raise FileFormatError(f"{path}: holds {total:,} bytes of tensors; at most {max_bytes:,} are read")
        _require_within(infos, size - start, _alignment(values, path), path)
        tensors = {}
        for name, info in infos.items():
            file.seek(start + info.begin)
            tensors[name] = _read_tensor(file, path, name, info)
    return GgufFile(tensors, values)


class _Header:
    """A cursor over the part of a file before its tensors' data, which never reads more than headers take."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self.file, self.path = file, path
        self.left = min(os.fstat(file.fileno()).st_size, MAX_HEADER_BYTES)
        if self.take(4) != GGUF_MAGIC:
            raise FileFormatError(f"{path}: not a GGUF file")
        version = self.number("I")
        if version not in _VERSIONS:
            raise FileFormatError(f"{path}: GGUF of version {version}; known: 2, 3")
        self.tensor_count, self.value_count = self.number("Q"), self.number("Q")

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise FileFormatError(f"{self.path}: is cut short, or its GGUF header is broken")
        self.left -= length
        data = self.file.read(length)
        if len(data) != length:
            raise FileFormatError(f"{self.path}: is cut short")
        return data

    def number(self, kind: str) -> Any:
        return struct.unpack(f"<{kind}", self.take(struct.calcsize(f"<{kind}")))[0]

    def text(self) -> str:
        try:
            return self.take(self.number("Q")).decode()
        except UnicodeDecodeError as error:
            raise FileFormatError(f"{self.path}: its GGUF header holds text that is not UTF-8") from error

    def value(self, kind: int) -> Any:
        if kind in _NUMBERS:
            return self.number(_NUMBERS[kind])
        if kind == _TEXT:
            return self.text()
        if kind != _LIST:
            raise FileFormatError(f"{self.path}: its GGUF header has a value of the unknown type {kind}")
        of, count = self.number("I"), self.number("Q")
        if of == _LIST or count > self.left:  # lists of lists do not occur; an entry takes a byte or more
            raise FileFormatError(f"{self.path}: its GGUF header has a broken list")
        return [self.value(of) for _ in range(count)]

    def values(self) -> dict[str, Any]:
        """The values; the tensors' places come next."""
        found: dict[str, Any] = {}
        for _ in range(min(self.value_count, self.left)):
            name = self.text()
            if name in found:
                raise FileFormatError(f"{self.path}: {name[:200]!r} stands twice in its GGUF header")
            found[name] = self.value(self.number("I"))
        if len(found) != self.value_count:
            raise FileFormatError(f"{self.path}: its GGUF header speaks of {self.value_count} values")
        return found

    def tensors(self) -> dict[str, TensorInfo]:
        """Where tensors lie, counted from where the data begin."""
        found: dict[str, TensorInfo] = {}
        for _ in range(min(self.tensor_count, self.left)):
            name, dimensions = self.text(), self.number("I")
            if name in found or dimensions > MAX_DIMENSIONS:
                raise FileFormatError(
                    f"{self.path}: tensor {name[:200]!r}: stands twice, or has no sound shape"
                )
            shape = tuple(reversed([self.number("Q") for _ in range(dimensions)]))
            kind, begin = self.number("I"), self.number("Q")
            if kind not in _DTYPES:
                raise FileFormatError(
                    f"{self.path}: tensor {name[:200]!r} is of GGUF's type {kind}: adapters are kept in "
                    "float32, float16 or bfloat16"
                )
            end = begin + math.prod(shape) * _DTYPES[kind].itemsize
            found[name] = TensorInfo(_DTYPES[kind], shape, begin, end)
        if len(found) != self.tensor_count:
            raise FileFormatError(f"{self.path}: its GGUF header speaks of {self.tensor_count} tensors")
        return found


def _alignment(values: dict[str, Any], path: Path) -> int:
    alignment = values.get(_ALIGNMENT, 32)
    if type(alignment) is not int or not 1 <= alignment <= 2**20:
        raise FileFormatError(f"{path}: {_ALIGNMENT} must be a whole number, not {str(alignment)[:40]}")
    return alignment


def _aligned(place: int, alignment: int) -> int:
    """The next multiple."""
    return -(-place // alignment) * alignment


def _require_within(infos: dict[str, TensorInfo], size: int, alignment: int, path: Path) -> None:
    """Tensors lie in the file one after the other, up to its end, the last one padded or not."""
    place = 0
    for name, info in sorted(infos.items(), key=lambda item: (item[1].begin, item[1].end)):
        if info.begin < place:
            raise FileFormatError(
                f"{path}: tensor {name[:200]!r} overlaps the one before; the file is broken"
            )
        place = info.end
    if infos and size not in (place, _aligned(place, alignment)):
        what = "is cut short" if size < _aligned(place, alignment) else "has bytes behind its last tensor"
        raise FileFormatError(f"{path}: {what}: its tensors take {place:,} bytes, {max(size, 0):,} are there")
