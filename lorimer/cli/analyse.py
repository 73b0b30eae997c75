"""`lorimer analyse`: what an adapter does to each layer, and whether two get along."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AdapterSource, AsJson, PlainModel


def analyse(
    source: AdapterSource,
    other: Annotated[
        Path | None,
        typer.Argument(metavar="OTHER", help="A second adapter, to see where the two collide."),
    ] = None,
    model: PlainModel = None,
    as_json: AsJson = False,
) -> None:
    """Show how strong and how wide each update is.

    Norm, effective and stable rank of every layer, against the base with --model; with a second adapter, how
    alike their updates are and where stacking them would disturb both.
    """
    import lorimer
    from lorimer.cli._models import load_model
    from lorimer.cli._runs import adapter_file

    second = None if other is None else lorimer.read(adapter_file(other))
    base = None if model is None else load_model(model)
    found = lorimer.analyse(lorimer.read(adapter_file(source)), second, model=base)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))
