"""What a method is: a frozen config that builds an `Adapter`, and an adapter that answers `adapt`.

Adding a method means adding one file beside this one. The rest of lorimer (hosts, merging, files,
training, the contract tests) works from what is declared here.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from lorimer.errors import UsageError

if TYPE_CHECKING:
    from lorimer.adapters._controller import Controller
    from lorimer.adapters._state import LayerState
    from lorimer.layers.geometry import Geometry

MAX_RANK = 16_384  # beyond any use; a file that claims more is refused before memory is taken

# How a field of a method is marked that matters while training and not to the finished adapter: no file
# carries it. `rank: int = training_only(8)`.
_TRAINING_ONLY = "training_only"
_DERIVED = "derived"


def training_only(default: Any) -> Any:
    """A dataclass field that does not change what a finished adapter computes."""
    return dataclasses.field(default=default, metadata={_TRAINING_ONLY: True})


def derived(default: Any) -> Any:
    """A dataclass field that follows from others or from a file's tensors, so that nobody is asked for it."""
    return dataclasses.field(default=default, metadata={_DERIVED: True})


def asked_for(field: dataclasses.Field[Any]) -> bool:
    """Whether a recipe may set a field of a method."""
    return _DERIVED not in field.metadata


@dataclass(frozen=True)
class WeightSpec:
    """What a method needs to know of the parameter it will adapt.

    Attributes:
        kind: "matrix" (one matrix), "stack" (several, e.g. the experts of a layer), or "vector" (a bias, or
            the scale of a norm, as a matrix of one column).
        shape: the parameter's own shape, e.g. (out, in) or (out, in / groups, kernel_h, kernel_w).
        stack: () or, for a stack, (number of matrices,).
        matrix_shape: (out, in) of the parameter as a matrix, e.g. (out, in / groups * prod(kernel)).
        down_shape: shape of a rank-1 "down" factor without its leading rank, e.g. (in / groups, k_h, k_w).
        up_shape: shape of an "up" factor behind (out, rank), e.g. () for Linear, (1, 1) for Conv2d.
        groups: of a convolution; 1 elsewhere.
        has_bias: whether the layer adds a bias.
        dtype, device: where and in which precision the adapter's parameters are made.
    """

    kind: str
    shape: tuple[int, ...]
    stack: tuple[int, ...]
    matrix_shape: tuple[int, int]
    down_shape: tuple[int, ...]
    up_shape: tuple[int, ...]
    groups: int
    has_bias: bool
    dtype: torch.dtype
    device: torch.device

    def empty(self, *shape: int) -> nn.Parameter:
        """A trainable tensor of `shape`, one for each matrix of a stack, not yet filled."""
        return nn.Parameter(torch.empty(*self.stack, *shape, dtype=self.dtype, device=self.device))


@dataclass(frozen=True)
class LowRankUpdate:
    """scale · B · A, as the quick paths take it.

    Attributes:
        A, B: factors in the layer's own shapes, e.g. (rank, in, k_h, k_w) and (out, rank, 1, 1).
        scale: alpha / rank.
        dropout: the share of the input that the update does not see now; 0 outside training.
    """

    A: Tensor
    B: Tensor
    scale: float
    dropout: float = 0.0


class Adapter(nn.Module, ABC):
    """One method's parameters for one weight. `Method.build` makes it with its memory unfilled; then
    either `start` or a file's tensors fill it."""

    method: Method  # the config it was built from, with rank and alpha as they hold for this weight

    @abstractmethod
    def start(self, weight: Callable[[], Tensor]) -> None:
        """Fill the tensors with their start, at which the adapted weight is the weight.

        `weight()` gives the frozen weight as a matrix (out, in), or (stack, out, in), for those methods
        that begin from it; it may be costly (a quantised base), so call it only where needed.
        """

    @abstractmethod
    def adapt(self, weight: Tensor) -> Tensor:
        """The adapted weight W'. `weight` and the result have shape (out, in), the layer's weight as a
        matrix, or (stack, out, in). Differentiable in the adapter's parameters; the truth that every other
        path is held to."""

    def adapt_bias(self, bias: Tensor | None) -> Tensor | None:
        """The adapted bias of the layer, of shape (out,); most methods leave it alone."""
        return bias

    def low_rank(self) -> LowRankUpdate | None:
        """W' - W as a product of two factors, differentiable; None where it is no such product. Methods that
        give it get their quick paths from it."""
        return None

    def forward(self, x: Tensor, base: Geometry, strength: float) -> Tensor | None:
        """The quick way to the layer's whole output y' for the input x, with this adapter alone; None where
        the weight path must be taken. At strength s: y + s (y' - y)."""
        update = self.low_rank()
        if update is not None:
            return base.low_rank(x, update.A, update.B, update.scale * strength, update.dropout)
        return self.add(x, base.output(x), base, strength) if self.method.additive else None

    def add(self, x: Tensor, output: Tensor, base: Geometry, strength: float) -> Tensor | None:
        """For additive methods: output + strength * (y' - y), which may be written into `output`; None
        where the weight path must be taken."""
        update = self.low_rank()
        if update is None:
            return None
        return base.add_low_rank(output, x, update.A, update.B, update.scale * strength, update.dropout)


@dataclass(frozen=True)
class Method(ABC):
    """The config of a method. Fields are plain data; `config` is what files carry of them.

    Class attributes that a method declares:
        name: how recipes and files call it. Equals the file's name with dashes for underscores.
        additive: adapt(W) - W does not depend on W, so adapters add up in any order.
        mergeable: `adapt` gives a plain weight that can stand in for the adapter.
        replaces: adapt(W) is the adapter's own value, whatever W is; files carry it under the parameter's
            own name, beside the layers.
        ranked: it has a rank and an alpha at all.
        kinds: the kinds of parameters (see `WeightSpec`) that it can adapt.
        tensors: the adapter's tensor names -> their suffix in each file dialect, e.g.
            {"A": {"peft": "lora_A.weight", "kohya": "lora_down.weight"}}.
        optional: those of them that a layer may lack.
        fast_tensors: names of tensors that LoRA+ trains at its higher rate.
        rank_axes: tensor name -> the axis along which it has `rank` entries, so that a file's shapes tell
            the rank and are held against what its config says; behind the stack's axis where there is one.
        peft_config: what tells PEFT this method, e.g. {"peft_type": "LORA"}; None where PEFT has no such
            method.
        peft_alpha: PEFT's field for alpha; "" where it has none, so that `to_dialect` must leave the scale 1.
        peft_told_by_tensors: fields of PEFT's config that need not be looked at, since tensors or
            `from_peft_options` tell them, or since they matter to training alone.
    """

    name: ClassVar[str]
    additive: ClassVar[bool] = False
    mergeable: ClassVar[bool] = True
    replaces: ClassVar[bool] = False
    ranked: ClassVar[bool] = True
    kinds: ClassVar[frozenset[str]] = frozenset({"matrix"})
    tensors: ClassVar[Mapping[str, Mapping[str, str]]]
    optional: ClassVar[frozenset[str]] = frozenset()
    fast_tensors: ClassVar[frozenset[str]] = frozenset()
    rank_axes: ClassVar[Mapping[str, int]] = {}
    peft_config: ClassVar[Mapping[str, Any] | None] = None
    peft_alpha: ClassVar[str] = "lora_alpha"
    peft_told_by_tensors: ClassVar[frozenset[str]] = frozenset()

    rank: int = 8
    alpha: float | None = None

    def __post_init__(self) -> None:
        if not _is_whole(self.rank) or not 1 <= self.rank <= MAX_RANK:
            raise UsageError(f"rank must be a whole number from 1 to {MAX_RANK}, not {self.rank!r}")
        if self.alpha is not None and not (_is_number(self.alpha) and math.isfinite(self.alpha)):
            raise UsageError(f"alpha must be a finite number, not {self.alpha!r}")
        for field in dataclasses.fields(self):
            kind, value = _KINDS.get(type(field.default)), getattr(self, field.name)
            if kind is not None and not kind.has(value):
                raise UsageError(f"{field.name} must be {kind.called}, not {value!r}")

    @abstractmethod
    def build(self, spec: WeightSpec) -> Adapter:
        """An adapter for one weight, its tensors of the right shapes and not yet filled.

        Raises:
            UsageError: a value of the config is impossible for this weight.
        """

    def controller(self, adapters: Mapping[str, Adapter], steps: int) -> Controller | None:
        """What takes part in training `adapters` (path -> adapter, all of this method) for `steps` steps;
        None for methods that just follow the gradient."""
        return None

    @property
    def scaled_alpha(self) -> float:
        """alpha with its default filled in (alpha = rank, i.e. scale 1), such that scale = alpha / rank
        holds for every method; files carry this number."""
        return float(self.rank if self.alpha is None else self.alpha)

    @property
    def scale(self) -> float:
        """The factor on the whole update: alpha / rank."""
        return self.scaled_alpha / self.rank

    def config(self) -> dict[str, Any]:
        """The fields that files carry, as plain data: all that differ from their defaults, without rank and
        alpha, which each layer has its own, and without what matters to training alone."""
        values = {name: getattr(self, name) for name in self.config_fields()}
        defaults = {field.name: _default(field) for field in dataclasses.fields(self)}
        return {name: value for name, value in values.items() if value != defaults[name]}

    @classmethod
    def config_fields(cls) -> list[str]:
        """The names of the fields that `config` may hold."""
        return [
            field.name
            for field in dataclasses.fields(cls)
            if field.name not in ("rank", "alpha") and _TRAINING_ONLY not in field.metadata
        ]

    @classmethod
    def config_of(cls, layers: Mapping[str, LayerState]) -> dict[str, Any]:
        """What of `config` shows in the tensors themselves; for files that do not carry it."""
        return {}

    @classmethod
    def factors(cls, layer: LayerState, config: Mapping[str, Any]) -> tuple[Tensor, Tensor] | None:
        """(up, down), of shapes (out, R) and (R, in), whose product is W' - W exactly, the scale included;
        with a leading stack axis for a stack. None where the update is no such product."""
        return None

    @classmethod
    def peft_options(cls, config: Mapping[str, Any], targets: Sequence[str] | str) -> dict[str, Any]:
        """Further fields of PEFT's config for the method's `config`; `targets` is its `target_modules`."""
        return {}

    @classmethod
    def from_peft_options(
        cls, options: Mapping[str, Any], layers: Mapping[str, LayerState]
    ) -> dict[str, Any]:
        """What of the method's own `config` PEFT's config (`options`) tells, and the tensors do not.

        Raises:
            FileFormatError: it speaks of a form that the method does not have.
        """
        return {}

    @classmethod
    def known(cls, config: Mapping[str, Any]) -> frozenset[str]:
        """The tensors that a layer may have under a config."""
        return frozenset(cls.tensors)

    @classmethod
    def required(cls, config: Mapping[str, Any]) -> frozenset[str]:
        """The tensors that every layer must have under a config."""
        return frozenset(cls.tensors.keys() - cls.optional)

    @classmethod
    def to_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """The layer as other programs of a dialect know it: without tensors that have no name there, in the
        shapes that are usual there. The update stays the same."""
        return layer

    @classmethod
    def from_dialect(cls, layer: LayerState, dialect: str) -> LayerState:
        """The inverse: a layer as read from a file of a dialect, in the method's own shapes."""
        return layer

    @classmethod
    def bias_change(cls, layer: LayerState, config: Mapping[str, Any]) -> Tensor | None:
        """b' - b of shape (out,) for methods with `factors`; None where the layer's bias is left alone."""
        return None

    @classmethod
    def layer_config(cls, layer: LayerState, config: Mapping[str, Any]) -> dict[str, Any]:
        """`config` as it holds for one layer, which may have fewer tensors than others."""
        return dict(config)

    def with_rank(self, rank: int, alpha: float | None) -> Method:
        """The same method at another rank and alpha."""
        return dataclasses.replace(self, rank=rank, alpha=alpha)


def _default(field: dataclasses.Field[Any]) -> Any:
    made = field.default_factory
    return field.default if made is dataclasses.MISSING else made()


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class _Kind:
    """What a field may hold whose default is of some type; files and recipes bring anything."""

    called: str
    has: Callable[[object], bool]


_KINDS: dict[type, _Kind] = {
    bool: _Kind("true or false", lambda value: isinstance(value, bool)),
    int: _Kind("a whole number", _is_whole),
    float: _Kind("a number", _is_number),
    str: _Kind("text", lambda value: isinstance(value, str)),
}
