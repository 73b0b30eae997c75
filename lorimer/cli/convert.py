"""`lorimer convert`: the same adapter in another file format; kohya's settings as a recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer import registry
from lorimer.cli._options import AsJson
from lorimer.errors import UsageError


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FILE",
            help="A run folder, or an adapter in any known format; or kohya's settings in TOML or JSON.",
            show_default=False,
        ),
    ],
    target: Annotated[
        Path | None,
        typer.Argument(
            metavar="TARGET", help="Where to write; for kohya's settings its dataset TOML, if any."
        ),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            metavar="FORMAT",
            help="The format to write: " + ", ".join(registry.names("format")) + ". FILE.gguf needs none.",
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="TYPE", help="Precision in the file: float32, float16 or bfloat16; by default as it is."
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="RECIPE", help="The recipe to write from kohya's settings."),
    ] = None,
    family: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="The family of models that it is for, where that does not show: sdxl, ..."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write an adapter in another file format.

    The format of a file is recognised. Every tensor is carried over or nothing is written.

    Of kohya's settings, in TOML or JSON, it makes a recipe (--output, else it is printed) and says what was
    left out or is done otherwise; those that would train something else are an error.
    """
    if source.suffix.lower() in (".toml", ".json"):
        _recipe(source, target, output, family, as_json)
        return
    if to is None and target is not None and target.suffix == ".gguf":
        to = "gguf"
    if target is None or to is None:
        raise UsageError("name the file to write and its format: lorimer convert FILE TARGET --to kohya")
    from lorimer.cli._runs import adapter_file
    from lorimer.ops.convert import convert as convert_file

    written = convert_file(adapter_file(source), target, to=to, dtype=dtype, family=family)
    typer.echo(json.dumps({"file": str(written), "format": to}) if as_json else f"wrote {written}")


def _recipe(
    source: Path, dataset: Path | None, output: Path | None, family: str | None, as_json: bool
) -> None:
    """A recipe from kohya's settings: into a file, or printed."""
    from lorimer.train.from_kohya import translate, write_recipe

    translation = translate(source, dataset, family)
    if output is not None:
        write_recipe(translation, output)
    if as_json:
        file = str(output) if output else None
        typer.echo(json.dumps({"file": file, "told": translation.told, "recipe": translation.text}))
    elif output is None:
        typer.echo(translation.text, nl=False)
    else:
        typer.echo("\n".join([*translation.told, f"wrote {output}; next: lorimer check {output}"]))
