"""From what a person names on the command line to a language model with adapters on it. Commands import this
file when they run, since it imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

import lorimer
from lorimer.cli._runs import adapter_file, weighed
from lorimer.errors import UsageError
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.run_folder import RunFolder


def run_recipe(source: Path, *tasks: str) -> Recipe | None:
    """The recipe of a run of one of these tasks; None for a file.

    Raises:
        UsageError: it is a run of another task, or nothing at all.
    """
    if not RunFolder(source).recipe.is_file():
        if not source.exists():
            raise UsageError(f"{source}: there is no such run or file")
        return None
    recipe = load_recipe(RunFolder(source).recipe, environment={})
    if recipe.task not in tasks:
        raise UsageError(f"{source} is a run of the task {recipe.task}, not {' or '.join(tasks)}")
    return recipe


def base_of(source: Path, recipe: Recipe | None, model: str | None) -> str:
    """The name of the base model: as given, as the run says, or as the file says where that is a model in an
    installed package. Another is only shown, since loading it could fetch anything from the hub.

    Raises:
        UsageError: nothing says.
    """
    from lorimer.tasks._packaged_weights import NAMED

    if model is not None:
        return model
    if recipe is not None:
        return str(recipe.model)
    named = lorimer.read(source).metadata.get("base_model")
    if named not in NAMED:
        hint = f"; the file names {named!r}" if named else ""
        raise UsageError(f"{source}: say which base model to load with --model{hint}")
    return named


def put_on(model: nn.Module, source: Path, strength: float, others: Sequence[str]) -> dict[str, float]:
    """Load the adapter of `source`, and others, onto a model and move it to the fastest device; returns
    name -> strength."""
    strengths = {"default": strength}
    lorimer.load(model, adapter_file(source), name="default").strength = strength
    asked = [part for other in others for part in other.split(",")]
    for number, text in enumerate(asked, 1):
        path, weight = weighed(text)
        name = f"other-{number}"
        strengths[name] = 1.0 if weight is None else weight
        lorimer.load(model, adapter_file(path), name=name).strength = strengths[name]
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu")
    model.eval()
    return strengths
