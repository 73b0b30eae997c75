"""Merging live adapters into the weights, and taking them out again, bit for bit.

Merging never subtracts: the original weight is kept aside and copied back.
"""

from __future__ import annotations

import torch
from torch import nn

from lorimer.attachment.attach import detach
from lorimer.attachment.attached import require_live
from lorimer.errors import LorimerError, StateError
from lorimer.layers.host import (
    Host,
    Site,
    folded_parameter,
    sites,
    slots_of,
    stash_host,
    unstash_host,
)


@torch.no_grad()
def merge(model: nn.Module, *, keep_original: bool = True) -> None:
    """Fold all live adapters, at their strengths, into the weights; the forward pass is plain again.

    Afterwards the model has no trace of lorimer in its modules' classes, parameters or state dict.

    Args:
        keep_original: keep the original weights of adapted layers aside so that `unmerge` can restore
            them. Without, memory is spared and the adapters are gone.

    Raises:
        StateError: nothing is attached, or it is merged already.
        LorimerError: an adapter is not mergeable, or a merged weight would hold NaN or infinity. The model
            is untouched.
    """
    require_live(model)
    present = sites(model)
    if not present:
        raise StateError("no adapter is attached to this model; there is nothing to merge")
    for site in present.values():
        _check_mergeable(site)
    layers = {id(site.layer): site.layer for site in present.values()}
    for layer in layers.values():
        slots = slots_of(layer)
        assert slots is not None
        merged = {name: folded_parameter(layer, name) for name in _changed(layer)}
        for name, value in merged.items():
            parameter = layer._parameters[name]
            assert parameter is not None
            if keep_original:
                slots.originals[name] = parameter.detach().clone()
            parameter.copy_(value)
        if keep_original:
            stash_host(layer)
    if not keep_original:
        detach(model)


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
        for name, value in slots.originals.items():
            layer._parameters[name].copy_(value)  # type: ignore[union-attr]
        slots.originals = {}
        unstash_host(layer)


def _changed(layer: nn.Module) -> list[str]:
    """The parameters of a layer that its adapters may change: a weight's adapter may change the bias too."""
    slots = slots_of(layer)
    assert slots is not None
    names = list(slots.parameters_slots())
    beside = ["bias"] if names == ["weight"] and layer._parameters.get("bias") is not None else []
    return names + beside


def _check_mergeable(site: Site) -> None:
    for name in site.slots.active:
        if not site.slots[name].method.mergeable:
            raise LorimerError(
                f"{site.path}: a {site.slots[name].method.name} adapter ({name!r}) cannot be merged"
            )
    for name in _changed(site.layer):
        if not torch.isfinite(folded_parameter(site.layer, name)).all():
            raise LorimerError(
                f"{site.path}: merging would write NaN or infinity; the model is left as it was"
            )
