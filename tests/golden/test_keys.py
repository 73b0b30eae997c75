"""Frozen keys of every format: files that people have must load in every later version, here and elsewhere.

A change here breaks files or other programs. `python -m tests.golden.test_keys` writes the lists anew.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest

from lorimer import registry
from lorimer.formats import safe_io
from tests.contracts.format_cases import adapter_state

FOLDER = Path(__file__).parent
CASES = {
    "lorimer": "grouped",
    "peft": "picture",
    "diffusers": "picture",
    "kohya": "picture",
    "gguf": "language",
}


def listing(format: str, folder: Path) -> str:
    """Every file that the format writes, with keys, types, shapes and header entries."""
    plugin = registry.get("format", format)
    target = folder / ("adapter" if plugin.folder else f"adapter{plugin.suffix}")
    plugin.write(adapter_state("lora", CASES[format]), target)
    lines = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            lines.append(f"== {file.relative_to(folder).as_posix()}")
            lines += _LISTED.get(file.suffix, _text)(file)
    return "\n".join(lines) + "\n"


def _safetensors(file: Path) -> list[str]:
    header = safe_io.read_safetensors_header(file)
    tensors = [
        f"{name}  {str(info.dtype).removeprefix('torch.')} {list(info.shape)}"
        for name, info in sorted(header.tensors.items())
    ]
    entries = [
        f"# {key} = {'(a hash)' if key.startswith('sshs_') else _unfolded(value)}"
        for key, value in sorted(header.metadata.items())
    ]
    return [*tensors, *entries]


def _gguf(file: Path) -> list[str]:
    found = safe_io.read_gguf(file, max_bytes=2**20)
    tensors = [
        f"{name}  {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"
        for name, tensor in sorted(found.tensors.items())
    ]
    return [*tensors, *(f"# {key} = {_unfolded(str(value))}" for key, value in sorted(found.values.items()))]


def _text(file: Path) -> list[str]:
    return file.read_text().splitlines()


_LISTED = {".safetensors": _safetensors, ".gguf": _gguf}


def _unfolded(value: str) -> str:
    return json.dumps(json.loads(value), indent=1, ensure_ascii=False) if value.startswith("{") else value


@pytest.mark.parametrize("format", CASES)
def test_keys(format: str, tmp_path: Path) -> None:
    assert listing(format, tmp_path) == (FOLDER / f"{format}.txt").read_text()


if __name__ == "__main__":
    for name in CASES:
        with tempfile.TemporaryDirectory() as temporary:
            (FOLDER / f"{name}.txt").write_text(listing(name, Path(temporary)))
