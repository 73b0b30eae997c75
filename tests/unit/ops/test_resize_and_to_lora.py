"""Smaller ranks, and other methods as plain LoRA: as true as can be, and the error told is the error."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

import lorimer
from lorimer import registry
from lorimer.adapters.lora import LoRA
from lorimer.errors import LorimerError, StateError, TargetError, UsageError
from lorimer.ops._spectrum import (
    EVERYTHING,
    Keep,
    dense_svd,
    effective_rank,
    factored_svd,
    randomised_svd,
    split,
    stable_rank,
)
from tests.contracts.method_cases import METHODS
from tests.tolerances import SAME_ALGEBRA
from tests.unit.ops.adapters import EVERY, difference, effects, network, same_bits, trained

STATE = trained(LoRA(rank=4, alpha=6.0, bias=True), 1, ["linear", "conv", "grouped", "transposed"])
TRUTH = effects(STATE)
MATRICES = {"linear": lambda w: w, "conv": lambda w: w.flatten(1), "grouped": lambda w: w.flatten(1)}


def singular_values(path: str) -> torch.Tensor:
    return torch.linalg.svdvals(MATRICES[path](TRUTH[f"{path}.weight"]))


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_fixed_rank_is_the_best_of_that_rank(rank: int) -> None:
    found = lorimer.resize(STATE, rank=rank)
    change = effects(found.state)
    for path, matrix in MATRICES.items():
        values = singular_values(path)
        best = (values[rank:].norm() / values.norm()).item()
        lost = matrix(change[f"{path}.weight"] - TRUTH[f"{path}.weight"]).norm() / values.norm()
        assert math.isclose(lost.item(), best, rel_tol=1e-6)
        assert math.isclose(found.layers[path].error, best, rel_tol=1e-6)
        assert math.isclose(found.layers[path].norm, values.norm().item(), rel_tol=1e-9)
        assert found.state.layers[path].rank == rank
    assert torch.allclose(change["linear.bias"], TRUTH["linear.bias"])  # a bias is no matter of rank


@given(energy=some.floats(0.05, 1.0))
@settings(max_examples=15, deadline=None)
def test_energy_is_the_smallest_rank_that_keeps_it(energy: float) -> None:
    found = lorimer.resize(STATE, energy=energy)
    for path in MATRICES:
        kept = singular_values(path).square().cumsum(0) / singular_values(path).square().sum()
        rank = found.state.layers[path].rank
        assert kept[rank - 1] >= energy - 1e-9
        assert rank == 1 or kept[rank - 2] < energy + 1e-9
    same = lorimer.resize(STATE, error=math.sqrt(1 - energy))
    assert {p: x.rank for p, x in same.layers.items()} == {p: x.rank for p, x in found.layers.items()}


def test_a_rank_caps_an_energy() -> None:
    assert {x.rank for x in lorimer.resize(STATE, rank=2, energy=1.0).state.layers.values()} == {2}


def test_ranks_that_are_small_enough_stay_to_the_bit() -> None:
    assert same_bits(lorimer.resize(STATE, rank=4).state, STATE)
    assert same_bits(lorimer.to_lora(STATE).state, STATE)
    found = lorimer.resize(lorimer.resize(STATE, rank=2).state, rank=2).state
    assert same_bits(found, lorimer.resize(STATE, rank=2).state)


def test_resizing_needs_a_measure() -> None:
    with pytest.raises(UsageError, match="how much to keep"):
        lorimer.resize(STATE)


def test_an_adapter_that_does_nothing_resizes() -> None:
    fresh = lorimer.attach(network(), LoRA(rank=3), EVERY).state()
    found = lorimer.resize(fresh, energy=0.9)
    assert {layer.rank for layer in found.state.layers.values()} == {1}
    assert found.error == 0.0
    assert all((change == 0).all() for change in effects(found.state).values())


def test_scaling_rules_end_in_scale_one() -> None:
    state = trained(LoRA(rank=4, alpha=8.0, rslora=True), 3)
    found = lorimer.resize(state, rank=3).state
    assert {layer.scale for layer in found.layers.values()} == {1.0}
    assert found.config == {}


def test_what_was_trained_in_full_stays() -> None:
    state = trained(LoRA(rank=3), 4, ["linear"], full="embedding")
    for found in (lorimer.to_lora(state), lorimer.resize(state, rank=1)):
        assert torch.equal(found.state.full["embedding.weight"].value, state.full["embedding.weight"].value)


@pytest.mark.parametrize(
    "name", sorted(name for name, each in METHODS.items() if each.mergeable and not each.replaces)
)
def test_every_method_becomes_plain_lora(name: str) -> None:
    """By exact factors or by a decomposition at full rank, on a matrix and on a convolution."""
    method = METHODS[name]
    state = trained(method, 5, ["linear", "conv"])
    found = lorimer.to_lora(state, error=1e-9, model=network())
    assert found.state.method == "lora"
    assert difference(effects(found.state), effects(state)) <= 1e-7
    assert all(layer.rank <= 9 for layer in found.state.layers.values())


def test_a_start_that_counts_becomes_rank_two_r() -> None:
    state = trained(LoRA(rank=2, start="pissa"), 6, ["linear", "conv"])
    found = lorimer.to_lora(state)
    assert {layer.rank for layer in found.state.layers.values()} == {4}
    assert found.error == 0.0
    assert difference(effects(found.state), effects(state)) <= SAME_ALGEBRA


def test_an_attached_adapter_brings_its_model(tmp_path: Path) -> None:
    model = network()
    adapter = lorimer.attach(model, registry.get("method", "dora")(rank=2), ["linear", "conv"])
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    found = lorimer.to_lora(adapter, error=1e-9)
    assert difference(effects(found.state), effects(adapter.state())) <= 1e-7
    lorimer.write(found.state, tmp_path / "plain", dtype=torch.float32)
    assert lorimer.read(tmp_path / "plain").method == "lora"
    lorimer.merge(model)
    with pytest.raises(StateError):
        lorimer.to_lora(adapter, rank=2)


def test_what_needs_to_be_said() -> None:
    dora = trained(registry.get("method", "dora")(rank=2), 7, ["linear"])
    with pytest.raises(UsageError, match="give the base model"):
        lorimer.to_lora(dora, rank=2)
    with pytest.raises(UsageError, match="how much to keep"):
        lorimer.to_lora(dora, model=network())
    with pytest.raises(TargetError, match="the model has no 'linear'"):
        lorimer.to_lora(dora, rank=2, model=torch.nn.Sequential(torch.nn.Linear(12, 9)))
    broken = replace(dora, layers=trained(seed=8).layers, method="lora")
    broken.layers["grouped"].tensors["A"][0, 0, 0, 0] = math.nan
    with pytest.raises(LorimerError, match="'grouped': tensor 'A' holds NaN"):
        lorimer.resize(broken, rank=1)


def test_a_report_for_people_and_programs() -> None:
    found = lorimer.resize(STATE, rank=2)
    assert "4 layers, rank 2;" in str(found) and "least true" in str(found)
    facts = json.loads(json.dumps(found.as_dict()))
    assert facts["layers"]["conv"]["rank_before"] == 4 and 0 < facts["error"] < 1


@given(out=some.integers(1, 9), into=some.integers(1, 9), rank=some.integers(1, 12), seed=some.integers(0, 9))
@settings(max_examples=30, deadline=None)
def test_factored_svd_is_the_svd(out: int, into: int, rank: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    up, down = (torch.randn(s, generator=generator, dtype=torch.float64) for s in ((out, rank), (rank, into)))
    U, S, V = factored_svd(up, down)
    assert torch.allclose(S, torch.linalg.svdvals(up @ down)[: len(S)], atol=1e-9)
    assert torch.allclose(U * S @ V, up @ down, atol=1e-9)
    left, right = split((U, S, V), len(S))
    assert torch.allclose(left @ right, up @ down, atol=1e-9)


def test_the_randomised_decomposition_is_nearly_the_best() -> None:
    """On a falling spectrum: within a thousandth of the best error of that rank, as power steps promise."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.linalg.qr(torch.randn(700, 600, generator=generator))[0] for _ in range(2))
    values = 1 / torch.arange(1.0, 601.0)
    matrix = left * values @ right.T
    U, S, V = randomised_svd(matrix, 20)
    best = values[20:].norm()
    assert (matrix - U * S @ V).norm() <= 1.001 * best
    assert torch.allclose(S, values[:20], rtol=1e-3)
    for keep in (Keep(rank=20), Keep(energy=0.9), Keep(error=0.4), EVERYTHING):
        found = dense_svd(matrix, keep)[1]
        count = keep.count(found, values.square().sum().item())
        assert count is not None
        if keep.share is not None:
            assert values[count:].norm() / values.norm() <= math.sqrt(1 - keep.share) + 1e-3
    assert len(dense_svd(matrix, Keep(energy=0.9))[1]) < 200  # a part was enough


def test_ranks_that_measure_spread() -> None:
    assert math.isclose(effective_rank(torch.ones(5)), 5.0, rel_tol=1e-6)
    assert math.isclose(stable_rank(torch.ones(5)), 5.0, rel_tol=1e-6)
    assert math.isclose(effective_rank(torch.tensor([3.0, 0.0])), 1.0, rel_tol=1e-6)
    assert effective_rank(torch.zeros(3)) == stable_rank(torch.zeros(3)) == 0.0
