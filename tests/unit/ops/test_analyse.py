"""Figures of updates that are known: spectra, ranks, norms, angles, collisions."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn

import lorimer
from lorimer import registry
from lorimer.adapters._state import AdapterState, LayerState
from lorimer.adapters.lora import LoRA
from lorimer.errors import LorimerError, TargetError, UsageError
from tests.unit.ops.adapters import EVERY, effects, network, trained

METHODS = [LoRA(rank=3, alpha=7.0), registry.get("method", "dora")(rank=2, alpha=5.0)]


def layer(up: Tensor, down: Tensor, alpha: float | None = None) -> AdapterState:
    """An adapter of one layer with these factors."""
    rank = up.shape[-1]
    state = LayerState(
        {"A": down.double(), "B": up.double()}, rank, float(alpha or rank), stacked=up.ndim - 2
    )
    return AdapterState("lora", {"fc": state})


def unit(*indices: int, size: int = 12) -> Tensor:
    """Columns of the identity."""
    return torch.eye(size)[:, list(indices)]


@pytest.mark.parametrize("method", METHODS, ids=["lora", "dora"])
def test_the_figures_are_those_of_the_dense_update(method: lorimer.LoRA) -> None:
    state = trained(method, 1, ["linear", "conv"])
    found, truth, base = lorimer.analyse(state, model=network()), effects(state), network().state_dict()
    for path, each in found.layers.items():
        dense = truth[f"{path}.weight"].flatten(1)
        values = torch.linalg.svdvals(dense)
        count = len(each.spectrum)
        assert torch.allclose(torch.tensor(each.spectrum).double(), values[:count], atol=1e-9)
        assert math.isclose(each.norm, dense.norm().item(), rel_tol=1e-9)
        assert each.relative is not None
        assert math.isclose(
            each.relative, (dense.norm() / base[f"{path}.weight"].norm()).item(), rel_tol=1e-9
        )
        assert math.isclose(each.stable_rank, (values.square().sum() / values[0] ** 2).item(), rel_tol=1e-9)
        assert 1.0 <= each.effective_rank <= each.rank
    assert math.isclose(found.norm, math.hypot(*(each.norm for each in found.layers.values())))


def test_an_even_spectrum_uses_all_its_rank() -> None:
    even = lorimer.analyse(layer(unit(0, 1, 2), unit(3, 4, 5).T)).layers["fc"]
    assert math.isclose(even.effective_rank, 3.0) and math.isclose(even.stable_rank, 3.0)
    lone = lorimer.analyse(layer(unit(0, 0, 0), unit(3, 3, 3).T)).layers["fc"]
    assert lone.rank == 3 and math.isclose(lone.effective_rank, 1.0, abs_tol=1e-6)


@given(seed=some.integers(0, 1000), weight=some.sampled_from([-2.0, -1.0, 0.5, 3.0]))
@settings(max_examples=15, deadline=None)
def test_an_adapter_meets_itself(seed: int, weight: float) -> None:
    """Any multiple of it: cosine 1 or -1, everything shared, all angles zero."""
    generator = torch.Generator().manual_seed(seed)
    up, down = torch.randn(12, 3, generator=generator), torch.randn(3, 12, generator=generator)
    overlap = lorimer.analyse(layer(up, down), layer(weight * up, down)).layers["fc"].overlap
    assert overlap is not None and overlap.collides
    assert math.isclose(overlap.cosine, math.copysign(1.0, weight), rel_tol=1e-6)
    assert 0.9 <= overlap.shared <= 1.0 + 1e-9
    assert all(math.isclose(cosine, 1.0, rel_tol=1e-6) for cosine in overlap.outputs + overlap.inputs)


@pytest.mark.parametrize(
    ("other", "cosine", "outputs", "inputs", "collides"),
    [
        ((unit(2), unit(6)), 0.0, 0.0, 0.0, False),  # nothing in common
        ((unit(0), unit(6)), 0.0, 1.0, 0.0, False),  # the same outputs from other inputs
        ((unit(0), unit(5)), 1.0, 1.0, 1.0, True),
        ((-unit(0), unit(5)), -1.0, 1.0, 1.0, True),  # cancels
        ((unit(0) + unit(1), unit(5)), math.sqrt(0.5), math.sqrt(0.5), 1.0, True),
    ],
)
def test_angles_that_are_known(
    other: tuple[Tensor, Tensor], cosine: float, outputs: float, inputs: float, collides: bool
) -> None:
    overlap = lorimer.analyse(layer(unit(0), unit(5).T), layer(other[0], other[1].T)).layers["fc"].overlap
    assert overlap is not None
    assert math.isclose(overlap.cosine, cosine, abs_tol=1e-9)
    assert math.isclose(overlap.outputs[0], outputs, abs_tol=1e-9)
    assert math.isclose(overlap.inputs[0], inputs, abs_tol=1e-9)
    assert overlap.collides == collides


def test_the_cosine_is_that_of_the_dense_updates() -> None:
    one, other = trained(LoRA(rank=3, alpha=-4.0), 1), trained(LoRA(rank=2, alpha=9.0), 2)
    left, right = effects(one), effects(other)
    for path, each in lorimer.analyse(one, other).layers.items():
        a, b = left[f"{path}.weight"], right[f"{path}.weight"]
        assert each.overlap is not None
        assert math.isclose(each.overlap.cosine, ((a * b).sum() / (a.norm() * b.norm())).item(), abs_tol=1e-9)


def test_random_updates_of_a_common_size_do_not_collide() -> None:
    torch.manual_seed(0)
    states = [layer(torch.randn(512, 16), torch.randn(16, 512)) for _ in range(2)]
    found = lorimer.analyse(*states)
    assert not found.collisions and "warning" not in str(found)


def test_stacks() -> None:
    torch.manual_seed(0)
    state = layer(torch.randn(3, 5, 2), torch.randn(3, 2, 4))
    found = lorimer.analyse(state, state).layers["fc"]
    dense = state.layers["fc"].tensors["B"] @ state.layers["fc"].tensors["A"]
    assert math.isclose(found.norm, dense.norm().item(), rel_tol=1e-9)
    assert found.overlap is not None and math.isclose(found.overlap.cosine, 1.0, rel_tol=1e-9)


def test_a_report_for_people_and_programs() -> None:
    one = trained(LoRA(rank=2), 1)
    found = lorimer.analyse(one, one, model=network())
    assert list(found.collisions) and "warning: in 5 layers" in str(found)
    assert all(path in str(found) for path in EVERY)
    facts = json.loads(json.dumps(found.as_dict()))
    assert set(facts["collisions"]) == set(EVERY)
    json.dumps(lorimer.analyse(one).as_dict())


def test_fresh_adapters() -> None:
    fresh = lorimer.attach(network(), LoRA(rank=2), EVERY).state()
    found = lorimer.analyse(fresh, trained(LoRA(rank=2), 1))
    assert found.norm == 0.0 and not found.collisions
    assert {each.effective_rank for each in found.layers.values()} == {0.0}


def test_what_cannot_be_analysed() -> None:
    dora = trained(METHODS[1], 3, ["linear"])
    with pytest.raises(UsageError, match="give the base model"):
        lorimer.analyse(dora)
    with pytest.raises(UsageError, match="different models"):
        lorimer.analyse(layer(unit(0), unit(1).T), layer(unit(0), unit(1, size=9).T))
    broken = trained(seed=4)
    broken = replace(broken, layers={"conv": broken.layers["conv"]})
    broken.layers["conv"].tensors["A"].view(-1)[0] = math.inf
    with pytest.raises(LorimerError, match="NaN or infinity"):
        lorimer.analyse(broken)


def test_layers_that_only_one_adapts() -> None:
    one, other = trained(LoRA(rank=2), 1, ["linear", "conv"]), trained(LoRA(rank=2), 2, ["conv"])
    found = lorimer.analyse(one, other)
    assert found.layers["linear"].overlap is None and found.layers["conv"].overlap is not None
    assert all(path in str(found) for path in ("linear", "conv"))


def test_a_model_of_another_kind_is_refused() -> None:
    """Rather than norms without their base's."""
    adapter = lorimer.attach(nn.Sequential(nn.Linear(4, 4)), LoRA(rank=2))
    with pytest.raises(TargetError, match="the model has no '0'"):
        lorimer.analyse(adapter.state(), model=nn.ModuleDict({"other": nn.Linear(4, 4)}))
