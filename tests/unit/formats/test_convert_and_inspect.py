"""Converting proves what it wrote; inspecting tells what there is."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

import lorimer
from lorimer import AdapterState, LoRA, registry
from lorimer.errors import FileFormatError, UsageError
from lorimer.ops.convert import convert, in_precision, require_same
from lorimer.ops.inspect import inspect
from tests.contracts.format_cases import adapter_state
from tests.tolerances import SAME_UPDATE


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source.safetensors"
    registry.get("format", "lorimer").write(adapter_state("lora", "picture"), path)
    return path


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", torch.float32])
def test_precision(dtype: str | torch.dtype, source: Path, tmp_path: Path) -> None:
    target = convert(source, tmp_path / "target.safetensors", to="kohya", dtype=dtype)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    before, after = lorimer.read(source), lorimer.read(target)
    for path, layer in after.layers.items():
        for name, tensor in layer.tensors.items():
            assert torch.equal(tensor, before.layers[path].tensors[name].to(wanted))


def test_values_beyond_the_precision(source: Path, tmp_path: Path) -> None:
    state = lorimer.read(source)
    next(iter(state.layers.values())).tensors["A"][0] = 1e6
    registry.get("format", "lorimer").write(state, source)
    with pytest.raises(FileFormatError, match="infinity"):
        convert(source, tmp_path / "target", to="peft", dtype="float16")
    assert not (tmp_path / "target").exists()


def test_what_makes_no_sense(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the same"):
        convert(source, source, to="kohya")
    with pytest.raises(UsageError, match="Did you mean 'kohya'"):
        convert(source, tmp_path / "x", to="kohyas")
    with pytest.raises(UsageError, match="precision"):
        convert(source, tmp_path / "x", to="kohya", dtype="float12")
    with pytest.raises(FileFormatError, match="no such file"):
        convert(tmp_path / "missing", tmp_path / "x", to="kohya")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        convert(tmp_path / "text.txt", tmp_path / "x", to="kohya")
    with pytest.raises(FileFormatError, match="not an adapter that lorimer knows"):
        convert(tmp_path, tmp_path / "x", to="kohya")


def test_a_lost_scale_would_be_noticed() -> None:
    """What diffusers' own converter does: alpha = rank, whatever it was."""
    wanted, found = adapter_state("lora", "picture"), adapter_state("lora", "picture")
    require_same(wanted, found, "file")
    for change in ("alpha", "tensor", "dtype", "layer", "groups"):
        found = adapter_state("lora", "picture")
        path, layer = next(iter(found.layers.items()))
        if change == "alpha":
            layer.alpha = layer.rank
        elif change == "tensor":
            layer.tensors["B"].view(-1)[0] += 1e-6
        elif change == "dtype":
            found = in_precision(found, torch.float64)
        elif change == "groups":
            layer.groups = 2
        else:
            del found.layers[path]
        with pytest.raises(FileFormatError, match="does not read back"):
            require_same(wanted, found, "file")


@pytest.mark.parametrize("format", ["diffusers", "kohya", "lorimer", "peft"])  # those that hold pictures
def test_inspect(format: str, source: Path, tmp_path: Path) -> None:
    facts = inspect(convert(source, tmp_path / "adapter.safetensors", to=format))
    state = lorimer.read(source)
    assert (facts.format, facts.method, facts.dtypes) == (format, "lora", ("float32",))
    assert facts.ranks == {2: 10, 1: 1, 3: 1}
    assert facts.alphas == {3.0: 10, 0.1: 1, 16.0: 1}
    numbers = [tensor.numel() for layer in state.layers.values() for tensor in layer.tensors.values()]
    assert facts.parameters == sum(numbers)
    assert facts.targets["unet.*.to_q"] == 1 and facts.targets["unet.conv_in"] == 1
    assert facts.metadata["trigger"] == "in ink style"
    for layer in facts.layers:
        own = state.layers[layer.path]
        update = own.tensors["B"].double().flatten(1) @ own.tensors["A"].double().flatten(1)
        assert layer.norm is not None
        assert math.isclose(layer.norm, own.alpha / own.rank * update.norm().item(), rel_tol=SAME_UPDATE)
    assert facts.norm is not None
    assert math.isclose(facts.norm, math.hypot(*(layer.norm or 0.0 for layer in facts.layers)))
    files = [
        path
        for path in (tmp_path / "adapter.safetensors", *tmp_path.glob("adapter.safetensors/*/*"))
        if path.is_file()
    ]
    assert facts.bytes == sum(path.stat().st_size for path in files)
    json.dumps(facts.as_dict())


def test_inspect_for_people(source: Path) -> None:
    shown = str(inspect(source))
    for fact in (
        "lorimer format",
        "method      lora",
        "2 (10 layers)",
        "in ink style",
        "org/some-model",
        "strongest",
    ):
        assert fact in shown


def test_a_fresh_adapter_has_no_norm(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = lorimer.attach(model, LoRA(rank=2))
    facts = inspect(lorimer.save(adapter, tmp_path / "adapter"))
    assert facts.norm == 0
    assert "strongest" not in str(facts)


def named(format: str, folder: Path) -> Path:
    return folder / f"{format}{registry.get('format', format).suffix}"


def test_an_empty_adapter_is_not_written(tmp_path: Path) -> None:
    for name in registry.names("format"):
        with pytest.raises(FileFormatError, match="no layers"):
            registry.get("format", name).write(AdapterState("lora", {}), named(name, tmp_path))


def test_facts_must_be_text(tmp_path: Path) -> None:
    state = adapter_state("lora", "picture")
    state.metadata["steps"] = 400  # type: ignore[assignment]
    for name in registry.names("format"):
        with pytest.raises(FileFormatError, match="text to text"):
            registry.get("format", name).write(state, named(name, tmp_path))


def test_single_files_are_named_so_that_programs_find_them(tmp_path: Path) -> None:
    for name in registry.names("format"):
        plugin = registry.get("format", name)
        if not plugin.folder:
            for wrong in ("adapter", "adapter.bin", "adapter.pt"):
                with pytest.raises(FileFormatError, match=rf"end in \{plugin.suffix}"):
                    plugin.write(adapter_state("lora", "picture"), tmp_path / wrong)


def test_names_that_no_file_can_have(tmp_path: Path) -> None:
    for name in ("x" * 5000, "a\0b"):
        with pytest.raises(FileFormatError):
            lorimer.read(tmp_path / name)


def test_the_name_of_an_adapter_is_not_in_its_files(tmp_path: Path) -> None:
    """Whatever it is called here; others lose the tensors of an adapter called `mlp` (peft#3282)."""
    for format in ("peft", "lorimer"):
        files = []
        for name in ("default", "mlp", "weight", "lora_A"):
            torch.manual_seed(0)
            model = nn.Sequential()
            model.add_module("mlp", nn.Linear(4, 4))
            path = lorimer.save(
                lorimer.attach(model, LoRA(rank=2), name=name),
                tmp_path / f"{name}.safetensors",
                format=format,
            )
            files.append((path / "adapter_model.safetensors" if path.is_dir() else path).read_bytes())
            path.rename(tmp_path / f"{format}-{name}")
        assert len(set(files)) == 1


def test_components_that_other_programs_do_not_know(tmp_path: Path) -> None:
    state = adapter_state("lora", "plain")
    state.layers = {f"decoder.{path}": layer for path, layer in state.layers.items()}
    state.components = ("decoder",)
    for name in ("kohya", "diffusers"):
        with pytest.raises(FileFormatError, match="knows no component 'decoder'"):
            registry.get("format", name).write(state, tmp_path / "adapter.safetensors")
    registry.get("format", "peft").write(state, tmp_path / "adapter")
    assert lorimer.read(tmp_path / "adapter").layers.keys() == state.layers.keys()


def test_paths_that_a_format_cannot_tell_apart(tmp_path: Path) -> None:
    """A text encoder from before transformers 5, or a layer outside its component: refused, not mangled."""
    state = adapter_state("lora", "picture")
    layer = next(iter(state.layers.values()))
    for path in ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", "vae.conv_in", "unet"):
        state.layers = {path: layer}
        for name in ("kohya", "diffusers", "peft"):
            with pytest.raises(FileFormatError):
                registry.get("format", name).write(state, named(name, tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_was_trained_in_full_is_told(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    adapter = lorimer.attach(model, LoRA(rank=2), "0", full=["1"])
    facts = inspect(lorimer.save(adapter, tmp_path / "adapter"))
    assert facts.full == {"1.weight": 12, "1.bias": 3}
    assert facts.parameters == sum(parameter.numel() for parameter in adapter.parameters())
    assert "12 of 1.weight" in str(facts)
