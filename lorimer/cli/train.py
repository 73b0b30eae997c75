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

    Ctrl-C and SIGTERM save a checkpoint and exit with code 130; --resume goes on from there.
    """
    from lorimer.train import engine
    from lorimer.train.recipe import load_recipe

    if (recipe is None) == (resume is None):
        raise UsageError(
            "name either a recipe (lorimer train recipe.yaml) or a run (lorimer train --resume RUN)"
        )
    if resume is None:
        assert recipe is not None
        result = engine.train(load_recipe(recipe, overrides or []))
    else:
        result = engine.train(load_recipe(resume / "recipe.yaml", environment={}), resume=resume)
    typer.echo(f"adapter: {result.adapter}")
