"""Starts of LoRA that look at data, gradients or the weights before quantisation.

    adapter = lorimer.attach(model, LoRA(rank=16))
    lorimer.initialise(adapter, "eva", batches)                          # what the layers see
    lorimer.initialise(adapter, CorDA("knowledge-preserved"), batches)   # the same, and their weights
    lorimer.initialise(adapter, "lora-ga", batches, forward=loss)        # where the first gradient points
    lorimer.initialise(adapter, LoftQ(original))                         # what quantisation took

The frozen weights stay as they are, to the bit: where a start gives B·A a value, the update counts from
there (see `lorimer.adapters._starts`), and the model's output does not change. LoftQ's does, on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from lorimer.adapters._base import Adapter
from lorimer.adapters._starts import put
from lorimer.adapters.lora import LoRAAdapter
from lorimer.attachment.attached import AttachedAdapter
from lorimer.attachment.switches import disabled
from lorimer.errors import UsageError
from lorimer.layers.sites import sites
from lorimer.ops.data_starts import DataStart, Factors, Forward, Place, Run, data_start


def call(model: nn.Module, batch: Any) -> Any:
    """model(**batch), model(*batch) or model(batch), after the kind of the batch."""
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(*batch) if isinstance(batch, list | tuple) else model(batch)


def initialise(
    adapter: AttachedAdapter,
    start: str | DataStart,
    batches: Iterable[Any] = (),
    *,
    forward: Forward = call,
    rows: Callable[[Any], Tensor] | None = None,
) -> None:
    """Begin an attached LoRA anew, as data tells; what it had learned is gone.

    The model runs in evaluation mode with all adapters off. What is kept for each layer: for "eva" twice as
    many directions as its rank, for "corda" a matrix (in, in) and for "lora-ga" a matrix (out, in) on the
    CPU. Random numbers come from torch's global generator.

    Args:
        start: "eva", "corda" or "lora-ga", or one of `Eva`, `CorDA`, `LoraGA`, `LoftQ` with its options.
        batches: what the model is shown, on its device: some hundreds of examples of the task. Seen once.
        forward: (model, batch) -> anything, or the loss for "lora-ga".
        rows: batch -> a mask (batch, positions) of what counts among the inputs of layers, such as the
            attention mask of texts; inputs of other shapes count in full.

    Raises:
        UsageError: the start does not fit the adapter or the data. Nothing has changed.
        StateError: adapters are merged.
    """
    if isinstance(start, str):
        start = data_start(start)
    with disabled(adapter.model), _evaluating(adapter.model):
        places = _places(adapter, start)
        found = start.factors(places, Run(adapter.model, batches, forward, rows))
    for path, factors in found.items():
        _begin(places[path], factors, start.shifts)


def _places(adapter: AttachedAdapter, start: DataStart) -> dict[str, Place]:
    """Path -> where the adapter's LoRA is; layers that are trained in full have none."""
    present = sites(adapter.model)
    places = {}
    for path, own in adapter.layers.items():
        if own.method.replaces:
            continue
        lora = next((part for part in own.modules() if isinstance(part, LoRAAdapter)), None)
        if lora is None:
            raise UsageError(f"{path!r}: a start is for LoRA, and here is a {own.method.name} adapter")
        if lora is not own:
            _require_wrapped(start, own, lora)
        places[path] = Place(present[path], lora, wrapped=lora is not own)
    return places


def _require_wrapped(start: DataStart, outer: Adapter, lora: LoRAAdapter) -> None:
    """Raise `UsageError` where a LoRA that is a part of `outer` cannot begin so."""
    name = outer.method.name
    if not start.keeps_output:
        raise UsageError(f"start {start.name!r} changes the output, which a fresh {name} adapter must not")
    if start.shifts and not lora.method.shifted:
        raise UsageError(
            f"start {start.name!r} counts the update from B·A: attach {name} with options={{'shifted': True}}"
        )


def _begin(place: Place, factors: Factors, shifted: bool) -> None:
    """Give a LoRA its new factors; where they are fewer than its rank, the rest begins as plain LoRA."""
    lora = place.lora
    stack = factors.A.shape[:-2]
    rank = place.rank if factors.rank is None else factors.rank
    A = lora.A.new_empty(*stack, rank, factors.A.shape[-1])
    B = lora.B.new_empty(*stack, factors.B.shape[-2], rank)
    matrices = [A, B, factors.A, factors.B]
    for each in zip(*(tensor.reshape(-1, *tensor.shape[-2:]) for tensor in matrices), strict=True):
        put(*each)
    lora.begin(A, B, shifted=shifted or (place.wrapped and lora.method.shifted))


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Within this context every module is in evaluation mode; afterwards as before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
