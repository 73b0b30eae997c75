"""Which methods cannot go onto which layers, beside those whose kind of parameter they do not take.

Every pair that stands here is tested to be refused by one clear error that leaves the model untouched; every
pair that does not is tested to work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import lorimer
from lorimer.adapters._base import Method
from lorimer.adapters.lora import LoRA
from tests.contracts.layer_cases import LayerCase

_NO_BIAS = {"linear-square-no-bias", "conv-5x3-stride", "conv2d-transposed-groups"}


def _has_no_bias(case: LayerCase) -> bool:
    return case.name in _NO_BIAS or not case.called or case.name.startswith("embedding")


def _has_groups(case: LayerCase) -> bool:
    return getattr(case.make(), "groups", 1) != 1


def _is_not_cut_by(block_size: int) -> Callable[[LayerCase], bool]:
    """Whether an adapted matrix's columns do not divide into blocks of that size."""

    def refuses(case: LayerCase) -> bool:
        model = case.model(torch.float32)
        layers = lorimer.attach(model, LoRA(rank=1), case.targets).state().layers.values()
        return any(layer.tensors["A"].flatten(1 + layer.stacked).shape[-1] % block_size for layer in layers)

    return refuses


# Label of the method -> whether it refuses a layer, and why.
_REFUSES: dict[str, Callable[[LayerCase], bool]] = {
    "lora+bias": _has_no_bias,  # nothing to train
    "ia3+input": _has_groups,  # an input is no column of the weight
    "oft": _is_not_cut_by(3),
    "oft+series": _is_not_cut_by(2),
}


def is_refused(label: str, method: Method, case: LayerCase) -> bool:
    """Whether the method is declared not to go onto the layer."""
    return case.kind not in method.kinds or _REFUSES.get(label, lambda case: False)(case)
