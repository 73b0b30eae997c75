"""Write docs/recipe.md from the recipe's models, or check that it is in step with them.

python scripts/recipe_reference.py            # write
python scripts/recipe_reference.py --check    # fail where the page differs from what would be written
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from lorimer import registry
from lorimer.train.presets import preset_names, preset_text
from lorimer.train.recipe import Recipe, recipe_class
from lorimer.train.recipe_text import section_in
from lorimer.train.sections import AdapterSection, TrainSection

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipe.md"

_INTRODUCTION = """\
# Recipe reference

Written by `scripts/recipe_reference.py` from the models that check recipes; `make check` fails where they
differ.

A recipe is one YAML file with the same shape for every task:

```yaml
task: text-to-image
model: embedded
data: {path: photos/}
adapter: {method: lora, rank: 8, alpha: 8, targets: attention}
train: {steps: 400, batch_size: 4, learning_rate: 1e-3, seed: 0}
output: runs/my-style
```

Any field can be set from outside. The first of these that names a field counts: `train.steps=800` on the
command line, `LORIMER_TRAIN__STEPS=800` in the environment, the file, its presets, the default. Relative
paths mean the current directory, not the recipe's. An unknown key is an error that suggests the nearest
known one, and all mistakes are listed at once. `lorimer check recipe.yaml` does everything up to the first
step and writes no run. Where a list is wanted, a single text stands for a list of one.

The names that other tools use for a field are accepted and stand in the last column.
"""


def main() -> int:
    """Write the page or check it; 1 where the check fails."""
    text = reference()
    if "--check" not in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == text:
        print(f"{PAGE.name} is in step with the recipe's models")
        return 0
    print("docs/recipe.md is not in step with the recipe's models; run: python scripts/recipe_reference.py")
    return 1


def reference() -> str:
    """The whole page."""
    own = ("task", "preset", "model", "output")
    parts = [
        _INTRODUCTION,
        "## Top level\n",
        table(Recipe, only=own),
        "`data`, `objective` and `preview` depend on the task, see below.\n",
        "## adapter\n",
        table(AdapterSection),
    ]
    for method in registry.names("method"):
        if extra := _fields_of(method):
            parts += [f"### adapter, method {method}\n", table(_adapter_class(method), only=extra)]
    parts += ["## train\n", table(TrainSection)]
    for name, task in registry.all_of("task").items():
        parts += [f"## Task {name}\n", task.description + ".\n"]
        for section in ("data", "objective", "preview"):
            model = getattr(task, section.capitalize())
            if model.model_fields:
                parts += [f"### {section}, task {name}\n", table(model)]
        parts += [f"### Presets, task {name}\n", *_presets(name)] if preset_names(name) else []
    return "\n".join(parts)


def _presets(task: str) -> list[str]:
    """Every preset of a task, as its file says it."""
    said = (
        "Each is a file in `lorimer/presets/`. Named by `preset: style` or several: `preset: [style, 8gb]`.\n"
    )
    return [said, *(f"`{name}`:\n\n```\n{preset_text(task, name)}```\n" for name in preset_names(task))]


def table(model: type[BaseModel], only: tuple[str, ...] | None = None) -> str:
    """A Markdown table of a section's fields, or of those named in `only`; sections in it are unfolded."""
    lines = ["| field | value | default | meaning | elsewhere |", "|---|---|---|---|---|"]
    lines += [row for name, row in _rows(model, "") if only is None or name in only]
    return "\n".join(lines) + "\n"


def _rows(model: type[BaseModel], prefix: str) -> Iterator[tuple[str, str]]:
    """(field's name, its row) for every field of a section and of the sections in it."""
    schema = model.model_json_schema()
    aliases: Mapping[str, str] = getattr(model, "aliases", {})
    for name, field in schema["properties"].items():
        section = section_in(model.model_fields[name].annotation)
        several = field.get("type") == "array"
        optional = "anyOf" in field
        if section is not None and not several and not optional:
            yield from ((name, row) for _, row in _rows(section, f"{prefix}{name}."))
            continue
        others = ", ".join(f"`{alias}`" for alias, known in aliases.items() if known == name)
        default = "required" if name in schema.get("required", []) else f"`{_as_yaml(field.get('default'))}`"
        meaning = " ".join(field.get("description", "").split()).replace("|", "\\|")
        held = "mapping or `null`" if optional else "list of mappings"
        kind = held if section is not None else _kind(field)
        yield name, f"| `{prefix}{name}` | {kind} | {default} | {meaning} | {others} |"
        if section is not None:
            yield from (
                (name, row) for _, row in _rows(section, f"{prefix}{name}{'' if optional else '[]'}.")
            )


def _adapter_class(method: str) -> type[BaseModel]:
    section = recipe_class(registry.names("task")[0], method).model_fields["adapter"].annotation
    assert section is not None
    return section


def _fields_of(method: str) -> tuple[str, ...]:
    """The fields that a method adds to the adapter's section."""
    return tuple(
        name for name in _adapter_class(method).model_fields if name not in AdapterSection.model_fields
    )


def _kind(field: Mapping[str, Any]) -> str:
    """What may stand in a field, in words, from its JSON schema."""
    if options := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(map(_kind, options)))
    if "enum" in field:
        return ", ".join(f"`{_as_yaml(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{_as_yaml(field['const'])}`"
    kind = field.get("type")
    if kind == "array" and "prefixItems" in field:
        kinds = " or ".join(dict.fromkeys(map(_kind, field["prefixItems"])))
        return f"list of {len(field['prefixItems'])} {_plural(kinds)}"
    if kind == "array":
        return f"list of {_plural(_kind(field.get('items', {})))}"
    if kind == "object" and isinstance(values := field.get("additionalProperties"), Mapping):
        return f"mapping to {_plural(_kind(values))}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "`true`, `false`"}
    words |= {"null": "`null`", "object": "mapping"}
    return words.get(str(kind), "anything") + _bounds(field)


def _plural(kind: str) -> str:
    return re.sub(r"\bnumber\b", "numbers", kind)


def _bounds(field: Mapping[str, Any]) -> str:
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "exclusiveMaximum": "<", "maximum": "<="}
    return ",".join(f" {sign} {field[key]:g}" for key, sign in signs.items() if key in field)


def _as_yaml(value: Any) -> str:
    """A default as one would write it in the recipe."""
    text = yaml.safe_dump(value, default_flow_style=True, width=1000, allow_unicode=True)
    return text.strip().removesuffix("...").strip()


if __name__ == "__main__":
    sys.exit(main())
