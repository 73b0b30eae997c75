"""Whose forward a layer runs: torch's own, its subclass's, or one that somebody put on the object itself.

A quick path takes the place of a forward that is the product with the weight and nothing else. Any other (a
scaled embedding's, a weight-standardised convolution's) must run as it is and be given adapted parameters
when it reads them.
"""

from __future__ import annotations

from types import MethodType

from torch import nn

from lorimer.layers.geometry import Geometry

# Where the forwards are defined that a fused kernel may take the place of.
_FUSIBLE = {"torch.nn.modules.linear", "torch.nn.modules.conv"}
# Where those are defined that are just the product with the weight, so that an update may be added to it.
_PRODUCTS = _FUSIBLE | {
    "torch.nn.modules.sparse",
    "transformers.pytorch_utils",
    "lorimer.layers.int8_base",
}
# Attributes in which a bound forward may stand on a layer: accelerate's hooks, which spread a model over
# several devices, put their own at `forward` and keep the layer's at `_old_forward`.
_ON_OBJECT = ("_old_forward", "forward")


def runs_product(layer: nn.Module, cls: type[nn.Module], geometry: type[Geometry]) -> bool:
    """Whether a layer whose own class is `cls` gives W x + b and nothing else when it is called."""
    kept = next((layer.__dict__[name] for name in _ON_OBJECT if name in layer.__dict__), None)
    replaced = kept is not None and getattr(kept, "__func__", None) is not type(layer).forward
    return not replaced and (geometry.quantised or cls.forward.__module__ in _PRODUCTS)


def fusible(cls: type[nn.Module]) -> bool:
    """Whether a fused kernel may take the place of the forward of a class; any other (a quantised layer's,
    somebody's subclass) is run as it is."""
    return cls.forward.__module__ in _FUSIBLE


def become(layer: nn.Module, cls: type[nn.Module]) -> None:
    """Give a layer another class; bound copies of its forward that stand on the object follow."""
    former = type(layer).forward
    layer.__class__ = cls
    for name in _ON_OBJECT:
        if getattr(layer.__dict__.get(name), "__func__", None) is former:
            layer.__dict__[name] = MethodType(cls.forward, layer)
