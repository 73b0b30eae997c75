"""`lorimer merge`: a base model with an adapter folded in, as a model of its own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorimer.cli._options import AdapterSource, AsJson, BaseModel, Precision

if TYPE_CHECKING:
    import torch

    from lorimer.ops.merge import MergeReport
    from lorimer.ops.merge_files import FilesReport


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
    stays as it was, to the bit. A language model or a classifier gives a folder in transformers' layout,
    with its tokenizer and its head. Any program that loads the base loads the result, with no adapter to
    apply.
    """
    from lorimer.cli._texts import is_text_adapter
    from lorimer.ops.convert import precision

    kind = None if dtype is None else precision(dtype)
    write = _text_model if is_text_adapter(source) else _picture_model
    base, report = write(source, model, output, strength, kind)
    place = "file" if output.is_file() else "folder"
    facts = {place: str(output), "base_model": base, "strength": strength}
    told = {**facts, "merged": len(report.merged)}
    typer.echo(json.dumps(told) if as_json else f"wrote {output}\n{report}")


def _picture_model(
    source: Path, model: str | None, output: Path, strength: float, dtype: torch.dtype | None
) -> tuple[str, FilesReport]:
    from lorimer.cli._stored import merging

    merged = merging(source, model, strength, dtype)
    return merged.files.source, merged.write(output)


def _text_model(
    source: Path, model: str | None, output: Path, strength: float, dtype: torch.dtype | None
) -> tuple[str, MergeReport]:
    from lorimer.cli._merged_folder import write_merged_folder
    from lorimer.cli._runs import adapter_file
    from lorimer.cli._texts import TASKS, base_of, run_recipe

    base = base_of(source, run_recipe(source, *TASKS), model)
    return base, write_merged_folder(adapter_file(source), base, output, strength, dtype)
