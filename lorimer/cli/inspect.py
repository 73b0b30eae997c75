"""`lorimer inspect`: what an adapter file holds."""

from __future__ import annotations

import json

import typer

from lorimer.cli._options import AdapterSource, AsJson


def inspect(
    source: AdapterSource,
    as_json: AsJson = False,
) -> None:
    """Show what an adapter file holds.

    Method, rank, alpha, targets, norms, base model and trigger."""
    from lorimer.cli._runs import adapter_file
    from lorimer.ops.inspect import inspect as inspect_file

    found = inspect_file(adapter_file(source))
    typer.echo(json.dumps(found.as_dict(), indent=2) if as_json else "\n".join(found.lines()))
