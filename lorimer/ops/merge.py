"""Merging live adapters into the weights, and taking them out again, bit for bit.

Merging never subtracts: a merged parameter is given other memory, and the old is kept aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lorimer.attachment.attach import thaw
from lorimer.attachment.attached import live_sites
from lorimer.errors import LorimerError, StateError
from lorimer.kernels.finite import is_finite
from lorimer.layers.host import Host, folded, forget_stash, slots_of, stash_host, unstash_host
from lorimer.layers.own_forward import become
from lorimer.layers.sites import Site
from lorimer.layers.slots import LayerSlots
from lorimer.layers.statistics import hold_statistics, release_statistics


@dataclass(frozen=True)
class MergeReport:
    """What merging did.

    Attributes:
        merged: names of the parameters that changed, as in the model's state dict.
        notes: what was done beyond that, for a person to read: a tied layer that got a weight of its own, a
            quantised one that is plain now.
    """

    merged: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join([f"{len(self.merged)} parameters merged", *self.notes])


@torch.no_grad()
def merge(model: nn.Module, *, keep_original: bool = True) -> MergeReport:
    """Fold all live adapters, at their strengths, into the weights; the forward pass is plain again.

    Afterwards the model has no trace of lorimer in its modules' classes, parameters or state dict. A weight
    that several layers share stays shared where the same adapters act on all of them; otherwise each
    adapted layer gets one of its own. A quantised layer becomes a plain one in its compute type.

    Args:
        keep_original: keep the original weights of adapted layers aside so that `unmerge` can restore
            them. Without, memory is spared and the adapters are gone.

    Raises:
        StateError: nothing is attached, or it is merged already.
        LorimerError: an adapter is not mergeable, or a merged weight would hold NaN or infinity. The model
            is untouched.
    """
    present = live_sites(model)
    if not present:
        raise StateError("no adapter is attached to this model; there is nothing to merge")
    for site in present.values():
        _require_mergeable(site)
    changes: Iterable[_Change] = _changes(model, present)
    if keep_original:
        changes = list(changes)  # all are seen to be finite before the first is written
    else:
        for _ in _changes(model, present):  # likewise, and folded again, rather than hold every weight twice
            pass
    merged, notes = [], []
    for change in changes:
        change.write(keep_original)
        merged.append(change.name)
        notes += change.notes()
        if change.sharers:
            notes += _untie(model, change.layer)
    for layer in {id(site.layer): site.layer for site in present.values()}.values():
        _make_plain(layer)
        if not keep_original:
            forget_stash(layer)
    release_statistics(model)
    if not keep_original:
        thaw(model)
    return MergeReport(tuple(merged), tuple(notes))


@torch.no_grad()
def unmerge(model: nn.Module) -> None:
    """Restore the original weights, bit for bit, and make the adapters live again.

    Raises:
        StateError: nothing is merged.
    """
    merged = [layer for layer in model.modules() if not isinstance(layer, Host) and slots_of(layer)]
    if not merged:
        raise StateError("nothing is merged into this model")
    for layer in merged:
        slots = slots_of(layer)
        assert slots is not None
        for name, original in slots.originals.items():
            _restore(layer, name, original)
        become(layer, slots.original_class or type(layer))
        for config in slots.untied:
            config.tie_word_embeddings = True
        slots.originals, slots.original_class, slots.untied = {}, None, []
        unstash_host(layer)
    hold_statistics(model)


@dataclass(frozen=True)
class _Change:
    """A parameter and what it becomes.

    Attributes:
        name: its name in the model.
        sharers: names of the same parameter in layers that do not change likewise.
        dense_class: what a layer that keeps it quantised becomes; None for a plain one.
    """

    name: str
    layer: nn.Module
    parameter: str
    value: Tensor
    sharers: tuple[str, ...]
    dense_class: type[nn.Module] | None

    def write(self, keep_original: bool) -> None:
        """Put the value in place and the original aside."""
        slots, old = slots_of(self.layer), self.layer._parameters[self.parameter]
        assert slots is not None and old is not None
        anew = self.dense_class is not None or bool(self.sharers)
        if keep_original:
            slots.originals[self.parameter] = old if anew else old.data
        if self.dense_class is not None:
            slots.original_class = self.layer.adapted_class  # type: ignore[assignment]
        if anew:
            self.layer._parameters[self.parameter] = nn.Parameter(self.value.clone(), requires_grad=False)
        else:
            old.data = _laid_out_as(old, self.value, slots)

    def notes(self) -> list[str]:
        """What a person should know of it."""
        shared = f"{self.name} was the same as {', '.join(self.sharers)}; it is a weight of its own now"
        plain = f"{self.name} was dequantised and is plain {str(self.value.dtype).removeprefix('torch.')} now"
        return [note for note, true in ((shared, self.sharers), (plain, self.dense_class)) if true]


def _make_plain(layer: nn.Module) -> None:
    """Put a merged layer's slots out of sight; one whose weight was dequantised is a plain layer now."""
    slots = slots_of(layer)
    assert slots is not None
    stash_host(layer)
    if slots.original_class is not None:
        become(layer, slots.parameters_slots()["weight"].geometry.dense_class or type(layer))


def _untie(model: nn.Module, layer: nn.Module) -> list[str]:
    """Tell transformers, which ties weights by its config when it loads, that this layer's is its own."""
    slots = slots_of(layer)
    assert slots is not None
    for module in model.modules():
        config = getattr(module, "config", None)
        if getattr(config, "tie_word_embeddings", None) is not True:
            continue
        ends = [getattr(module, f"get_{end}_embeddings", lambda: None)() for end in ("input", "output")]
        if any(end is layer for end in ends):
            slots.untied.append(config)
            config.tie_word_embeddings = False  # type: ignore[union-attr]
    return ["config.tie_word_embeddings is False now, as the weights differ"] if slots.untied else []


def _restore(layer: nn.Module, parameter: str, original: Tensor) -> None:
    """The inverse of `_Change.write`, in whatever place and precision the model is by now."""
    if isinstance(original, nn.Parameter):
        layer._parameters[parameter] = original
    else:
        merged = layer._parameters[parameter]
        assert merged is not None
        merged.data = original.to(merged.device, merged.dtype)


def _changes(model: nn.Module, present: dict[str, Site]) -> Iterator[_Change]:
    """What merging changes, one parameter after the other; one that layers share comes once where the same
    adapters act on all of them.

    Raises:
        LorimerError: a value holds NaN or infinity.
    """
    users = _users(model)
    written: set[int] = set()
    for layer in {id(site.layer): site.layer for site in present.values()}.values():
        for parameter, value in folded(layer).items():
            shared = id(layer._parameters[parameter])
            name = next(user.name for user in users[shared] if user.layer is layer)
            if not is_finite(value):
                raise LorimerError(
                    f"{name}: merging would write NaN or infinity; the model is left as it was"
                )
            acting = _acting(layer, parameter)
            others = [user for user in users[shared] if user.layer is not layer]
            unlike = tuple(user.name for user in others if _acting(user.layer, user.parameter) != acting)
            if unlike or shared not in written:
                yield _Change(name, layer, parameter, value, unlike, _dense_class(layer, parameter))
            written.add(shared)


@dataclass(frozen=True)
class _User:
    """A layer that has a parameter."""

    name: str
    layer: nn.Module
    parameter: str


def _users(model: nn.Module) -> dict[int, list[_User]]:
    """Parameter's identity -> all that have it."""
    users: dict[int, list[_User]] = {}
    for path, layer in model.named_modules():
        for name, parameter in layer._parameters.items():
            if parameter is not None:
                users.setdefault(id(parameter), []).append(_User(f"{path}.{name}".lstrip("."), layer, name))
    return users


def _acting(layer: nn.Module, parameter: str) -> list[tuple[int, float]]:
    """What acts on a parameter: (identity of an adapter, its strength) in order of activation."""
    slots = slots_of(layer)
    live = [] if slots is None else slots.live(parameter)
    return [(id(adapter), strength) for adapter, strength in live]


def _dense_class(layer: nn.Module, parameter: str) -> type[nn.Module] | None:
    """What the layer becomes where it keeps this parameter quantised; None where it does not."""
    slots = slots_of(layer)
    own = None if slots is None else slots.parameters_slots().get(parameter)
    return None if own is None else own.geometry.dense_class


def _laid_out_as(like: Tensor, value: Tensor, slots: LayerSlots) -> Tensor:
    """`value` in memory of its own, ordered as `like`."""
    is_adapters = any(
        torch._C._is_alias_of(value, parameter)  # type: ignore[attr-defined]
        for parameter in slots.parameters()
    )
    if not is_adapters and value.stride() == like.stride():
        return value
    return torch.empty_like(like).copy_(value)


def _require_mergeable(site: Site) -> None:
    for name in site.slots.active:
        if not site.slots[name].method.mergeable:
            raise LorimerError(
                f"{site.path}: a {site.slots[name].method.name} adapter ({name!r}) cannot be merged"
            )
