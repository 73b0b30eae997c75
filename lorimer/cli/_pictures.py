"""From what a person names on the command line to a picture model with the adapter on it. Commands
import this file when they run, since it imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lorimer
from lorimer import registry
from lorimer.cli._runs import adapter_file
from lorimer.errors import UsageError
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample
from lorimer.tasks._preview_section import PicturePreview
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image


_SHOWN = "default"  # the name of the adapter whose strength varies


@dataclass(frozen=True)
class PictureBase:
    """A picture model on the machine's fastest device, before any adapter.

    Attributes:
        trigger: the words that call the adapter's subject or style; empty where it has none.
        prompts, seeds, settings: what the run drew as previews, and how, as options of `draw`; for a file
            from elsewhere no prompts, the seed 0 and no settings.
    """

    model: DiffusionModel
    trigger: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: dict[str, Any]


def load_base(source: Path, file: Path, model_name: str | None) -> PictureBase:
    """The base model that the adapter in `file`, of the run or file `source`, is for.

    Raises:
        UsageError: the run draws no pictures; or nothing says which base is meant.
        FileFormatError: the file is broken.
    """
    metadata = lorimer.read(file).metadata
    recipe = recipe_of(source)
    model = load_diffusion(model_name or (recipe and recipe.model) or named_base(source, metadata))
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    trigger = metadata.get("trigger") or (recipe and recipe.data.trigger) or ""
    prompts = (recipe and recipe.preview.prompts) or ()
    return PictureBase(model, trigger, prompts, recipe.preview.seeds if recipe else (0,), _settings(recipe))


def load_adapted(source: Path, model_name: str | None, others: Sequence[str] = ()) -> PictureBase:
    """The base model with the adapter of a run folder or file on it, and others beside it.

    Args:
        others: further adapters, each "FILE" or "FILE=STRENGTH".

    Raises:
        UsageError: the run has no adapter yet or draws no pictures; nothing says which base is meant; or a
            strength is no number.
        FileFormatError: a file is broken or does not fit the model.
    """
    file = adapter_file(source)
    asked = [_with_strength(other) for other in others]
    base = load_base(source, file, model_name)
    lorimer.load(base.model, file, name=_SHOWN)
    for number, (other, value) in enumerate(asked, 1):
        lorimer.load(base.model, adapter_file(other), name=f"other-{number}").strength = value
    return base


def _with_strength(text: str) -> tuple[Path, float]:
    """(file, strength) of "FILE" or "FILE=STRENGTH"."""
    name, equals, value = text.rpartition("=")
    if not equals or Path(text).exists():
        return Path(text), 1.0
    try:
        return Path(name), float(value)
    except ValueError:
        raise UsageError(f"--adapter {text}: {value!r} is no strength; write FILE=0.7") from None


def draw(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strengths: Sequence[float],
    **settings: Any,
) -> list[list[Image]]:
    """One row for each prompt and its seed, one picture in it for each strength. `settings` go to
    `lorimer.tasks._diffusion.sample`. Other adapters than the one that is shown keep their strength."""
    columns = []
    for strength in strengths:
        with lorimer.strength(model, {_SHOWN: strength}):
            columns.append(sample(model, prompts, seeds, **settings))
    return [list(row) for row in zip(*columns, strict=True)]


def recipe_of(source: Path) -> Recipe | None:
    """The recipe of a run that draws pictures; None for a file."""
    if not RunFolder(source).recipe.is_file():
        return None
    recipe = load_recipe(RunFolder(source).recipe, environment={})
    if not issubclass(registry.get("task", recipe.task).Preview, PicturePreview):
        raise UsageError(f"{source} is a run of the task {recipe.task}, which draws no pictures")
    return recipe


def named_base(source: Path, metadata: dict[str, str]) -> str:
    """The base model that a file names, if that is the one in the package. Another is only shown, since
    loading what a file from elsewhere names could fetch anything from the hub."""
    named = metadata.get("base_model")
    if named != "embedded":
        hint = f"; the file names {named!r}" if named else ""
        raise UsageError(f"{source}: say which base model to load with --model{hint}")
    return named


def _settings(recipe: Recipe | None) -> dict[str, Any]:
    if recipe is None:
        return {}
    shown = recipe.preview
    return {
        "steps": shown.steps,
        "guidance": shown.guidance,
        "negative_prompt": shown.negative_prompt,
        "resolution": recipe.data.resolution,
    }


def given_settings(
    *, steps: int | None, guidance: float | None, negative_prompt: str | None, resolution: str | None
) -> dict[str, Any]:
    """The options that a person gave, as settings of `draw`."""
    given = {
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "resolution": None if resolution is None else parsed_resolution(resolution),
    }
    return {name: value for name, value in given.items() if value is not None}


def parsed_resolution(text: str) -> int | tuple[int, int]:
    """A side, or (width, height), in pixels, from "768" or "768x1024"."""
    if not re.fullmatch(r"[1-9]\d{0,4}(x[1-9]\d{0,4})?", text):
        raise UsageError(
            f"--resolution {text}: give a side such as 768, or width and height such as 768x1024"
        )
    width, _, height = text.partition("x")
    return (int(width), int(height)) if height else int(width)


def prompts_in(file: Path | None) -> list[str]:
    """The prompts in a text file, one a line; lines that begin with # are left out."""
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: prompts must be text in UTF-8: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]


def make_folder(folder: Path) -> None:
    """Make a folder to write into.

    Raises:
        UsageError: it cannot be one.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be a folder to write into: {error.strerror}") from error


def slug(text: str) -> str:
    """A prompt as a file name: letters and digits of any script, at most 60 of them."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60] or "empty"
