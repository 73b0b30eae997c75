"""IA3: every output, or every input, of a layer scaled by a learned number (Liu et al. 2022,
arXiv 2205.05638, section 3.3).

    W' = diag(l) · W,  b' = l * b      on the output, l: (out,)
    W' = W · diag(l)                   on the input, l: (in,)

l starts at one. The paper scales the outputs of the key and value projections, and what enters the last
projection of each feed-forward block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from lorimer.adapters._base import Adapter, Method, WeightSpec
from lorimer.errors import FileFormatError, UsageError

if TYPE_CHECKING:
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry


@dataclass(frozen=True)
class IA3(Method):
    """A learned factor for every channel.

    Attributes:
        on: "output" or "input", the side of the layer whose channels are scaled.
    """

    name: ClassVar[str] = "ia3"
    ranked: ClassVar[bool] = False
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix", "stack"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]] = {"l": {"peft": "ia3_l"}}
    peft_config: ClassVar[Mapping[str, Any] | None] = {"peft_type": "IA3"}
    peft_alpha: ClassVar[str] = ""
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset({"feedforward_modules", "init_ia3_weights"})

    rank: int = 1
    on: str = "output"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.rank != 1 or self.alpha not in (None, 1):
            raise UsageError("ia3 has no rank and no alpha; leave them out")
        if self.on not in ("output", "input"):
            raise UsageError(f"on must be 'output' or 'input', not {self.on!r}")

    @classmethod
    def layer_config(cls, layer: LayerState, config: Mapping[str, Any]) -> dict[str, Any]:
        """A file of another program may hold both kinds; beside a matrix the shape tells which it is."""
        shape = layer.tensors["l"].shape[layer.stacked :]
        if len(shape) != 2 or shape[0] == shape[1]:  # beside a convolution, or a single channel
            return dict(config)
        return {**config, "on": "output" if shape[1] == 1 else "input"}

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        return {"feedforward_modules": targets if config.get("on") == "input" else []}

    @classmethod
    def from_peft_options(
        cls, options: Mapping[str, Any], layers: Mapping[str, LayerState]
    ) -> dict[str, Any]:
        on_input, targets = options.get("feedforward_modules"), options.get("target_modules")
        if not on_input or on_input == targets:
            return {"on": "input"} if on_input else {}
        if any(layer.tensors["l"].ndim > 2 for layer in layers.values()):
            raise FileFormatError(
                "feedforward_modules are a part of its convolutions; load and merge it in PEFT"
            )
        return {}

    def build(self, spec: WeightSpec) -> IA3Adapter:
        return IA3Adapter(self, spec)


class IA3Adapter(Adapter):
    """l for one weight, in the shape that PEFT gives it: a column on a matrix's output, a row on its input,
    and (1, channels, 1, ...) beside a convolution."""

    method: IA3

    def __init__(self, method: IA3, spec: WeightSpec) -> None:
        super().__init__()
        self.method, self.stack = method, spec.stack
        self.on_output = method.on == "output"
        if not self.on_output and spec.groups != 1:
            raise UsageError(
                f"with {spec.groups} groups an input is no column of the weight; set on='output', "
                "or exclude the layer"
            )
        self.repeats = math.prod(spec.down_shape[1:])  # columns of the weight's matrix for each input
        channels = spec.matrix_shape[0] if self.on_output else spec.down_shape[0]
        if spec.up_shape:
            self.l = spec.empty(1, channels, *spec.up_shape)
        else:
            self.l = spec.empty(*((channels, 1) if self.on_output else (1, channels)))

    def start(self, weight: Callable[[], Tensor]) -> None:
        nn.init.ones_(self.l)

    def adapt(self, weight: Tensor) -> Tensor:
        values = self._values()
        if self.on_output:
            return values.unsqueeze(-1) * weight
        return weight * values.repeat_interleave(self.repeats, -1).unsqueeze(-2)

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        return self._values() * bias if bias is not None and self.on_output else bias

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        if not x.is_floating_point():  # token numbers; an embedding has rules of its own for gradients
            return None
        factor = 1 + strength * (self._values() - 1)
        if self.on_output:
            return scale_channels(base.output(x), factor, base.channel_axis)
        return base.output(scale_channels(x, factor, base.channel_axis))

    def _values(self) -> Tensor:
        """l as (channels,), or (stack, channels)."""
        return self.l.reshape(*self.stack, -1)


def scale_channels(x: Tensor, factor: Tensor, axis: int) -> Tensor:
    """x with each channel, counted along `axis` from the end, times its `factor` (channels,), which is not
    rounded to the type of x before."""
    return (x * factor.view(-1, *[1] * (-1 - axis))).to(x.dtype)
