"""Linear layers that keep their weight quantised: bitsandbytes' in 4 and 8 bits, torchao's in int8 and int4.

The layer itself runs as it is, with the update added to its output (QLoRA, arXiv 2305.14314, equation 5).
Where the weight is needed (other methods, merging) it is dequantised for that moment.
"""

from __future__ import annotations

import copy
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lorimer.layers.geometry import Geometry
from lorimer.layers.linear import LinearGeometry


class QuantisedLinearGeometry(LinearGeometry):
    """weight (out, in), whatever the shape that it is packed into."""

    dense_class: ClassVar[type[nn.Module] | None] = nn.Linear
    quantised: ClassVar[bool] = True

    @property
    def weight(self) -> Tensor:
        return dequantised(self.layer)

    def like(self) -> Tensor:
        layer = self.layer
        return torch.empty(layer.out_features, layer.in_features, dtype=plain_dtype(layer), device="meta")

    @property
    def device(self) -> torch.device:
        device: torch.device = self.layer._parameters["weight"].device
        return device

    def apply(self, weight: Tensor, bias: Tensor | None, input: Tensor, **options: Any) -> Tensor:
        bias = None if bias is None else bias.to(input.dtype)
        return F.linear(input, weight.to(input.dtype), bias)

    def output(self, x: Tensor) -> Tensor:
        """What the layer gives, which may be written into: torch lets nobody change a view that comes from
        another's step of autograd, as bitsandbytes' output for (batch, tokens, width) is one."""
        output = super().output(x)
        if torch.compiler.is_compiling() or not output._is_view():
            return output
        fresh: Tensor = torch.ops.aten._unsafe_view(output, output.shape)
        return fresh

    def low_rank(self, x: Tensor, *args: Any, **options: Any) -> Tensor | None:
        return Geometry.low_rank(self, x, *args, **options)


def is_quantised(layer: nn.Module) -> bool:
    """Told by the type of the weight, so that neither package need be installed."""
    return _packing(layer) is not None


def plain_dtype(layer: Any) -> torch.dtype:
    """The type that the weight had before it was quantised, as far as the layer knows."""
    weight = layer._parameters["weight"]
    if _packing(layer) == "4-bit":
        dtype: torch.dtype = weight.quant_state.dtype
        return dtype
    if _packing(layer) == "8-bit":  # keeps no record; LLM.int8 computes the rest in half precision
        return torch.float16 if layer.bias is None else layer.bias.dtype
    return weight.dtype


def dequantised(layer: Any) -> Tensor:
    """The weight (out, in) in its former type."""
    weight, packing = layer._parameters["weight"], _packing(layer)
    if packing == "torchao":
        plain: Tensor = weight.dequantize()
        return plain
    if packing == "8-bit":
        scales = layer.state.SCB if weight.SCB is None else weight.SCB  # absolute maximum of each row
        return (weight.data * (scales.to(weight.device) / 127).unsqueeze(1)).to(plain_dtype(layer))
    return _dequantised_4bit(weight.data, weight.quant_state)


def _dequantised_4bit(packed: Tensor, state: Any) -> Tensor:
    import bitsandbytes
    from bitsandbytes.nn.modules import _convert_weight_packed_for_cpu_inverse as unpack

    if getattr(state, "packing_format_for_cpu", False):  # another order, for processors with AVX-512 bf16
        packed, state = unpack(packed.clone(), copy.copy(state))
    plain: Tensor = bitsandbytes.functional.dequantize_4bit(packed, state)
    return plain


def _packing(layer: nn.Module) -> str | None:
    """How a layer's weight is packed; None where it is plain."""
    weight = layer._parameters.get("weight")
    name = type(weight).__name__
    if name == "Params4bit":
        return "4-bit" if weight.quant_state is not None else None  # type: ignore[union-attr]
    if name == "Int8Params":
        return None if weight.is_floating_point() else "8-bit"  # type: ignore[union-attr]
    return "torchao" if type(weight).__module__.startswith("torchao.") else None
