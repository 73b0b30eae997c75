"""Any mergeable adapter as plain LoRA."""

from __future__ import annotations

from torch import nn

from lorimer.adapters._state import AdapterState
from lorimer.attachment.attached import AttachedAdapter
from lorimer.ops._derived import Derived
from lorimer.ops._spectrum import Keep
from lorimer.ops._updates import plain_state, updates_of


def to_lora(
    adapter: AdapterState | AttachedAdapter,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    model: nn.Module | None = None,
) -> Derived:
    """The same updates as plain LoRA of scale 1, which every program reads.

    Exact where the method's update is a product of factors (rsLoRA, AdaLoRA, LoHa; LoRA that counts from a
    start, at twice its rank). Other updates (DoRA, IA3, OFT) depend on the weight that they change: `model`
    gives it, and a truncated singular value decomposition the factors. Plain LoRA stays as it is, to the bit.
    What was trained in full is kept.

    Args:
        adapter: from memory or a file, or as attached, which then brings its model along.
        rank, energy, error: how much to keep, see `lorimer.resize`; by default everything, which only the
            exact methods allow.
        model: the base model.

    Raises:
        UsageError: the method needs the model, or to be told how much to keep.
        TargetError: the model lacks a layer, or LoRA cannot adapt it.
        LorimerError: the adapter holds NaN or infinity, or gives no weights at all.
    """
    if isinstance(adapter, AttachedAdapter):
        state, model = adapter.state(), adapter.model
    else:
        state = adapter
    layers, changes = {}, {}
    for path, update, change in updates_of(state, model, Keep(rank, energy, error)):
        layers[path], changes[path] = update.layer(), change
    return Derived(plain_state(state, layers), changes)
