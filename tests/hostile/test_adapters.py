"""Hostile adapters: what their headers and configs claim is checked before it is believed."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import lorimer
from lorimer import registry
from lorimer.errors import FileFormatError
from lorimer.formats import safe_io
from lorimer.formats._marker import MARKER
from lorimer.ops.convert import convert
from lorimer.ops.inspect import inspect
from tests.contracts.format_cases import adapter_state
from tests.hostile.test_safetensors import JSON, bounded

TENSORS = {"unet.a:A": torch.ones(2, 4), "unet.a:B": torch.ones(4, 2)}


def native(path: Path, **changes: Any) -> Path:
    """A small file in lorimer's format with parts of its header entry exchanged."""
    facts: dict[str, Any] = {
        "version": 1,
        "method": "lora",
        "config": {},
        "components": [],
        "metadata": {},
        "layers": {"unet.a": {"rank": 2, "alpha": 3, "groups": 1}},
    }
    safe_io.write_safetensors(TENSORS, path, {"lorimer": json.dumps({**facts, **changes})})
    return path


def layer(**changes: Any) -> dict[str, Any]:
    return {"unet.a": {"rank": 2, "alpha": 3, "groups": 1, **changes}}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 3}, "newer lorimer"),
        ({"version": "1"}, "version"),
        ({"method": "os.system"}, "none that is installed"),
        ({"method": ["lora"]}, "none that is installed"),
        ({"config": {"rank": 9}}, "no fields"),
        ({"config": {"dropout": 9}}, "no fields"),
        ({"config": [1]}, "must be a mapping"),
        ({"components": ["../../etc"]}, "plain names"),
        ({"components": "unet"}, "plain names"),
        ({"metadata": {"title": 3}}, "text to text"),
        ({"layers": [1]}, "mapping"),
        ({"layers": {}}, "does not speak of"),
        ({"layers": {**layer(), "unet.b": layer()["unet.a"]}}, "incomplete"),
        ({"layers": {"unet.a": {}}}, "must hold"),
        ({"layers": layer(rank=3)}, "rank 3"),
        ({"layers": layer(rank=10**12)}, "rank must be"),
        ({"layers": layer(rank=-1)}, "rank must be"),
        ({"layers": layer(rank=True)}, "rank must be"),
        ({"layers": layer(alpha="1")}, "alpha must be"),
        ({"layers": layer(alpha=10**400)}, "alpha must be"),
        ({"layers": layer(alpha=1e300)}, "alpha must be"),
        ({"layers": layer(groups=0)}, "groups must be"),
        ({"layers": layer(groups="1")}, "groups must be"),
        ({"more": 1}, "must hold just"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_native_header(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    path = native(tmp_path / "adapter.safetensors", **changes)
    with bounded(), pytest.raises(FileFormatError, match=said):
        lorimer.read(path)


@given(value=JSON, key=st.sampled_from(["version", "method", "config", "components", "metadata", "layers"]))
@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_any_value_in_a_native_header(tmp_path: Path, key: str, value: Any) -> None:
    path = native(tmp_path / "adapter.safetensors", **{key: value})
    with contextlib.suppress(FileFormatError):
        lorimer.read(path)


@pytest.mark.parametrize("entry", ["[]", "{", "{}", '{"method": "lora"}', "null", "[" * 10_000])
@pytest.mark.parametrize("format", ["peft", "diffusers", "kohya"])
def test_marker(format: str, entry: str, tmp_path: Path) -> None:
    """Our header entry in other formats is no more trusted than anything else."""
    plugin = registry.get("format", format)
    path = tmp_path / ("adapter" if plugin.folder else "adapter.safetensors")
    plugin.write(adapter_state("lora", "picture"), path)
    weights = path if path.is_file() else path / "unet" / "adapter_model.safetensors"
    tensors, header = safe_io.read_safetensors(weights)
    safe_io.write_safetensors(tensors, weights, {**header, MARKER: entry})
    with bounded(), pytest.raises(FileFormatError, match=MARKER):
        plugin.read(path)


def test_no_format_writes_outside_its_folder(tmp_path: Path) -> None:
    """A component called "../x" would be a folder beside the adapter's own."""
    state = adapter_state("lora", "plain")
    state.layers = {f"../escaped.{path}": own for path, own in state.layers.items()}
    state.components = ("../escaped",)
    for name in registry.names("format"):
        plugin = registry.get("format", name)
        folder = tmp_path / name
        with pytest.raises(FileFormatError, match="plain names"):
            plugin.write(state, folder / f"adapter{plugin.suffix}")
        assert not (folder / "escaped").exists()
        assert not list(tmp_path.rglob("escaped*"))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        ({"A": torch.ones(2), "B": torch.ones(4, 2)}, "no matrix"),
        ({"A": torch.ones(2, 4), "B": torch.tensor(1.0)}, "no matrix"),
        ({"A": torch.ones(2, 4), "B": torch.ones(4, 3)}, "different ranks"),
        ({"A": torch.ones(2, 4), "B": torch.ones(4, 2, 3, 3)}, "belong together"),
        ({"A": torch.ones(0, 4), "B": torch.ones(4, 0)}, "rank must be"),
        ({"A": torch.ones(2, 4, dtype=torch.int64), "B": torch.ones(4, 2)}, "int64"),
        ({"A": torch.ones(2, 4).to(torch.float8_e4m3fn), "B": torch.ones(4, 2)}, "float8"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("format", ["kohya", "diffusers"])
def test_tensors_that_are_no_adapter(
    format: str, tensors: dict[str, torch.Tensor], said: str, tmp_path: Path
) -> None:
    dialect = registry.get("method", "lora").tensors
    start = {"kohya": "lora_unet_conv_in.", "diffusers": "unet.conv_in."}[format]
    suffix = {"kohya": "kohya", "diffusers": "peft"}[format]
    path = tmp_path / "adapter.safetensors"
    safe_io.write_safetensors({start + dialect[name][suffix]: t for name, t in tensors.items()}, path)
    with pytest.raises(FileFormatError, match=said):
        inspect(path)


def test_what_a_file_says_does_not_reach_the_terminal(tmp_path: Path) -> None:
    """No escape sequences from titles or names of layers."""
    state = adapter_state("lora", "plain")
    state.metadata["title"] = "\x1b[2J\x07harmless\nrank  9"
    state.layers["a.\x1b]0;x\x07"] = next(iter(state.layers.values()))
    registry.get("format", "lorimer").write(state, tmp_path / "adapter.safetensors")
    assert all(line.isprintable() for line in inspect(tmp_path / "adapter.safetensors").lines())


def test_layer_names_are_names(tmp_path: Path) -> None:
    """Paths with "..", slashes, colons and nothing at all are keys like any other, and fit no model."""
    state = adapter_state("lora", "plain")
    own = next(iter(state.layers.values()))
    state.layers = dict.fromkeys(["../../x", "a/b", "a:b", "C:\\x", "__class__", "forward"], own)
    registry.get("format", "lorimer").write(state, tmp_path / "adapter.safetensors")
    assert lorimer.read(tmp_path / "adapter.safetensors").layers.keys() == state.layers.keys()
    model = torch.nn.Sequential(torch.nn.Linear(4, 4))
    with pytest.raises(FileFormatError, match="the model has no"):
        lorimer.load(model, tmp_path / "adapter.safetensors")
    assert type(model[0]) is torch.nn.Linear


def peft_folder(folder: Path, config: dict[str, Any], layers: list[str]) -> Path:
    folder.mkdir()
    tensors = {}
    for path in layers:
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.ones(2, 4)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.ones(4, 2)
    safe_io.write_safetensors(tensors, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, **config}))
    return folder


@pytest.mark.parametrize(
    "key",
    [
        "(a+)+b",
        "(a|a)*b",
        "(.*)*x",
        "a?" * 40 + "a" * 40,
        "(a|a)" * 30 + "b",
        ".*.*.*.*.*.*x",
        "(x+x+)+y",
        "a" * 2000,
    ],
    ids=lambda key: key[:12],
)
def test_patterns_that_take_for_ever(key: str, tmp_path: Path) -> None:
    """PEFT's pattern keys are regular expressions, and these are known to explode."""
    layers = ["a" * 100, "x" * 100]
    folder = peft_folder(tmp_path / "adapter", {"alpha_pattern": {key: 1}}, layers)
    begin = time.perf_counter()
    with pytest.raises(FileFormatError, match="too complicated"):
        lorimer.read(folder)
    assert time.perf_counter() - begin < 2


def test_patterns_within_the_bounds_end(tmp_path: Path) -> None:
    """The worst that is let through."""
    layers = [f"{'a.' * 45}{number}" for number in range(10)]
    pattern = {f".*a.*b{number}": 1 for number in range(30)}
    begin = time.perf_counter()
    state = lorimer.read(
        peft_folder(tmp_path / "adapter", {"alpha_pattern": pattern, "lora_alpha": 5}, layers)
    )
    assert time.perf_counter() - begin < 10
    assert all(own.alpha == 5 for own in state.layers.values())


def test_a_config_is_data(tmp_path: Path) -> None:
    """Nothing that a config names is imported or run (peft#3085, #2888)."""
    named = {
        "auto_mapping": {"base_model_class": "x", "parent_library": "antigravity"},
        "base_model_name_or_path": "../../../etc/passwd",
        "revision": "main; rm -rf",
        "trust_remote_code": False,
        "runtime_config": {"__class__": "os.system"},
    }
    state = lorimer.read(peft_folder(tmp_path / "adapter", named, ["a"]))
    assert state.layers["a"].rank == 2
    assert "antigravity" not in sys.modules
    with pytest.raises(FileFormatError, match="trust_remote_code"):
        lorimer.read(peft_folder(tmp_path / "other", {**named, "trust_remote_code": True}, ["a"]))


def test_weights_that_link_elsewhere(tmp_path: Path) -> None:
    """A folder from the network whose weights or config are a link to a file of this machine."""
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        folder = peft_folder(tmp_path / name, {}, ["a"])
        secret = tmp_path / f"secret-{name}"
        (folder / name).rename(secret)
        (folder / name).symlink_to(secret)
        with pytest.raises(FileFormatError, match="leaves its folder"):
            lorimer.read(folder)


def test_a_broken_source_converts_to_nothing(tmp_path: Path) -> None:
    path = native(tmp_path / "adapter.safetensors", components=["../x"])
    for name in registry.names("format"):
        with pytest.raises(FileFormatError):
            convert(path, tmp_path / "out" / f"{name}.safetensors", to=name)
    assert not (tmp_path / "out").exists()
