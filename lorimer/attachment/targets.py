"""Which parameters an adapter goes to.

A target is one of

    "unet.mid_block.attentions.0.to_q"   a module's full path
    "to_q", "attn1.to_q"                 the end of a path, at a dot
    "experts.gate_up_proj"               a parameter, where it is no module's `weight`
    "re:down_blocks\\.[12]\\..*to_[qv]"    a regular expression that the whole path must match
    "type:Conv2d", nn.Conv2d             a module type, as text or as the class
    "attention"                          a preset: projections inside attention modules
    "all-linear", "all-linear-conv"      a preset: every Linear (and convolution)
    "norms", "biases"                    presets for full training

or a list of them. An exclusion takes away what it names and everything inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lorimer.errors import TargetError, suggest
from lorimer.layers.host import Site, site_path
from lorimer.layers.kinds import geometry_of, parameter_geometry, read_projections, supported_layers
from lorimer.layers.linear import is_hugging_face_conv1d
from lorimer.layers.slots import LayerSlots

Target = str | re.Pattern[str] | type[nn.Module]
Targets = Target | Sequence[Target]
Matcher = Callable[[str, nn.Module | nn.Parameter], bool]

PRESETS = {
    "attention": "projections inside attention modules (to_q, q_proj, ...)",
    "all-linear": "every Linear",
    "all-linear-conv": "every Linear and convolution",
}
FULL_PRESETS = {"norms": "every norm's scale and shift", "biases": "every bias"}
_CONVOLUTIONS = (nn.modules.conv._ConvNd,)
# CLIPAttention, GPT2Attention, LlamaSdpaAttention, Attention, but not CrossAttnDownBlock2D.
_ATTENTION_CLASS = re.compile(r"(Attention|Attn)(V?\d+)?$")
_NORM_CLASS = re.compile(r"Norm(\dd)?$")


def select(model: nn.Module, targets: Targets, exclude: Targets = ()) -> dict[str, Site]:
    """Path -> site for everything that `targets` names and `exclude` does not, in the model's order.

    Presets leave out layers that cannot be adapted safely; naming such a layer is an error.

    Raises:
        TargetError: a target or exclusion matches nothing (the nearest names are listed), or names a
            layer of an unsupported type, or one whose weight is tied to another module's.
    """
    view = adaptable_view(model)
    excluded = [path for target in _as_list(exclude) for path in _matches(view, target)]
    inside_excluded = tuple(path + "." for path in excluded)
    every, unsafe = every_site(model), _unsafe_layers(view)
    selected: set[str] = set()
    for target in _as_list(targets):
        for path in _matches(view, target):
            for site, problem in _sites_within(path, view[path], every, unsafe):
                if site in excluded or site.startswith(inside_excluded):
                    continue
                if problem is None:
                    selected.add(site)
                elif target not in PRESETS:
                    raise TargetError(f"target {_show(target)}: {site!r} {problem}")
    if not selected:
        raise TargetError(f"targets {_show_all(targets)} leave nothing to adapt in {type(model).__name__}")
    return {path: site for path, site in every.items() if path in selected}


def select_full(model: nn.Module, targets: Targets) -> dict[str, Site]:
    """Path -> site of every parameter that `targets` name, or that lies within a module that they name.

    Raises:
        TargetError: a target matches nothing, or a parameter that cannot be trained.
    """
    modules, every = adaptable_view(model), every_site(model)
    view: dict[str, nn.Module | nn.Parameter] = {**modules}
    view.update({site.full_name: site.layer._parameters[site.parameter] for site in every.values()})  # type: ignore[misc]
    selected: dict[str, Site] = {}
    for target in _as_list(targets):
        matched = _matches(view, target)
        inside = tuple(f"{path}." for path in matched)
        for path, site in every.items():
            if site.full_name in matched or site.full_name.startswith(inside):
                weight = site.layer._parameters[site.parameter]
                if weight is None or not weight.is_floating_point():
                    raise TargetError(f"target {_show(target)}: {site.full_name!r} {_unusable(weight)}")
                selected[path] = site
    return selected


def every_site(model: nn.Module) -> dict[str, Site]:
    """Path -> site of every parameter that the model itself has."""
    modules = {"": model, **adaptable_view(model, modules_only=True)}
    read = {
        (id(owner), name)
        for module in modules.values()
        if isinstance(module, nn.Module)
        for owner, name in read_projections(module)
    }
    found: dict[str, Site] = {}
    for path, module in modules.items():
        assert isinstance(module, nn.Module)
        called = geometry_of(module)
        for name, parameter in module._parameters.items():
            if parameter is None:
                continue
            owned = name == "weight" and called is not None and (id(module), name) not in read
            geometry = called if owned and called is not None else parameter_geometry(module, name)
            found[site_path(path, name)] = Site(site_path(path, name), module, name, geometry)
    return found


def first_match(site: Site, patterns: Sequence[str]) -> str | None:
    """The first of `patterns` that names this site."""
    thing = site.layer if site.parameter == "weight" else site.layer._parameters[site.parameter]
    assert thing is not None
    return next((pattern for pattern in patterns if _matcher(pattern)(site.path, thing)), None)


def require_matches(sites: Mapping[str, Site], patterns: Sequence[str]) -> None:
    """Raise `TargetError` for a pattern that names none of `sites`."""
    for pattern in patterns:
        _matches({path: site.layer for path, site in sites.items()}, pattern)


def adaptable_view(model: nn.Module, modules_only: bool = False) -> dict[str, nn.Module | nn.Parameter]:
    """Every module of the model by path, without the parts that lorimer added; and, unless `modules_only`,
    the parameters of modules whose type has no geometry of its own."""
    slots = tuple(path for path, module in model.named_modules() if isinstance(module, LayerSlots))
    inside = tuple(path + "." for path in slots)
    view: dict[str, nn.Module | nn.Parameter] = {}
    for path, module in model.named_modules():
        if path in slots or path.startswith(inside):
            continue
        if path:
            view[path] = module
        if not modules_only and geometry_of(module) is None:
            for name, parameter in module._parameters.items():
                if parameter is not None and name != "weight":
                    view[site_path(path, name)] = parameter
    return view


def _sites_within(
    path: str,
    thing: nn.Module | nn.Parameter,
    every: Mapping[str, Site],
    unsafe: Mapping[str, str],
) -> list[tuple[str, str | None]]:
    """(site, why it cannot be adapted or None) for what a target matched."""
    if isinstance(thing, nn.Parameter):
        problem = unsafe.get(path) or (_unusable(thing) if thing.ndim < 4 else "has too many axes")
        return [(path, problem)]
    if read := read_projections(thing):
        by_owner = {(id(site.layer), site.parameter): site.path for site in every.values()}
        paths = [by_owner[id(owner), name] for owner, name in read]
        return [(each, unsafe.get(each)) for each in paths]
    if geometry_of(thing) is None:
        known = ", ".join(supported_layers())
        return [(path, f"is a {_class_name(thing)}; layers that can be adapted: {known}")]
    return [(path, unsafe.get(path))]


def _matches(view: Mapping[str, nn.Module | nn.Parameter], target: Target) -> list[str]:
    if target == "attention":
        return _inside_attention(view)
    matcher = _matcher(target)
    paths = [path for path, thing in view.items() if matcher(path, thing)]
    if not paths:
        raise TargetError(f"target {_show(target)} matches nothing.{_nearest(view, target)}")
    return paths


def _matcher(target: Target) -> Matcher:
    if isinstance(target, type):
        return lambda path, module: isinstance(module, target)
    if isinstance(target, re.Pattern):
        return lambda path, module: target.fullmatch(path) is not None
    if target == "all-linear":
        return lambda path, module: _is_linear(module)
    if target == "all-linear-conv":
        return lambda path, module: _is_linear(module) or isinstance(module, _CONVOLUTIONS)
    if target == "norms":
        return lambda path, module: _NORM_CLASS.search(_class_name(module)) is not None
    if target == "biases":
        return lambda path, module: isinstance(module, nn.Parameter) and path.split(".")[-1] == "bias"
    if target == "attention":
        raise TargetError("'attention' cannot be used as a pattern for ranks; name the layers")
    if target.startswith("type:"):
        wanted = target.removeprefix("type:")
        return lambda path, module: any(cls.__name__ == wanted for cls in type(module).__mro__)
    if target.startswith("re:"):
        try:
            pattern = re.compile(target.removeprefix("re:"))
        except re.error as error:
            raise TargetError(f"target {target!r} is no valid regular expression: {error}") from error
        return lambda path, module: pattern.fullmatch(path) is not None
    return lambda path, module: path == target or path.endswith("." + target)


def _inside_attention(view: Mapping[str, nn.Module | nn.Parameter]) -> list[str]:
    attention = [path for path, thing in view.items() if _ATTENTION_CLASS.search(_class_name(thing))]
    owners = tuple(path + "." for path in attention)
    paths = [
        path
        for path, thing in view.items()
        if (path.startswith(owners) and _is_linear(thing)) or isinstance(thing, nn.MultiheadAttention)
    ]
    if not paths:
        raise TargetError("target 'attention': the model has no module whose class name ends in Attention")
    return paths


def _is_linear(thing: object) -> bool:
    """A projection in the widest sense: attention's packed ones included."""
    return isinstance(thing, nn.Linear | nn.MultiheadAttention) or is_hugging_face_conv1d(thing)


def _class_name(thing: object) -> str:
    return type(thing).__name__


def _unsafe_layers(view: Mapping[str, nn.Module | nn.Parameter]) -> dict[str, str]:
    """Layers whose adaptation would do nothing or too much -> why."""
    unsafe: dict[str, str] = {}
    users: dict[int, list[str]] = {}
    for path, thing in view.items():
        weight = getattr(thing, "weight", None) if isinstance(thing, nn.Module) else thing
        if isinstance(weight, nn.Parameter):
            users.setdefault(id(weight), []).append(path)
        if isinstance(thing, nn.Module) and geometry_of(thing) and (problem := _unusable(weight)):
            unsafe[path] = problem
    for paths in users.values():
        if len(paths) > 1:
            for path in paths:
                other = next(other for other in paths if other != path)
                unsafe[path] = f"shares its weight with {other!r}: merging would change both"
    return unsafe


def _unusable(weight: object) -> str | None:
    """Why a layer with this weight cannot be adapted, or None where it can."""
    if isinstance(weight, UninitializedParameter):
        return "has no weight yet; run the model once before attaching"
    if not isinstance(weight, nn.Parameter):
        return "computes its weight (a parametrization such as weight_norm); nothing can be merged into it"
    if not weight.is_floating_point():
        return f"holds its weight as {str(weight.dtype).removeprefix('torch.')}, which cannot be adapted"
    return None


def _nearest(modules: Mapping[str, nn.Module | nn.Parameter], target: Target) -> str:
    if isinstance(target, type):
        return f" Types present: {', '.join(sorted({_class_name(module) for module in modules.values()}))}"
    if isinstance(target, str) and target in PRESETS:
        return f" It stands for {PRESETS[target]} within the model"
    text = target.pattern if isinstance(target, re.Pattern) else target
    if text.startswith("type:"):
        text = text.removeprefix("type:")
        return suggest(text, {cls.__name__ for module in modules.values() for cls in type(module).__mro__})
    depth = text.count(".") + 1
    endings = {".".join(path.split(".")[-depth:]) for path, module in modules.items() if _adaptable(module)}
    hint = suggest(text, sorted({*endings, *PRESETS}))
    if hint:
        return hint
    shown = sorted({path.split(".")[-1] for path, module in modules.items() if _adaptable(module)})
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return f" Names of layers that can be adapted: {', '.join(shown[:12])}{more}"


def _adaptable(thing: nn.Module | nn.Parameter) -> bool:
    return isinstance(thing, nn.Module) and (geometry_of(thing) is not None or bool(read_projections(thing)))


def _as_list(targets: Targets) -> list[Target]:
    return [targets] if isinstance(targets, str | re.Pattern | type) else list(targets)


def _show(target: Target) -> str:
    return repr(target.pattern if isinstance(target, re.Pattern) else getattr(target, "__name__", target))


def _show_all(targets: Targets) -> str:
    return ", ".join(_show(target) for target in _as_list(targets))
