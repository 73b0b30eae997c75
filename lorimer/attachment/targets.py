"""Which parameters an adapter goes to.

A target is one of

    "unet.mid_block.attentions.0.to_q"   a module's full path
    "to_q", "attn1.to_q"                 the end of a path, at a dot
    "experts.gate_up_proj"               a parameter, where it is no module's `weight`
    "re:down_blocks\\.[12]\\..*to_[qv]"    a regular expression that the whole path must match
    "type:Conv2d", nn.Conv2d             a module type, as text or as the class
    "attention", "all-linear", ...       a preset, see `PRESETS`

or a list of them. A module stands for its weight, or for all the weights that it reads by itself: the
projections of an `nn.MultiheadAttention`, the matrices of an LSTM, the stacks of a layer's experts.
An exclusion takes away what it names and everything inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from torch import nn

from lorimer.attachment.presets import PRESETS
from lorimer.attachment.survey import Survey, Thing
from lorimer.errors import TargetError, suggest
from lorimer.layers.kinds import geometry_of, read_weights, why_unusable
from lorimer.layers.sites import Site

Target = str | re.Pattern[str] | type[nn.Module]
Targets = Target | Sequence[Target]
Value = TypeVar("Value")


def select(
    model: Survey, targets: Targets, exclude: Targets = (), *, tied: str = "refuse"
) -> dict[str, Site]:
    """Path -> site for everything that `targets` names and `exclude` does not, in the model's order.

    Presets leave out what cannot be adapted safely; naming such a thing is an error.

    Args:
        tied: "refuse" weights that several layers share; any other value takes them.

    Raises:
        TargetError: a target or exclusion matches nothing (the nearest names are listed), or names
            a layer that has no weight or one that cannot be adapted, or a weight that is tied.
    """
    excluded = {path for target in as_targets(exclude) for path in _exclusion(model, target)}
    inside_excluded = tuple(path + "." for path in excluded)
    selected: set[str] = set()
    for target in as_targets(targets):
        is_preset = isinstance(target, str) and target in PRESETS
        for path in _matches(model.things, target):
            for site, problem in model.weights_within(path).items():
                if site in excluded or site.startswith(inside_excluded):
                    continue
                problem = problem or _why_tied(model, site, tied)
                if problem is None:
                    selected.add(site)
                elif not is_preset:
                    raise TargetError(f"target {_show(target)}: {site!r} {problem}")
    if not selected:
        shown = ", ".join(map(_show, as_targets(targets)))
        raise TargetError(f"targets {shown or '[]'} leave nothing to adapt in {model.name}")
    return {path: site for path, site in model.sites.items() if path in selected}


def select_full(model: Survey, targets: Targets, *, tied: str = "refuse") -> dict[str, Site]:
    """Path -> site of every parameter that `targets` name, or that lies within a module that they name.

    Raises:
        TargetError: a target matches nothing, or a parameter that cannot be trained or is tied.
    """
    nameable = {**model.things, **model.parameters}
    selected: set[str] = set()
    for target in as_targets(targets):
        matched = set(_matches(nameable, target))
        inside = tuple(f"{path}." for path in matched)
        for path, site in model.sites.items():
            if site.full_name not in matched and not site.full_name.startswith(inside):
                continue
            problem = why_unusable(site.layer, site.parameter) or _why_tied(model, path, tied)
            if problem is not None:
                raise TargetError(f"target {_show(target)}: {site.full_name!r} {problem}")
            selected.add(path)
    return {path: site for path, site in model.sites.items() if path in selected}


def by_pattern(model: Survey, selected: Iterable[str], patterns: Mapping[str, Value]) -> dict[str, Value]:
    """Path -> the value of the first pattern that names it or something around it, for those of the sites
    `selected` that have one. A pattern is a target as text.

    Raises:
        TargetError: a pattern names none of them.
    """
    sites = list(selected)
    found: dict[str, Value] = {}
    for pattern, value in patterns.items():
        around = set(_matches(model.things, pattern))
        weights = {site for path in around for site in model.weights_within(path)}
        inside = tuple(path + "." for path in around)
        named = [site for site in sites if site in weights or site.startswith(inside)]
        if not named:
            raise TargetError(f"pattern {pattern!r} names nothing that is adapted")
        for site in named:
            found.setdefault(site, value)
    return found


def as_targets(targets: Targets) -> list[Target]:
    """Targets as a list.

    Raises:
        TargetError: one of them is no target at all.
    """
    if isinstance(targets, str | re.Pattern | type):
        targets = [targets]
    if not isinstance(targets, Iterable):
        raise TargetError(f"targets are text, module classes or a list of them, not {targets!r}")
    found = list(targets)
    for target in found:
        if not isinstance(target, str | re.Pattern) and not (
            isinstance(target, type) and issubclass(target, nn.Module)
        ):
            raise TargetError(f"a target is text, a regular expression or a module class, not {target!r}")
    return found


def _matches(things: Mapping[str, Thing], target: Target) -> list[str]:
    """The paths that a target names.

    Raises:
        TargetError: there are none.
    """
    if isinstance(target, str) and target in PRESETS:
        paths = PRESETS[target].paths(things)
    else:
        matcher = _matcher(target)
        paths = [path for path, thing in things.items() if matcher(path, thing)]
    if not paths:
        raise TargetError(f"target {_show(target)} matches nothing.{_nearest(things, target)}")
    return paths


def _exclusion(model: Survey, target: Target) -> list[str]:
    """The paths that an exclusion names."""
    try:
        return _matches(model.things, target)
    except TargetError as error:
        raise TargetError(f"exclude: {error}") from None


def _matcher(target: Target) -> Callable[[str, Thing], bool]:
    """Whether a target that is no preset names the thing at a path."""
    if isinstance(target, type):
        return lambda path, thing: isinstance(thing, target)
    if isinstance(target, re.Pattern):
        return lambda path, thing: target.fullmatch(path) is not None
    kind, _, rest = target.partition(":")
    if kind == "type":
        return lambda path, thing: any(cls.__name__ == rest for cls in type(thing).__mro__)
    if kind == "re":
        try:
            return _matcher(re.compile(rest))
        except re.error as error:
            raise TargetError(f"target {target!r} is no valid regular expression: {error}") from error
    return lambda path, thing: path == target or path.endswith("." + target)


def _why_tied(model: Survey, site: str, tied: str) -> str | None:
    """Why a tied weight is not adapted unasked; None where it may be."""
    if tied != "refuse" or site not in model.tied:
        return None
    others = ", ".join(map(repr, model.tied[site]))
    return (
        f"shares its weight with {others}. Say tied='together' to adapt the weight wherever it is used, "
        f"or tied='apart' to adapt {site!r} alone"
    )


def _nearest(things: Mapping[str, Thing], target: Target) -> str:
    """What might have been meant; made to end a message."""
    if isinstance(target, type):
        present = sorted({type(thing).__name__ for thing in things.values()})
        return f" Types present: {', '.join(present)}"
    if isinstance(target, str) and target in PRESETS:
        return f" It stands for {PRESETS[target].description} within the model"
    text = target.pattern if isinstance(target, re.Pattern) else target
    if text.startswith("type:"):
        names = {cls.__name__ for thing in things.values() for cls in type(thing).__mro__}
        return suggest(text.removeprefix("type:"), names)
    adaptable = [path for path, thing in things.items() if _has_weight(thing)]
    depth = text.count(".") + 1
    endings = {".".join(path.split(".")[-depth:]) for path in adaptable}
    if hint := suggest(text, sorted({*endings, *PRESETS})):
        return hint
    shown = sorted({path.split(".")[-1] for path in adaptable})
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return f" Names of layers that can be adapted: {', '.join(shown[:12])}{more}"


def _has_weight(thing: Thing) -> bool:
    return isinstance(thing, nn.Module) and (geometry_of(thing) is not None or bool(read_weights(thing)))


def _show(target: Target) -> str:
    return repr(target.pattern if isinstance(target, re.Pattern) else getattr(target, "__name__", target))
