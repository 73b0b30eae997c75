"""`lorimer merge`: a base model with an adapter folded in, as a model of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel
from lorimer.errors import UsageError


def merge(
    source: AdapterSource,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the merged model.")],
    model: BaseModel = None,
    strength: Annotated[float, typer.Option(metavar="NUMBER", help="1 is the adapter as trained.")] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Fold an adapter into its base model.

    Writes a diffusers folder in safetensors. Any program that loads Stable Diffusion from a folder loads it,
    with no adapter to apply.
    """
    import lorimer
    from lorimer.cli._pictures import load_adapted
    from lorimer.tasks._diffusion import save_diffusion

    if output.exists():
        raise UsageError(f"{output} exists already; name another folder or remove it")
    adapted = load_adapted(source, model)
    adapted.adapter.strength = strength
    report = lorimer.merge(adapted.model, keep_original=False)
    save_diffusion(adapted.model, output)
    facts = {"folder": str(output), "base_model": adapted.model.source, "strength": strength}
    told = {**facts, "merged": len(report.merged), "notes": report.notes}
    typer.echo(json.dumps(told) if as_json else f"wrote {output}\n{report}")
