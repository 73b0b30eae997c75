"""Which geometry a layer's parameter has. The one place that lists the supported layers."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lorimer.layers.convolution import ConvolutionGeometry, TransposedConvolutionGeometry
from lorimer.layers.embedding import EmbeddingGeometry
from lorimer.layers.geometry import Geometry
from lorimer.layers.linear import LinearGeometry, TransposedLinearGeometry, is_hugging_face_conv1d
from lorimer.layers.parameters import MatrixGeometry, OtherGeometry, StackGeometry, VectorGeometry

_Accepts = type[nn.Module] | tuple[type[nn.Module], ...] | Callable[[nn.Module], bool]

# How messages call a layer -> what it looks like, and its geometry. The first that accepts a layer counts.
_LAYERS: dict[str, tuple[_Accepts, type[Geometry]]] = {
    "Linear": (nn.Linear, LinearGeometry),
    "Conv1d/2d/3d": ((nn.Conv1d, nn.Conv2d, nn.Conv3d), ConvolutionGeometry),
    "ConvTranspose1d/2d/3d": (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
        TransposedConvolutionGeometry,
    ),
    "Embedding": (nn.Embedding, EmbeddingGeometry),
    "Hugging Face Conv1D": (is_hugging_face_conv1d, TransposedLinearGeometry),
}


def geometry_of(layer: nn.Module) -> type[Geometry] | None:
    """The geometry of a layer whose `weight` is adapted; None where its type is not supported."""
    for accepts, geometry in _LAYERS.values():
        if isinstance(layer, accepts) if isinstance(accepts, type | tuple) else accepts(layer):
            return geometry
    return None


def parameter_geometry(owner: nn.Module, parameter: str) -> type[Geometry]:
    """The geometry of a parameter that is read by its owner, told by its number of axes."""
    by_axes = {1: VectorGeometry, 2: MatrixGeometry, 3: StackGeometry}
    weight = owner._parameters[parameter]
    if weight is None or isinstance(weight, UninitializedParameter):
        return OtherGeometry
    return by_axes.get(weight.ndim, OtherGeometry)


def read_projections(layer: object) -> list[tuple[nn.Module, str]]:
    """(owner, parameter) of the weights that a layer of several of them reads by itself; [] for others."""
    if isinstance(layer, nn.MultiheadAttention):
        packed = ["in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"]
        own: list[tuple[nn.Module, str]] = [
            (layer, name) for name in packed if layer._parameters[name] is not None
        ]
        return [*own, (layer.out_proj, "weight")]
    if isinstance(layer, nn.RNNBase):
        return [(layer, name) for name in layer._parameters if name.startswith("weight")]
    return []


def supported_layers() -> list[str]:
    """Names of the layer types that can be adapted, for messages."""
    return [*_LAYERS, "MultiheadAttention", "LSTM/GRU/RNN"]
