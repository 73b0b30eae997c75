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
from lorimer.errors import UsageError
from lorimer.ops.files import attach_state
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample
from lorimer.train.recipe import load_recipe
from lorimer.train.run_folder import RunFolder

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorimer.adapters._state import AdapterState
    from lorimer.attachment.attached import AttachedAdapter


@dataclass(frozen=True)
class AdaptedModel:
    """A picture model with an adapter attached, on the machine's fastest device.

    Attributes:
        source: the adapter's file.
        trigger: the words that call the adapter's subject or style; empty where it has none.
    """

    model: DiffusionModel
    adapter: AttachedAdapter
    source: Path
    trigger: str


def load_adapted(source: Path, model_name: str | None) -> AdaptedModel:
    """The base model with the adapter of a run folder or file on it.

    Raises:
        UsageError: the run has no adapter yet, or nothing says which base model is meant.
        FileFormatError: the file is broken or does not fit the model.
    """
    file = adapter_file(source)
    state = lorimer.read(file)
    model = load_diffusion(model_name or _base_model(source, state))
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    adapter = attach_state(model, state, source=str(file))
    return AdaptedModel(model, adapter, file, state.metadata.get("trigger", ""))


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


def _base_model(source: Path, state: AdapterState) -> str:
    """What the adapter was trained on. A run's own recipe is trusted; what a file from elsewhere names is
    only shown, since loading it could fetch anything from the hub.

    Raises:
        UsageError: that is not to be known, or no picture model.
    """
    if RunFolder(source).recipe.is_file():
        recipe = load_recipe(RunFolder(source).recipe, environment={})
        if recipe.task != "text-to-image" or recipe.model is None:
            raise UsageError(f"{source} is a run of the task {recipe.task}, which draws no pictures")
        return recipe.model
    named = state.metadata.get("base_model")
    if named != "embedded":
        hint = f"; the file names {named!r}" if named else ""
        raise UsageError(f"{source}: say which base model to load with --model{hint}")
    return named
