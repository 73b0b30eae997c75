"""The recipe: one YAML file that says everything about a training run, checked before anything starts.

    task: text-to-image
    model: embedded
    data: {path: photos/}
    adapter: {method: lora, rank: 8, targets: attention}
    train: {steps: 400, learning_rate: 1e-3}
    output: runs/my-style

What counts, first to last: `train.steps=10` on the command line, LORIMER_TRAIN__STEPS=10 in the
environment, the file, its preset, the default. Relative paths mean the current directory.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from pydantic import ConfigDict, Field, ValidationError, create_model

from lorimer import registry
from lorimer.adapters._base import Method
from lorimer.errors import RecipeError, UsageError, suggest
from lorimer.tasks._base import Section, Task
from lorimer.train.presets import preset_layers
from lorimer.train.recipe_text import describe_errors, parse_override, parse_yaml, rename_aliases
from lorimer.train.sections import AdapterSection, Names, TrainSection, own_fields

ENVIRONMENT_PREFIX = "LORIMER_"
_TASK_SECTIONS = ("data", "objective", "preview")  # whose classes belong to the task


class Recipe(Section):
    """A checked recipe. `data`, `objective` and `preview` are the task's own sections."""

    aliases: ClassVar[Mapping[str, str]] = {
        "base_model": "model",
        "pretrained_model_name_or_path": "model",
        "output_dir": "output",
    }

    task: str
    """What is trained: a task's name."""
    preset: Names = ()
    """Presets that fields not given here are taken from; of several the later ones win."""
    model: str | dict[str, str] | None = None
    """The base model: `embedded`, a hub name, a folder, one `.safetensors` checkpoint, or a mapping of such a
    `path` and parts from elsewhere; for the task `module` a `package.module:function`."""
    data: Any
    """What it learns from."""
    objective: Any
    """Options of the loss."""
    adapter: AdapterSection
    """What is attached, and where."""
    train: TrainSection
    """How training goes."""
    preview: Any
    """What previews show."""
    output: Path
    """The run's folder; must be new or empty."""

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return Path(self.output).name

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `load_recipe` makes an equal one of it."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, str | int | float]:
        """Dotted place -> value, for programs that show settings in a table."""
        return flatten(self.as_dict())


def flatten(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """{"train.steps": 10} for {"train": {"steps": 10}}; lists and null become text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Recipe:
    """The recipe in a YAML file or a mapping, with overrides put on top, checked as a whole.

    Args:
        source: a path, or the recipe as plain data.
        overrides: `"train.steps=10"`; the value is read as YAML. They win over everything else.
        environment: variables such as `LORIMER_TRAIN__STEPS=10`, which win over the file.

    Raises:
        RecipeError: lists every mistake: unknown keys with the nearest known one, missing and wrong values.
    """
    where = "recipe" if isinstance(source, Mapping) else str(source)
    layers = [dict(source) if isinstance(source, Mapping) else _read(Path(source))]
    layers += [_nested(place, value) for place, value in _from_environment(environment)]
    layers += [_nested(*parse_override(override)) for override in overrides]
    problems: list[str] = []
    layers = [*preset_layers(layers, problems), *layers]
    chosen: dict[str, Any] = {}
    for layer in layers:
        chosen |= {key: layer[key] for key in ("task",) if key in layer}
        if isinstance(adapter := layer.get("adapter"), Mapping) and "method" in adapter:
            chosen["method"] = adapter["method"]
    schema = _schema(chosen.get("task"), chosen.get("method", "lora"), problems)
    merged: dict[str, Any] = {name: {} for name in (*_TASK_SECTIONS, "adapter", "train")}
    for layer in layers:
        _merge(merged, rename_aliases(layer, schema, problems))
    try:
        recipe = schema.model_validate(merged)
        if not problems:
            recipe.adapter.method_config()
    except ValidationError as error:
        problems += describe_errors(error, schema)
    except UsageError as error:
        problems.append(f"adapter: {error}")
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise RecipeError("\n  ".join([f"{where}: {count}", *problems]))
    return recipe


def recipe_class(task: str, method: str = "lora") -> type[Recipe]:
    """The recipe's class with the sections of one task and the fields of one method.

    Raises:
        UsageError: there is no task or method of that name.
    """
    return _class_of(registry.get("task", task), registry.get("method", method))


@cache
def _class_of(task: type[Task], method: type[Method]) -> type[Recipe]:
    types, meanings = typing.get_type_hints(method), _meanings(method)
    own: dict[str, Any] = {
        name: (types[name], Field(**_default(field), description=meanings.get(name)))
        for name, field in own_fields(method).items()
    }
    adapter = create_model("AdapterSection", __base__=AdapterSection, **own)
    sections = {name: getattr(task, name.capitalize()) for name in _TASK_SECTIONS}
    return _with_sections({"adapter": adapter, **sections})


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {} if field.default is dataclasses.MISSING else {"default": field.default}


def _meanings(method: type[Method]) -> dict[str, str]:
    """Field -> what the docstrings of the method and its bases say of it under `Attributes:`."""
    meanings: dict[str, str] = {}
    for cls in reversed(method.__mro__):
        _, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.+(?:\n     .+)*)", attributes, re.MULTILINE):
            words = " ".join(text.split()).replace("None", "null")
            meanings |= dict.fromkeys(names.split(", "), words[:1].upper() + words[1:])
    return meanings


def _with_sections(sections: Mapping[str, type[Section]]) -> type[Recipe]:
    """`Recipe` with these classes for its sections."""
    fields: dict[str, Any] = {
        name: (section, Field(description=Recipe.model_fields[name].description))
        for name, section in sections.items()
    }
    return create_model("Recipe", __base__=Recipe, **fields)


class _AnySection(Section):
    """Stands in for a section whose class is not known, so that the rest can still be checked."""

    model_config = ConfigDict(extra="allow")


class _AnyAdapter(AdapterSection):
    model_config = ConfigDict(extra="allow")


def _schema(task: Any, method: Any, problems: list[str]) -> type[Recipe]:
    """The class to check against; where a name is unknown, tells `problems` and checks what it can."""
    try:
        return recipe_class(str(task), str(method))
    except UsageError:
        for kind, place, name in (("task", "task", task), ("method", "adapter.method", method)):
            known = registry.names(kind)
            if name is not None and name not in known:
                problems.append(
                    f"{place}: no {kind} is called {name!r}.{suggest(str(name), known)} "
                    f"Known: {', '.join(known)}"
                )
    return _with_sections({"adapter": _AnyAdapter, **dict.fromkeys(_TASK_SECTIONS, _AnySection)})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of `key: value` lines, not {type(value).__name__}")
    return value


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(dotted place, value) of every variable that names a field; others are left alone."""
    found = []
    for variable, text in sorted(environment.items()):
        place = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if variable.startswith(ENVIRONMENT_PREFIX) and place.split(".")[0] in Recipe.model_fields:
            found.append((place, parse_yaml(text, variable)))
    return found


def _nested(place: str, value: Any) -> dict[str, Any]:
    """{"train": {"steps": 10}} for ("train.steps", 10)."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value


def _merge(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put `layer` over `target`: mappings key by key, anything else as a whole."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
