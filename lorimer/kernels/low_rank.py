"""The low-rank update of a layer, applied on the fly: y = W x + b + scale · B (A drop(x)).

    adapted_linear, adapted_conv         the layer and its update in one step of autograd
    add_low_rank, add_low_rank_conv      the update alone, onto the output of whatever layer
    add_low_rank_rows                    the update alone, of another adapter for each row of a batch

LoRA, arXiv 2106.09685, equation 3. `dropout` is the probability with which an entry of x is dropped on its
way into A, 0 outside training. Types are those of `F.linear`: the input's, or autocast's; factors of
another type are cast. Gradients exist to the first order.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lorimer.kernels.adapted import AdaptedLayer, Call, dora_gain, with_gain
from lorimer.kernels.added import AddedUpdate
from lorimer.kernels.dropout import draw_seed
from lorimer.kernels.maps import Convolution, LayerMap, LinearMap
from lorimer.kernels.mixed_rows import add_low_rank_rows
from lorimer.kernels.plan import choose, fuses_dropout, mergeable
from lorimer.kernels.precision import autocasts, compute_dtype, own_precision, plain_ops_needed
from lorimer.kernels.rematerialise import Input, kept_form

__all__ = [
    "Convolution",
    "adapted_conv",
    "adapted_linear",
    "add_low_rank",
    "add_low_rank_conv",
    "add_low_rank_rows",
    "low_rank_product",
]

_LINEAR = LinearMap()


def low_rank_product(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """scale · B·A of shape (out, in), from A (rank, in) and B (out, rank)."""
    return (B * scale) @ A


def adapted_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """y (..., out) from x (..., in), weight (out, in), bias (out,), A (rank, in) and B (out, rank)."""
    return adapted_layer(_LINEAR, x, weight, bias, A, B, scale, dropout)


def add_low_rank(
    output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float = 0.0
) -> Tensor:
    """output (..., out) + scale · B (A drop(x)), in place of `output` outside the compiler.

    `output` must be the fresh result of a layer, which nobody needs as it was.
    """
    return _added(_LINEAR, output, x, A, B, scale, dropout)


def adapted_conv(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    convolution: Convolution,
    dropout: float = 0.0,
) -> Tensor:
    """y (batch, out, *space) from x (batch, in, *space), both also without batch; the factors' shapes as in
    `Convolution`, B (out, rank, 1, ...)."""
    if x.dim() == len(convolution.stride) + 1:
        return adapted_conv(x[None], weight, bias, A, B, scale, convolution, dropout)[0]
    return adapted_layer(convolution, x, weight, bias, A, B, scale, dropout)


def add_low_rank_conv(
    output: Tensor,
    x: Tensor,
    A: Tensor,
    B: Tensor,
    scale: float,
    convolution: Convolution,
    dropout: float = 0.0,
) -> Tensor:
    """`add_low_rank` for the output (batch, out, *space) of a convolution, also without batch."""
    if x.dim() == len(convolution.stride) + 1:
        return add_low_rank_conv(output[None], x[None], A, B, scale, convolution, dropout)[0]
    return _added(convolution, output, x, A, B, scale, dropout)


def adapted_layer(
    layer: LayerMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float = 0.0,
    magnitude: Tensor | None = None,
    norm: Tensor | None = None,
) -> Tensor:
    """A layer of any map with its update and, where magnitude and norm (out,) are given, DoRA's gain."""
    if plain_ops_needed():
        gain = None if magnitude is None or norm is None else dora_gain(magnitude, norm)
        return _plain_layer(layer, x, weight, bias, A, B, scale, dropout, gain)
    keeps_input = _trains(A, weight, magnitude)
    call = _call(layer, x, weight, A, B, scale, dropout, keeps_input)
    kept = _kept(layer, x, call.dtype) if keeps_input else None
    y: Tensor = AdaptedLayer.apply(x, weight, bias, A, B, magnitude, norm, call, kept)
    return y


def _added(
    layer: LayerMap, output: Tensor, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float
) -> Tensor:
    if plain_ops_needed():
        dtype = compute_dtype(x)
        with own_precision(x):
            return output + _update(layer, x.to(dtype), A, B.flatten(1), scale, dropout).to(output.dtype)
    keeps_input = _trains(A)
    call = _call(layer, x, None, A, B, scale, dropout, keeps_input)
    kept = _kept(layer, x, call.dtype) if keeps_input else None
    changed: Tensor = AddedUpdate.apply(output, x, A, B, call, kept)
    return changed


def _plain_layer(
    layer: LayerMap,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float,
    gain: Tensor | None,
) -> Tensor:
    """`adapted_layer` in ordinary operations."""
    dtype, casts = compute_dtype(x), autocasts(x)
    with own_precision(x):
        x = x.to(dtype)
        if casts:
            weight, bias = weight.to(dtype), None if bias is None else bias.to(dtype)
        y = layer.apply(x, weight if gain is None else layer.scaled(weight, gain), bias)
        return y + _update(layer, x, A, with_gain(B.flatten(1), gain), scale, dropout)


def _update(layer: LayerMap, x: Tensor, A: Tensor, B: Tensor, scale: float, dropout: float) -> Tensor:
    """scale · B (A drop(x)) in ordinary operations, B (out, rank)."""
    hidden = layer.apply(F.dropout(x, dropout) if dropout else x, A.to(x.dtype))
    return layer.lift(hidden * scale, B.to(x.dtype))


def _trains(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _call(
    layer: LayerMap,
    x: Tensor,
    weight: Tensor | None,
    A: Tensor,
    B: Tensor,
    scale: float,
    dropout: float,
    keeps_input: bool,
) -> Call:
    """What this application is and how it is best done. Without a weight there is nothing to merge into."""
    dtype = compute_dtype(x)
    positions, rows, columns = layer.sizes(x, A if weight is None else weight)
    plan = choose(
        positions,
        rows,
        columns,
        rank=B.shape[1],
        mergeable=weight is not None and mergeable(weight, dtype, dropout),
        trains_B=_trains(B),
        keeps_input=keeps_input,
    )
    companion = _dropping_map(layer, x, dtype, B.shape[1], dropout)
    seed = draw_seed() if dropout and companion is layer else None
    return Call(layer, companion, scale, dtype, autocasts(x), dropout, seed, plan)


def _dropping_map(layer: LayerMap, x: Tensor, dtype: torch.dtype, rank: int, dropout: float) -> LayerMap:
    """The map by which A meets x: the layer's own, or on a GPU one that draws the mask as it reads x."""
    if not (dropout and isinstance(layer, LinearMap) and x.numel() and fuses_dropout(x.device, dtype, rank)):
        return layer
    from lorimer.kernels.triton_map import DroppingLinear

    return DroppingLinear.drawn(dropout, x.device)


def _kept(layer: LayerMap, x: Tensor, dtype: torch.dtype) -> Input:
    """The form in which x is kept; a convolution mixes pixels, so scales do not commute with it."""
    return kept_form(x, scales=isinstance(layer, LinearMap) and x.dtype == dtype)
