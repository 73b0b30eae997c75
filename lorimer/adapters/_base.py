"""What a method is: a frozen config that builds an `Adapter`, and an adapter that answers `adapt`.

Adding a method means adding one file beside this one. The rest of lorimer (hosts, merging, files,
training, the contract tests) works from what is declared here.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lorimer.layers.geometry import Base

MAX_RANK = 16_384  # beyond any use; a file that claims more is refused before memory is taken


@dataclass(frozen=True)
class WeightSpec:
    """What a method needs to know of the weight it will adapt.

    Attributes:
        shape: the weight's own shape, e.g. (out, in) or (out, in / groups, kernel_h, kernel_w).
        matrix_shape: (out, in) of the weight seen as a matrix, e.g. (out, in / groups * prod(kernel)).
        down_shape: shape of a rank-1 "down" factor without its leading rank, e.g. (in / groups, k_h, k_w).
        up_shape: shape of an "up" factor behind (out, rank), e.g. () for Linear, (1, 1) for Conv2d.
        dtype, device: where and in which precision the adapter's parameters are made.
    """

    shape: tuple[int, ...]
    matrix_shape: tuple[int, int]
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device


class Adapter(nn.Module, ABC):
    """One method's parameters for one weight."""

    method: Method  # the config it was built from, with rank and alpha as they hold for this weight

    @abstractmethod
    def adapt(self, weight: Tensor) -> Tensor:
        """The adapted weight W'. `weight` and the result have shape (out, in): the layer's weight as a
        matrix. Differentiable in the adapter's parameters; the truth that every other path is held to."""

    def forward(self, x: Tensor, base: Base, strength: float) -> Tensor | None:
        """The quick way to the layer's output change, or None where the weight path must be taken.

        Only additive methods may offer it. `x` is the layer's input and `base` tells the layer's
        geometry; the result is strength * (y' - y), to be added to the frozen layer's output y.
        """
        return None


@dataclass(frozen=True)
class Method(ABC):
    """The config of a method. Fields are plain data; `dataclasses.asdict` is what files carry.

    Class attributes that a method declares:
        name: how recipes and files call it. Equals the file's name with dashes for underscores.
        additive: adapt(W) - W does not depend on W, so adapters add up in any order.
        mergeable: `adapt` gives a plain weight that can stand in for the adapter.
        tensors: the adapter's tensor names -> their suffix in each file dialect, e.g.
            {"A": {"peft": "lora_A.weight", "kohya": "lora_down.weight"}}.
        fast_tensors: names of tensors that LoRA+ trains at its higher rate.
        rank_axes: tensor name -> the axis along which it has `rank` entries, so that a file's shapes tell
            the rank and are held against what its config says.
        peft_config: what tells PEFT this method, e.g. {"peft_type": "LORA"}; None where PEFT has no such
            method.
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    tensors: ClassVar[Mapping[str, Mapping[str, str]]]
    fast_tensors: ClassVar[frozenset[str]] = frozenset()
    rank_axes: ClassVar[Mapping[str, int]] = {}
    peft_config: ClassVar[Mapping[str, Any] | None] = None

    rank: int = 8
    alpha: float | None = None

    @abstractmethod
    def build(self, spec: WeightSpec) -> Adapter:
        """A fresh adapter for one weight; at start it leaves the weight as it is.

        Raises:
            UsageError: a value of the config is impossible for this weight.
        """

    @property
    def scaled_alpha(self) -> float:
        """alpha with its default filled in: alpha = rank, i.e. scale 1."""
        return float(self.rank if self.alpha is None else self.alpha)

    @classmethod
    def factors(cls, tensors: Mapping[str, Tensor], scale: float) -> tuple[Tensor, Tensor] | None:
        """(up, down), of shapes (out, rank) and (rank, in), whose product is W' - W, from tensors by the
        method's names; None where the update is no such product. `scale` is alpha / rank."""
        return None

    def with_rank(self, rank: int, alpha: float | None) -> Method:
        """The same method at another rank and alpha."""
        return dataclasses.replace(self, rank=rank, alpha=alpha)
