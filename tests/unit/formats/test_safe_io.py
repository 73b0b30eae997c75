"""Weight files as other programs see them, and writing that is whole or not at all."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats import safe_io
from lorimer.formats._marker import portable
from lorimer.formats.safe_io import writing

TENSORS = {
    "float64": torch.randn(3).double(),
    "float32": torch.randn(2, 3),
    "float16": torch.randn(5).half(),
    "bfloat16": torch.randn(1, 2, 3, 4).bfloat16(),
    "float8": torch.randn(7).to(torch.float8_e4m3fn),
    "int64": torch.tensor([-(2**62), 3]),
    "uint8": torch.arange(9, dtype=torch.uint8).view(3, 3).T,
    "bool": torch.tensor([True, False]),
    "number": torch.tensor(2.5),
    "empty": torch.empty(0, 4),
    'name with spaces, ünïcode and "quotes"': torch.ones(1),
}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(_same(left[name], right[name]) for name in left)


def _same(left: torch.Tensor, right: torch.Tensor) -> bool:
    bits = [tensor.contiguous().view(-1).view(torch.uint8) for tensor in (left, right)]
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(*bits)


def test_the_library_reads_what_we_write(tmp_path: Path) -> None:
    from safetensors import safe_open
    from safetensors.torch import load_file

    path = tmp_path / "a.safetensors"
    safe_io.write_safetensors(TENSORS, path, {"title": "水墨", "b": "1"})
    assert same(load_file(path), TENSORS)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"title": "水墨", "b": "1"}


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "a.safetensors"
    contiguous = {name: tensor.contiguous() for name, tensor in TENSORS.items()}
    save_file(contiguous, path, {"title": "水墨"})
    tensors, metadata = safe_io.read_safetensors(path)
    assert same(tensors, contiguous)
    assert metadata == {"title": "水墨"}
    assert safe_io.read_safetensors_header(path).tensors["float32"].shape == (2, 3)


def test_equal_input_equal_bytes_and_alignment(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    safe_io.write_safetensors(TENSORS, one, {"a": "1", "b": "2"})
    safe_io.write_safetensors(dict(reversed(TENSORS.items())), two, {"b": "2", "a": "1"})
    assert one.read_bytes() == two.read_bytes()
    start = 8 + int.from_bytes(one.read_bytes()[:8], "little")
    for info in safe_io.read_safetensors_header(one).tensors.values():
        assert (start + info.begin) % info.dtype.itemsize == 0


def test_tensors_can_be_changed_after_reading(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    safe_io.write_safetensors({"a": torch.zeros(3)}, path)
    tensors, _ = safe_io.read_safetensors(path)
    tensors["a"] += 1
    assert safe_io.read_safetensors(path)[0]["a"].tolist() == [0, 0, 0]


def test_types_that_the_format_lacks(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="complex64"):
        safe_io.write_safetensors({"a": torch.zeros(1, dtype=torch.complex64)}, tmp_path / "a")


def test_folders_are_made_and_permissions_are_ordinary(tmp_path: Path) -> None:
    path = tmp_path / "new" / "folder" / "a.json"
    mask = os.umask(0o022)
    try:
        safe_io.write_json(path, {"ä": 1})
    finally:
        os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert safe_io.read_json(path) == {"ä": 1}
    assert [child.name for child in path.parent.iterdir()] == ["a.json"]


def test_a_link_is_replaced_and_its_target_left_alone(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_bytes(b"old")
    link.symlink_to(target)
    safe_io.write_bytes_atomic(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"old", b"new", False)


def test_what_cannot_be_written_is_loud(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"old")
    for place in ("folder", "file/below", "x" * 300):
        with pytest.raises(LorimerError, match="could not be written"):
            safe_io.write_bytes_atomic(tmp_path / place, b"new")
    assert sorted(child.name for child in tmp_path.iterdir()) == ["file", "folder"]


FAILURES = {"disk full": OSError(28, "No space left on device"), "ctrl-c": KeyboardInterrupt()}


@pytest.mark.parametrize("step", ["_write", "_fsync", "_rename"])
@pytest.mark.parametrize("error", FAILURES.values(), ids=FAILURES)
def test_a_failure_leaves_the_former_file(
    step: str, error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(writing, step, fail)
    with pytest.raises((LorimerError, KeyboardInterrupt)):
        safe_io.write_bytes_atomic(path, b"new")
    assert {child.name: child.read_bytes() for child in tmp_path.iterdir()} == {"a": b"old"}


def test_everything_is_synced_before_it_is_renamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def noted(step: str) -> Callable[..., None]:
        real = getattr(writing, step)

        def call(*arguments: object) -> None:
            steps.append(step.removeprefix("_"))
            real(*arguments)

        return call

    for step in ("_write", "_fsync", "_rename", "_fsync_folder"):
        monkeypatch.setattr(writing, step, noted(step))
    writing.write_files_atomic({tmp_path / "a": [b"1", b"2"], tmp_path / "b": [b"3"]})
    assert " ".join(steps) == "write write fsync write fsync rename rename fsync_folder fsync"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("/home/somebody/models/sd 15", "sd 15"),
        ("C:\\Users\\some body\\sd15", "sd15"),
        ("\\\\server\\share\\sd15", "sd15"),
        ("file:///home/somebody/sd15", "sd15"),
        ("~/models/sd15/", "sd15"),
        ("trained on /data/somebody/cats.zip, twice", "trained on cats.zip, twice"),
        ('["/home/somebody/a", "/b/c"]', '["a", "c"]'),
        ("org/model", "org/model"),
        ("https://example.org/a/b", "https://example.org/a/b"),
        ("cats and/or dogs", "cats and/or dogs"),
        ("1/2 / 3", "1/2 / 3"),
        ("data:image/jpeg;base64,/9j/4AAQ/home", "data:image/jpeg;base64,/9j/4AAQ/home"),
    ],
)
def test_portable(text: str, kept: str) -> None:
    assert portable({"fact": text}) == {"fact": kept}
