"""An adapter at smaller ranks, with what that costs."""

from __future__ import annotations

from torch import nn

from lorimer.adapters._state import AdapterState
from lorimer.errors import UsageError
from lorimer.ops._derived import Derived
from lorimer.ops.to_lora import to_lora


def resize(
    state: AdapterState,
    *,
    rank: int | None = None,
    energy: float | None = None,
    error: float | None = None,
    model: nn.Module | None = None,
) -> Derived:
    """The best approximation of every layer's update at a smaller rank, as plain LoRA of scale 1.

    The best there is in the Frobenius norm (Eckart & Young 1936), by QR of the factors and the singular
    values of a small matrix; the update itself is never formed. A layer that is small enough already stays
    as it is, to the bit.

    Args:
        rank: at most so much, for every layer.
        energy: per layer, the smallest rank that keeps this share of the squared singular values.
        error: per layer, the smallest rank whose relative error in the Frobenius norm stays within this;
            the same as energy = 1 - error².
        model: the base model, for methods whose update depends on its weights.

    Raises:
        UsageError: none of the three is given, or the method needs the model.
        LorimerError: the adapter holds NaN or infinity.
    """
    if rank is None and energy is None and error is None:
        raise UsageError("say how much to keep: a rank, an energy (e.g. 0.95) or an error (e.g. 0.1)")
    return to_lora(state, rank=rank, energy=energy, error=error, model=model)
