"""`lorimer resize`: an adapter at smaller ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import (
    AdapterSource,
    AsJson,
    Energy,
    Error,
    FileFormat,
    PlainModel,
    Precision,
    Rank,
)


def resize(
    source: AdapterSource,
    target: Annotated[Path, typer.Argument(metavar="TARGET", help="Where to write.")],
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    to: FileFormat = None,
    dtype: Precision = None,
    model: PlainModel = None,
    as_json: AsJson = False,
) -> None:
    """Reduce an adapter's ranks.

    The best approximation of every layer's update as plain LoRA, and its error. Adapters whose update depends
    on the base's weights (DoRA, IA3, OFT) need --model.
    """
    import lorimer
    from lorimer.cli._derived import finish
    from lorimer.cli._models import load_model
    from lorimer.cli._runs import adapter_file

    file = adapter_file(source)
    base = None if model is None else load_model(model)
    derived = lorimer.resize(lorimer.read(file), rank=rank, energy=energy, error=error, model=base)
    typer.echo(finish(derived, target, [file], to=to, dtype=dtype, as_json=as_json))
