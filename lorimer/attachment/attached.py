"""`AttachedAdapter`: the handle of one adapter on one model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from lorimer.adapters._base import Adapter
from lorimer.adapters._state import AdapterState, LayerState, ParameterState
from lorimer.attachment.report import Report, report_on
from lorimer.attachment.schedule import finite
from lorimer.attachment.survey import survey
from lorimer.attachment.targets import by_pattern
from lorimer.errors import StateError
from lorimer.layers.host import Host, is_sharded
from lorimer.layers.sites import Site, sites


class AttachedAdapter:
    """One adapter on one model. Holds no state of its own: everything lives in the model, so a deep copy
    of the model has its own, to be had by `lorimer.attached(copy)`."""

    def __init__(self, model: nn.Module, name: str) -> None:
        self.model = model
        self.name = name

    def __repr__(self) -> str:
        return f"<{self.method} adapter {self.name!r} on {len(self.layers)} layers>"

    @property
    def layers(self) -> dict[str, Adapter]:
        """Path -> this adapter's parameters there, in the model's order: a module's path for its weight, the
        parameter's own for any other; what is trained in full included. An adapter that acts on several
        layers that share a weight comes once."""
        return {path: site.slots[self.name] for path, site in self._own_sites().items()}

    @property
    def method(self) -> str:
        """The name of its method."""
        layers = list(self.layers.values())
        return next((each for each in layers if not each.method.replaces), layers[0]).method.name

    def parameters(self) -> Iterator[nn.Parameter]:
        """Everything that trains; what an optimiser is given."""
        return (parameter for _, parameter in self.named_parameters())

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]:
        """(module path + tensor name, parameter), e.g. ("encoder.fc1.A", ...)."""
        for path, adapter in self.layers.items():
            for tensor, parameter in adapter.named_parameters():
                yield f"{path}.{tensor}", parameter

    def parameter_groups(
        self,
        learning_rate: float,
        fast_ratio: float = 1.0,
        learning_rate_pattern: Mapping[str, float] | None = None,
    ) -> list[dict[str, Any]]:
        """Optimiser groups: `params`, their `lr`, and a `name` for people. Each parameter is in one group.

        Args:
            learning_rate: the rate of all that nothing else is said of; their group comes first.
            fast_ratio: the tensors that a method calls fast (LoRA's B) learn at this many times the rate
                (LoRA+, Hayou et al. 2024, arXiv 2402.12354).
            learning_rate_pattern: a target as text -> the rate that holds where it matches; the first match
                counts.

        Raises:
            TargetError: a pattern names nothing that is adapted.
        """
        layers, pattern = self.layers, learning_rate_pattern or {}
        rates = by_pattern(survey(self.model), layers, {name: (name, rate) for name, rate in pattern.items()})
        groups: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, rate in [("", learning_rate), *pattern.items()]:
            for fast in (False, True):
                group = {"params": [], "lr": rate * (fast_ratio if fast else 1.0)}
                groups[name, fast] = group | {"name": f"{name or 'all others'}{', fast' if fast else ''}"}
        for path, adapter in layers.items():
            where, _ = rates.get(path, ("", learning_rate))
            for tensor, parameter in adapter.named_parameters():
                groups[where, tensor in adapter.method.fast_tensors]["params"].append(parameter)
        return [group for group in groups.values() if group["params"]]

    @property
    def strength(self) -> float:
        """Factor on the whole update; 1 is as trained, 0 is the base model to the bit. Where layers differ
        (see `lorimer.strength`), that of the first."""
        return next(iter(self._sites().values())).slots.strengths[self.name]

    @strength.setter
    def strength(self, value: float) -> None:
        value = finite(value)
        live_sites(self.model)
        for site in self._sites().values():
            site.slots.strengths[self.name] = value

    def report(self) -> Report:
        """What is attached where, how many parameters of how many, how large the file will be."""
        found = {path: (site, site.slots[self.name]) for path, site in self._own_sites().items()}
        return report_on(self.model, found)

    def state(self) -> AdapterState:
        """A copy of the adapter outside the model, on the CPU, as the file formats take it. Of a sharded
        model it is the whole adapter, and every process must call it."""
        found = {path: (site, site.slots[self.name]) for path, site in self._sites().items()}
        layers = {path: _layer_state(*each) for path, each in found.items() if not each[1].method.replaces}
        full = {
            site.full_name: _parameter_state(each) for site, each in found.values() if each.method.replaces
        }
        methods = [each.method for _, each in found.values() if not each.method.replaces]
        return AdapterState(
            method=self.method,
            config=methods[0].config() if methods else {},
            layers=layers,
            components=tuple(getattr(self.model, "components", ())),
            metadata=_facts_of(self.model),
            full=full,
        )

    def _sites(self) -> dict[str, Site]:
        found = {path: site for path, site in sites(self.model).items() if self.name in site.slots.names()}
        if not found:
            raise StateError(f"the adapter {self.name!r} is no longer attached")
        return found

    def _own_sites(self) -> dict[str, Site]:
        """Its sites, one for each of its adapters."""
        own: dict[int, tuple[str, Site]] = {}
        for path, site in self._sites().items():
            if not site.geometry.mirrored:
                own.setdefault(id(site.slots[self.name]), (path, site))
        return dict(own.values())


def _facts_of(model: nn.Module) -> dict[str, str]:
    """What files must say of a picture model: its `facts`, or its `family`, or that one's name."""
    if isinstance(facts := getattr(model, "facts", None), Mapping):
        return dict(facts)
    family = getattr(model, "family", None)
    name = getattr(family, "name", family)
    return {"family": name} if isinstance(name, str) else {}


def _layer_state(site: Site, adapter: Adapter) -> LayerState:
    geometry = site.geometry(site.layer, site.parameter)
    spec = geometry.spec()
    tensors = {name: _outside(value) for name, value in geometry.filed(adapter.state_dict()).items()}
    method = adapter.method
    kind = geometry.file_kind()
    return LayerState(tensors, method.rank, method.scaled_alpha, spec.groups, len(spec.stack), kind)


def _parameter_state(adapter: Adapter) -> ParameterState:
    value = _outside(adapter.state_dict()["value"])
    return ParameterState(value, getattr(adapter.method, "rows", None))


def _outside(value: Tensor) -> Tensor:
    """A copy on the CPU; of a sharded tensor, the whole, for which every process must ask."""
    whole: Tensor = value.full_tensor() if is_sharded(value) else value  # type: ignore[attr-defined]
    return whole.detach().to("cpu", copy=True)


def attached(model: nn.Module) -> dict[str, AttachedAdapter]:
    """Every adapter on the model, by name, in order of attachment."""
    names = dict.fromkeys(name for site in sites(model).values() for name in site.slots.names())
    return {name: AttachedAdapter(model, name) for name in names}


def live_sites(model: nn.Module) -> dict[str, Site]:
    """Path -> site of every adapted parameter.

    Raises:
        StateError: adapters are merged into the model's weights.
    """
    found = sites(model)
    if not all(isinstance(site.layer, Host) for site in found.values()):
        raise StateError("adapters are merged into this model; call lorimer.unmerge(model) first")
    return found
