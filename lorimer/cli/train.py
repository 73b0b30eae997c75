"""`lorimer train`: adapt a model to data, as a recipe says."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorimer.errors import UsageError


def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe to change, e.g. train.steps=800."),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Go on with the run in this folder from its newest checkpoint."),
    ] = None,
) -> None:
    """Train an adapter.

    Ctrl-C and SIGTERM save a checkpoint and exit with code 130; --resume goes on from there and gives the
    adapter that an uninterrupted run gives.
    """
    from lorimer.train import engine
    from lorimer.train.recipe import load_recipe
    from lorimer.train.run_folder import RunFolder

    changes = overrides or []
    if resume is not None:
        RunFolder(resume).require_run()
        changes = [str(recipe), *changes] if recipe else changes
        loaded = load_recipe(RunFolder(resume).recipe, changes, environment={})
    elif recipe is not None:
        loaded = load_recipe(recipe, changes)
    else:
        raise UsageError("name a recipe (lorimer train recipe.yaml) or a run (lorimer train --resume RUN)")
    typer.echo(f"adapter: {engine.train(loaded, resume=resume).adapter}")
