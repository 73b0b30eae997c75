"""`lorimer check`: everything up to the first step of training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AsJson


def check(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe in YAML.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY=VALUE", help="Fields of the recipe to change, e.g. train.steps=800."),
    ] = None,
    show_tokens: Annotated[
        bool,
        typer.Option(
            "--show-tokens", help="Of the first text, show its tokens, and between ⟦ ⟧ the learned."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Say what training would do; train nothing.

    Reads the recipe, the data and the model, and measures memory and time in one dry step. No run is written;
    encoded pictures and captions are kept in the cache for training.
    """
    from lorimer.train import engine
    from lorimer.train.recipe import load_recipe

    preflight = engine.check(load_recipe(recipe, overrides or []))
    lines = preflight.lines()
    if show_tokens:
        lines += ["", preflight.example or "this task has no texts to show"]
    typer.echo(json.dumps(preflight.as_dict(), indent=2) if as_json else "\n".join(lines))
