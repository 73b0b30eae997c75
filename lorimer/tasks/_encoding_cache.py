"""What a frozen encoder gives for a picture or a text, kept on disk and shared by all runs.

A latent or an embedding never changes while its encoder is frozen, so each is computed once. The key
is the SHA-256 of exactly what goes in: the encoder's weights and config, and the bytes of the input
tensor. Another picture, resolution, crop, flip, tokenizer or model is thus another key, and nothing
can go stale.

For a picture the mean and the standard deviation of the VAE's distribution are kept rather than one
drawn sample: every training step draws its own, as training without a cache would.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats.safe_io import read_safetensors, write_safetensors

Encoder = Callable[[Tensor], tuple[Tensor, ...]]


def default_cache_folder() -> Path:
    """`lorimer/` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "lorimer"


class EncodingCache:
    """Encodings by one frozen encoder.

    Args:
        folder: where encodings of all encoders are kept.
        encoder: the frozen module whose weights and config are part of every key.
        names: what the encoder's outputs are called in the files.
    """

    def __init__(self, folder: Path, encoder: nn.Module, names: Sequence[str]) -> None:
        self.folder = folder
        self.names = tuple(names)
        self.fingerprint = fingerprint(encoder)
        self.hits = 0
        self.misses = 0

    def encode(self, inputs: Sequence[Tensor], encode: Encoder) -> list[dict[str, Tensor]]:
        """For each input its encoding, name -> tensor on the CPU in float32, without a batch dimension.

        Each input is encoded alone: a batch would round otherwise, and an encoding must not depend on what
        else happened to be missing, or a resumed run would differ in the last bits.

        Args:
            inputs: tensors without a batch dimension; equal ones are encoded once.
            encode: batch of one input -> one such batch for each name. Called for what is not on disk.

        Raises:
            LorimerError: an encoding holds NaN or infinity, or cannot be written.
        """
        found: dict[str, dict[str, Tensor]] = {}
        keys = [self._key(each) for each in inputs]
        for key, each in zip(keys, inputs, strict=True):
            if key in found:
                continue
            kept = self._read(key)
            if kept is None:
                self.misses += 1
                outputs = zip(self.names, encode(each[None]), strict=True)
                kept = {name: output[0].float().cpu() for name, output in outputs}
                self._write(key, kept)
            else:
                self.hits += 1
            found[key] = kept
        return [found[key] for key in keys]

    def _key(self, each: Tensor) -> str:
        digest = hashlib.sha256(self.fingerprint.encode())
        digest.update(f"{each.dtype} {tuple(each.shape)}".encode())
        digest.update(each.contiguous().numpy().tobytes())
        return digest.hexdigest()

    def _path(self, key: str) -> Path:
        return self.folder / "encodings" / key[:2] / f"{key}.safetensors"

    def _read(self, key: str) -> dict[str, Tensor] | None:
        """The encoding on disk; None where there is none or the file is broken, so that it is made anew."""
        path = self._path(key)
        if not path.is_file():
            return None
        try:
            tensors, metadata = read_safetensors(path)
        except FileFormatError:
            return None
        return tensors if tensors.keys() == set(self.names) and metadata.get("key") == key else None

    def _write(self, key: str, encoding: dict[str, Tensor]) -> None:
        if not all(torch.isfinite(tensor).all() for tensor in encoding.values()):
            raise LorimerError(
                "encoding pictures and captions gave NaN or infinity; the model's weights are broken"
            )
        try:
            write_safetensors(encoding, self._path(key), {"key": key})
        except LorimerError as error:
            raise LorimerError(f"{error}; name another folder for encodings with data.cache") from error


def fingerprint(encoder: nn.Module) -> str:
    """SHA-256 of a module's weights and of what its config says of the network; not of where it lay."""
    config = getattr(encoder, "config", {})
    fields = config.to_dict() if hasattr(config, "to_dict") else dict(config)
    facts = {key: value for key, value in fields.items() if not key.startswith("_") and "version" not in key}
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
