"""The tensors in a file that a format wrote, to be changed behind its back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from lorimer.formats import safe_io

Weights = tuple[dict[str, torch.Tensor], dict[str, Any]]


def weights_of(path: Path) -> Path:
    """A weight file of what was written."""
    if path.is_file():
        return path
    return sorted(each for each in path.rglob("*") if each.suffix in (".safetensors", ".gguf"))[0]


def read(file: Path) -> Weights:
    """Tensors, and what else the file says."""
    if file.suffix == ".gguf":
        found = safe_io.read_gguf(file, max_bytes=2**30)
        return found.tensors, found.values
    return safe_io.read_safetensors(file)


def write(tensors: dict[str, torch.Tensor], file: Path, said: dict[str, Any]) -> None:
    if file.suffix == ".gguf":
        _write_gguf(tensors, file, said)
    else:
        safe_io.write_safetensors(tensors, file, said)


def write_reversed(tensors: dict[str, torch.Tensor], file: Path, said: dict[str, Any]) -> None:
    """The tensors in the opposite order, aligned or not."""
    if file.suffix == ".gguf":
        _write_gguf(dict(reversed(tensors.items())), file, said)
        return
    header: dict[str, Any] = {"__metadata__": said}
    body = b""
    names = {dtype: name for name, dtype in safe_io.DTYPES.items()}
    for name, tensor in reversed(tensors.items()):
        data = bytes_of(tensor)
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [len(body), len(body) + len(data)],
        }
        body += data
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + body)


def exchanged(whole: bytes, old: torch.Tensor, new: torch.Tensor) -> bytes:
    """The file's bytes with one tensor's exchanged."""
    before, after = bytes_of(old), bytes_of(new)
    assert whole.count(before) == 1
    return whole.replace(before, after)


def bytes_of(tensor: torch.Tensor) -> bytes:
    data: bytes = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return data


def _write_gguf(tensors: dict[str, torch.Tensor], file: Path, said: dict[str, Any]) -> None:
    import gguf

    writer = gguf.GGUFWriter(file, said["general.architecture"])
    for name, value in said.items():
        if name == "general.architecture":
            continue
        kinds = {str: writer.add_string, float: writer.add_float32, int: writer.add_uint32}
        kinds[type(value)](name, value)
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
