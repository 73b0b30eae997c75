"""A recipe as YAML that tells, field by field, where each value came from."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml


class _Dumper(yaml.SafeDumper):
    """YAML that repeats a value instead of naming it by an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def recipe_text(fields: Mapping[str, Any], comments: Mapping[str, str], header: list[str]) -> str:
    """The recipe with these dotted fields; `header` becomes comments on top."""
    lines = [f"# {line}".rstrip() for line in header]
    for section, named in _places().items():
        inner = {place: value for place, value in fields.items() if place.startswith(f"{section}.")}
        if section in fields:
            lines += [""] * (section == "output")
            lines += _line(section, fields[section], comments.get(section, ""), "")
        elif inner:
            lines += ["", f"{section}:"]
            for name, value in sorted(_nested(inner).items(), key=lambda item: _place(named, item[0])):
                lines += _line(name, value, comments.get(f"{section}.{name}", ""), "  ")
    return "\n".join(lines) + "\n"


def _places() -> dict[str, list[str]]:
    """The recipe's fields in order, and in them theirs."""
    from lorimer.train.recipe import recipe_class

    fields = recipe_class("text-to-image").model_fields
    return {name: [*getattr(field.annotation, "model_fields", {})] for name, field in fields.items()}


def _place(named: list[str], name: str) -> int:
    """Where a field stands in its section; those of the method right behind the method."""
    return named.index(name) if name in named else 0


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Name in the section -> value, with `data.validation.fraction` as a mapping `validation`."""
    result: dict[str, Any] = {}
    for place, value in fields.items():
        _, name, *deeper = place.split(".")
        if deeper:
            result.setdefault(name, {})[".".join(deeper)] = value
        else:
            result[name] = value
    return result


def _line(name: str, value: Any, comment: str, indent: str) -> list[str]:
    """A field in a line, or in several where it is long."""
    note = f"  # {comment}" if comment and comment != name else ""
    flow, deeper = _flow(value), indent + "  "
    if len(flow) <= 90 or not value:
        return [f"{indent}{name}: {flow}{note}"]
    if isinstance(value, Mapping):
        return [
            f"{indent}{name}:{note}",
            *(f"{deeper}{_flow(key)}: {_flow(each)}" for key, each in value.items()),
        ]
    if isinstance(value, list) and all(isinstance(each, str) and " " not in each for each in value):
        wrapped = textwrap.wrap(flow, 90)  # a list between brackets may go over several lines
        return [f"{indent}{name}:{note}", *(f"{deeper}{line}" for line in wrapped)]
    if isinstance(value, list):
        return [f"{indent}{name}:{note}", *(f"{deeper}- {_flow(each)}" for each in value)]
    return [f"{indent}{name}: {flow}{note}"]


def _flow(value: Any) -> str:
    """A value in one line."""
    text = yaml.dump(
        value, Dumper=_Dumper, default_flow_style=True, width=10_000, allow_unicode=True, sort_keys=False
    )
    return text.strip().removesuffix("...").strip()
