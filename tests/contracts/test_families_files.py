"""What every file format promises for every family of models. A new one of either joins by existing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lorimer
from lorimer import AdapterState, registry
from lorimer.errors import FileFormatError
from lorimer.formats import safe_io
from tests.contracts.family_cases import FAMILIES, family_model, family_state
from tests.contracts.format_cases import tensors_of
from tests.contracts.test_formats import (
    FORMATS,
    assert_same,
    check_equal_bytes,
    check_every_key_counts,
    check_order_of_keys,
    check_round_trip,
    write,
)
from tests.tolerances import SAME_UPDATE, relative_difference

# Files whose keys are not the modules' paths; the bytes of others are test_formats.py's business.
HOLDING = [name for name in FORMATS if name != "gguf"]  # which is for language models alone
NAMING = [name for name in FORMATS if registry.get("format", name).dialect and name != "peft"]
# Methods, and whether the parts of joined layers have one scale.
CASES = [("lora", True), ("lora", False), ("dora", True), ("dora", False), ("loha", False), ("lokr", True)]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", HOLDING)
def test_round_trip_to_the_bit(format: str, family: str, tmp_path: Path) -> None:
    plugin = registry.get("format", format)
    for method, even in CASES:
        state = family_state(family, method, even=even)
        check_round_trip(plugin, state, tmp_path / f"{method} {even}")
        if even and method in ("lora", "dora"):
            assert_same(state, plugin.kept(state))  # nothing was changed to fit the file


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", NAMING)
def test_half_precision(format: str, family: str, tmp_path: Path) -> None:
    for dtype in (torch.float16, torch.bfloat16):
        state = family_state(family, dtype=dtype, even=True)
        check_round_trip(registry.get("format", format), state, tmp_path / str(dtype))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("format", NAMING)
def test_keys(format: str, family: str, tmp_path: Path) -> None:
    plugin, state = registry.get("format", format), family_state(family)
    check_order_of_keys(plugin, state, tmp_path / "order")
    check_equal_bytes(plugin, state, tmp_path / "bytes")
    if len(state.layers) < 40:  # one read for each key
        check_every_key_counts(plugin, state, tmp_path / "keys")


def updates(family: str, state: AdapterState) -> dict[str, Tensor]:
    """What an adapter adds to each layer's weight."""
    torch.manual_seed(0)
    model = family_model(family)
    before = {
        path: m.weight.detach().clone() for path, m in model.named_modules() if isinstance(m, nn.Linear)
    }
    lorimer.attach_state(model, state)
    lorimer.merge(model)
    after = {path: m.weight.detach() for path, m in model.named_modules() if isinstance(m, nn.Linear)}
    return {path: after[path] - weight for path, weight in before.items()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", ["lora", "dora", "loha"])
def test_the_update_is_the_same_whatever_the_scales(method: str, family: str, tmp_path: Path) -> None:
    """Parts of one layer with different alphas and ranks."""
    state = family_state(family, method)
    wanted = updates(family, state)
    for format in FORMATS:
        path = write(registry.get("format", format), state, tmp_path / format)
        if path is None:
            continue
        found = updates(family, lorimer.read(path))
        assert found.keys() == wanted.keys()
        for name, update in wanted.items():
            assert relative_difference(found[name], update) < SAME_UPDATE, (format, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_shared_factor_is_copied(family: str, tmp_path: Path) -> None:
    """A file of another program, whose adapters on joined layers have one `down` for all parts: each part
    gets its rows of `up`, and the update is the same."""
    state = family_state(family, even=True)
    path = tmp_path / "ours.safetensors"
    registry.get("format", "kohya").write(state, path)
    tensors, _ = safe_io.read_safetensors(path)
    generator = torch.Generator().manual_seed(9)
    for key, tensor in tensors.items():
        if key.endswith(".lora_up.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    foreign = tmp_path / "foreign.safetensors"
    safe_io.write_safetensors(tensors, foreign, {"ss_base_model_version": _version(family)})
    found = lorimer.read(foreign)
    names = registry.get("family", family).kohya
    assert found.layers.keys() == state.layers.keys()
    for module, layer in found.layers.items():
        place = names.place(module)
        assert place is not None
        up, down = tensors[f"{place.native}.lora_up.weight"], tensors[f"{place.native}.lora_down.weight"]
        whole = up @ down * (tensors[f"{place.native}.alpha"].item() / len(down))
        unit = len(up) // sum(place.shares)
        begin = unit * sum(place.shares[: place.part])
        rows = whole[begin : begin + unit * place.shares[place.part]]
        if place.halves_swapped:
            rows = torch.cat(rows.chunk(2)[::-1])
        update = layer.tensors["B"] @ layer.tensors["A"] * layer.scale
        assert relative_difference(update, rows) < SAME_UPDATE


def _version(family: str) -> str:
    return str(registry.get("family", family).kohya.base_version)


@pytest.mark.parametrize("family", FAMILIES)
def test_other_spellings_are_read(family: str, tmp_path: Path) -> None:
    """ComfyUI's dots, and the modules' own paths of OneTrainer and SimpleTuner."""
    state = family_state(family, even=True)
    names = registry.get("family", family).kohya
    header = {"ss_base_model_version": _version(family)}
    for style in ("dotted", "by module"):
        tensors = {}
        for module, layer in state.layers.items():
            component, _, rest = module.partition(".")
            own = names.components[component]
            if style == "dotted":
                name = own.dotted[0] + own.level + rest
            elif own.more_prefixes:
                name = own.more_prefixes[0] + rest.replace(".", "_")
            else:
                continue
            tensors[f"{name}.lora_A.weight"] = layer.tensors["A"]
            tensors[f"{name}.lora_B.weight"] = layer.tensors["B"]
            tensors[f"{name}.alpha"] = torch.tensor(layer.alpha)
        path = tmp_path / f"{style}.safetensors"
        safe_io.write_safetensors(tensors, path, header)
        found = lorimer.read(path)
        assert found.metadata["family"] == family
        left, right = tensors_of(state), tensors_of(found)
        assert right.keys() <= left.keys() and right
        for name in right:
            assert left[name][0] == pytest.approx(right[name][0], rel=1e-6)
            assert all(torch.equal(t, right[name][-1][key]) for key, t in left[name][-1].items())


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_on_one_of_the_joined_layers(family: str, tmp_path: Path) -> None:
    """The others have none when they are read back."""
    state = family_state(family, even=True)
    state.layers = {
        path: layer for path, layer in state.layers.items() if not path.endswith(("to_k", "to_q"))
    }
    check_round_trip(registry.get("format", "kohya"), state, tmp_path)
    dora = family_state(family, "dora", even=True)
    joined = any(len(rule.modules) > 1 for c in registry.get("family", family).kohya.components.values()
                 for rule in c.rules)  # fmt: skip
    dora.layers = {path: layer for path, layer in dora.layers.items() if not path.endswith(("to_k", "to_q"))}
    if joined:
        with pytest.raises(FileFormatError, match="DoRA"):
            registry.get("format", "kohya").write(dora, tmp_path / "dora.safetensors")
