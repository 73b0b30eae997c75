"""What an adapted layer carries: for each adapted parameter, its adapters, which are live and how strongly.

layer.lorimer: LayerSlots ── weight: AdapterSlots ── adapter_default: Adapter
                          └─ bias: AdapterSlots ...
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lorimer.adapters._base import Adapter
from lorimer.errors import StateError
from lorimer.layers.geometry import Geometry
from lorimer.layers.rows import Rows

Live = list[tuple[Adapter, float]]  # adapters and their strengths
_PREFIX = "adapter_"  # so that an adapter may be called "weight" or "forward"


class AdapterSlots(nn.Module):
    """The adapters of one parameter.

    Attributes:
        parameter: the parameter's name within its layer.
        geometry: how it is seen as a matrix.
        active: names of the live adapters in order of activation.
        strengths: adapter name -> factor on its whole update.
    """

    def __init__(self, parameter: str, geometry: type[Geometry]) -> None:
        super().__init__()
        self.parameter = parameter
        self.geometry = geometry
        self.active: list[str] = []
        self.strengths: dict[str, float] = {}

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

    def live(self) -> Live:
        """Active adapters that have an effect, with their strengths, in order of activation."""
        return [(self[name], self.strengths[name]) for name in self.active if self.strengths[name] != 0.0]


class LayerSlots(nn.Module):
    """The slots of one layer's parameters, by the parameter's name.

    Attributes:
        folded: within a forward of a layer that reads its parameters, their adapted values.
        rows: in a mixed batch, which adapter each row has; else None.
        originals: the parameters' own values while adapters are merged into them.
        untied: configs of transformers' that say since merging that the layer's weight is not tied.
        original_class: the layer's own class where merging changed it; else None.
    """

    def __init__(self) -> None:
        super().__init__()
        self.folded: dict[str, Tensor] = {}
        self.rows: Rows | None = None
        self.originals: dict[str, Tensor] = {}
        self.untied: list[Any] = []
        self.original_class: type[nn.Module] | None = None

    @property
    def _forward_pre_hooks(self) -> dict[int, Any]:
        """What keeps `nn.TransformerEncoderLayer` from reading its layers' weights without calling them, as
        it does in evaluation: it does not where a module within has a hook. Slots are never called."""
        acting = self.rows is not None or any(slots.live() for slots in self.parameters_slots().values())
        return {0: None} if acting else {}

    @_forward_pre_hooks.setter
    def _forward_pre_hooks(self, hooks: object) -> None:
        """`nn.Module` sets it when it is made."""

    def add(self, parameter: str, geometry: type[Geometry]) -> AdapterSlots:
        """The slots of a parameter, made where there are none yet."""
        if parameter not in self._modules:
            self.add_module(parameter, AdapterSlots(parameter, geometry))
        slots = self._modules[parameter]
        assert isinstance(slots, AdapterSlots)
        if slots.geometry is not geometry:
            raise StateError(
                "a layer that shares its weight has adapters from tied='together' and others; detach one kind"
            )
        return slots

    def parameters_slots(self) -> dict[str, AdapterSlots]:
        """Parameter name -> its slots."""
        return self._modules  # type: ignore[return-value]

    def live(self, parameter: str) -> Live:
        """The live adapters of a parameter; none where it is not adapted."""
        slots = self._modules.get(parameter)
        return slots.live() if isinstance(slots, AdapterSlots) else []

    def alone(self, parameter: str, name: str | None) -> Live:
        """What acts on a parameter where the adapter `name` acts alone, be it active or not."""
        slots = self._modules.get(parameter)
        if name is None or not isinstance(slots, AdapterSlots) or not slots.strengths.get(name):
            return []
        return [(slots[name], slots.strengths[name])]


def fold(value: Tensor, live: Live, geometry: Geometry) -> Tensor:
    """A parameter's value with adapters folded in, in its own shape and type.

    W0 -> a1.adapt -> a2.adapt in order of activation; strength moves along the line from W to a(W).
    Computed in the wider of the two precisions and rounded once.
    """
    own = value.dtype
    for adapter, strength in live:
        value = value.to(torch.promote_types(value.dtype, next(adapter.parameters()).dtype))
        if adapter.method.replaces:
            adapted = adapter.adapt(value)
        else:
            adapted = geometry.from_matrix(adapter.adapt(geometry.to_matrix(value)))
        value = adapted if strength == 1.0 else value + strength * (adapted - value)
    return value.to(own)


def fold_bias(bias: Tensor | None, live: Live) -> Tensor | None:
    """The same for a layer's bias under the adapters of its weight."""
    folded = bias
    for adapter, strength in live:
        adapted = adapter.adapt_bias(folded)
        if adapted is not folded and adapted is not None:
            assert folded is not None
            folded = adapted if strength == 1.0 else folded + strength * (adapted - folded)
    return folded if folded is None or bias is None else folded.to(bias.dtype)
