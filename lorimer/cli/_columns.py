"""The columns of `lorimer grid`: the base model, then each adapter at each strength. Commands import this
file when they run, since it imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lorimer
from lorimer.cli._gallery import Heading
from lorimer.cli._runs import adapter_of, is_finished
from lorimer.errors import UsageError
from lorimer.tasks._diffusion import DiffusionModel, sample
from lorimer.train.checkpoint import list_checkpoints, step_of
from lorimer.train.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Shown:
    """One adapter to draw with.

    Attributes:
        name: what stands above its columns.
        file: where it lies.
    """

    name: str
    file: Path


def adapters_of(source: Path, wanted: str, prefix: str = "") -> list[Shown]:
    """The adapters of a run, oldest first, or the one file that is not a run.

    Args:
        wanted: "all", "final", "last N", or steps such as "100,200,final".
        prefix: what goes before the names.

    Raises:
        UsageError: a step is asked for that has no checkpoint, or there is none at all.
    """
    folder = RunFolder(source)
    if not folder.recipe.is_file():
        return [Shown(source.stem, source)]
    kept = list_checkpoints(folder.checkpoints)
    found = {f"step {step_of(place)}": place / "adapter.safetensors" for place in kept}
    if not found:
        raise UsageError(f"{source} has no checkpoint yet")
    newest, same = list(found)[-1], {}
    if is_finished(folder):  # its adapter is that of the newest checkpoint
        found.pop(newest)
        found["final"], same[newest] = adapter_of(source), "final"
    chosen = _chosen(list(found), wanted, same)
    missing = [name for name in chosen if name not in found]
    if missing:
        raise UsageError(f"{source} has no checkpoint called {missing[0]!r}; it has: {', '.join(found)}")
    return [Shown(prefix + name, found[name]) for name in chosen]


def _chosen(names: list[str], wanted: str, same: dict[str, str]) -> list[str]:
    """The names that `wanted` asks for; `same` maps a name to another for the same adapter."""
    words = wanted.replace(",", " ").split()
    if words == ["all"]:
        return names
    if len(words) == 2 and words[0] == "last" and words[1].isdigit() and int(words[1]):
        return names[-int(words[1]) :]
    steps = [f"step {int(word)}" if word.isdigit() else word for word in words]
    if not steps:
        raise UsageError("--checkpoints: say all, final, 'last 3', or steps such as 100,200,final")
    return list(dict.fromkeys(same.get(step, step) for step in steps))


def draw_columns(
    model: DiffusionModel,
    adapters: Sequence[Shown],
    strengths: Sequence[float],
    prompts: Sequence[str],
    seeds: Sequence[int],
    **settings: Any,
) -> list[tuple[Heading, list[Image]]]:
    """(what stands above, one picture for each prompt and its seed) for each column. The base model is loaded
    once and drawn once; adapters take each other's place on it.

    Raises:
        FileFormatError: an adapter is broken or does not fit the model.
    """
    columns = [(Heading("base"), sample(model, prompts, seeds, **settings))] if 0.0 in strengths else []
    for shown in adapters:
        lorimer.load(model, shown.file)
        for value in strengths:
            if value:
                with lorimer.strength(model, value):
                    pictures = sample(model, prompts, seeds, **settings)
                columns.append((Heading(shown.name, f"strength {value:g}"), pictures))
        lorimer.detach(model)
    return columns
