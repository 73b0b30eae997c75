"""A survey of a model: everything in it that a target can name, from one walk over its modules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from lorimer.layers.kinds import (
    geometry_of,
    parameter_geometry,
    read_weights,
    supported_layers,
    why_unusable,
)
from lorimer.layers.sites import Site, site_path
from lorimer.layers.slots import LayerSlots

Thing = nn.Module | nn.Parameter


@dataclass(frozen=True)
class Survey:
    """What a model consists of, without the parts that lorimer added.

    Attributes:
        name: the model's class.
        modules: path -> module, in the model's order; the model itself is "".
        sites: path -> site of every parameter.
    """

    name: str
    modules: Mapping[str, nn.Module]
    sites: Mapping[str, Site]

    @cached_property
    def things(self) -> Mapping[str, Thing]:
        """What targets name: every module, and the parameters that no layer of a known type owns."""
        found: dict[str, Thing] = {}
        for path, module in self.modules.items():
            if path:
                found[path] = module
            if geometry_of(module) is None:
                for name, parameter in module._parameters.items():
                    if parameter is not None and name != "weight":
                        found[site_path(path, name)] = parameter
        return found

    @cached_property
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """Full name -> parameter, as in the model's state dict."""
        return {site.full_name: _parameter(site) for site in self.sites.values()}

    @cached_property
    def tied(self) -> Mapping[str, tuple[str, ...]]:
        """Site path -> the other sites that have the very same parameter."""
        users: dict[int, list[str]] = {}
        for path, site in self.sites.items():
            users.setdefault(id(_parameter(site)), []).append(path)
        shared = [paths for paths in users.values() if len(paths) > 1]
        return {path: tuple(each for each in paths if each != path) for paths in shared for path in paths}

    def weights_within(self, path: str) -> dict[str, str | None]:
        """Site -> why it cannot be adapted, or None where it can, for what a target named."""
        thing = self.things[path]
        if isinstance(thing, nn.Parameter):
            return {path: self._why_not(path)}
        if geometry_of(thing) is not None:
            return {path: why_unusable(thing, "weight")}
        weights = [self._path_of[id(owner), name] for owner, name in read_weights(thing)]
        if not weights:
            known = ", ".join(supported_layers())
            return {path: f"is a {type(thing).__name__}; layers that can be adapted: {known}"}
        return {each: self._why_not(each) for each in weights}

    def _why_not(self, path: str) -> str | None:
        site = self.sites[path]
        return why_unusable(site.layer, site.parameter)

    @cached_property
    def _path_of(self) -> Mapping[tuple[int, str], str]:
        return {(id(site.layer), site.parameter): path for path, site in self.sites.items()}


def survey(model: nn.Module) -> Survey:
    """Look through a model."""
    modules: dict[str, nn.Module] = {}
    inside_slots = "/"  # no path begins so
    for path, module in model.named_modules():  # a module's parts follow it at once
        if isinstance(module, LayerSlots):
            inside_slots = path + "."
        elif not path.startswith(inside_slots):
            modules[path] = module
    read = {(id(owner), name) for module in modules.values() for owner, name in read_weights(module)}
    sites: dict[str, Site] = {}
    for path, module in modules.items():
        called = geometry_of(module)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            is_read = called is None or name != "weight" or (id(module), name) in read
            geometry = parameter_geometry(module, name) if is_read else called
            assert geometry is not None
            sites[site_path(path, name)] = Site(site_path(path, name), module, name, geometry)
    return Survey(type(model).__name__, modules, sites)


def _parameter(site: Site) -> nn.Parameter:
    parameter = site.layer._parameters[site.parameter]
    assert parameter is not None
    return parameter
