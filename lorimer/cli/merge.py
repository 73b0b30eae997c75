"""`lorimer merge`: a base model with an adapter folded in, as a model of its own."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel, Precision

if TYPE_CHECKING:
    import torch

Merged = tuple[str, Sequence[str], Sequence[str]]  # the base, parameters that changed, notes for a person

# Tasks whose models are loaded as a whole, with a head that is new; others are merged file by file.
_WHOLE_MODELS = ("text-generation", "text-classification", "image-classification", "object-detection")


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
    stays as it was, to the bit. A language model, a classifier or a detector gives a folder in
    transformers' layout, with its head and its tokenizer or image processor. Any program that loads the base
    loads the result, with no adapter to apply.
    """
    import lorimer
    from lorimer.cli._runs import adapter_file
    from lorimer.ops.convert import precision

    kind = None if dtype is None else precision(dtype)
    whole = lorimer.read(adapter_file(source)).metadata.get("task") in _WHOLE_MODELS
    write = _whole_model if whole else _drawing_model
    base, merged, notes = write(source, model, output, strength, kind)
    if as_json:
        place = "file" if output.is_file() else "folder"
        facts = {place: str(output), "base_model": base, "strength": strength}
        typer.echo(json.dumps({**facts, "merged": len(merged), "notes": notes}))
    else:
        typer.echo("\n".join([f"wrote {output}", f"{len(merged)} parameters merged", *notes]))


def _drawing_model(
    source: Path, model: str | None, output: Path, strength: float, dtype: torch.dtype | None
) -> Merged:
    from lorimer.cli._stored import merging

    merged = merging(source, model, strength, dtype)
    return merged.files.source, merged.write(output).merged, ()


def _whole_model(
    source: Path, model: str | None, output: Path, strength: float, dtype: torch.dtype | None
) -> Merged:
    from lorimer.cli._merged_folder import write_merged_folder
    from lorimer.cli._runs import adapter_file
    from lorimer.cli._texts import base_of, run_recipe

    base = base_of(source, run_recipe(source, *_WHOLE_MODELS), model)
    report = write_merged_folder(adapter_file(source), base, output, strength, dtype)
    return base, report.merged, report.notes
