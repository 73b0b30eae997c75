"""Which layers an adapter goes to.

A target is one of

    "unet.mid_block.attentions.0.to_q"   a module's full path
    "to_q", "attn1.to_q"                 the end of a path, at a dot
    "re:down_blocks\\.[12]\\..*to_[qv]"    a regular expression that the whole path must match
    "type:Conv2d", nn.Conv2d             a module type, as text or as the class
    "attention"                          a preset: projections inside attention modules
    "all-linear", "all-linear-conv"      a preset: every Linear (and Conv2d)

or a list of them. An exclusion takes away what it names and everything inside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lorimer.errors import TargetError, suggest
from lorimer.layers.geometry import geometry_of, supported_layers
from lorimer.layers.host import AdapterSlots

Target = str | re.Pattern[str] | type[nn.Module]
Targets = Target | Sequence[Target]
Matcher = Callable[[str, nn.Module], bool]

PRESETS = {
    "attention": "Linear layers inside attention modules (to_q, q_proj, ...)",
    "all-linear": "every Linear",
    "all-linear-conv": "every Linear and Conv2d",
}
# CLIPAttention, GPT2Attention, LlamaSdpaAttention, Attention, but not CrossAttnDownBlock2D.
_ATTENTION_CLASS = re.compile(r"(Attention|Attn)(V?\d+)?$")


def select(model: nn.Module, targets: Targets, exclude: Targets = ()) -> dict[str, nn.Module]:
    """Module path -> layer for everything that `targets` names and `exclude` does not.

    Presets leave out layers that cannot be adapted safely; naming such a layer is an error.

    Raises:
        TargetError: a target or exclusion matches nothing (the nearest names are listed), or names a
            layer of an unsupported type, one whose owner reads its weight without calling it, or one
            whose weight is tied to another module's.
    """
    modules = adaptable_view(model)
    excluded = [path for target in _as_list(exclude) for path in _matches(modules, target)]
    inside_excluded = tuple(path + "." for path in excluded)
    unsafe = _unsafe_layers(modules)
    selected: dict[str, nn.Module] = {}
    for target in _as_list(targets):
        for path in _matches(modules, target):
            if path in excluded or path.startswith(inside_excluded):
                continue
            layer = modules[path]
            problem = unsafe.get(path)
            if geometry_of(layer) is None:
                problem = f"is a {type(layer).__name__}; layers that can be adapted: " + ", ".join(
                    supported_layers()
                )
            if problem is None:
                selected[path] = layer
            elif target not in PRESETS:
                raise TargetError(f"target {_show(target)}: {path!r} {problem}")
    if not selected:
        raise TargetError(f"targets {_show_all(targets)} leave nothing to adapt in {type(model).__name__}")
    return {path: layer for path, layer in modules.items() if path in selected}


def first_match(path: str, layer: nn.Module, patterns: Sequence[str]) -> str | None:
    """The first of `patterns` that names this layer."""
    return next((pattern for pattern in patterns if _matcher(pattern)(path, layer)), None)


def require_matches(modules: dict[str, nn.Module], patterns: Sequence[str]) -> None:
    """Raise `TargetError` for a pattern that names none of `modules`."""
    for pattern in patterns:
        _matches(modules, pattern)


def adaptable_view(model: nn.Module) -> dict[str, nn.Module]:
    """Every module of the model by path, without the parts that lorimer added."""
    slots = tuple(path for path, module in model.named_modules() if isinstance(module, AdapterSlots))
    return {
        path: module
        for path, module in model.named_modules()
        if path and not any(path == slot or path.startswith(slot + ".") for slot in slots)
    }


def _matches(modules: dict[str, nn.Module], target: Target) -> list[str]:
    if target == "attention":
        return _inside_attention(modules)
    matcher = _matcher(target)
    paths = [path for path, module in modules.items() if matcher(path, module)]
    if not paths:
        raise TargetError(f"target {_show(target)} matches no module.{_nearest(modules, target)}")
    return paths


def _matcher(target: Target) -> Matcher:
    if isinstance(target, type):
        return lambda path, module: isinstance(module, target)
    if isinstance(target, re.Pattern):
        return lambda path, module: target.fullmatch(path) is not None
    if target == "all-linear":
        return lambda path, module: isinstance(module, nn.Linear)
    if target == "all-linear-conv":
        return lambda path, module: isinstance(module, nn.Linear | nn.Conv2d)
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


def _inside_attention(modules: dict[str, nn.Module]) -> list[str]:
    owners = tuple(
        path + "." for path, module in modules.items() if _ATTENTION_CLASS.search(_class_name(module))
    )
    paths = [
        path for path, module in modules.items() if path.startswith(owners) and isinstance(module, nn.Linear)
    ]
    if not paths:
        raise TargetError("target 'attention': the model has no module whose class name ends in Attention")
    return paths


def _class_name(module: nn.Module) -> str:
    return type(module).__name__


def _unsafe_layers(modules: dict[str, nn.Module]) -> dict[str, str]:
    """Layers whose adaptation would do nothing or too much -> why."""
    unsafe: dict[str, str] = {}
    users: dict[int, list[str]] = {}
    for path, module in modules.items():
        if isinstance(module, nn.MultiheadAttention):
            unsafe[f"{path}.out_proj"] = (
                "belongs to nn.MultiheadAttention, which reads the weight without calling the layer: "
                "an adapter there would do nothing"
            )
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter):
            users.setdefault(id(weight), []).append(path)
        if geometry_of(module) and (problem := _unusable(weight)):
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


def _nearest(modules: dict[str, nn.Module], target: Target) -> str:
    if isinstance(target, type):
        return f" Types present: {', '.join(sorted({_class_name(module) for module in modules.values()}))}"
    if isinstance(target, str) and target in PRESETS:
        return f" It stands for {PRESETS[target]} within the model"
    text = target.pattern if isinstance(target, re.Pattern) else target
    if text.startswith("type:"):
        text = text.removeprefix("type:")
        return suggest(text, {cls.__name__ for module in modules.values() for cls in type(module).__mro__})
    depth = text.count(".") + 1
    endings = {".".join(path.split(".")[-depth:]) for path, module in modules.items() if geometry_of(module)}
    hint = suggest(text, sorted({*endings, *PRESETS}))
    if hint:
        return hint
    shown = sorted({path.split(".")[-1] for path, module in modules.items() if geometry_of(module)})
    more = f" and {len(shown) - 12} more" if len(shown) > 12 else ""
    return f" Names of layers that can be adapted: {', '.join(shown[:12])}{more}"


def _as_list(targets: Targets) -> list[Target]:
    return [targets] if isinstance(targets, str | re.Pattern | type) else list(targets)


def _show(target: Target) -> str:
    return repr(target.pattern if isinstance(target, re.Pattern) else getattr(target, "__name__", target))


def _show_all(targets: Targets) -> str:
    return ", ".join(_show(target) for target in _as_list(targets))
