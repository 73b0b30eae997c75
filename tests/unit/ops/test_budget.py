"""Budgets are kept: the file is really written and weighed, the step is really run."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn

import lorimer
from lorimer import registry
from lorimer.adapters.lora import LoRA
from lorimer.errors import LorimerError, TargetError, UsageError
from lorimer.ops.budget import size_in_bytes


def network() -> nn.Module:
    """Layers of unlike sizes, one of them named as the end of another's path."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 64), nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    )


def file_size(folder: Path, model: nn.Module, plan: object, format: str, dtype: torch.dtype | None) -> int:
    """Of the adapter as a user would make and save it."""
    adapter = lorimer.attach(model, **plan.arguments())  # type: ignore[attr-defined]
    path = lorimer.save(adapter, folder / "adapter.safetensors", format=format, dtype=dtype)
    return sum(file.stat().st_size for file in (path, *path.rglob("*")) if file.is_file())


@pytest.mark.parametrize("format", ["peft", "lorimer"])
@pytest.mark.parametrize("dtype", [None, torch.float16])
@pytest.mark.parametrize("allowed", ["12 kB", "40 KB", "150 kB"])
def test_the_file_is_at_most_that_large_and_no_smaller_than_need_be(
    format: str, dtype: torch.dtype | None, allowed: str, tmp_path: Path
) -> None:
    plan = lorimer.budget(network(), bytes=allowed, format=format, dtype=dtype)
    size = file_size(tmp_path, network(), plan, format, dtype)
    assert size == plan.file_bytes
    assert limit_kept(size, size_in_bytes(allowed), plan.ranks)


def limit_kept(size: int, limit: int, ranks: dict[str, int]) -> bool:
    """At most the limit; and near it, unless no layer can have more."""
    full = ranks == {"0": 64, "2": 64, "3.0": 64, "3.1": 3}
    return size <= limit and (full or size > limit - 6_000)


@pytest.mark.parametrize("name", [name for name in registry.names("method") if name != "full"])
def test_every_method(name: str, tmp_path: Path) -> None:
    plan = lorimer.budget(network(), registry.get("method", name)(), bytes="30 kB", format="lorimer")
    assert file_size(tmp_path, network(), plan, "lorimer", None) <= 30_000


def _parameters(ranks: Mapping[str, int]) -> int:
    sides = {path: layer for path, layer in network().named_modules() if isinstance(layer, nn.Linear)}
    return sum(rank * (sides[path].in_features + sides[path].out_features) for path, rank in ranks.items())


@given(limits=some.lists(some.integers(6_000, 400_000), min_size=2, max_size=2))
@settings(max_examples=10, deadline=None)
def test_more_room_is_never_less_adapter(limits: list[int]) -> None:
    small, large = (lorimer.budget(network(), bytes=limit) for limit in sorted(limits))
    assert set(small.ranks) <= set(large.ranks)
    assert _parameters(small.ranks) <= _parameters(large.ranks)  # ranks of unlike layers do not compare
    assert max(large.ranks.values()) - min(rank for path, rank in large.ranks.items() if path != "3.1") <= 1


def test_small_budgets_leave_out_targets() -> None:
    plan = lorimer.budget(network(), bytes=4_500)
    assert plan.dropped and set(plan.ranks) | set(plan.dropped) == {"0", "2", "3.0", "3.1"}
    adapter = lorimer.attach(network(), **plan.arguments())
    assert {path: each.method.rank for path, each in adapter.layers.items()} == plan.ranks
    assert "left out" in str(plan)


def test_the_rank_of_a_layer_has_limits() -> None:
    plan = lorimer.budget(network(), bytes="10 MB", max_rank=32)
    assert plan.ranks == {"0": 32, "2": 32, "3.0": 32, "3.1": 3}


def test_nothing_fits() -> None:
    with pytest.raises(LorimerError, match="not even rank 1"):
        lorimer.budget(network(), bytes=100)
    with pytest.raises(LorimerError, match="the weights take"):
        lorimer.budget(network(), memory=1000, positions=1)


def run(model: nn.Module) -> Tensor:
    return model(torch.ones(128, 64)).square().mean()


def test_memory_is_that_of_a_real_step() -> None:
    """Weights + adapter, gradients and moments, counted tensor by tensor, + the bytes kept for backward."""
    model = network()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    plan = lorimer.budget(model, memory=weights + 700_000, run=run)
    assert plan.memory is not None and plan.memory.measured and plan.memory.weights == weights
    assert plan.memory.total <= weights + 700_000
    assert not lorimer.attached(model) and all(parameter.requires_grad for parameter in model.parameters())
    adapter = lorimer.attach(model, **plan.arguments())
    own = {parameter.data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    optimizer = torch.optim.AdamW(adapter.parameters())
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = run(model)
    assert abs(sum(kept.values()) - plan.memory.activations) <= 0.01 * plan.memory.activations
    loss.backward()
    optimizer.step()
    moments = [x for state in optimizer.state.values() for x in state.values() if x.ndim]
    grads = [parameter.grad for parameter in adapter.parameters()]
    assert plan.memory.adapter == sum(
        x.nbytes for x in [*adapter.parameters(), *grads, *moments] if x is not None
    )
    more = lorimer.budget(network(), memory=weights + 900_000, run=run)
    assert sum(more.ranks.values()) > sum(plan.ranks.values())
    assert "measured" in str(plan)


def test_without_a_step_memory_is_an_estimate_and_says_so() -> None:
    plan = lorimer.budget(network(), memory="2 MB", positions=128)
    assert plan.memory is not None and not plan.memory.measured
    assert "rough estimate" in str(plan)
    fewer = lorimer.budget(network(), memory="2 MB", positions=64)
    assert fewer.memory is not None and fewer.memory.activations < plan.memory.activations


def test_a_trial_leaves_the_random_state() -> None:
    def noisy(model: nn.Module) -> Tensor:
        return model(torch.randn(4, 64)).mean()

    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    lorimer.budget(network(), memory="2 MB", run=noisy)
    torch.manual_seed(0)
    assert torch.equal(torch.randn(3), expected)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2 MB", 2_000_000), ("2MiB", 2_097_152), ("1.5 kb", 1500), (77, 77), ("8 GB", 8 * 10**9)],
)
def test_sizes(text: int | str, size: int) -> None:
    assert size_in_bytes(text) == size


@pytest.mark.parametrize("text", ["", "MB", "-2 MB", "2 XB", 0, "two"])
def test_what_is_no_size(text: int | str) -> None:
    with pytest.raises(UsageError, match="is no size"):
        size_in_bytes(text)


def test_what_cannot_be_meant() -> None:
    for both in ({}, {"bytes": 1, "memory": 1}):
        with pytest.raises(UsageError, match="give one budget"):
            lorimer.budget(network(), **both)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="pass run="):
        lorimer.budget(network(), memory="1 GB")
    with pytest.raises(TargetError):
        lorimer.budget(network(), LoRA(), "nothing", bytes="1 MB")


def test_ranks_are_uniform_but_for_one() -> None:
    for limit in itertools.islice(range(8_000, 60_000, 7_000), 8):
        ranks = lorimer.budget(network(), bytes=limit, exclude="3.1").ranks
        assert max(ranks.values()) - min(ranks.values()) <= 1


def test_a_model_without_memory_can_be_planned_for() -> None:
    """A model too large for this machine: the same plan as with its weights at hand."""
    with torch.device("meta"):
        skeleton = network()
    assert lorimer.budget(skeleton, bytes="20 kB").ranks == lorimer.budget(network(), bytes="20 kB").ranks
    plans = [lorimer.budget(each, memory="2 MB", positions=9) for each in (skeleton, network())]
    assert plans[0].memory == plans[1].memory
