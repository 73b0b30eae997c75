"""Merging live adapters into the weights, and taking them out again, bit for bit.

Merging never subtracts: the original weight is kept aside and copied back.
"""

from __future__ import annotations

import torch
from torch import nn

from lorimer.attachment.attach import detach
from lorimer.attachment.attached import require_live
from lorimer.errors import LorimerError, StateError
from lorimer.layers.host import Host, folded_weight, hosts, slots_of, stash_host, unstash_host


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
    layers = {path: model.get_submodule(path) for path in hosts(model)}
    if not layers:
        raise StateError("no adapter is attached to this model; there is nothing to merge")
    for path, layer in layers.items():
        _check_mergeable(path, layer)
    for layer in layers.values():
        slots, weight = slots_of(layer), layer.weight
        assert slots is not None and isinstance(weight, nn.Parameter)
        merged = folded_weight(layer)
        if keep_original:
            slots.original = weight.detach().clone()
        weight.copy_(merged)
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
        assert slots is not None and slots.original is not None and isinstance(layer.weight, nn.Parameter)
        layer.weight.copy_(slots.original)
        slots.original = None
        unstash_host(layer)


def _check_mergeable(path: str, layer: nn.Module) -> None:
    slots = slots_of(layer)
    assert slots is not None
    for name in slots.active:
        if not slots[name].method.mergeable:
            raise LorimerError(f"{path}: a {slots[name].method.name} adapter ({name!r}) cannot be merged")
    if not torch.isfinite(folded_weight(layer)).all():
        raise LorimerError(f"{path}: merging would write NaN or infinity; the model is left as it was")
