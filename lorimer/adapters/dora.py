"""DoRA: a magnitude around a low-rank direction (Liu et al. 2024, arXiv 2402.09353, equation 5).

    W' = m · V / ||V||       V = the direction's adapted weight, e.g. W + (alpha / rank) · B · A

m, one number per output row, starts at ||W||, so that training starts from the base model. The norm
||V|| is a constant in the backward pass (section 4.3). The direction is any additive method: "lora" is
the paper's DoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from lorimer import registry
from lorimer.adapters._base import Adapter, Method, WeightSpec, training_only
from lorimer.adapters.lora import LoRA
from lorimer.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry

_PART = "direction."  # what the names of the direction's tensors begin with


@dataclass(frozen=True)
class DoRA(Method):
    """A magnitude around a direction.

    Attributes:
        rank, alpha: of the direction.
        direction: the registered name of an additive method.
        options: further fields of that method, e.g. {"start": "pissa"}; a trained bias is no direction.
        dropout, rslora: as in `LoRA`, for directions that know them.
    """

    name: ClassVar[str] = "dora"
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {
        **{_PART + name: suffixes for name, suffixes in LoRA.tensors.items()},
        "magnitude": {
            "peft": "lora_magnitude_vector",
            "peft-embedding": "lora_magnitude_vector",
            "kohya": "dora_scale",
        },
    }
    optional: ClassVar[frozenset[str]] = frozenset(_PART + name for name in LoRA.optional)
    fast_tensors: ClassVar[frozenset[str]] = frozenset({_PART + "B"})
    rank_axes: ClassVar[Mapping[str, int]] = {_PART + name: axis for name, axis in LoRA.rank_axes.items()}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LORA", "use_dora": True}

    direction: str = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = training_only(0.0)
    rslora: bool = training_only(False)

    def __post_init__(self) -> None:
        super().__post_init__()
        self._direction()

    @property
    def scaled_alpha(self) -> float:
        return self._direction().scaled_alpha

    def build(self, spec: WeightSpec) -> DoRAAdapter:
        return DoRAAdapter(self, self._direction().build(spec), spec)

    @classmethod
    def known(cls, config: Mapping[str, Any]) -> frozenset[str]:
        direction = registry.get("method", config.get("direction", "lora"))
        inner = direction.known(config.get("options", {}))
        return frozenset({"magnitude", *(_PART + name for name in inner)})

    @classmethod
    def required(cls, config: Mapping[str, Any]) -> frozenset[str]:
        direction = registry.get("method", config.get("direction", "lora"))
        inner = direction.required(config.get("options", {}))
        return frozenset({"magnitude", *(_PART + name for name in inner)})

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        options = LoRA.config_of({path: _within(layer) for path, layer in layers.items()})
        return {"options": options} if options else {}

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """PEFT keeps a convolution's magnitudes as (1, out, 1, 1), LyCORIS all of them as (out, 1, ...)."""
        magnitude = layer.tensors["magnitude"]
        inner = LoRA.to_dialect(_within(layer), dialect)
        if "A" not in inner.tensors:  # another direction than LoRA; no dialect has names for it
            return layer
        kernel = [1] * (inner.tensors["A"].ndim - 2)
        if dialect == "kohya":
            magnitude = magnitude.view(-1, 1, *kernel)
        elif kernel:
            magnitude = magnitude.view(1, -1, *kernel)
        tensors = {_PART + name: tensor for name, tensor in inner.tensors.items()}
        return replace(inner, tensors={**tensors, "magnitude": magnitude})

    @classmethod
    def from_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        magnitude, up = layer.tensors["magnitude"], layer.tensors.get(_PART + "B")
        if up is None:
            return layer
        rows = 1 if dialect == "peft" and magnitude.ndim > 1 else 0
        if magnitude.shape[rows] != up.shape[0] or magnitude.numel() != up.shape[0]:
            raise FileFormatError(
                f"its magnitudes of shape {tuple(magnitude.shape)} do not belong to the weight's "
                f"{up.shape[0]} rows; DoRA over its columns is not supported, merge it in the program "
                "that made it"
            )
        return replace(layer, tensors={**layer.tensors, "magnitude": magnitude.flatten()})

    def _direction(self) -> Method:
        """The direction's own config."""
        method = registry.get("method", self.direction)
        if not method.additive or not method.ranked:
            raise UsageError(f"direction must be an additive low-rank method, and {self.direction!r} is none")
        if not isinstance(self.options, Mapping):
            raise UsageError(f"options must be a mapping, not {self.options!r}")
        training = {name: value for name in ("dropout", "rslora") if (value := getattr(self, name))}
        try:
            direction: Method = method(rank=self.rank, alpha=self.alpha, **{**training, **self.options})
        except TypeError as error:
            raise UsageError(
                f"options {dict(self.options)!r} do not fit {self.direction!r}: {error}"
            ) from error
        return direction


class DoRAAdapter(Adapter):
    """The direction's adapter and the magnitudes of the rows."""

    method: DoRA

    def __init__(self, method: DoRA, direction: Adapter, spec: WeightSpec) -> None:
        super().__init__()
        self.method = method
        self.direction = direction
        self.magnitude = spec.empty(spec.matrix_shape[0])

    @torch.no_grad()
    def start(self, weight: Callable[[], Tensor]) -> None:
        self.direction.start(weight)
        self.magnitude.copy_(_row_norms(weight().to(self.magnitude.dtype)))

    def adapt(self, weight: Tensor) -> Tensor:
        direction = self.direction.adapt(weight)
        factor = self.magnitude / _row_norms(direction.detach())
        return factor.unsqueeze(-1) * direction

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        update = self.direction.low_rank()
        if update is None or strength != 1.0:
            return None
        return base.low_rank(x, update.A, update.B, update.scale, update.dropout, self.magnitude)


def _within(layer: LayerState) -> LayerState:
    """The direction's own part of a layer."""
    own = {name.removeprefix(_PART): t for name, t in layer.tensors.items() if name.startswith(_PART)}
    return replace(layer, tensors=own)


def _row_norms(weight: Tensor) -> Tensor:
    """||W|| of each row: (..., out, in) -> (..., out); at least the smallest normal number, so that a row of
    zeros stays one."""
    return torch.linalg.vector_norm(weight, dim=-1).clamp_min(torch.finfo(weight.dtype).tiny)
