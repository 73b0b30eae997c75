"""Frozen layers whose own product is computed in 8-bit integers, under whatever adapters they have.

Another class is put in place of the layer's own, below the host where there is one:

    AdaptedInt8Linear(CalledHost, Int8Linear)     y = int8 product + bias, then the adapters' exact updates
             └─ .weight                           as it was: saved, merged and handed on exactly

Which layers: those of exactly the class `nn.Linear` or `nn.Conv2d` (a quantised or otherwise special one has
its own way to multiply) with at least `SMALLEST` inputs and outputs; below, quantising an input costs more
than the product saves. Convolutions only on the CPU, ungrouped, of stride 1 (see `int8_conv`). A layer is
exact all the same while its weight is trained, under `torch.compile`, and where a method needs the adapted
weight itself, as DoRA does.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lorimer.errors import UsageError, suggest
from lorimer.kernels.int8 import Int8Weight, fits, int8_linear
from lorimer.kernels.int8_conv import Int8Convolution, fits_convolution, int8_conv
from lorimer.layers.host import Host, put_below_host

T = TypeVar("T")
PRECISIONS = ("exact", "int8")
SMALLEST = 128
_COPY = "_lorimer_int8"  # a plain attribute of the layer, in no list of torch's


def set_base_precision(model: nn.Module, precision: str) -> list[str]:
    """Compute the frozen base of `model` in "int8", or in its own precision again ("exact").

    May be called before or after adapters are attached; weights, files and merging are untouched.

    Returns: paths of the layers that are now in int8, [] for "exact".

    Raises:
        UsageError: no precision of that name, or no layer of the model can be computed so.
    """
    if precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UsageError(
            f"no base precision is called {precision!r}.{suggest(precision, PRECISIONS)} Known: {known}"
        )
    copies: dict[tuple[int, object], KeptCopy] = {}  # layers that share a weight share its copy
    for layer in model.modules():
        own = _own_class(layer)
        if precision == "exact" and own in _EXACT:
            put_below_host(layer, _EXACT[own])
            del layer.__dict__[_COPY]
        elif precision == "int8" and own in _INT8 and _is_worthwhile(layer):
            put_below_host(layer, _INT8[own])
            layer.__dict__[_COPY] = copies.setdefault(
                (id(layer.weight), getattr(layer, "padding", None)), KeptCopy()
            )
    found = int8_layers(model)
    if precision == "int8" and not found:
        raise UsageError(
            f"int8 needs a plain layer of {SMALLEST} inputs and outputs or more; leave the base exact"
        )
    return found


def int8_layers(model: nn.Module) -> list[str]:
    """Paths of the layers whose base is computed in int8."""
    return [path for path, layer in model.named_modules() if _own_class(layer) in _EXACT]


class Int8Linear(nn.Linear):
    """A Linear that multiplies with an int8 copy of its weight while that is frozen."""

    def forward(self, input: Tensor) -> Tensor:  # named as in torch, where callers may use the keyword
        weight = self._parameters["weight"]
        assert weight is not None
        # The compiler cannot look whether the copy is still that of the weight, and traces what is right.
        if weight.requires_grad or torch.compiler.is_compiling():
            return super().forward(input)
        kept: KeptCopy = self.__dict__[_COPY]
        return int8_linear(input, kept.of(weight, Int8Weight.of), self.bias)


class Int8Conv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self._parameters["weight"]
        assert weight is not None
        if weight.requires_grad or torch.compiler.is_compiling() or input.dim() != 4:
            return super().forward(input)
        padding: Any = self.padding
        kept: KeptCopy = self.__dict__[_COPY]
        return int8_conv(input, kept.of(weight, lambda now: Int8Convolution.of(now, padding)), self.bias)


_INT8: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: Int8Linear, nn.Conv2d: Int8Conv2d}
_EXACT = {int8: exact for exact, int8 in _INT8.items()}


class KeptCopy:
    """The int8 copy of a weight, made when it is first needed and again when the weight has changed.

    It stays out of copies and pickles of its layer, which make their own.
    """

    def __init__(self) -> None:
        self._copy: Any = None
        self._seen: tuple[weakref.ref[Tensor], int, int] | None = None

    def of(self, weight: Tensor, make: Callable[[Tensor], T]) -> T:
        """What `make` makes of the weight as it is now."""
        version = 0 if weight.is_inference() else weight._version
        seen = (weakref.ref(weight), version, weight.data_ptr())  # `.data = ...` leaves the version alone
        if self._copy is None or seen != self._seen:
            self._copy, self._seen = make(weight), seen
        copy: T = self._copy
        return copy

    def __deepcopy__(self, memo: Any) -> KeptCopy:
        return KeptCopy()

    def __reduce__(self) -> tuple[type[KeptCopy], tuple[()]]:
        return KeptCopy, ()


def _own_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer without its host."""
    return layer.adapted_class if isinstance(layer, Host) else type(layer)


def _is_worthwhile(layer: nn.Module) -> bool:
    weight = layer._parameters["weight"]
    return (
        isinstance(weight, Tensor)
        and not isinstance(weight, nn.parameter.UninitializedParameter)
        and weight.is_floating_point()
        and min(weight.shape[:2]) >= SMALLEST
        and (fits_convolution(layer) if isinstance(layer, nn.Conv2d) else fits(weight))
    )
