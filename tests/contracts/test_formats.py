"""What every file format promises, for every method and precision. A new one of either joins by existing."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import lorimer
from lorimer import AdapterState, registry
from lorimer.errors import FileFormatError, LorimerError
from lorimer.formats._base import Format
from lorimer.formats.safe_io import writing
from lorimer.ops.convert import convert
from tests.contracts import weight_files
from tests.contracts.format_cases import MODELS, adapter_state, tensors_of
from tests.contracts.method_cases import METHODS

FORMATS = registry.names("format")
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


def write(format: type[Format], state: AdapterState, folder: Path) -> Path | None:
    """Where the state was written, or None where the format says that it cannot hold it."""
    path = folder / ("adapter" if format.folder else f"adapter{format.suffix}")
    try:
        format.write(state, path)
    except FileFormatError as error:
        # A refusal names a format that can, and leaves nothing behind.
        assert any(f"'{name}'" in str(error) for name in FORMATS if name != format.name), error
        assert not path.exists()
        return None
    return path


def assert_same(wanted: AdapterState, found: AdapterState, format: type[Format] | None = None) -> None:
    """Layers, tensors to the bit, ranks, alphas and everything else, as `format` can keep them."""
    if format is not None:
        wanted = format.kept(wanted)
    left, right = tensors_of(wanted), tensors_of(found)
    assert left.keys() == right.keys()
    for path, (alpha, *facts, tensors) in left.items():
        found_alpha, *others, found_tensors = right[path]
        # An irrational alpha, as rsLoRA's, is rounded where the format keeps it in float32.
        assert alpha == pytest.approx(found_alpha, rel=1e-7), path
        assert facts == others, path
        assert tensors.keys() == found_tensors.keys()
        for name, tensor in tensors.items():
            other = found_tensors[name]
            assert tensor.dtype == other.dtype and torch.equal(tensor, other), (path, name)
    assert wanted.method == found.method
    assert wanted.config == found.config
    assert wanted.components == found.components


def check_round_trip(format: type[Format], state: AdapterState, folder: Path) -> None:
    """What was written is recognised, by this format alone, and reads back the same, facts included."""
    path = write(format, state, folder)
    if path is None:
        return
    assert [name for name in FORMATS if registry.get("format", name).detect(path)] == [format.name]
    found = lorimer.read(path)
    assert_same(state, found, format)
    assert found.metadata == state.metadata
    assert not list(folder.rglob("*.tmp"))


def check_equal_bytes(format: type[Format], state: AdapterState, folder: Path) -> None:
    """The same adapter gives the same bytes."""
    first, second = folder / "first", folder / "second"
    path, again = write(format, state, first), write(format, state, second)
    if path is None or again is None:
        return
    for file in first.rglob("*.*"):
        if file.is_file():
            assert file.read_bytes() == (second / file.relative_to(first)).read_bytes()


def check_order_of_keys(format: type[Format], state: AdapterState, folder: Path) -> None:
    """The order of keys in the file means nothing (diffusers#14409)."""
    path = write(format, state, folder)
    if path is None:
        return
    weights = weight_files.weights_of(path)
    tensors, said = weight_files.read(weights)
    weight_files.write_reversed(tensors, weights, said)
    assert_same(state, _in_order_of(lorimer.read(path), state), format)


def check_every_key_counts(format: type[Format], state: AdapterState, folder: Path) -> None:
    """A key too many, a key too few and no keys at all are errors that name the key."""
    path = write(format, state, folder)
    if path is None:
        return
    weights = weight_files.weights_of(path)
    tensors, said = weight_files.read(weights)
    weight_files.write({**tensors, "stranger.weight": torch.zeros(2)}, weights, said)
    with pytest.raises(FileFormatError, match=r"stranger\.weight"):
        format.read(path)
    crowd = {f"stranger_{number:02}.weight": torch.zeros(1) for number in range(30)}
    weight_files.write({**tensors, **crowd}, weights, said)
    with pytest.raises(FileFormatError, match="and 10 more") as caught:
        format.read(path)
    assert "stranger_29" not in str(caught.value)
    for key in tensors:
        if not key.endswith(".alpha"):  # a missing alpha has a meaning
            weight_files.write({name: t for name, t in tensors.items() if name != key}, weights, said)
            with pytest.raises(FileFormatError):
                format.read(path)
    weight_files.write({}, weights, said)
    with pytest.raises(FileFormatError):
        format.read(path)


def check_cut_file(format: type[Format], state: AdapterState, folder: Path) -> None:
    """A file cut short anywhere is an error, and `detect` takes it calmly."""
    path = write(format, state, folder)
    if path is None:
        return
    weights = weight_files.weights_of(path)
    whole = weights.read_bytes()
    for length in [0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1]:
        weights.write_bytes(whole[:length])
        format.detect(path)
        with pytest.raises(FileFormatError):
            format.read(path)


def check_no_poison(format: type[Format], state: AdapterState, folder: Path) -> None:
    """NaN and infinity are neither written nor read, and the tensor is named."""
    path = write(format, state, folder)
    if path is None:
        return
    weights = weight_files.weights_of(path)
    whole = weights.read_bytes()
    tensors, _ = weight_files.read(weights)
    key = next(key for key in tensors if not key.endswith(".alpha"))
    layer = next(iter(state.layers.values()))
    for poison in (float("nan"), float("inf"), float("-inf")):
        bad = {key: tensors[key].clone()}
        bad[key].view(-1)[-1] = poison
        weights.write_bytes(weight_files.exchanged(whole, tensors[key], bad[key]))
        with pytest.raises(FileFormatError, match="NaN or infinity"):
            format.read(path)
        name, good = next(iter(layer.tensors.items()))
        layer.tensors[name] = good.clone().fill_(poison)
        with pytest.raises(FileFormatError, match="NaN or infinity"):
            format.write(state, path)
        layer.tensors[name] = good


def check_no_folders_of_this_machine(format: type[Format], state: AdapterState, folder: Path) -> None:
    """Nobody's folders are in the file, whatever the facts say."""
    state.metadata["base_model"] = "/home/somebody/models/sd15"
    state.metadata["note"] = "from C:\\Users\\somebody\\pictures, kept"
    state.metadata["data"] = "~/somebody/x"
    path = write(format, state, folder)
    if path is None:
        return
    for file in [path] if path.is_file() else path.rglob("*"):
        if file.is_file():
            assert b"somebody" not in file.read_bytes(), file
    assert lorimer.read(path).metadata["base_model"] == "sd15"


def check_failed_write(
    format: type[Format], state: AdapterState, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When writing fails at any step, the former file is whole and nothing is left beside it."""
    path = write(format, state, folder)
    if path is None:
        return
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    other = copy.deepcopy(state)
    for layer in other.layers.values():
        layer.tensors = {name: tensor + 1 for name, tensor in layer.tensors.items()}
    for step in ("_write", "_fsync", "_rename"):
        with monkeypatch.context() as patch:
            patch.setattr(writing, step, _disk_full)
            with pytest.raises(LorimerError, match="No space left"):
                format.write(other, path)
        assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before, step
    assert_same(state, lorimer.read(path), format)


def _disk_full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def _in_order_of(state: AdapterState, like: AdapterState) -> AdapterState:
    state.layers = {path: state.layers[path] for path in like.layers}
    state.full = {name: state.full[name] for name in like.full}
    return state


# What the bytes of a file go through depends on the shapes in it and not on what they mean.
OF_EACH_SHAPE = ["lora", "dora"]
CHECKS: list[Callable[[type[Format], AdapterState, Path], None]] = [
    check_equal_bytes,
    check_order_of_keys,
    check_every_key_counts,
    check_cut_file,
    check_no_poison,
    check_no_folders_of_this_machine,
]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FORMATS)
def test_round_trip(format: str, method: str, model: str, tmp_path: Path) -> None:
    for dtype in DTYPES if method in OF_EACH_SHAPE else [torch.float32]:
        folder = tmp_path / str(dtype)
        check_round_trip(registry.get("format", format), adapter_state(method, model, dtype), folder)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("model", ["plain", "picture", "headed", "language"])
@pytest.mark.parametrize("method", OF_EACH_SHAPE)
@pytest.mark.parametrize("format", FORMATS)
def test_contract(format: str, method: str, model: str, check: Any, tmp_path: Path) -> None:
    check(registry.get("format", format), adapter_state(method, model), tmp_path)


@pytest.mark.parametrize("model", ["plain", "picture", "headed", "language"])
@pytest.mark.parametrize("method", ["lora"])
@pytest.mark.parametrize("format", FORMATS)
def test_failed_write(
    format: str, method: str, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_failed_write(registry.get("format", format), adapter_state(method, model), tmp_path, monkeypatch)


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_holds_something(format: str, tmp_path: Path) -> None:
    """So that no format passes these contracts by refusing everything."""
    states = [adapter_state("lora", model) for model in MODELS]
    written = [
        write(registry.get("format", format), state, tmp_path / str(n)) for n, state in enumerate(states)
    ]
    assert any(written)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("first", "second"), list(itertools.permutations(FORMATS, 2)))
def test_conversion_to_the_bit(first: str, second: str, method: str, tmp_path: Path) -> None:
    """There and back again through every pair of formats (diffusers#14088)."""
    model = "language" if "gguf" in (first, second) else "picture"
    state = adapter_state(method, model, torch.bfloat16)
    for each in (first, second):  # a dialect may know the same update by other tensors
        plugin = registry.get("format", each)
        try:
            state = plugin.kept(state)
        except FileFormatError:
            return
    path = write(registry.get("format", first), state, tmp_path / "first")
    if path is None:
        return
    try:
        there = convert(path, tmp_path / f"there{registry.get('format', second).suffix}", to=second)
    except FileFormatError:
        return  # that it says so properly is test_round_trip's business
    back = convert(there, tmp_path / f"back{registry.get('format', first).suffix}", to=first)
    found = lorimer.read(back)
    assert_same(state, _in_order_of(found, state))
    assert found.metadata == state.metadata
