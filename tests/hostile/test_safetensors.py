"""Broken and hostile safetensors files: one typed error, in bounded time and memory, whatever the bytes."""

from __future__ import annotations

import json
import os
import pickle
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorimer.errors import FileFormatError
from lorimer.formats.safe_io import (
    read_json,
    read_safetensors,
    read_safetensors_header,
    safetensors_bytes,
    write_safetensors,
)

# Nothing here writes a file of more than a megabyte, so reading may not take more than a few.
MEMORY, SECONDS = 8_000_000, 5.0
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)


@contextmanager
def bounded() -> Iterator[None]:
    """Fails where what is done within takes much memory or time."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        yield
    finally:
        seconds, (_, peak) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < MEMORY, f"{peak:,} bytes"
    assert seconds < SECONDS, f"{seconds:.1f} s"


def refused(path: Path, data: bytes, match: str = "") -> None:
    path.write_bytes(data)
    with bounded(), pytest.raises(FileFormatError, match=match):
        read_safetensors(path)


def file_of(header: Any, body: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(dtype: Any = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


GOOD = b"".join(
    bytes(piece)
    for piece in safetensors_bytes(
        {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bfloat16), "c": torch.tensor(1)},
        {"note": "text"},
    )
)


def test_the_good_one_is_good(tmp_path: Path) -> None:
    path = tmp_path / "good.safetensors"
    path.write_bytes(GOOD)
    tensors, metadata = read_safetensors(path)
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert metadata == {"note": "text"}


def test_cut_at_every_byte(tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(FileFormatError):
            read_safetensors(path)


BROKEN: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a safetensors file"),
    "a giant header": ((2**63).to_bytes(8, "little") + b"{}", "out of range"),
    "a header beyond the file": ((100).to_bytes(8, "little") + b"{}", "cut off"),
    "no object": (file_of([1, 2]), "not a JSON object"),
    "bad JSON": (file_of(b"{nonsense"), "not valid JSON"),
    "bad text": (file_of(b'{"\xff\xfe": 1}'), "not valid JSON"),
    "NaN in JSON": (file_of(b'{"a": NaN}'), "not valid JSON"),
    "a number without end": (file_of(b'{"a": ' + b"9" * 100_000 + b"}"), "not valid JSON"),
    "nested without end": (file_of(b'{"a":' + b"[" * 500_000), "nested too deeply"),
    "nested objects": (file_of(b'{"a":' * 100_000), "nested too deeply"),
    "a key twice": (file_of(b'{"a": 1, "a": 2}'), "twice"),
    "half a character": (file_of(b'{"__metadata__": {"title": "\\ud800"}}'), "not valid JSON"),
    "metadata that is no mapping": (file_of({"__metadata__": [1]}), "__metadata__"),
    "metadata that is no text": (file_of({"__metadata__": {"a": 1}}), "__metadata__"),
    "an entry that is no mapping": (file_of({"a": 3}), "must hold"),
    "an entry with more": (file_of({"a": {**entry(), "code": "x"}}, b"\0" * 8), "must hold"),
    "an entry with less": (file_of({"a": {"dtype": "F32", "shape": [2]}}, b"\0" * 8), "must hold"),
    "an unknown dtype": (file_of({"a": entry("F99")}, b"\0" * 8), "dtype"),
    "a dtype that is no text": (file_of({"a": entry(["F32"])}, b"\0" * 8), "dtype"),
    "a negative shape": (file_of({"a": entry(shape=(-2,))}, b"\0" * 8), "shape"),
    "a fractional shape": (file_of({"a": entry(shape=(2.0,))}, b"\0" * 8), "shape"),
    "a shape of truth": (file_of({"a": entry("U8", (True,), (0, 1))}, b"\0"), "shape"),
    "a shape that is no list": (file_of({"a": entry(shape=2)}, b"\0" * 8), "shape"),
    "a shape of many axes": (file_of({"a": entry(shape=[1] * 9 + [2])}, b"\0" * 8), "shape"),
    "a huge shape": (file_of({"a": entry(shape=(10**12,))}, b"\0" * 8), "bytes it is given"),
    "a huge shape and size": (file_of({"a": entry("U8", (10**12,), (0, 10**12))}, b"\0" * 8), "cut short"),
    "a shape that overflows": (file_of({"a": entry(shape=(2**62, 2**62, 4), offsets=(0, 0))}), "bytes"),
    "a shape beyond 64 bits": (file_of({"a": entry(shape=(0, 2**64), offsets=(0, 0))}), "shape"),
    "offsets that are three": (file_of({"a": entry(offsets=(0, 4, 8))}, b"\0" * 8), "data_offsets"),
    "offsets backwards": (file_of({"a": entry(offsets=(8, 0))}, b"\0" * 8), "bytes it is given"),
    "offsets below zero": (file_of({"a": entry(offsets=(-8, 0))}, b"\0" * 8), "data_offsets"),
    "an overlap": (file_of({"a": entry(), "b": entry(offsets=(4, 12))}, b"\0" * 12), "overlaps"),
    "the same place twice": (file_of({"a": entry(), "b": entry()}, b"\0" * 8), "overlaps"),
    "a hole": (file_of({"a": entry(), "b": entry(offsets=(12, 20))}, b"\0" * 20), "gap"),
    "a hole at the start": (file_of({"a": entry(offsets=(4, 12))}, b"\0" * 12), "gap"),
    "bytes behind": (file_of({"a": entry()}, b"\0" * 9), "behind its last"),
    "bytes missing": (file_of({"a": entry()}, b"\0" * 7), "cut short"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "web page"),
    "a Git LFS pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
    "a GGUF file": (b"GGUF\x03\0\0\0" + b"\0" * 32, "GGUF"),
    "a JSON file": (b'{"weight_map": {"a": "../../etc/passwd"}}', "JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken(name: str, tmp_path: Path) -> None:
    refused(tmp_path / "broken.safetensors", *BROKEN[name])


@given(data=st.data())
@quick
def test_changed_bytes(tmp_path: Path, data: st.DataObject) -> None:
    """Any bytes of a good file exchanged, put in or taken out: read, or refused as such."""
    bytes_ = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        place = data.draw(st.integers(0, len(bytes_)))
        cut = data.draw(st.integers(0, 4))
        bytes_[place : place + cut] = data.draw(st.binary(max_size=4))
    path = tmp_path / "changed.safetensors"
    path.write_bytes(bytes(bytes_))
    try:
        with bounded():
            read_safetensors(path)
    except FileFormatError:
        pass


SIZES = st.integers(-2, 20) | st.sampled_from([2**31, 2**32, 2**63 - 1, 2**63, 2**64, 10**12])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(
    header=st.dictionaries(
        st.text(max_size=8) | st.just("__metadata__"),
        st.fixed_dictionaries(
            {
                "dtype": st.sampled_from(["F32", "BF16", "U8", "F8_E4M3", "BOOL", "I64", "f32"]),
                "shape": st.lists(SIZES, max_size=4),
                "data_offsets": st.lists(SIZES, min_size=2, max_size=2),
            }
        )
        | JSON,
        max_size=4,
    ),
    body=st.binary(max_size=64),
)
@quick
def test_any_header(tmp_path: Path, header: dict[str, Any], body: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(file_of(header, body))
    try:
        with bounded():
            tensors, _ = read_safetensors(path)
    except FileFormatError:
        return
    assert sum(tensor.nbytes for tensor in tensors.values()) == len(body)


@given(data=st.binary(max_size=300))
@quick
def test_any_bytes(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "any.safetensors"
    path.write_bytes(data)
    try:
        with bounded():
            read_safetensors(path)
            read_json(path)
    except FileFormatError:
        pass


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2], ids=str
)
def test_poison_is_refused_by_name(dtype: torch.dtype, bad: float, tmp_path: Path) -> None:
    poisoned = torch.tensor([0.0, bad]).to(dtype)
    with pytest.raises(FileFormatError, match=r"'the\.layer' holds NaN or infinity"):
        write_safetensors({"the.layer": poisoned}, tmp_path / "written.safetensors")
    assert not list(tmp_path.iterdir())
    good = b"".join(bytes(piece) for piece in safetensors_bytes({"the.layer": torch.zeros(2).to(dtype)}))
    body = poisoned.view(torch.uint8).numpy().tobytes()
    refused(tmp_path / "read.safetensors", good[: -len(body)] + body, r"'the\.layer' holds NaN or infinity")


def test_a_sparse_giant(tmp_path: Path) -> None:
    """A file that claims terabytes and costs nothing to make costs nothing to refuse."""
    path = tmp_path / "giant.safetensors"
    size = 2**41
    path.write_bytes(file_of({"a": entry("U8", (size,), (0, size))}))
    try:
        os.truncate(path, path.stat().st_size + size)
    except OSError:
        pytest.skip("this file system holds no sparse file of two terabytes")
    with bounded(), pytest.raises(FileFormatError, match="at most"):
        read_safetensors(path)
    with bounded(), pytest.raises(FileFormatError, match="at most 100"):
        read_safetensors(path, max_bytes=100)


def test_a_giant_header_of_a_giant_file(tmp_path: Path) -> None:
    path = tmp_path / "giant.safetensors"
    path.write_bytes((2**32).to_bytes(8, "little") + b"{")
    os.truncate(path, 2**33)
    with bounded(), pytest.raises(FileFormatError, match="out of range"):
        read_safetensors_header(path)


@pytest.mark.parametrize("length", [0x80, 0x280, 0x480, 0x7B])  # whose first bytes are a pickle's, and "{"
def test_a_file_that_is_cut_off_is_called_so(length: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + b"{" + b" " * 50)
    with pytest.raises(FileFormatError, match="cut off"):
        read_safetensors_header(path)


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.sprung),)


@pytest.mark.parametrize("name", ["a.bin", "a.pt", "a.pth", "a.ckpt", "a.pkl", "A.PT", "a.safetensors", "a"])
@pytest.mark.parametrize("kind", ["pickle", "torch", "old torch"])
def test_pickles_never_run(name: str, kind: str, tmp_path: Path) -> None:
    import lorimer

    sprung, path = tmp_path / "sprung", tmp_path / name
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Trap(sprung), protocol=4))
    else:  # the very files that people send each other
        torch.save(Trap(sprung), path, _use_new_zipfile_serialization=kind == "torch")
    for read in (read_safetensors, read_safetensors_header, lorimer.read):
        with pytest.raises(FileFormatError, match=r"pickle.*\.safetensors"):
            read(path)
    assert not sprung.exists()


def test_links_and_special_files(tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.mkdir()
    (outside / "secret.safetensors").write_bytes(GOOD)
    (inside / "real.safetensors").write_bytes(GOOD)
    (inside / "good.safetensors").symlink_to("real.safetensors")
    read_safetensors(inside / "good.safetensors")
    (inside / "out.safetensors").symlink_to("../outside/secret.safetensors")
    (inside / "ring.safetensors").symlink_to("ring.safetensors")
    (inside / "dangling.safetensors").symlink_to("nowhere")
    (inside / "device.safetensors").symlink_to("/dev/zero")
    os.mkfifo(inside / "pipe.safetensors")
    for name, said in {
        "out": "leaves its folder",
        "device": "leaves its folder",
        "ring": "cannot be read",
        "dangling": "no such file",
        "pipe": "not a plain file",
        "a\0b": "cannot be read",
        "x" * 5000: "cannot be read",
    }.items():
        with bounded(), pytest.raises(FileFormatError, match=said):
            read_safetensors(inside / f"{name}.safetensors")
    for path in (inside, Path("/dev/null"), Path("/dev/zero")):
        with bounded(), pytest.raises(FileFormatError):
            read_safetensors(path)


def test_links_of_a_hub_cache(tmp_path: Path) -> None:
    """`snapshots/<revision>/x` points to `blobs/<hash>` of the same repository, and to nothing else."""
    snapshot = tmp_path / "models--org--name" / "snapshots" / "0123abc"
    blobs = tmp_path / "models--org--name" / "blobs"
    (snapshot / "unet").mkdir(parents=True)
    blobs.mkdir()
    (blobs / "hash").write_bytes(GOOD)
    (tmp_path / "secret").write_bytes(GOOD)
    (snapshot / "unet" / "x.safetensors").symlink_to(blobs / "hash")
    read_safetensors(snapshot / "unet" / "x.safetensors")
    (snapshot / "unet" / "y.safetensors").symlink_to(tmp_path / "secret")
    with pytest.raises(FileFormatError, match="leaves its folder"):
        read_safetensors(snapshot / "unet" / "y.safetensors")


def test_json_files(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    for data in (b"[" * 10**6, b'{"a": 1, "a": 1}', b"[Infinity]", b"9" * 10_000, b"\xff", b""):
        path.write_bytes(data)
        with bounded(), pytest.raises(FileFormatError):
            read_json(path)
    path.write_bytes(b" " * 1001)
    with pytest.raises(FileFormatError, match="larger than 1,000"):
        read_json(path, max_bytes=1000)
