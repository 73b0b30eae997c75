"""Several adapters as one: weighted combinations of their updates.

Combined are the updates ΔW = W' - W themselves, not the factors: a weighted sum of factors would hold
products of one adapter's A with another's B, and would weigh adapters of other ranks, alphas or scaling
rules wrongly.

how       Δ is                                                                           exact
cat       Σ wᵢ Δᵢ, the factors side by side; the ranks add up                            yes
linear    Σ wᵢ Δᵢ at the smallest rank that holds it                                     yes, or as told
svd       the same at the largest rank among the adapters                                nearest of that rank
ties      trimmed, with elected signs (Yadav et al. 2023, arXiv 2306.01708)              nearest of that rank
dare      entries dropped at random, the others scaled up (Yu et al. 2023, 2311.03099)   nearest of that rank
prune     Σ wᵢ · (the largest entries of Δᵢ)                                             nearest of that rank
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState, LayerState, ParameterState
from lorimer.errors import LorimerError, UsageError, suggest
from lorimer.ops._derived import Derived, LayerChange
from lorimer.ops._spectrum import Keep
from lorimer.ops._updates import Update, approximated, compressed, plain_state, require_finite, updates_of
from lorimer.ops.inspect import update_norm

_FACTORED = ("cat", "linear", "svd")
_Contribution = tuple[float, Update]


def compose(
    states: Sequence[AdapterState],
    weights: Sequence[float],
    how: str = "linear",
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    density: float = 0.5,
    seed: int = 0,
    full: str = "refuse",
    model: nn.Module | None = None,
) -> Derived:
    """One adapter that does what several do together, each with a weight (of any sign, or zero).

    A layer that only some of them adapt gets the contributions of those. `compose([a], [1])` is `a`, to the
    bit.

    Args:
        how: see `lorimer.ops.compose`.
        rank, energy, error: how much of each layer's result to keep, see `lorimer.resize`; not with "cat".
        density: share of the entries of each update that "ties", "dare" and "prune" keep.
        seed: of the entries that "dare" drops; the same for a layer whatever other layers there are.
        full: parameters that were trained in full are values, not updates: "refuse" takes one that a single
            adapter of weight 1 brings along and refuses all else, "average" takes the weighted mean of those
            that hold it, "drop" leaves them out.
        model: the base model, for methods whose update depends on its weights.

    Raises:
        UsageError: the adapters are of different models, or the arguments cannot mean anything.
        LorimerError: an adapter or the result holds NaN or infinity.
    """
    keep = Keep(rank, energy, error)
    _check(states, weights, how, density, keep)
    if len(states) == 1 and weights[0] == 1 and how in _FACTORED and keep.everything and full == "refuse":
        return _alone(states[0])
    gathered = _gather(states, weights, model)
    layers: dict[str, LayerState] = {}
    changes: dict[str, LayerChange] = {}
    for path, contributions in gathered.items():
        generator = torch.Generator().manual_seed(seed ^ zlib.crc32(path.encode()))
        update, changes[path] = _combined(contributions, how, keep, density, generator)
        layers[path] = update.layer()
        if not all(torch.isfinite(tensor).all() for tensor in layers[path].tensors.values()):
            raise LorimerError(f"{path!r}: the combination is beyond what {update.dtype} can hold")
    components = tuple(dict.fromkeys(name for state in states for name in state.components))
    parameters = _combined_full(states, weights, full)
    like = replace(states[0], metadata=_shared_metadata(states))
    return Derived(plain_state(like, layers, components=components, full=parameters), changes)


def ties(updates: Sequence[Tensor], weights: Sequence[float], density: float, _: torch.Generator) -> Tensor:
    """TIES merging (arXiv 2306.01708, algorithm 1) of updates of one shape: trim each to its largest entries,
    elect the sign of the larger total, and take the mean of the entries that agree with it."""
    trimmed = torch.stack([w * largest_entries(u, density) for w, u in zip(weights, updates, strict=True)])
    agreeing = trimmed * (trimmed.sign() == trimmed.sum(0).sign())
    return agreeing.sum(0) / (agreeing != 0).sum(0).clamp_min(1)


def dare(
    updates: Sequence[Tensor], weights: Sequence[float], density: float, generator: torch.Generator
) -> Tensor:
    """DARE (arXiv 2311.03099, equation 3): keep each entry with probability `density`, scaled by 1 / density,
    so that the expectation is the plain weighted sum."""
    total = torch.zeros_like(updates[0])
    for weight, update in zip(weights, updates, strict=True):
        kept = torch.rand(update.shape, generator=generator, dtype=torch.float64) < density
        total += weight / density * update * kept
    return total


def prune(updates: Sequence[Tensor], weights: Sequence[float], density: float, _: torch.Generator) -> Tensor:
    """The weighted sum of each update's largest entries."""
    total = torch.zeros_like(updates[0])
    for weight, update in zip(weights, updates, strict=True):
        total += weight * largest_entries(update, density)
    return total


def largest_entries(update: Tensor, density: float) -> Tensor:
    """The share `density` of the entries that is largest in magnitude, zero elsewhere."""
    count = max(1, math.ceil(density * update.numel()))
    chosen = update.abs().flatten().topk(count, sorted=False).indices
    kept = torch.zeros_like(update).flatten()
    kept[chosen] = update.flatten()[chosen]
    return kept.view_as(update)


_Dense = Callable[[Sequence[Tensor], Sequence[float], float, torch.Generator], Tensor]
_DENSE: Mapping[str, _Dense] = {"ties": ties, "dare": dare, "prune": prune}
WAYS = (*_FACTORED, *_DENSE)


def _check(
    states: Sequence[AdapterState], weights: Sequence[float], how: str, density: float, keep: Keep
) -> None:
    if not states or len(states) != len(weights):
        raise UsageError(f"every adapter needs one weight: {len(states)} adapters, {len(weights)} weights")
    if not all(math.isfinite(weight) for weight in weights):
        raise UsageError(f"weights must be finite numbers, not {list(weights)}")
    if how not in WAYS:
        raise UsageError(f"no way to combine is called {how!r}.{suggest(how, WAYS)} Known: {', '.join(WAYS)}")
    if how == "cat" and not keep.everything:
        raise UsageError("'cat' keeps everything; to keep less, combine with 'linear' or 'svd'")
    if not 0 < density <= 1:
        raise UsageError(f"density must be a share above 0 and at most 1, not {density!r}")
    if len({bool(state.components) for state in states}) > 1:
        raise UsageError("some of the adapters are for a model of several parts, and some for a plain one")
    families = {state.metadata["family"] for state in states if "family" in state.metadata}
    if len(families) > 1:
        raise UsageError(
            f"the adapters are for models of different families ({', '.join(sorted(families))}), which have "
            "no layers in common"
        )


def _alone(state: AdapterState) -> Derived:
    """A single adapter as it is; nothing is converted where nothing is combined."""
    changes = {}
    for path, layer in state.layers.items():
        require_finite(path, layer.tensors)
        changes[path] = LayerChange(layer.rank, layer.rank, update_norm(state, path) or 0.0, 0.0)
    return Derived(state, changes)


def _gather(
    states: Sequence[AdapterState], weights: Sequence[float], model: nn.Module | None
) -> dict[str, list[_Contribution]]:
    """Path -> the weighted updates that meet there, those of weight zero left out if there are others."""
    gathered: dict[str, list[_Contribution]] = {}
    for state, weight in zip(states, weights, strict=True):
        for path, update, _ in updates_of(state, model, whole=True):
            others = gathered.setdefault(path, [])
            if others and others[0][1].shape != update.shape:
                raise UsageError(
                    f"{path!r} is of shape {others[0][1].shape} in one adapter and {update.shape} in "
                    "another; they are for different models"
                )
            others.append((weight, update))
    return {path: [each for each in found if each[0]] or found[:1] for path, found in gathered.items()}


def _combined(
    contributions: Sequence[_Contribution], how: str, keep: Keep, density: float, generator: torch.Generator
) -> tuple[Update, LayerChange]:
    """One layer's combination, in at most the rank that is asked for."""
    weights, updates = [weight for weight, _ in contributions], [update for _, update in contributions]
    if how != "linear" and how != "cat" and keep.everything:
        keep = Keep(rank=max(update.rank for update in updates))
    if how in _FACTORED:
        beside = _beside(contributions)
        lossless = how == "cat" or beside.exact is not None
        return compressed(beside, Keep(error=0.0) if not lossless and keep.everything else keep)
    dense = _DENSE[how]([update.dense() for update in updates], weights, density, generator)
    bias = _summed_bias(contributions)
    return approximated(dense, keep, like=updates[0], bias=bias, dtype=_widest(updates))


def _beside(contributions: Sequence[_Contribution]) -> Update:
    """Σ wᵢ Δᵢ with the factors side by side, exactly."""
    (weight, first), *others = contributions
    if not others and weight == 1:
        return first
    up = torch.cat([weight * update.up for weight, update in contributions], -1)
    down = torch.cat([update.down for _, update in contributions], -2)
    dtype = _widest([update for _, update in contributions])
    return replace(first, up=up, down=down, bias=_summed_bias(contributions), dtype=dtype, exact=None)


def _summed_bias(contributions: Sequence[_Contribution]) -> Tensor | None:
    """Σ wᵢ Δbᵢ over those that change the bias; pruning would only harm so few numbers."""
    changes = [weight * update.bias for weight, update in contributions if update.bias is not None]
    return sum(changes[1:], changes[0]) if changes else None


def _widest(updates: Sequence[Update]) -> torch.dtype:
    dtype = updates[0].dtype
    for update in updates[1:]:
        dtype = torch.promote_types(dtype, update.dtype)
    return dtype


def _combined_full(
    states: Sequence[AdapterState], weights: Sequence[float], full: str
) -> dict[str, ParameterState]:
    """What was trained in full, after the rule `full`."""
    if full not in ("refuse", "average", "drop"):
        raise UsageError(f"full must be 'refuse', 'average' or 'drop', not {full!r}")
    holders: dict[str, list[tuple[float, ParameterState]]] = {}
    for state, weight in zip(states, weights, strict=True):
        for name, parameter in state.full.items() if full != "drop" else ():
            holders.setdefault(name, []).append((weight, parameter))
    if full == "average":
        return {name: _average(name, held) for name, held in holders.items()}
    for name, held in holders.items():
        if len(held) > 1 or held[0][0] != 1:
            raise UsageError(
                f"{name!r} was trained in full, so it is a value that has no weighted sum; "
                "take the weighted mean with full='average', or leave it out with full='drop'"
            )
    return {name: held[0][1] for name, held in holders.items()}


def _average(name: str, held: Sequence[tuple[float, ParameterState]]) -> ParameterState:
    """The weighted mean of a parameter over the adapters that hold it."""
    total, first = sum(weight for weight, _ in held), held[0][1]
    if total <= 0:
        raise UsageError(f"{name!r}: the weights of the adapters that hold it sum to {total:g}: no mean")
    if any((each.rows, each.value.shape) != (first.rows, first.value.shape) for _, each in held):
        raise UsageError(f"{name!r} is of different rows or shapes in the adapters: no mean")
    mean = torch.zeros_like(first.value, dtype=torch.float64)
    for weight, each in held:
        mean += weight / total * each.value.double()
    return ParameterState(mean.to(first.value.dtype), first.rows)


def _shared_metadata(states: Sequence[AdapterState]) -> dict[str, str]:
    """The facts that all adapters agree on, such as the base model; and the family where any tells it."""
    first, *others = (state.metadata for state in states)
    shared = {key: value for key, value in first.items() if all(each.get(key) == value for each in others)}
    families = [each["family"] for each in (first, *others) if "family" in each]
    return {**shared, "family": families[0]} if families else shared
