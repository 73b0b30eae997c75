"""Attaching an adapter to a model and taking it off again, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from lorimer import registry
from lorimer.adapters._base import Adapter, Method
from lorimer.attachment.attached import AttachedAdapter, live_sites
from lorimer.attachment.survey import Survey, survey
from lorimer.attachment.targets import Target, Targets, as_targets, by_pattern, select, select_full
from lorimer.attachment.tied import one_of_each, require_choice, with_sharers
from lorimer.errors import StateError, TargetError, UsageError
from lorimer.layers.host import make_host, take_off
from lorimer.layers.sites import Site, base_parameters, sites
from lorimer.layers.statistics import hold_statistics, release_statistics

FullTargets = Targets | Mapping[str, Sequence[int] | None]
_FROZEN = "_lorimer_frozen"  # on the model: names of the parameters that attaching froze


def attach(
    model: nn.Module,
    method: Method,
    targets: Targets = "all-linear",
    *,
    name: str = "default",
    exclude: Targets = (),
    rank_pattern: Mapping[str, int] | None = None,
    alpha_pattern: Mapping[str, float] | None = None,
    full: FullTargets = (),
    tied: str = "refuse",
    dtype: torch.dtype | None = None,
) -> AttachedAdapter:
    """Freeze `model` and put an adapter of `method` beside every layer that `targets` names.

    The model's output does not change until the adapter is trained. Several adapters may be attached
    under different names; all are live until told otherwise.

    Args:
        model: any module. Its own parameters are frozen; `detach` gives them back as they were.
        method: the adapter's config, e.g. `LoRA(rank=8, alpha=16)`.
        targets, exclude: see `lorimer.attachment.targets`.
        name: what to call the adapter; any text without a dot.
        rank_pattern, alpha_pattern: a target as text -> the rank or alpha that holds where it matches; the
            first match counts.
        full: what is trained in full beside it and saved with it, such as a classifier's head: names of
            modules or parameters, "norms", "biases"; or a mapping from a name to the rows to train, e.g.
            {"embed_tokens": [32000, 32001]} for new tokens.
        tied: what to do about a weight that several layers share, e.g. an embedding and a head: "refuse" it;
            "together", one adapter for all of them; "apart", one for the named layer alone, which merging
            then gives a weight of its own.
        dtype: precision of the adapter's parameters; by default the weight's own, or float32 beside
            half-precision weights.

    Raises:
        TargetError: a target, exclusion or pattern matches nothing or something that cannot be adapted.
        StateError: the name is taken, or adapters are merged into the model.
        UsageError: the method's config is impossible for a layer. In every case the model is untouched.
    """
    if not isinstance(method, Method):
        raise UsageError(f"method must be a configured method such as LoRA(rank=8), not {method!r}")
    require_choice(tied)
    found = survey(model)
    selected = _whole(found, select(found, targets, exclude, tied=tied), tied)
    ranks = by_pattern(found, selected, rank_pattern or {})
    alphas = by_pattern(found, selected, alpha_pattern or {})
    planned: dict[str, tuple[Site, Adapter]] = {}
    for path, site in selected.items():
        own = method.with_rank(ranks.get(path, method.rank), alphas.get(path, method.alpha))
        planned[path] = (site, _started(own, site, dtype))
    for path, site, rows in _in_full(found, full, tied):
        if path in planned:
            raise TargetError(f"{path!r} is both among the targets and trained in full; exclude it from one")
        planned[path] = (site, _started(registry.get("method", "full")(rows=rows), site, dtype))
    return install(model, with_sharers(found, planned) if tied == "together" else planned, name)


def build_at(method: Method, site: Site, dtype: torch.dtype | None) -> Adapter:
    """An adapter for a site, its tensors not yet filled.

    Raises:
        TargetError: the method cannot adapt such a parameter.
        UsageError: its config is impossible there.
    """
    geometry = site.geometry(site.layer, site.parameter)
    if geometry.device.type == "meta" and hasattr(site.layer, "_hf_hook"):
        raise TargetError(
            f"{site.path!r} is offloaded: its weight is elsewhere between calls. Load the model without "
            "offloading, or exclude it"
        )
    spec = geometry.spec(dtype)
    if spec.kind not in method.kinds:
        raise TargetError(
            f"{site.path!r} is a {spec.kind}, which the method {method.name!r} cannot adapt; "
            "exclude it or train it in full"
        )
    try:
        return method.build(spec)
    except UsageError as error:
        raise UsageError(f"{site.path!r}: {error}") from error


def install(model: nn.Module, planned: Mapping[str, tuple[Site, Adapter]], name: str) -> AttachedAdapter:
    """Freeze `model` and put ready-made adapters (path -> site and adapter) beside its parameters.

    Raises: as `attach`; the model is untouched.
    """
    if not name or "." in name:
        raise UsageError(f"an adapter's name must be non-empty and without a dot, not {name!r}")
    if any(name in site.slots.names() for site in live_sites(model).values()):
        raise StateError(f"an adapter called {name!r} is attached already; choose another name or detach it")
    added: list[Site] = []
    try:
        for site, adapter in planned.values():
            added.append(site)
            make_host(site).add(name, adapter.train(site.layer.training))
    except BaseException:
        for site in added:
            take_off(site, name)
        raise
    _freeze(model)
    return AttachedAdapter(model, name)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take off the adapter called `name`, or all of them; with the last one the model is as it was.

    Raises:
        TargetError: no adapter of that name is attached.
        StateError: adapters are merged; unmerge first.
    """
    present = live_sites(model)
    attached = {other for site in present.values() for other in site.slots.names()}
    if name is not None and name not in attached:
        raise TargetError(f"no adapter called {name!r} is attached; attached: {sorted(attached) or 'none'}")
    for site in present.values():
        for each in attached if name is None else {name}:
            take_off(site, each)
    if sites(model):
        hold_statistics(model)
    else:
        thaw(model)


def _started(method: Method, site: Site, dtype: torch.dtype | None) -> Adapter:
    """An adapter at its start."""
    adapter = build_at(method, site, dtype)
    geometry = site.geometry(site.layer, site.parameter)
    try:
        adapter.start(lambda: geometry.weight.detach() if method.replaces else geometry.matrix())
    except UsageError as error:
        raise UsageError(f"{site.path!r}: {error}") from error
    return adapter


def _in_full(model: Survey, full: FullTargets, tied: str) -> list[tuple[str, Site, tuple[int, ...] | None]]:
    """(path, site, rows) of what is trained in full."""
    named: list[tuple[list[Target], tuple[int, ...] | None]]
    if isinstance(full, Mapping):
        named = [(as_targets(name), None if rows is None else tuple(rows)) for name, rows in full.items()]
    else:
        named = [(as_targets(full), None)]
    return [
        (path, site, rows)
        for targets, rows in named
        for path, site in _whole(model, select_full(model, targets, tied=tied), tied).items()
    ]


def _whole(model: Survey, selected: dict[str, Site], tied: str) -> dict[str, Site]:
    """Of sites that share a weight just one, where one adapter will act on all of them."""
    return one_of_each(model, selected) if tied == "together" else selected


def _freeze(model: nn.Module) -> None:
    """Freeze everything but adapters; what was frozen now is remembered on the model."""
    hold_statistics(model)
    frozen: list[str] = model.__dict__.setdefault(_FROZEN, [])
    for name, parameter in base_parameters(model):
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.append(name)


def thaw(model: nn.Module) -> None:
    """Give back what attaching froze."""
    release_statistics(model)
    for part in model.modules():  # adapters may have been attached to a part first
        for name in part.__dict__.pop(_FROZEN, []):
            part.get_parameter(name).requires_grad_(True)
