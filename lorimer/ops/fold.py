"""Folding an adapter into the weights of a model that is not in memory, one layer at a time."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState
from lorimer.attachment.attach import detach
from lorimer.attachment.survey import survey
from lorimer.ops.files import attach_state
from lorimer.ops.merge import merge


class Folding:
    """The weights of a model under an adapter.

    Args:
        skeleton: the model on the meta device.
        read: parameter's full name -> how to read its value.

    Attributes:
        changed: names of the parameters that belong to adapted layers, under every name that they have.

    Raises:
        FileFormatError: the adapter does not fit the model; all that does not is listed.
    """

    def __init__(
        self,
        skeleton: nn.Module,
        state: AdapterState,
        read: Mapping[str, Callable[[], Tensor]],
        *,
        strength: float = 1.0,
        source: str = "adapter",
    ) -> None:
        attach_state(skeleton, state, source=source)  # on the meta device: whether all of it fits
        detach(skeleton)
        self._moved: dict[str, set[str]] = {}  # layer -> what of it the adapter changes, once known
        self._latest: tuple[str, dict[str, Tensor]] = ("", {})  # a layer's weight and bias are asked in turn
        self._state, self._read, self._strength, self._source = state, read, strength, source
        found = survey(skeleton)
        self._modules = found.modules
        self._names = _with_twins(found.tied, {path: site.full_name for path, site in found.sites.items()})
        owners = {id(module): path for path, module in found.modules.items()}
        adapted = {*state.layers, *(name.removesuffix(".weight") for name in state.full)}
        layers = {owners[id(found.sites[path].layer)] for path in adapted}
        self.changed: dict[str, tuple[str, str]] = {
            name: (layer, parameter)
            for layer in layers
            for parameter, value in found.modules[layer]._parameters.items()
            if value is not None
            for name in self.names_of(f"{layer}.{parameter}")
        }

    def value(self, name: str) -> Tensor | None:
        """What the adapter makes of a parameter, in float32; None where it leaves it as it is.

        Raises:
            LorimerError: the adapter cannot be merged, or gives NaN or infinity.
        """
        path, parameter = self.changed.get(name, ("", ""))
        if not path or parameter not in self._moved.get(path, {parameter}):
            return None
        if self._latest[0] != path:
            self._latest = (path, self._folded(path))
            self._moved[path] = set(self._latest[1])
        return self._latest[1].get(parameter)

    def _folded(self, path: str) -> dict[str, Tensor]:
        """Those parameters of the layer at `path` that the adapter changes."""
        layer = copy.deepcopy(self._modules[path])
        for each, value in layer._parameters.items():
            if value is not None:
                read = self._value_of(f"{path}.{each}").to(torch.float32)
                layer._parameters[each] = nn.Parameter(read.clone(), requires_grad=False)
        model = _at(path, layer)
        adapter = attach_state(model, self._state_at(path), source=self._source)
        adapter.strength = self._strength
        merged = [name.rpartition(".")[2] for name in merge(model, keep_original=False).merged]
        return {
            name: value.data
            for name, value in layer._parameters.items()
            if value is not None and name in merged
        }

    def names_of(self, name: str) -> tuple[str, ...]:
        """All the names of a parameter."""
        return self._names.get(name, (name,))

    def _value_of(self, name: str) -> Tensor:
        """A parameter's value, under whichever of its names the files have it."""
        return self._read[next((each for each in self.names_of(name) if each in self._read), name)]()

    def _state_at(self, layer: str) -> AdapterState:
        """The part of the adapter that acts on one layer."""

        def within(path: str) -> bool:
            return path == layer or path.rpartition(".")[0] == layer

        layers = {path: each for path, each in self._state.layers.items() if within(path)}
        full = {name: each for name, each in self._state.full.items() if within(name)}
        return replace(self._state, layers=layers, full=full, components=())


def _at(path: str, layer: nn.Module) -> nn.Module:
    """A model in which `layer` is at `path`, and nothing else is."""
    for name in reversed(path.split(".")):
        outer = nn.Module()
        outer.add_module(name, layer)
        layer = outer
    return layer


def _with_twins(tied: Mapping[str, tuple[str, ...]], names: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Full name -> that and the other full names of the same parameter, where there are any."""
    return {names[path]: (names[path], *(names[twin] for twin in twins)) for path, twins in tied.items()}
