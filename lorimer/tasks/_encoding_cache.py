"""What frozen encoders give for a picture or a text, kept on disk and shared by all runs.

A latent or an embedding never changes while its encoder is frozen, so each is computed once. The key
is the SHA-256 of exactly what goes in: the encoders' weights and configs, and the bytes of the input.
Another picture, resolution, crop, flip, tokenizer or model is thus another key, and nothing can go stale.

For a picture the mean and the standard deviation of the VAE's distribution are kept rather than one
drawn sample: every training step draws its own, as training without a cache would.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats.safe_io import read_safetensors, write_safetensors

# What a tokenizer keeps of its last call.
_STATE = ("padding", "truncation")

Encoding = dict[str, Tensor]
Item = TypeVar("Item")

_IN_USE = 24 * 3600.0  # seconds; an encoding that was used so lately may be one of a run that goes on
MEMORY_BYTES = 2**30


def default_cache_folder() -> Path:
    """`lorimer/` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lorimer"


class EncodingCache:
    """Encodings by some frozen encoders.

    Args:
        folder: where encodings of all encoders are kept.
        encoders: the frozen modules, and tokenizers before them, that are part of every key.
        more: what else decides what comes out.
        mend: what a person can do who has no room in the folder.
        memory_bytes: of encodings that stay in memory; others are read again whenever they are needed.
    """

    def __init__(
        self,
        folder: Path,
        encoders: Iterable[Any],
        more: str = "",
        mend: str = "name another folder for encodings with data.cache",
        memory_bytes: int = MEMORY_BYTES,
    ) -> None:
        self.folder, self.mend, self.memory_bytes = folder, mend, memory_bytes
        self.fingerprint = "".join([*map(fingerprint, encoders), more])
        self.hits = 0
        self.misses = 0
        self._memory: dict[str, Encoding] = {}
        self._memory_bytes = 0

    def ensure(
        self, items: Sequence[Item], content: Callable[[Item], bytes], encode: Callable[[Item], Encoding]
    ) -> list[str]:
        """See that each item's encoding is there; returns the keys to ask for them with.

        Each item is encoded alone: a batch would round otherwise, and an encoding must not depend on what
        else happened to be missing, or a resumed run would differ in the last bits.

        Args:
            content: the bytes that say all of what goes into the encoders; items of equal content are
                encoded once.
            encode: an item -> name -> tensor without a batch dimension. Called for what is not on disk.

        Raises:
            LorimerError: an encoding holds NaN or infinity, or cannot be written.
        """
        keys = [self.key(content(item)) for item in items]
        for key, item in dict(zip(keys, items, strict=True)).items():
            if not self.has(key):
                self.keep(key, encode(item))
        return keys

    def key(self, content: bytes) -> str:
        """What an input of this content is kept under."""
        return hashlib.sha256(self.fingerprint.encode() + content).hexdigest()

    def is_there(self, key: str) -> bool:
        """Whether a file stands under this key, without looking into it."""
        return self._path(key).is_file()

    def has(self, key: str) -> bool:
        """Whether there is a whole encoding under this key. It counts as used today."""
        kept = self._memory.get(key) or self._read(key)
        if kept is None:
            self.misses += 1
            return False
        self.hits += 1
        self._remember(key, kept)
        with contextlib.suppress(OSError):  # another's cache may be read-only
            os.utime(self._path(key))
        return True

    def keep(self, key: str, encoding: Encoding) -> None:
        """Store what was computed.

        Raises:
            LorimerError: it holds NaN or infinity, or cannot be written.
        """
        kept = {name: tensor.detach().cpu().contiguous() for name, tensor in encoding.items()}
        self._write(key, kept)
        self._remember(key, kept)

    def __getitem__(self, key: str) -> Encoding:
        """The encoding that `ensure` gave this key for: name -> tensor on the CPU, as the encoder gave it.

        Raises:
            LorimerError: it was removed meanwhile.
        """
        if key not in self._memory:
            kept = self._read(key)
            if kept is None:
                raise LorimerError(
                    f"{self._path(key)}: an encoding was removed or broken while it was in use"
                )
            return kept
        return self._memory[key]

    def _remember(self, key: str, encoding: Encoding) -> None:
        size = sum(tensor.nbytes for tensor in encoding.values())
        if key not in self._memory and self._memory_bytes + size <= self.memory_bytes:
            self._memory[key] = encoding
            self._memory_bytes += size

    def _path(self, key: str) -> Path:
        return self.folder / "encodings" / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> Encoding | None:
        """The encoding on disk; None where there is none or the file is broken, so that it is made anew."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_safetensors(path)
        except FileFormatError:
            return None
        return tensors if metadata.get("key") == key else None

    def _write(self, key: str, encoding: Encoding) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in encoding.values()):
            raise LorimerError(
                "the frozen encoders gave NaN or infinity; their weights are broken, or they need "
                "train.base_dtype=fp32"
            )
        try:
            write_safetensors(encoding, self._path(key), {"key": key})
        except LorimerError as error:
            raise LorimerError(f"{error}; {self.mend}") from error


def room_in(folder: Path, limit: int, own: Collection[str] = ()) -> int:
    """How many further bytes of encodings `folder` may take under `limit`, once those are gone that no run
    has used for a day; those of the keys `own` stay."""
    held = sum(size for used, size, file in _files(folder) if _in_use(used) or file.stem in own)
    return limit - held


def make_room(folder: Path, needed: int, limit: int, own: Collection[str] = ()) -> None:
    """Remove what `room_in` does not count, the longest unused first, until `needed` further bytes fit."""
    files = _files(folder)
    there = sum(size for _, size, _ in files)
    for used, size, file in files:
        if there + needed <= limit:
            break
        if not _in_use(used) and file.stem not in own:
            file.unlink(missing_ok=True)
            there -= size


def _files(folder: Path) -> list[tuple[float, int, Path]]:
    """(when it was used, bytes, file) of every encoding, the longest unused first."""
    return sorted(
        ((stat := file.stat()).st_mtime, stat.st_size, file) for file in folder.rglob("*.safetensors")
    )


def _in_use(used: float) -> bool:
    return used > time.time() - _IN_USE


def fingerprint(encoder: Any) -> str:
    """SHA-256 of a module's weights and of what its config says of the network, or of all that a tokenizer
    knows; not of where it lay."""
    if not isinstance(encoder, nn.Module):
        return hashlib.sha256(_of_tokenizer(encoder).encode()).hexdigest()
    config: Any = getattr(encoder, "config", {})
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    facts = {key: value for key, value in fields.items() if not key.startswith("_") and "version" not in key}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _of_tokenizer(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend is not None else _vocabulary(tokenizer)
    rules = {key: value for key, value in rules.items() if key not in _STATE}
    name, limit = type(tokenizer).__name__, tokenizer.model_max_length
    return f"{name} {limit} {tokenizer.pad_token} {json.dumps(rules, sort_keys=True)}"


def _vocabulary(tokenizer: Any) -> Mapping[str, int]:
    return tokenizer.get_vocab()
