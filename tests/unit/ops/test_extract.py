"""A fine-tuned model minus its base: what the LoRA of it gives back, and what it says that it does not."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import lorimer
from lorimer.adapters.lora import LoRA
from lorimer.errors import FileFormatError, LorimerError, TargetError, UsageError
from tests.unit.ops.adapters import EVERY, difference, effects, network, trained

TARGETS = [f"re:{name}" for name in EVERY]


def tuned_by(state: lorimer.AdapterState) -> nn.Module:
    """The network with an adapter merged in."""
    model = network()
    lorimer.attach_state(model, state)
    lorimer.merge(model, keep_original=False)
    return model


UPDATE = trained(LoRA(rank=2, alpha=4.0), 1)
TUNED = tuned_by(UPDATE)


def test_a_merged_lora_is_found_again() -> None:
    """Every geometry; the ranks are found by themselves."""
    found = lorimer.extract(network(), TUNED, TARGETS, error=1e-6)
    assert {path: layer.rank for path, layer in found.state.layers.items()} == dict.fromkeys(EVERY, 2)
    assert difference(effects(found.state), effects(UPDATE)) <= 1e-9
    assert found.state.layers["grouped"].groups == 2
    assert not found.left_out and not found.state.full


def test_onto_the_base_it_gives_the_tuned_model(tmp_path: Path) -> None:
    model = network()
    found = lorimer.extract(model, TUNED, TARGETS, rank=2)
    file = lorimer.write(found.state, tmp_path / "x.safetensors", format="lorimer")
    lorimer.load(model, file)
    lorimer.merge(model)
    for name, tensor in TUNED.state_dict().items():
        assert torch.allclose(model.state_dict()[name], tensor, atol=1e-9)


@pytest.mark.parametrize("rank", [1, 3])
def test_the_error_that_is_told_is_the_error(rank: int) -> None:
    tuned = copy.deepcopy(TUNED)
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    found = lorimer.extract(network(), tuned, TARGETS, rank=rank)
    changes = effects(found.state)
    base = network().state_dict()
    for path in ("linear", "conv"):
        wanted = tuned.state_dict()[f"{path}.weight"] - base[f"{path}.weight"]
        values = torch.linalg.svdvals(wanted.flatten(1))
        error = (wanted - changes[f"{path}.weight"]).norm() / wanted.norm()
        assert math.isclose(error.item(), found.layers[path].error, rel_tol=1e-6)
        assert math.isclose(error.item(), (values[rank:].norm() / values.norm()).item(), rel_tol=1e-6)
    assert set(found.left_out) == {f"{name}.bias" for name in EVERY if name != "embedding"}
    assert "left out: 4 parameters" in str(found)


def test_only_layers_that_differ_are_adapted() -> None:
    tuned = network()
    with torch.no_grad():
        tuned["conv"].weight[0, 0, 0, 0] += 1.0
    assert list(lorimer.extract(network(), tuned, TARGETS, rank=1).state.layers) == ["conv"]


def test_the_rest_can_be_kept_in_full() -> None:
    tuned = copy.deepcopy(TUNED)
    with torch.no_grad():
        tuned["linear"].bias.add_(1.0)
        tuned["embedding"].weight.add_(1.0)
    found = lorimer.extract(network(), tuned, ["linear", "conv", "grouped", "transposed"], rank=2, full=True)
    assert set(found.state.full) == {"linear.bias", "embedding.weight"} and not found.left_out
    model = network()
    lorimer.attach_state(model, found.state)
    lorimer.merge(model)
    assert torch.equal(model["embedding"].weight, tuned["embedding"].weight)
    assert torch.equal(model["linear"].bias, tuned["linear"].bias)


def test_files_and_folders_are_read_layer_by_layer(tmp_path: Path) -> None:
    """With the layers' types from a model without memory; a folder of parts, too."""
    save_file(network().state_dict(), tmp_path / "base.safetensors")
    parts = tmp_path / "tuned"
    parts.mkdir()
    every = list(TUNED.state_dict().items())
    save_file(dict(every[:4]), parts / "model-1.safetensors")
    save_file(dict(every[4:]), parts / "model-2.safetensors")
    with torch.device("meta"):
        skeleton = network()
    found = lorimer.extract(tmp_path / "base.safetensors", parts, TARGETS, rank=2, model=skeleton)
    assert difference(effects(found.state), effects(UPDATE)) <= 1e-9
    mixed = lorimer.extract(network(), dict(every), TARGETS, rank=2)
    assert difference(effects(mixed.state), effects(UPDATE)) <= 1e-9
    with pytest.raises(UsageError, match="pass model="):
        lorimer.extract(tmp_path / "base.safetensors", parts, TARGETS, rank=2)
    save_file(dict(every[:1]), parts / "model-3.safetensors")
    with pytest.raises(FileFormatError, match="more than one of its files"):
        lorimer.extract(network(), parts, TARGETS, rank=2)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileFormatError, match=r"holds no \.safetensors"):
        lorimer.extract(network(), tmp_path / "empty", TARGETS, rank=2)


def test_tied_weights_count_once(tmp_path: Path) -> None:
    """A file may hold a tied weight under either name."""

    def tied() -> nn.Module:
        torch.manual_seed(0)
        embed, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
        model = nn.ModuleDict({"embed": embed, "body": nn.Linear(4, 4), "head": head})
        model["head"].weight = model["embed"].weight
        return model

    tuned = tied()
    with torch.no_grad():
        tuned["embed"].weight.add_(1.0)
        tuned["body"].weight.add_(1.0)
    found = lorimer.extract(tied(), tuned, ["body"], rank=1)
    assert list(found.left_out) in (["embed.weight"], ["head.weight"])
    kept = lorimer.extract(tied(), tuned, ["body"], rank=1, full=True)
    assert len(kept.state.full) == 1
    tensors = tuned.state_dict()
    del tensors["embed.weight"]
    save_file(tensors, tmp_path / "tuned.safetensors")
    again = lorimer.extract(tied(), tmp_path / "tuned.safetensors", ["body"], rank=1)
    assert list(again.state.layers) == ["body"]


def test_buffers_that_differ_are_told() -> None:
    def normed() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))

    tuned = normed()
    with torch.no_grad():
        tuned[0].weight.add_(1.0)
        tuned[1].running_mean.add_(1.0)
    found = lorimer.extract(normed(), tuned, rank=1, full=True)
    assert list(found.left_out) == ["1.running_mean"]


def test_half_precision_bases_give_single_precision_adapters() -> None:
    base, tuned = network().bfloat16(), copy.deepcopy(TUNED).bfloat16()
    found = lorimer.extract(base, tuned, TARGETS, rank=2)
    assert {x.dtype for layer in found.state.layers.values() for x in layer.tensors.values()} == {
        torch.float32
    }


def test_what_cannot_be_extracted() -> None:
    broken = network()
    with torch.no_grad():
        broken["conv"].weight[0, 0, 0, 0] = math.inf
    with pytest.raises(UsageError, match="how much to keep"):
        lorimer.extract(network(), TUNED, TARGETS)
    with pytest.raises(UsageError, match="nothing to extract"):
        lorimer.extract(network(), network(), TARGETS, rank=2)
    with pytest.raises(TargetError, match="matches nothing"):
        lorimer.extract(network(), TUNED, "liner", rank=2)
    with pytest.raises(LorimerError, match=r"'conv\.weight': the difference holds NaN or infinity"):
        lorimer.extract(network(), broken, TARGETS, rank=2)
    with pytest.raises(UsageError, match=r"tuned lacks 'conv\.weight'"):
        lorimer.extract(network(), {"linear.weight": torch.zeros(9, 12)}, ["linear", "conv"], rank=2)
    with pytest.raises(UsageError, match="bring them to one shape"):
        lorimer.extract(network(), {"linear.weight": torch.zeros(9, 7)}, ["linear"], rank=2)
    with pytest.raises(UsageError, match=r"kept as torch\.int8"):
        lorimer.extract(
            network(), {"linear.weight": torch.zeros(9, 12, dtype=torch.int8)}, ["linear"], rank=2
        )


def test_norms_are_no_targets() -> None:
    def normed() -> nn.Module:
        return nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))

    with pytest.raises(TargetError):
        lorimer.extract(normed(), normed(), "1", rank=1)


def test_other_shapes_beside_the_targets_are_told() -> None:
    tensors = {**TUNED.state_dict(), "embedding.weight": torch.zeros(13, 8)}
    found = lorimer.extract(network(), tensors, ["linear"], rank=2, full=True)
    assert found.left_out == {"embedding.weight": None}
    assert "inf  embedding.weight" in str(found)


def test_broken_files_are_refused(tmp_path: Path) -> None:
    tensors = TUNED.state_dict()
    save_file({**tensors, "linear.weight": torch.full((9, 12), math.nan)}, tmp_path / "nan.safetensors")
    with pytest.raises(FileFormatError, match=r"'linear\.weight' holds NaN or infinity"):
        lorimer.extract(network(), tmp_path / "nan.safetensors", TARGETS, rank=2)
    whole = (tmp_path / "nan.safetensors").read_bytes()
    (tmp_path / "cut.safetensors").write_bytes(whole[:-8])
    torch.save(tensors, tmp_path / "pickle.bin")
    for name, words in (
        ("cut.safetensors", "cut short"),
        ("pickle.bin", "refused"),
        ("none", "no such file"),
    ):
        with pytest.raises(FileFormatError, match=words):
            lorimer.extract(network(), tmp_path / name, TARGETS, rank=2)
