"""How checkpoint files lay out the tensors of a model's components.

A single-file checkpoint has the names of the code that the model was first written in, and that code joins
tensors which diffusers keeps apart:

    parameter      transformer: transformer_blocks.3.attn.to_k.weight
    in the file    model.diffusion_model.double_blocks.3.img_attn.qkv.weight, its rows 3072 to 6144

A `Layout` says this for one component. From it and the shapes of the component's parameters follows what
each tensor of a file holds, which is all that loading, merging and extracting need.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from lorimer.families._names import ComponentNames, Rule

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class Held:
    """One parameter within a tensor of a file.

    Attributes:
        name: the parameter's name in its component.
        shape: the parameter's.
        begin: the first of the tensor's rows that it takes.
        rows: how many the tensor has; None where it is this parameter alone.
        transposed: the tensor is its transpose.
        halves_swapped: its two halves stand in the opposite order.
    """

    name: str
    shape: tuple[int, ...]
    begin: int = 0
    rows: int | None = None
    transposed: bool = False
    halves_swapped: bool = False

    def read(self, tensor: Tensor) -> Tensor:
        """The parameter's value out of the file's tensor.

        Raises:
            ValueError: the tensor is of another shape.
        """
        value = tensor.mT if self.transposed else tensor
        if self.rows is not None and value.shape[:1] == (self.rows,):
            value = value[self.begin : self.begin + self.shape[0]]
        if self.halves_swapped:
            value = _swapped(value)
        if _without_kernel(value.shape) != _without_kernel(self.shape):
            raise ValueError(f"is {tuple(tensor.shape)} in the file, the model needs {self.shape}")
        return value.reshape(self.shape)

    def write(self, tensor: Tensor, value: Tensor) -> None:
        """Put the parameter's value into its place in the file's tensor."""
        place = tensor.mT if self.transposed else tensor
        if self.shape:
            place = place[self.begin : self.begin + self.shape[0]]
        place.copy_((_swapped(value) if self.halves_swapped else value).reshape(place.shape))


@dataclass(frozen=True)
class Layout:
    """How one component's tensors are called in checkpoint files.

    Attributes:
        prefixes: what all its keys may begin with; "" where the component has a file of its own.
        rules: its native layers; without rules, all names are diffusers' or transformers' own.
        tensors: rules for tensors that are not "weight" or "bias" of a layer: whole names.
        level: what own names have before them, unless they begin so already, e.g. "text_model.".
        transposed: native tensors that are kept transposed.
        convolutions: ends of the keys of matrices that are kept as convolutions of kernel 1.
    """

    prefixes: tuple[str, ...]
    rules: tuple[Rule, ...] = ()
    tensors: tuple[Rule, ...] = ()
    level: str = ""
    transposed: frozenset[str] = frozenset()
    convolutions: tuple[str, ...] = ()

    def held(self, shapes: Shapes) -> dict[str, tuple[Held, ...]]:
        """Native key, without its prefix -> the parameters that such a tensor holds, by their rows.

        Args:
            shapes: of the component's parameters.

        Raises:
            ValueError: a parameter has no name in this layout.
        """
        parts: dict[str, dict[int, Held]] = {}
        for name, shape in shapes.items():
            key, part, swapped = self._native(name)
            held = Held(name, shape, 0, None, key in self.transposed, swapped and _two_matrices(name, shapes))
            parts.setdefault(key, {})[part] = held
        return {key: tuple(_stacked(by_part)) for key, by_part in parts.items()}

    def prefix_in(self, keys: Iterable[str], native: Iterable[str]) -> tuple[str, int]:
        """The prefix under which most of the `native` keys are among `keys`, and how many those are."""
        keys, native = set(keys), list(native)
        counts = {prefix: sum(prefix + key in keys for key in native) for prefix in self.prefixes}
        best = max(counts, key=lambda prefix: counts[prefix])
        return best, counts[best]

    def _native(self, name: str) -> tuple[str, int, bool]:
        """(key, which part of it, whether its halves may be swapped) of a parameter."""
        if not self.rules:
            return (name if not self.level or name.startswith(self._tops) else self.level + name), 0, False
        whole = self._whole.place(name)
        if whole is not None:
            return whole.native, whole.part, whole.halves_swapped
        path, _, leaf = name.rpartition(".")
        place = self._layers.place(path)
        if place is None:
            raise ValueError(f"{name!r} has no name in checkpoint files")
        return f"{place.native}.{leaf}", place.part, place.halves_swapped

    @property
    def _tops(self) -> tuple[str, ...]:
        return (self.level, "text_projection.")

    @cached_property
    def _layers(self) -> ComponentNames:
        return ComponentNames("", self.rules)

    @cached_property
    def _whole(self) -> ComponentNames:
        return ComponentNames("", self.tensors)


def _stacked(parts: Mapping[int, Held]) -> Iterable[Held]:
    """The parameters of one tensor, one below the other."""
    if len(parts) == 1:
        return list(parts.values())
    stacked, begin = [], 0
    rows = sum(held.shape[0] for held in parts.values())
    for _, held in sorted(parts.items()):
        stacked.append(replace(held, begin=begin, rows=rows))
        begin += held.shape[0]
    return stacked


def _two_matrices(name: str, shapes: Shapes) -> bool:
    """Whether a layer's weight is a shift and a scale, and so has twice as many rows as columns."""
    weight = shapes.get(f"{name.rpartition('.')[0]}.weight", ())
    return len(weight) == 2 and weight[0] == 2 * weight[1]


def _swapped(value: Tensor) -> Tensor:
    first, second = value.chunk(2)
    return torch.cat([second, first])


def _without_kernel(shape: Iterable[int]) -> tuple[int, ...]:
    """A shape without the 1 x 1 at the end by which a convolution differs from a matrix, and without ones
    before: older code keeps some matrices as convolutions of kernel 1."""
    sizes = tuple(shape)
    while len(sizes) > 2 and sizes[-1] == 1:
        sizes = sizes[:-1]
    return sizes
