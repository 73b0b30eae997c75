"""`lorimer doctor`: what is installed, what is missing, and how to get it."""

from __future__ import annotations

import json

import typer

from lorimer.cli._options import AsJson
from lorimer.errors import MissingDependencyError


def doctor(as_json: AsJson = False) -> None:
    """Show what is installed and what is missing.

    With the command that installs it. Fails with code 4 where lorimer cannot work at all.
    """
    from lorimer.ops.doctor import examine

    health = examine()
    typer.echo(json.dumps(health.as_dict(), indent=2) if as_json else "\n".join(health.lines()))
    if not health.works:
        raise typer.Exit(MissingDependencyError.exit_code)
