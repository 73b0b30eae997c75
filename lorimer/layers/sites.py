"""Sites: the parameters of a model that are or may be adapted, and where they are found."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from lorimer.layers.geometry import Geometry
from lorimer.layers.host import slots_of
from lorimer.layers.slots import AdapterSlots, LayerSlots


@dataclass(frozen=True)
class Site:
    """A parameter that is or may be adapted.

    Attributes:
        path: the layer's path for its weight ("fc"), the parameter's for others ("fc.bias").
        layer, parameter: the owner and the parameter's name within it.
        geometry: how it is seen as a matrix.
    """

    path: str
    layer: nn.Module
    parameter: str
    geometry: type[Geometry]

    @property
    def slots(self) -> AdapterSlots:
        """The adapters there; the site must be adapted."""
        slots = slots_of(self.layer)
        assert slots is not None
        return slots.parameters_slots()[self.parameter]

    @property
    def full_name(self) -> str:
        """The parameter's own name in the model: "fc.weight"."""
        return f"{self.path}.weight".lstrip(".") if self.parameter == "weight" else self.path


def site_path(path: str, parameter: str) -> str:
    """What a parameter of the layer at `path` is called as a site."""
    return path if parameter == "weight" else f"{path}.{parameter}".lstrip(".")


def sites(model: nn.Module) -> dict[str, Site]:
    """Path -> site of every adapted parameter, merged ones included, in the model's order."""
    found: dict[str, Site] = {}
    for path, layer in own_modules(model):
        slots = slots_of(layer)
        if slots is None:
            continue
        present = slots.parameters_slots()
        for parameter in sorted(present, key=list(layer._parameters).index) if len(present) > 1 else present:
            geometry = present[parameter].geometry
            found[site_path(path, parameter)] = Site(site_path(path, parameter), layer, parameter, geometry)
    return found


def own_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path, module) of everything in the model that lorimer did not add, in the order of `named_modules`."""
    seen: set[nn.Module] = set()
    waiting: list[tuple[str, nn.Module]] = [("", model)]
    while waiting:
        path, module = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        yield path, module
        prefix = f"{path}." if path else ""
        for name, part in reversed(module._modules.items()):
            if part is not None and not isinstance(part, LayerSlots):
                waiting.append((prefix + name, part))


def base_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """(name, parameter) of everything in the model that belongs to no adapter; a shared one comes once."""
    seen: set[nn.Parameter] = set()
    for path, module in own_modules(model):
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter not in seen:
                seen.add(parameter)
                yield (f"{path}.{name}" if path else name), parameter
