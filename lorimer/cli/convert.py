"""`lorimer convert`: the same adapter in another file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer import registry
from lorimer.cli._options import AdapterSource, AsJson


def convert(
    source: AdapterSource,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Where to write.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT", help="The format to write: " + ", ".join(registry.names("format")) + "."
        ),
    ],
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Precision in the file: float32, float16 or bfloat16; by default as it is."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter in another file format.

    The format of a file is recognised. Every tensor is carried over or nothing is written.
    """
    from lorimer.cli._runs import adapter_file
    from lorimer.ops.convert import convert as convert_file

    written = convert_file(adapter_file(source), target, to=to, dtype=dtype)
    typer.echo(json.dumps({"file": str(written), "format": to}) if as_json else f"wrote {written}")
