"""Combining adapters: what comes out does to the weights what the parts do, weighed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor, nn

import lorimer
from lorimer import registry
from lorimer.adapters._state import AdapterState, ParameterState
from lorimer.adapters.lora import LoRA
from lorimer.errors import LorimerError, UsageError
from lorimer.ops import compose as ways
from tests.tolerances import SAME_ALGEBRA, SAME_NETWORK_OUTPUT, relative_difference
from tests.unit.ops.adapters import EVERY, combination, difference, effects, network, same_bits, trained

METHODS = [
    LoRA(rank=2),
    LoRA(rank=3, alpha=7.0, rslora=True),
    LoRA(rank=1, alpha=-2.0),
]
PLAIN = [trained(method, seed) for seed, method in enumerate(METHODS)]
TRUTH = [effects(state) for state in PLAIN]
weights = some.lists(some.sampled_from([-1.5, -1.0, 0.0, 0.25, 1.0, 2.0]), min_size=3, max_size=3)


@given(weights=weights, how=some.sampled_from(["cat", "linear"]))
@settings(max_examples=15, deadline=None)
def test_exact_ways_add_up_the_updates(weights: list[float], how: str) -> None:
    """Whatever the ranks, alphas and scaling rules; zero and negative weights too."""
    found = lorimer.compose(PLAIN, weights, how)
    assert difference(effects(found.state), combination(TRUTH, weights)) <= SAME_ALGEBRA
    assert found.error <= SAME_ALGEBRA


@given(weights=weights)
@settings(max_examples=5, deadline=None)
def test_order_does_not_matter(weights: list[float]) -> None:
    forward = lorimer.compose(PLAIN, weights).state
    backward = lorimer.compose(PLAIN[::-1], weights[::-1]).state
    assert difference(effects(forward), effects(backward)) <= SAME_ALGEBRA


@pytest.mark.parametrize("how", ["cat", "linear", "svd"])
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_one_adapter_of_weight_one_is_itself(how: str, method: str) -> None:
    state = trained(registry.get("method", method)(rank=2, alpha=3.0), targets=["linear", "conv"])
    assert same_bits(lorimer.compose([state], [1.0], how).state, state)


def test_an_adapter_less_itself_is_nothing() -> None:
    found = lorimer.compose([PLAIN[0], PLAIN[0]], [1.0, -1.0]).state
    assert {layer.rank for layer in found.layers.values()} == {1}
    assert all(change.abs().max() < 1e-12 for change in effects(found).values())


def test_linear_takes_no_more_rank_than_there_is() -> None:
    doubled = lorimer.compose([PLAIN[0], PLAIN[0]], [1.0, 1.0]).state
    assert {layer.rank for layer in doubled.layers.values()} == {2}
    stacked = lorimer.compose([PLAIN[0], PLAIN[0]], [1.0, 1.0], "cat").state
    assert {layer.rank for layer in stacked.layers.values()} == {4}


@pytest.mark.parametrize("how", ["linear", "svd"])
def test_a_smaller_rank_is_the_best_of_that_rank(how: str) -> None:
    """Against the singular values of the dense sum (Eckart & Young), and the error is the true one."""
    found = lorimer.compose(PLAIN, [1.0, 0.5, -1.0], how, rank=2)
    change, truth = effects(found.state), combination(TRUTH, [1.0, 0.5, -1.0])
    for path in ("linear", "conv"):
        dense = truth[f"{path}.weight"].flatten(1)
        best = torch.linalg.svdvals(dense)[2:].norm() / dense.norm()
        lost = (change[f"{path}.weight"].flatten(1) - dense).norm() / dense.norm()
        assert math.isclose(lost.item(), best.item(), rel_tol=1e-6)
        assert math.isclose(found.layers[path].error, best.item(), rel_tol=1e-6)


def test_layers_that_only_some_adapt() -> None:
    one, other = trained(seed=3, targets=["linear", "conv"]), trained(seed=4, targets=["conv", "embedding"])
    for how in ("cat", "linear", "svd"):
        found = lorimer.compose([one, other], [0.5, 2.0], how, rank=None if how != "svd" else 6)
        assert set(found.state.layers) == {"linear", "conv", "embedding"}
        wanted = combination([effects(one), effects(other)], [0.5, 2.0])
        assert difference(effects(found.state), wanted) <= SAME_ALGEBRA
    for how in ("ties", "dare", "prune"):
        assert set(lorimer.compose([one, other], [1, 1], how).state.layers) == {"linear", "conv", "embedding"}


def test_biases_add_up_scale_included() -> None:
    with_bias = trained(LoRA(rank=2, alpha=6.0, bias=True), 5, ["linear", "conv"])
    wanted = combination([effects(with_bias), TRUTH[1]], [0.5, -1.0])
    assert wanted["linear.bias"].norm() > 0
    for how in ("cat", "linear"):
        assert difference(
            effects(lorimer.compose([with_bias, PLAIN[1]], [0.5, -1.0], how).state), wanted
        ) <= (SAME_ALGEBRA)


@pytest.mark.parametrize("how", ["cat", "linear"])
def test_methods_mix(how: str) -> None:
    """A start that the update counts from; a method that needs the model."""
    shifted = trained(LoRA(rank=2, start="pissa"), 6, ["linear", "conv"])
    dora = trained(registry.get("method", "dora")(rank=2, alpha=3.0), 7, ["linear", "conv"])
    wanted = combination([effects(shifted), effects(dora)], [2.0, -0.5])
    found = lorimer.compose([shifted, dora], [2.0, -0.5], how, model=network())
    assert difference(effects(found.state), wanted) <= SAME_ALGEBRA
    with pytest.raises(UsageError, match="give the base model"):
        lorimer.compose([shifted, dora], [2.0, -0.5])


class Experts(nn.Module):
    """Weights of three experts in one parameter."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.weights = nn.Parameter(torch.randn(3, 5, 4, dtype=torch.float64))


@pytest.mark.parametrize("how", ["linear", "cat", "svd", "dare"])
def test_stacks_of_matrices(how: str) -> None:
    """Each matrix for itself, at one rank for all."""
    states = []
    for seed in (1, 2):
        adapter = lorimer.attach(Experts(), LoRA(rank=2, alpha=3.0), "weights")
        torch.manual_seed(seed)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        states.append(adapter.state())
    found = lorimer.compose(states, [1.0, -0.5], how, density=1.0, rank=None if how != "dare" else 4)

    def change(state: AdapterState) -> Tensor:
        model = Experts()
        lorimer.attach_state(model, state)
        lorimer.merge(model)
        return model.weights.detach() - Experts().weights.detach()

    wanted = change(states[0]) - 0.5 * change(states[1])
    lost = (change(found.state) - wanted).norm() / wanted.norm()
    assert math.isclose(lost.item(), found.error, abs_tol=1e-7)
    assert (found.error > 0.01) == (how == "svd")


@pytest.mark.parametrize("how", ["cat", "svd"])
def test_the_same_as_peft_where_peft_is_right(how: str, tmp_path: Path) -> None:
    """Positive weights, plain LoRA, alpha as it likes."""
    from peft import PeftModel

    def plain() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7))

    states = []
    for name, method in (("a", LoRA(rank=3, alpha=4.0)), ("b", LoRA(rank=2, alpha=1.0))):
        adapter = lorimer.attach(plain(), method)
        for parameter in adapter.parameters():
            nn.init.normal_(parameter, std=0.4)
        states.append(adapter.state())
        lorimer.save(adapter, tmp_path / name)
    x = torch.randn(4, 12)
    theirs = PeftModel.from_pretrained(plain(), tmp_path / "a", adapter_name="a")
    theirs.load_adapter(tmp_path / "b", adapter_name="b")
    options = {"svd_rank": 2} if how == "svd" else {}
    theirs.base_model.add_weighted_adapter(["a", "b"], [0.7, 0.4], "c", combination_type=how, **options)
    theirs.set_adapter("c")
    ours = plain()
    rank = 2 if how == "svd" else None
    lorimer.attach_state(ours, lorimer.compose(states, [0.7, 0.4], how, rank=rank).state)
    assert relative_difference(ours(x), theirs(x)) <= SAME_NETWORK_OUTPUT


@pytest.mark.parametrize("how", ["ties", "dare", "prune"])
def test_dense_ways_at_full_density_and_rank(how: str) -> None:
    """With nothing dropped, pruning and DARE are the weighted sum, and one adapter's TIES is that adapter."""
    parts, shares = (PLAIN, [1.0, -0.5, 2.0]) if how != "ties" else (PLAIN[:1], [1.5])
    found = lorimer.compose(parts, shares, how, density=1.0, rank=8)
    wanted = combination([effects(each) for each in parts], shares)
    assert difference(effects(found.state), wanted) <= 1e-6
    again = lorimer.compose(parts, shares, how, density=1.0, rank=8)
    assert same_bits(found.state, again.state)


def test_ties_elects_and_averages() -> None:
    """The example of the paper's figure 1: trim, elect, mean of those that agree."""
    first, second = torch.tensor([[4.0, -3.0, 0.1, 2.0]]), torch.tensor([[-1.0, -5.0, 6.0, 0.2]])
    found = ways.ties([first, second], [1.0, 1.0], 0.75, torch.Generator())
    assert torch.equal(found, torch.tensor([[4.0, -4.0, 6.0, 2.0]]))


@given(density=some.sampled_from([0.1, 0.5, 0.9, 1.0]), seed=some.integers(0, 100))
@settings(max_examples=20, deadline=None)
def test_the_largest_entries_are_kept(density: float, seed: int) -> None:
    update = torch.randn(6, 7, generator=torch.Generator().manual_seed(seed))
    kept = ways.largest_entries(update, density)
    chosen = kept != 0
    assert chosen.sum() == math.ceil(density * 42)
    assert torch.equal(kept[chosen], update[chosen])
    assert density == 1.0 or update[chosen].abs().min() >= update[~chosen].abs().max()


def test_dare_is_the_sum_on_average() -> None:
    """Over many draws the mean comes near the plain sum: within 5 standard errors."""
    update = torch.ones(20, 500, dtype=torch.float64)
    found = ways.dare([update], [2.0], 0.25, torch.Generator().manual_seed(0))
    assert set(found.unique().tolist()) == {0.0, 8.0}
    assert abs(found.mean().item() - 2.0) < 5 * 2.0 * math.sqrt(3 / update.numel())


def test_dare_draws_by_layer_not_by_order() -> None:
    """Other layers, fewer or in another order, leave what is dropped in a layer as it was."""
    whole = lorimer.compose(PLAIN, [1, 1, 1], "dare", seed=3).state.layers["conv"]
    parts = [replace(each, layers={"conv": each.layers["conv"]}) for each in PLAIN]
    alone = lorimer.compose(parts, [1, 1, 1], "dare", seed=3).state.layers["conv"]
    other = lorimer.compose(parts, [1, 1, 1], "dare", seed=4).state.layers["conv"]
    assert torch.equal(whole.tensors["A"], alone.tensors["A"])
    assert not torch.equal(other.tensors["A"], alone.tensors["A"])


def test_precision_stays() -> None:
    halves = [trained(LoRA(rank=2), seed, dtype=torch.float32) for seed in (1, 2)]
    found = lorimer.compose(halves, [1.0, 1.0])
    assert {x.dtype for layer in found.state.layers.values() for x in layer.tensors.values()} == {
        torch.float32
    }


def in_full(value: float, weight_of: AdapterState) -> AdapterState:
    return replace(weight_of, full={"linear.bias": ParameterState(torch.full((9,), value))})


def test_values_trained_in_full() -> None:
    one, other = in_full(1.0, PLAIN[0]), in_full(4.0, PLAIN[1])
    kept = lorimer.compose([one, PLAIN[1]], [1.0, 0.5]).state.full["linear.bias"].value
    assert torch.equal(kept, torch.ones(9))
    for parts, shares in (([one, other], [1, 1]), ([one, PLAIN[1]], [0.5, 1])):
        with pytest.raises(UsageError, match="trained in full"):
            lorimer.compose(parts, shares)
    mean = lorimer.compose([one, other], [1.0, 2.0], full="average").state.full["linear.bias"].value
    assert torch.equal(mean, torch.full((9,), 3.0))
    assert not lorimer.compose([one, other], [1.0, 2.0], full="drop").state.full
    longer = replace(other, full={"linear.bias": ParameterState(torch.ones(4), rows=(0, 1, 2, 3))})
    for parts, shares in (([one, other], [1.0, -1.0]), ([one, longer], [1.0, 1.0])):
        with pytest.raises(UsageError, match="no mean"):
            lorimer.compose(parts, shares, full="average")


def test_components_and_facts() -> None:
    def part(name: str, state: AdapterState, **facts: str) -> AdapterState:
        layers = {f"{name}.{path}": layer for path, layer in state.layers.items()}
        return replace(state, layers=layers, components=(name,), metadata={"base_model": "b", **facts})

    found = lorimer.compose(
        [part("unet", PLAIN[0], title="x"), part("text_encoder", PLAIN[1], title="y")], [1, 1]
    ).state
    assert found.components == ("unet", "text_encoder")
    assert len(found.layers) == 2 * len(EVERY)
    assert found.metadata == {"base_model": "b"}
    with pytest.raises(UsageError, match="several parts"):
        lorimer.compose([part("unet", PLAIN[0]), PLAIN[1]], [1, 1])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([], []), {}, "one weight"),
        ((PLAIN, [1.0]), {}, "3 adapters, 1 weights"),
        ((PLAIN[:1], [math.nan]), {}, "finite"),
        ((PLAIN[:1], [1.0]), {"how": "tie"}, "Did you mean 'ties'"),
        ((PLAIN[:1], [1.0]), {"how": "cat", "rank": 2}, "'cat' keeps everything"),
        ((PLAIN[:1], [1.0]), {"density": 0.0}, "density"),
        ((PLAIN[:1], [1.0]), {"rank": 0}, "rank"),
        ((PLAIN[:1], [1.0]), {"energy": 1.5}, "energy"),
        ((PLAIN[:1], [2.0]), {"full": "maybe"}, "full must be"),
    ],
)
def test_what_cannot_be_meant(
    arguments: tuple[list[AdapterState], list[float]], options: dict[str, object], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        lorimer.compose(*arguments, **options)  # type: ignore[arg-type]


def test_adapters_of_other_models() -> None:
    wide = replace(PLAIN[0], layers={"linear": PLAIN[0].layers["conv"]})
    with pytest.raises(UsageError, match="different models"):
        lorimer.compose([PLAIN[1], wide], [1, 1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("count", [1, 2])
def test_broken_adapters_are_refused(bad: float, count: int) -> None:
    state = trained(seed=9)
    state.layers["conv"].tensors["B"].view(-1)[3] = bad
    with pytest.raises(LorimerError, match="'conv': tensor 'B' holds NaN or infinity"):
        lorimer.compose([state, PLAIN[0]][:count], [1.0, 1.0][:count])


def test_a_combination_beyond_the_precision_is_refused() -> None:
    half = trained(LoRA(rank=1), dtype=torch.float32, targets=["linear"])
    tensors: dict[str, Tensor] = {name: x.half() for name, x in half.layers["linear"].tensors.items()}
    half = replace(half, layers={"linear": replace(half.layers["linear"], tensors=tensors)})
    with pytest.raises(LorimerError, match=r"beyond what torch\.float16 can hold"):
        lorimer.compose([half], [1e30], "cat")


def test_adapters_of_different_families_are_not_mixed() -> None:
    one, other, silent = (trained(seed=seed) for seed in (1, 2, 3))
    one.metadata["family"], other.metadata["family"] = "sd1", "sdxl"
    with pytest.raises(UsageError, match="different families"):
        lorimer.compose([one, other], [1, 1])
    assert lorimer.compose([silent, one], [1, 1]).state.metadata["family"] == "sd1"
