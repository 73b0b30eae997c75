"""`lorimer merge`: a base model with an adapter folded in, as a model of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel, Precision


def merge(
    source: AdapterSource,
    output: Annotated[
        Path,
        typer.Option(metavar="FOLDER|FILE", help="Where to write: FILE.safetensors is one checkpoint file."),
    ],
    model: BaseModel = None,
    strength: Annotated[float, typer.Option(metavar="NUMBER", help="1 is the adapter as trained.")] = 1.0,
    dtype: Precision = None,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base model.

    A checkpoint file gives a checkpoint file, and a folder a folder in diffusers' layout, or, named so, a
    checkpoint file. Tensor by tensor, so models larger than memory will do; what the adapter leaves alone
    stays as it was, to the bit. Any program that loads the base loads the result, with no adapter to apply.
    """
    from lorimer.cli._stored import merging
    from lorimer.ops.convert import precision

    merged = merging(source, model, strength, None if dtype is None else precision(dtype))
    report = merged.write(output)
    place = "file" if output.is_file() else "folder"
    facts = {place: str(output), "base_model": merged.files.source, "strength": strength}
    told = {**facts, "merged": len(report.merged)}
    typer.echo(json.dumps(told) if as_json else f"wrote {output}\n{report}")
