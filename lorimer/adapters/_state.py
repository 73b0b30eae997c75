"""`AdapterState`: an adapter outside any model, the neutral form that every file format reads into."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor


@dataclass
class LayerState:
    """One adapted layer: its tensors by the method's own names, in the layer's own geometry.

    For LoRA on Linear: A (rank, in), B (out, rank); on Conv2d: A (rank, in / groups, k_h, k_w),
    B (out, rank, 1, 1); on a stack of matrices (experts): A (stack, rank, in), B (stack, out, rank).

    Attributes:
        rank, alpha: scale = alpha / rank, for every method.
        groups: the convolution's; most file formats hold groups = 1 alone.
        stacked: how many leading axes of every tensor count the matrices of a stack: 0 or 1.
        kind: "layer" (the weight of a layer that is called), "embedding", or "parameter" (one that its owner
            reads by itself, such as attention's packed projection).
    """

    tensors: dict[str, Tensor]
    rank: int
    alpha: float
    groups: int = 1
    stacked: int = 0
    kind: str = "layer"

    @property
    def scale(self) -> float:
        """The factor on the layer's whole update."""
        return self.alpha / self.rank


@dataclass
class ParameterState:
    """A parameter that was trained in full: its value (same shape as the parameter), or, where `rows` is
    given, the values of those of its rows alone (indices into its first axis)."""

    value: Tensor
    rows: tuple[int, ...] | None = None


@dataclass
class AdapterState:
    """A whole adapter.

    Attributes:
        method: the method's registered name.
        config: the method's remaining fields as plain data (rank and alpha here are the defaults; what
            holds for a layer stands in its `LayerState`).
        layers: module path -> its state. In a model of several components (a picture model's U-Net and
            text encoders) the path begins with the component: "unet.down_blocks.0...". An adapted
            parameter that is not a module's `weight` has the parameter's own path:
            "encoder.self_attn.in_proj_weight".
        full: parameter path ("classifier.weight") -> what was trained in full beside the layers.
        components: the names of those components, or () for a plain model.
        metadata: facts for people and programs, as text: "base_model", "title", "trigger", "resolution",
            "steps", "seed", ... Never a path of somebody's machine.
    """

    method: str
    layers: dict[str, LayerState]
    config: dict[str, Any] = field(default_factory=dict)
    components: tuple[str, ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    full: dict[str, ParameterState] = field(default_factory=dict)
