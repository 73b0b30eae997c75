"""Attaching an adapter to a model and taking it off again, all or nothing."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn

from lorimer.adapters._base import Adapter, Method
from lorimer.attachment.attached import AttachedAdapter, require_live
from lorimer.attachment.targets import Targets, first_match, require_matches, select
from lorimer.errors import StateError, TargetError, UsageError
from lorimer.layers.geometry import weight_spec
from lorimer.layers.host import base_parameters, hosts, make_host, slots_of, unmake_host

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
        dtype: precision of the adapter's parameters; by default the weight's own, or float32 beside
            half-precision weights.

    Raises:
        TargetError: a target, exclusion or pattern matches nothing or something that cannot be adapted.
        StateError: the name is taken, or adapters are merged into the model.
        UsageError: the method's config is impossible for a layer. In every case the model is untouched.
    """
    layers = select(model, targets, exclude)
    ranks, alphas = dict(rank_pattern or {}), dict(alpha_pattern or {})
    require_matches(layers, [*ranks, *alphas])
    planned: dict[str, Adapter] = {}
    for path, layer in layers.items():
        rank_key, alpha_key = first_match(path, layer, list(ranks)), first_match(path, layer, list(alphas))
        rank = method.rank if rank_key is None else ranks[rank_key]
        alpha = method.alpha if alpha_key is None else alphas[alpha_key]
        planned[path] = method.with_rank(rank, alpha).build(weight_spec(layer, dtype))
    return install(model, planned, name)


def install(model: nn.Module, planned: Mapping[str, Adapter], name: str) -> AttachedAdapter:
    """Freeze `model` and put ready-made adapters (module path -> adapter) beside its layers.

    Raises: as `attach`; the model is untouched.
    """
    if not name or "." in name:
        raise UsageError(f"an adapter's name must be non-empty and without a dot, not {name!r}")
    require_live(model)
    if any(name in slots.names() for slots in hosts(model).values()):
        raise StateError(f"an adapter called {name!r} is attached already; choose another name or detach it")
    added: list[nn.Module] = []
    try:
        for path, adapter in planned.items():
            layer = model.get_submodule(path)
            added.append(layer)
            make_host(layer).add(name, adapter)
    except BaseException:
        for layer in added:
            _take_off(layer, name)
        raise
    _freeze(model)
    return AttachedAdapter(model, name)


def detach(model: nn.Module, name: str | None = None) -> None:
    """Take off the adapter called `name`, or all of them; with the last one the model is as it was.

    Raises:
        TargetError: no adapter of that name is attached.
        StateError: adapters are merged; unmerge first.
    """
    require_live(model)
    attached = {other for slots in hosts(model).values() for other in slots.names()}
    if name is not None and name not in attached:
        raise TargetError(f"no adapter called {name!r} is attached; attached: {sorted(attached) or 'none'}")
    for path in hosts(model):
        layer = model.get_submodule(path)
        for each in attached if name is None else {name}:
            _take_off(layer, each)
    if not hosts(model):
        _thaw(model)


def _take_off(layer: nn.Module, name: str) -> None:
    slots = slots_of(layer)
    if slots is not None and name in slots.names():
        slots.remove(name)
    if slots is not None and not slots.names():
        unmake_host(layer)


def _freeze(model: nn.Module) -> None:
    """Freeze everything but adapters; what was frozen now is remembered on the model."""
    frozen: list[str] = model.__dict__.setdefault(_FROZEN, [])
    for name, parameter in base_parameters(model):
        if parameter.requires_grad:
            parameter.requires_grad_(False)
            frozen.append(name)


def _thaw(model: nn.Module) -> None:
    for part in model.modules():  # adapters may have been attached to a part first
        for name in part.__dict__.pop(_FROZEN, []):
            part.get_parameter(name).requires_grad_(True)
