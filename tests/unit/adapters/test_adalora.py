"""AdaLoRA: its update and its rank allocation, against PEFT's and the paper's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import pytest
import torch
from peft import AdaLoraConfig, get_peft_model
from torch import nn

import lorimer
from lorimer import registry
from lorimer.adapters._rank_allocator import RankAllocator, Schedule, schedule, survivors, triplet_scores
from lorimer.errors import UsageError
from tests.tolerances import SAME_OUTPUT, relative_difference

AdaLoRA = registry.get("method", "adalora")
TRUE = torch.tensor(True)
RANK, ALPHA = 6, 9.0


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 10), nn.Tanh(), nn.Linear(10, 5))


def attached(model: nn.Module, **fields: Any) -> lorimer.AttachedAdapter:
    torch.manual_seed(3)
    return lorimer.attach(model, AdaLoRA(rank=RANK, alpha=ALPHA, **fields))


def allocator(adapter: lorimer.AttachedAdapter, steps: int, **fields: Any) -> RankAllocator:
    method = AdaLoRA(rank=RANK, alpha=ALPHA, **fields)
    return cast(RankAllocator, method.controller(adapter.layers, steps))


def living(adapter: lorimer.AttachedAdapter) -> int:
    return sum(int((each.E != 0).sum()) for each in adapter.layers.values())  # type: ignore[operator]


def set_gradients(adapter: lorimer.AttachedAdapter, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in adapter.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)


def fill(adapter: lorimer.AttachedAdapter, seed: int = 1) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))


def theirs(adapter: lorimer.AttachedAdapter, **fields: Any) -> Any:
    """PEFT's AdaLoRA with the same tensors."""
    config = AdaLoraConfig(init_r=RANK, lora_alpha=ALPHA, target_modules=["0", "2"], **fields)
    model = get_peft_model(net(), config)
    with torch.no_grad():
        for path, each in adapter.layers.items():
            layer = model.base_model.model.get_submodule(path)
            for name in ("A", "E", "B"):
                getattr(layer, f"lora_{name}")["default"].copy_(getattr(each, name))
    return model


def their(model: Any, path: str, name: str) -> nn.Parameter:
    return cast(nn.Parameter, getattr(model.base_model.model.get_submodule(path), f"lora_{name}")["default"])


def test_the_update_is_pefts() -> None:
    model = net()
    adapter = attached(model)
    fill(adapter)
    other = theirs(adapter, total_step=10)
    for path, each in adapter.layers.items():
        weight = model.get_submodule(path).weight.detach()
        delta = other.base_model.model.get_submodule(path).get_delta_weight("default")
        mend = (RANK + 1e-5) / RANK  # PEFT divides by a little more than the rank
        assert relative_difference(each.adapt(weight) - weight, delta * mend) <= SAME_OUTPUT[torch.float32]


def test_the_penalty_is_the_mean_distance_from_orthonormal() -> None:
    adapter = attached(net())
    fill(adapter)
    penalty = allocator(adapter, 10, orthogonality=0.5).penalty()
    distances = []
    for each in adapter.layers.values():
        A, B = each.A, each.B
        distances += [(A @ A.T - torch.eye(RANK)).norm(), (B.T @ B - torch.eye(RANK)).norm()]  # type: ignore[operator,union-attr]
    assert penalty is not None
    assert relative_difference(penalty, 0.5 * sum(distances) / 4) <= SAME_OUTPUT[torch.float32]  # type: ignore[arg-type]
    assert allocator(adapter, 10, orthogonality=0.0).penalty() is None


def test_allocation_is_pefts_over_a_whole_run() -> None:
    """The same tensors and gradients at every step; what lives is the same after each, and in the end."""
    steps = 20
    adapter = attached(net())
    fill(adapter)
    ours = allocator(
        adapter, steps, target_rank=2, warmup=0.2, settle=0.25, interval=3, importance_smoothing=0.8
    )
    assert (ours.schedule.first, ours.schedule.last) == (4, 15)
    other = theirs(adapter, total_step=steps, target_r=2, tinit=4, tfinal=5, deltaT=3, beta1=0.8, beta2=0.85)
    alive = []
    for done in range(1, steps + 1):
        set_gradients(adapter, seed=done)
        for path, each in adapter.layers.items():
            for name in ("A", "E", "B"):
                their(other, path, name).grad = getattr(each, name).grad.clone()
        with torch.no_grad():  # an optimiser's step, which revives what was masked
            for path, each in adapter.layers.items():
                for name in ("A", "E", "B"):
                    getattr(each, name).sub_(0.01 * getattr(each, name).grad)
                    their(other, path, name).sub_(0.01 * their(other, path, name).grad)  # type: ignore[arg-type]
        if done < ours.schedule.last:  # PEFT no longer looks at gradients in the step that settles ranks
            ours.after_step(done - 1, TRUE)
            other.base_model.update_and_allocate(done)
            for path, each in adapter.layers.items():
                assert torch.equal(their(other, path, "E") == 0, each.E == 0), done
            alive.append(living(adapter))
    assert min(alive) < 2 * RANK


def test_the_budget_falls_by_a_cubic_law_from_all_to_the_target() -> None:
    plan = schedule(100, 40, steps=1000, warmup=0.1, settle=0.3, interval=10)
    assert (plan.first, plan.last) == (100, 700)
    assert [plan.budget(done) for done in (0, 100, 700, 1000)] == [100, 100, 40, 40]
    assert plan.budget(400) == 40 + int(60 * 0.5**3)
    falls = [plan.budget(done) for done in range(1001)]
    assert falls == sorted(falls, reverse=True)
    assert not plan.allocates(95) and plan.allocates(110) and not plan.allocates(111)
    assert plan.allocates(700) and not plan.allocates(710)


def test_a_run_too_short_for_a_plan_still_ends_at_the_target() -> None:
    plan = schedule(100, 40, steps=4, warmup=0.1, settle=0.3, interval=10)
    assert plan.first == plan.last == 3 and plan.allocates(3) and plan.budget(3) == 40


def test_the_best_triplets_survive_whichever_layer_they_are_in() -> None:
    scores = [torch.tensor([[5.0], [1.0], [1.0]]), torch.tensor([[4.0], [6.0]])]
    masks = survivors(scores, 3)
    assert [mask.flatten().tolist() for mask in masks] == [[True, False, False], [True, True]]
    tied = survivors([torch.zeros(4, 1), torch.zeros(3, 1)], 5)
    assert sum(int(mask.sum()) for mask in tied) == 5  # to the number, ties or not


def test_a_triplets_score_adds_its_entry_and_the_means_of_its_vectors() -> None:
    A, E, B = (
        torch.tensor([[1.0, 3.0], [0.0, 0.0]]),
        torch.tensor([[10.0], [0.0]]),
        torch.tensor([[4.0, 8.0]]),
    )
    assert triplet_scores(A, E, B).flatten().tolist() == [16.0, 8.0]


def test_a_masked_triplet_may_come_back_until_ranks_are_settled() -> None:
    adapter = attached(net())
    each = adapter.layers["0"]
    plan = Schedule(begin=12, target=11, first=0, last=4, interval=1)
    one = RankAllocator(cast(Mapping[str, Any], adapter.layers), plan, (0.5, 0.5), 0.0)

    def step(done: int, quiet: int) -> None:
        """All triplets matter alike but one of the first layer, which matters not at all."""
        for parameter in adapter.parameters():
            parameter.data.fill_(1.0)
            parameter.grad = torch.full_like(parameter, 1.0 + done)
        for name in ("A", "E"):
            getattr(each, name).grad[quiet] = 0
        each.B.grad[:, quiet] = 0  # type: ignore[union-attr,index]
        one.after_step(done - 1, TRUE)

    step(1, quiet=3)
    assert each.E[3] == 0 and each.E[4] != 0  # type: ignore[index]
    step(3, quiet=4)
    assert each.E[3] != 0 and each.E[4] == 0  # type: ignore[index]
    step(4, quiet=4)
    with torch.no_grad():
        each.E.fill_(1.0)  # type: ignore[operator,union-attr]
    set_gradients(adapter, seed=1)
    one.after_step(4, TRUE)
    assert each.E[4] == 0 and living(adapter) == 11  # type: ignore[index]


def test_a_step_that_is_not_finite_teaches_nothing() -> None:
    adapter = attached(net())
    fill(adapter)
    one = allocator(adapter, 100)
    set_gradients(adapter, seed=1)
    one.after_step(0, TRUE)
    before = {name: value.clone() for name, value in one.tensors().items()}
    for parameter in adapter.parameters():
        parameter.grad = torch.full_like(parameter, float("nan"))
    one.after_step(1, torch.tensor(False))
    assert all(torch.equal(value, before[name]) for name, value in one.tensors().items())


def test_factors_hold_the_survivors_alone_and_are_the_update() -> None:
    model = net().double()
    adapter = attached(model)
    fill(adapter)
    with torch.no_grad():
        adapter.layers["0"].E[[0, 2, 5]] = 0  # type: ignore[index,operator]
        adapter.layers["2"].E.zero_()  # type: ignore[operator,union-attr]
    state = adapter.state()
    for path, rank in (("0", RANK - 3), ("2", 1)):  # a rank of 0 is no LoRA, so one triplet of nothing stays
        up, down = AdaLoRA.factors(state.layers[path], {})
        weight = model.get_submodule(path).weight.detach()
        assert (up.shape[1], down.shape[0]) == (rank, rank)
        update = adapter.layers[path].adapt(weight).detach() - weight
        assert relative_difference(up @ down, update) <= SAME_OUTPUT[torch.float64]


def test_a_stack_of_experts_shares_out_ranks_too() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.Parameter(torch.randn(3, 6, 5, dtype=torch.float64))

    model = Experts()
    adapter = lorimer.attach(model, AdaLoRA(rank=4), targets="up")
    fill(adapter)
    one = cast(RankAllocator, AdaLoRA(rank=4, target_rank=2).controller(adapter.layers, 10))
    assert (one.schedule.begin, one.schedule.target) == (12, 6)
    for step in range(10):
        set_gradients(adapter, seed=step)
        one.after_step(step, TRUE)
    assert living(adapter) == 6
    weight = model._parameters["up"].detach()  # type: ignore[union-attr]
    up, down = AdaLoRA.factors(adapter.state().layers["up"], {})
    update = adapter.layers["up"].adapt(weight).detach() - weight
    assert relative_difference(up @ down, update) <= SAME_OUTPUT[torch.float64]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"warmup": 0.6, "settle": 0.5}, "leave no steps"),
        ({"target_rank": 0}, "target_rank must be at least 1"),
        ({"interval": 0}, "interval must be at least 1"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1"),
    ],
)
def test_impossible_values_are_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        AdaLoRA(**fields)
