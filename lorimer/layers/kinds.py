"""Which geometry a layer's parameter has. The one place that lists the supported layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lorimer.layers.convolution import ConvolutionGeometry, TransposedConvolutionGeometry
from lorimer.layers.embedding import EmbeddingGeometry
from lorimer.layers.geometry import Geometry
from lorimer.layers.linear import LinearGeometry, TransposedLinearGeometry, is_hugging_face_conv1d
from lorimer.layers.parameters import (
    MatrixGeometry,
    OtherGeometry,
    StackGeometry,
    TransposedStackGeometry,
    VectorGeometry,
)
from lorimer.layers.quantised import QuantisedLinearGeometry, is_quantised

_Accepts = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool]

# How messages call a layer -> what it looks like, and its geometry. The first that accepts a layer counts.
_CALLED: dict[str, tuple[_Accepts, type[Geometry]]] = {
    "Linear (bitsandbytes 4-bit, 8-bit, torchao)": (
        lambda layer: isinstance(layer, nn.Linear) and is_quantised(layer),
        QuantisedLinearGeometry,
    ),
    "Linear": (nn.Linear, LinearGeometry),
    "Conv1d/2d/3d": ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvolutionGeometry),
    "ConvTranspose1d/2d/3d": (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        TransposedConvolutionGeometry,
    ),
    "Embedding": (nn.Embedding, EmbeddingGeometry),
    "Hugging Face Conv1D": (is_hugging_face_conv1d, TransposedLinearGeometry),
}
_READ = ["MultiheadAttention", "LSTM/GRU/RNN", "experts", "any other module with a weight of its own"]


def geometry_of(layer: nn.Module) -> type[Geometry] | None:
    """The geometry of the `weight` of a layer that is called; None for other types, whose parameters are
    read."""
    for accepts, geometry in _CALLED.values():
        if isinstance(layer, accepts) if isinstance(accepts, type | tuple) else accepts(layer):
            return geometry
    return None


def parameter_geometry(owner: nn.Module, parameter: str) -> type[Geometry]:
    """The geometry of a parameter that is read, told by its number of axes. Owners of stacks that keep them
    as (stack, in, out) say so by an attribute `is_transposed`, as transformers' experts do."""
    stack = TransposedStackGeometry if getattr(owner, "is_transposed", False) is True else StackGeometry
    by_axes: dict[int, type[Geometry]] = {1: VectorGeometry, 2: MatrixGeometry, 3: stack}
    weight = owner._parameters[parameter]
    if weight is None or isinstance(weight, UninitializedParameter):
        return OtherGeometry
    return by_axes.get(weight.ndim, OtherGeometry)


def read_weights(layer: nn.Module) -> list[tuple[nn.Module, str]]:
    """(owner, parameter) of the weights that a layer reads by itself when it runs: a packed projection's, a
    recurrent layer's, its experts'. [] for a layer that is called, or that has none."""
    if isinstance(layer, nn.MultiheadAttention):
        return [*_present(layer, _ATTENTION), (layer.out_proj, "weight")]
    if geometry_of(layer) is not None:
        return []
    if isinstance(layer._parameters.get("weight"), nn.Parameter):
        return [(layer, "weight")]
    return _present(layer, [name for name in layer._parameters if "bias" not in name], axes=(2, 3))


_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


def _present(
    layer: nn.Module, names: list[str] | tuple[str, ...], axes: tuple[int, ...] = (2,)
) -> list[tuple[nn.Module, str]]:
    """Those of a layer's parameters that it has, with so many axes; a stack of one is no stack."""
    found = {name: weight for name in names if (weight := layer._parameters.get(name)) is not None}
    return [
        (layer, name)
        for name, weight in found.items()
        if not isinstance(weight, UninitializedParameter)
        and weight.ndim in axes
        and not (weight.ndim == 3 and len(weight) == 1)
    ]


def why_unusable(layer: nn.Module, parameter: str) -> str | None:
    """Why a parameter cannot be adapted, for a message that begins with its path; None where it can."""
    weight = layer._parameters.get(parameter)
    if isinstance(weight, UninitializedParameter):
        return "has no weight yet; run the model once before attaching"
    if weight is None:
        return "computes its weight (a parametrization such as weight_norm); nothing can be merged into it"
    if type(weight).__name__ == "Params4bit" and not is_quantised(layer):
        return "is not quantised yet; move the model to its device before attaching"
    plain = weight.is_floating_point() and weight.element_size() > 1  # 8-bit floats need a scale
    if not plain and geometry_of(layer) is not QuantisedLinearGeometry:
        return f"holds its weight as {str(weight.dtype).removeprefix('torch.')}, which cannot be adapted"
    if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.max_norm is not None:
        return "rewrites its own rows when it is used (max_norm), so it cannot stay frozen; set max_norm=None"
    return None


def supported_layers() -> list[str]:
    """Names of the layer types that can be adapted, for messages."""
    return [*_CALLED, *_READ]
