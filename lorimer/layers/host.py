"""The host: an adapted layer is the same module object with its class swapped.

`AdaptedLinear(Host, Linear)` is made on the fly from whatever class the layer had, so names in the
state dict, `isinstance`, `.weight`, tied weights and everything else about the layer stay as they
were; swapping the class back leaves nothing. One host serves every method and every layer type.

    layer ── .weight, .bias              as they were, frozen
          └─ .lorimer: AdapterSlots      one Adapter per adapter name, which are live and how strongly
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter
from lorimer.layers.geometry import Base, geometry_of

if TYPE_CHECKING:
    _Layer = nn.Module  # a host is always mixed into a layer's class
else:
    _Layer = object

SLOTS = "lorimer"  # the one attribute a host adds to its layer
_STASH = "_lorimer_merged"  # where a merged layer keeps its slots: a plain attribute, in no list of torch's
_PREFIX = "adapter_"  # so that an adapter may be called "weight" or "forward"


class AdapterSlots(nn.Module):
    """The adapters of one layer.

    Attributes:
        active: names of the live adapters in order of activation.
        strengths: adapter name -> factor on its whole update.
        original: the layer's own weight while adapters are merged into it, else None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.active: list[str] = []
        self.strengths: dict[str, float] = {}
        self.original: Tensor | None = None

    @property
    def _forward_pre_hooks(self) -> dict[int, Any]:
        """What keeps `nn.TransformerEncoderLayer` from reading its layers' weights without calling them, as
        it does in evaluation: it does not where a module within has a hook. Slots are never called."""
        return {0: None} if self.live() else {}

    @_forward_pre_hooks.setter
    def _forward_pre_hooks(self, hooks: object) -> None:
        """`nn.Module` sets it when it is made."""

    def add(self, name: str, adapter: Adapter) -> None:
        self.add_module(_PREFIX + name, adapter)
        self.strengths[name] = 1.0
        self.active.append(name)

    def remove(self, name: str) -> None:
        del self._modules[_PREFIX + name]
        del self.strengths[name]
        self.active = [other for other in self.active if other != name]

    def names(self) -> list[str]:
        return list(self.strengths)

    def __getitem__(self, name: str) -> Adapter:
        adapter = self._modules[_PREFIX + name]
        assert isinstance(adapter, Adapter)
        return adapter

    def live(self) -> list[tuple[Adapter, float]]:
        """Active adapters that have an effect, with their strengths, in order of activation."""
        return [(self[name], self.strengths[name]) for name in self.active if self.strengths[name] != 0.0]


class Host(_Layer):
    """What a layer's class gains when it is adapted."""

    adapted_class: type[nn.Module]  # the class the layer had before
    lorimer: AdapterSlots

    def forward(self, input: Tensor) -> Tensor:  # named as in torch, where callers may use the keyword
        live = self.lorimer.live()
        if not live:
            return super().forward(input)  # exactly the base layer
        geometry = geometry_of(self)
        assert geometry is not None
        base = Base(self, geometry)
        if all(adapter.method.additive for adapter, _ in live):
            changes = [adapter(input, base, strength) for adapter, strength in live]
            if all(change is not None for change in changes):
                output = super().forward(input)
                for change in changes:
                    output = output + change.to(output.dtype)
                return output
        return geometry.apply(self, input, folded_weight(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Copies and pickles (`torch.save` of a whole model) name the layer's own class, as ours has no
        place to be imported from."""
        reduced: Any = super().__reduce_ex__(protocol)
        _, _, *state = reduced
        return (_bare_host, (self.adapted_class,), *state)


def folded_weight(layer: nn.Module) -> Tensor:
    """The layer's weight with its live adapters folded in, in the weight's own shape and type.

    W0 -> a1.adapt -> a2.adapt in order of activation; strength moves along the line from W to a(W).
    Computed in the wider of the two precisions and rounded once.
    """
    geometry, slots, weight = geometry_of(layer), layer.lorimer, layer.weight
    assert geometry is not None and isinstance(slots, AdapterSlots) and isinstance(weight, Tensor)
    matrix = geometry.to_matrix(weight)
    for adapter, strength in slots.live():
        wide = torch.promote_types(matrix.dtype, next(adapter.parameters()).dtype)
        matrix = matrix.to(wide)
        adapted = adapter.adapt(matrix)
        matrix = adapted if strength == 1.0 else matrix + strength * (adapted - matrix)
    return geometry.from_matrix(matrix.to(weight.dtype), weight.shape)


def make_host(layer: nn.Module) -> AdapterSlots:
    """Swap the layer's class for its host class, unless it is one; returns its slots."""
    if not isinstance(layer, Host):
        layer.__class__ = _host_class(type(layer))
        layer.add_module(SLOTS, AdapterSlots())
    slots = layer._modules[SLOTS]
    assert isinstance(slots, AdapterSlots)
    return slots


def unmake_host(layer: nn.Module) -> None:
    """Give the layer its own class back and drop its slots."""
    assert isinstance(layer, Host)
    del layer._modules[SLOTS]
    layer.__class__ = layer.adapted_class  # type: ignore[assignment]


def hosts(model: nn.Module) -> dict[str, AdapterSlots]:
    """Module path -> slots of every adapted layer, merged ones included."""
    found = {path: slots_of(module) for path, module in model.named_modules()}
    return {path: slots for path, slots in found.items() if slots is not None}


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of everything in the model that belongs to no adapter."""
    ours = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, AdapterSlots)
        for parameter in module.parameters()
    }
    return ((name, parameter) for name, parameter in model.named_parameters() if id(parameter) not in ours)


def slots_of(layer: nn.Module) -> AdapterSlots | None:
    """The layer's slots, whether it is live or merged; None where it is not adapted."""
    slots = layer._modules.get(SLOTS) if isinstance(layer, Host) else layer.__dict__.get(_STASH)
    return slots if isinstance(slots, AdapterSlots) else None


def stash_host(layer: nn.Module) -> None:
    """Make the layer plain again but remember its slots, out of sight of parameters and state dict."""
    slots = slots_of(layer)
    unmake_host(layer)
    layer.__dict__[_STASH] = slots


def unstash_host(layer: nn.Module) -> None:
    """The inverse of `stash_host`; adapters follow the weight to its device."""
    slots: AdapterSlots = layer.__dict__.pop(_STASH)
    layer.__class__ = _host_class(type(layer))
    layer.add_module(SLOTS, slots.to(layer.weight.device))  # type: ignore[arg-type]


def _bare_host(cls: type[nn.Module]) -> nn.Module:
    """A host of `cls` without its state, to be filled by whoever copies or unpickles."""
    host = _host_class(cls)
    bare: nn.Module = host.__new__(host)
    return bare


_host_classes: dict[type[nn.Module], Any] = {}


def _host_class(cls: type[nn.Module]) -> Any:
    """The host class of `cls`, always the same one, so that equal layers stay of equal type."""
    if cls not in _host_classes:
        members = {"adapted_class": cls, "__module__": __name__}
        _host_classes[cls] = type(f"Adapted{cls.__name__}", (Host, cls), members)
    return _host_classes[cls]
