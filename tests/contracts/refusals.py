"""Which methods cannot go onto which layers, beside those whose kind of parameter they do not take.

Every pair that stands here is tested to be refused by one clear error that leaves the model untouched; every
pair that does not is tested to work.
"""

from __future__ import annotations

from collections.abc import Callable

from lorimer.adapters._base import Method
from tests.contracts.layer_cases import LayerCase

_NO_BIAS = {"linear-square-no-bias", "conv-5x3-stride", "conv2d-transposed-groups"}


def _has_no_bias(case: LayerCase) -> bool:
    return case.name in _NO_BIAS or not case.called or case.name.startswith("embedding")


# Label of the method -> whether it refuses a layer, and why.
_REFUSES: dict[str, Callable[[LayerCase], bool]] = {
    "lora+bias": _has_no_bias,  # nothing to train
}


def is_refused(label: str, method: Method, case: LayerCase) -> bool:
    """Whether the method is declared not to go onto the layer."""
    return case.kind not in method.kinds or _REFUSES.get(label, lambda case: False)(case)
