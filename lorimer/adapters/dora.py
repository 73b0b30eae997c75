"""DoRA: a magnitude around a low-rank direction (Liu et al. 2024, arXiv 2402.09353, equation 5).

    W' = m · V / ||V||       V = the direction's adapted weight, e.g. W + (alpha / rank) · B · A

m, one number per output row, starts at ||W||, so that training starts from the base model. The norm
||V|| is a constant in the backward pass (section 4.3). The direction is any additive method: "lora" is
the paper's DoRA.

With `columns` m has one number per input, as LyCORIS has it unless told `wd_on_output`; for a convolution one
per channel, the norm being taken over the kernel too.
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
_OF_COLUMNS = "column_magnitude"


@dataclass(frozen=True)
class DoRA(Method):
    """A magnitude around a direction.

    Attributes:
        rank, alpha: of the direction.
        direction: the registered name of an additive method.
        options: further fields of that method, e.g. {"start": "pissa"}; a trained bias is no direction.
        dropout, rslora: as in `LoRA`, for directions that know them.
        columns: the magnitudes are those of inputs and not of outputs.
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
        _OF_COLUMNS: {},  # dialects that have it call it as the other; see `to_dialect`
    }
    optional: ClassVar[frozenset[str]] = frozenset({_OF_COLUMNS, *(_PART + name for name in LoRA.optional)})
    fast_tensors: ClassVar[frozenset[str]] = frozenset({_PART + "B"})
    rank_axes: ClassVar[Mapping[str, int]] = {_PART + name: axis for name, axis in LoRA.rank_axes.items()}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "LORA", "use_dora": True}

    direction: str = "lora"
    options: Mapping[str, Any] = field(default_factory=dict)
    dropout: float = training_only(0.0)
    rslora: bool = training_only(False)
    columns: bool = False

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
        return frozenset({_magnitude(config), *(_PART + name for name in inner)})

    @classmethod
    def required(cls, config: Mapping[str, Any]) -> frozenset[str]:
        direction = registry.get("method", config.get("direction", "lora"))
        inner = direction.required(config.get("options", {}))
        return frozenset({_magnitude(config), *(_PART + name for name in inner)})

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        options = LoRA.config_of({path: _within(layer) for path, layer in layers.items()})
        columns = any(_OF_COLUMNS in layer.tensors for layer in layers.values())
        return {**({"options": options} if options else {}), **({"columns": True} if columns else {})}

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """PEFT keeps a convolution's magnitudes as (1, out, 1, 1), LyCORIS all of them as (out, 1, ...), and
        those of columns as (1, in, ...)."""
        columns = layer.tensors.get(_OF_COLUMNS)
        magnitude = layer.tensors["magnitude"] if columns is None else columns
        inner = LoRA.to_dialect(_within(layer), dialect)
        if "A" not in inner.tensors:  # another direction than LoRA; no dialect has names for it
            return layer
        kernel = [1] * (inner.tensors["A"].ndim - 2)
        if columns is not None and dialect != "kohya":
            raise FileFormatError(
                f"{dialect} knows no DoRA over columns. Use format 'lorimer' or 'kohya', or merge"
            )
        if dialect == "kohya":
            magnitude = magnitude.view(*((-1, 1) if columns is None else (1, -1)), *kernel)
        elif kernel:
            magnitude = magnitude.view(1, -1, *kernel)
        tensors = {_PART + name: tensor for name, tensor in inner.tensors.items()}
        return replace(inner, tensors={**tensors, "magnitude": magnitude})

    @classmethod
    def from_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        magnitude, up = layer.tensors["magnitude"], layer.tensors.get(_PART + "B")
        if up is None:
            return layer
        down = layer.tensors.get(_PART + "A")
        if dialect == "kohya" and down is not None and magnitude.shape[:2] == (1, down.shape[1]):
            rest = {name: tensor for name, tensor in layer.tensors.items() if name != "magnitude"}
            return replace(layer, tensors={**rest, _OF_COLUMNS: magnitude.flatten()})
        rows = 1 if dialect == "peft" and magnitude.ndim > 1 else 0
        if magnitude.shape[rows] != up.shape[0] or magnitude.numel() != up.shape[0]:
            raise FileFormatError(
                f"its magnitudes of shape {tuple(magnitude.shape)} do not belong to the weight's "
                f"{up.shape[0]} rows"
                + (f" or its {down.shape[1]} columns" if down is not None and dialect == "kohya" else "")
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
        self.columns = spec.down_shape[0]
        if method.columns:
            self.column_magnitude = spec.empty(self.columns)
        else:
            self.magnitude = spec.empty(spec.matrix_shape[0])

    @torch.no_grad()
    def start(self, weight: Callable[[], Tensor]) -> None:
        self.direction.start(weight)
        if self.method.columns:
            self.column_magnitude.copy_(self._column_norms(weight().to(self.column_magnitude.dtype)))
        else:
            self.magnitude.copy_(_row_norms(weight().to(self.magnitude.dtype)))

    def adapt(self, weight: Tensor) -> Tensor:
        direction = self.direction.adapt(weight)
        if self.method.columns:
            factor = self.column_magnitude / self._column_norms(direction.detach())
            return factor.repeat_interleave(direction.shape[-1] // self.columns, -1).unsqueeze(-2) * direction
        factor = self.magnitude / _row_norms(direction.detach())
        return factor.unsqueeze(-1) * direction

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        update = self.direction.low_rank()
        if update is None or strength != 1.0 or self.method.columns:
            return None
        return base.low_rank(x, update.A, update.B, update.scale, update.dropout, self.magnitude)

    def _column_norms(self, weight: Tensor) -> Tensor:
        """||W|| of each input: (..., out, in · prod(kernel)) -> (..., in)."""
        by_input = weight.unflatten(-1, (self.columns, -1)).movedim(-2, -3)
        return _row_norms(by_input.flatten(-2).contiguous())  # sums in one order, whatever the layout


def _magnitude(config: Mapping[str, Any]) -> str:
    return _OF_COLUMNS if config.get("columns") else "magnitude"


def _within(layer: LayerState) -> LayerState:
    """The direction's own part of a layer."""
    own = {name.removeprefix(_PART): t for name, t in layer.tensors.items() if name.startswith(_PART)}
    return replace(layer, tensors=own)


def _row_norms(weight: Tensor) -> Tensor:
    """||W|| of each row: (..., out, in) -> (..., out); at least the smallest normal number, so that a row of
    zeros stays one."""
    return torch.linalg.vector_norm(weight, dim=-1).clamp_min(torch.finfo(weight.dtype).tiny)
