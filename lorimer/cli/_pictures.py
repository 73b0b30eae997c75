"""From what a person names on the command line to a picture model with the adapter on it. Commands
import this file when they run, since it imports torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import lorimer
from lorimer.cli._runs import adapter_file
from lorimer.cli._stored import Merging, picture_files
from lorimer.errors import UsageError
from lorimer.ops.files import attach_state
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorimer.attachment.attached import AttachedAdapter


@dataclass(frozen=True)
class AdaptedModel:
    """A picture model with an adapter attached, on the machine's fastest device.

    Attributes:
        trigger: the words that call the adapter's subject or style; empty where it has none.
        settings: how the run drew its previews, as options of `draw`; empty for a file from elsewhere.
    """

    model: DiffusionModel
    adapter: AttachedAdapter
    trigger: str
    settings: dict[str, Any]


def load_adapted(source: Path, model_name: str | None) -> AdaptedModel:
    """The base model with the adapter of a run folder or file on it.

    Raises:
        UsageError: the run has no adapter yet or draws no pictures; or nothing says which base is meant.
        FileFormatError: the file is broken or does not fit the model.
    """
    file = adapter_file(source)
    state = lorimer.read(file)
    recipe = _recipe_of(source)
    model = load_diffusion(model_name or (recipe and recipe.model) or _named_base(source, state.metadata))
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    adapter = attach_state(model, state, source=str(file))
    return AdaptedModel(model, adapter, state.metadata.get("trigger", ""), _settings(recipe))


def merging(source: Path, model_name: str | None, strength: float, dtype: torch.dtype | None) -> Merging:
    """The adapter of a run folder or file on its way into the files of its base model.

    Raises: as `load_adapted`.
    """
    file = adapter_file(source)
    state = lorimer.read(file)
    recipe = _recipe_of(source)
    files, stored = picture_files(
        model_name or (recipe and recipe.model) or _named_base(source, state.metadata)
    )
    return Merging(files, stored, state, strength, dtype, str(file))


def draw(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    strengths: Sequence[float],
    **settings: Any,
) -> list[list[Image]]:
    """One row for each prompt and its seed, one picture in it for each strength. `settings` go to
    `lorimer.tasks._diffusion.sample`."""
    columns = []
    for strength in strengths:
        with lorimer.strength(model, strength):
            columns.append(sample(model, prompts, seeds, **settings))
    return [list(row) for row in zip(*columns, strict=True)]


def _recipe_of(source: Path) -> Recipe | None:
    """The recipe of a run that draws pictures; None for a file."""
    if not RunFolder(source).recipe.is_file():
        return None
    recipe = load_recipe(RunFolder(source).recipe, environment={})
    if recipe.task != "text-to-image":
        raise UsageError(f"{source} is a run of the task {recipe.task}, which draws no pictures")
    return recipe


def _named_base(source: Path, metadata: dict[str, str]) -> str:
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
