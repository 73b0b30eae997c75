"""The text side of recipes: reading YAML and overrides, names of other tools, messages about mistakes."""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from lorimer.errors import RecipeError


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: `1e-3` is a number, and a key given twice is a mistake."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(
                    problem=f"{key.value!r} is given twice", problem_mark=key.start_mark
                )
            seen.add(getattr(key, "value", ""))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text.

    Raises:
        RecipeError: it is not YAML, or gives a key twice; `where` and the line are named.
    """
    try:
        return yaml.load(text, _Loader)  # a SafeLoader
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise RecipeError(f"{where}{line}: {error.problem or error}") from error
    except yaml.YAMLError as error:
        raise RecipeError(f"{where}: not YAML: {error}") from error


def parse_override(text: str) -> tuple[str, Any]:
    """("train.steps", 10) for "train.steps=10"; the value is YAML.

    Raises:
        RecipeError: there is no `=`, or the value is not YAML.
    """
    place, sign, value = text.partition("=")
    if not sign or not place.strip():
        raise RecipeError(f"override {text!r}: write it as key=value, for example train.steps=10")
    return place.strip(), parse_yaml(value, f"override {text!r}")


def rename_aliases(layer: Mapping[str, Any], schema: type[BaseModel], problems: list[str]) -> dict[str, Any]:
    """`layer` with our names for those of other tools; tells `problems` of a value given twice."""

    def renamed(values: Mapping[str, Any], model: type[BaseModel], place: str) -> dict[str, Any]:
        aliases: Mapping[str, str] = getattr(model, "aliases", {})
        result: dict[str, Any] = {}
        for key, value in values.items():
            name = aliases.get(key, key)
            if name in result:
                problems.append(f"{place}{key}: is another word for {name!r}, which is given too")
            field = model.model_fields.get(name)
            section = section_in(field.annotation) if field is not None else None
            if section is not None and isinstance(value, Mapping):
                value = renamed(value, section, f"{place}{name}.")
            elif section is not None and isinstance(value, list | tuple):
                value = [
                    renamed(each, section, f"{place}{name}.{number}.") if isinstance(each, Mapping) else each
                    for number, each in enumerate(value)
                ]
            result[name] = value
        return result

    return renamed(layer, schema, "")


def describe_errors(error: ValidationError, schema: type[BaseModel]) -> list[str]:
    """One line for each mistake: the dotted place, what is wrong, and the mend."""
    lines = []
    for item in error.errors(include_url=False):
        place = ".".join(str(part) for part in item["loc"]) or "recipe"
        if item["type"] == "extra_forbidden":
            lines.append(f"{place}: unknown key.{_suggest_key(item['loc'], schema)}")
        elif item["type"] == "missing":
            lines.append(f"{place}: is required")
        else:
            wanted = item["msg"].replace("a valid tuple", "a list").replace("a valid dictionary", "a mapping")
            message = wanted.removeprefix("Value error, ").removeprefix("Assertion failed, ")
            whole = isinstance(item["input"], Mapping)  # a section whose fields do not fit together
            found = "" if whole and item["type"] == "value_error" else f", not {_shown(item['input'])}"
            lines.append(f"{place}: {message[:1].lower()}{message[1:]}{found}")
    return lines


def _suggest_key(loc: tuple[int | str, ...], schema: type[BaseModel]) -> str:
    """What an unknown key may have meant: a near name in its section, or the same name in another one."""
    model: type[BaseModel] | None = schema
    for part in loc[:-1]:
        if isinstance(part, int):  # a place in a list of sections
            continue
        field = model.model_fields.get(part) if model is not None else None
        model = section_in(field.annotation) if field is not None else None
    key = str(loc[-1])
    if model is None:
        return ""
    aliases: Mapping[str, str] = getattr(model, "aliases", {})
    near = difflib.get_close_matches(key, [*model.model_fields, *aliases], n=1)
    if near:
        return f" Did you mean {aliases.get(near[0], near[0])!r}?"
    for name, field in schema.model_fields.items():
        section = section_in(field.annotation)
        if section and key in {*section.model_fields, *getattr(section, "aliases", {})}:
            return f" It belongs under {name!r}."
    return f" Known here: {', '.join(model.model_fields) or 'nothing'}"


def section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that a field of this type may hold, or a list of which it holds; None for plain values."""
    if typing.get_origin(annotation) is tuple:
        annotation = typing.get_args(annotation)[0]
    held = [each for each in typing.get_args(annotation) if each is not type(None)]
    if len(held) == 1 and len(typing.get_args(annotation)) == 2:  # a section or null
        annotation = held[0]
    is_section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return annotation if is_section else None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
