"""`lorimer inspect`: what an adapter file holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AsJson


def inspect(
    file: Annotated[Path, typer.Argument(help="An adapter in any known format.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Show what an adapter file holds.

    Method, rank, alpha, targets, norms, base model and trigger."""
    from lorimer.ops.inspect import inspect as inspect_file

    found = inspect_file(file)
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))
