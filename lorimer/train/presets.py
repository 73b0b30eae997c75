"""Presets: recipes' fragments for a purpose or a card, named in a recipe by `preset: style`.

A preset is one file, `lorimer/presets/<task>/<name>.yaml`: plain data with comments that say why, which the
recipe's own fields win over. Several go together, the later over the earlier: `preset: [style, 8gb]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lorimer.errors import suggest
from lorimer.train.recipe_text import parse_yaml

_FOLDER = Path(__file__).parents[1] / "presets"
_KEYS = ("task", "preset")


def preset_names(task: str) -> list[str]:
    """The sorted names of the presets for a task."""
    return sorted(path.stem for path in (_FOLDER / task).glob("*.yaml"))


def preset_text(task: str, name: str) -> str:
    """A preset as it is written, comments and all."""
    return (_FOLDER / task / f"{name}.yaml").read_text(encoding="utf-8")


def preset_layers(layers: Sequence[Mapping[str, Any]], problems: list[str]) -> list[dict[str, Any]]:
    """What the presets that `layers` ask for say, to be laid under them; tells `problems` of unknown names.

    Args:
        layers: a recipe's sources, weakest first; of each field the last one that has it counts.
    """
    task, asked = (next((layer[key] for layer in reversed(layers) if key in layer), None) for key in _KEYS)
    known = preset_names(str(task))
    found = []
    for name in [asked] if isinstance(asked, str) else asked if isinstance(asked, list | tuple) else []:
        if name in known:
            found.append(parse_yaml(preset_text(str(task), name), f"preset {name}"))
        else:
            listed = f"Known: {', '.join(known)}" if known else f"The task {task} has none"
            problems.append(f"preset: no preset is called {name!r}.{suggest(str(name), known)} {listed}")
    return found
