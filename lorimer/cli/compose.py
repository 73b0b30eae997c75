"""`lorimer compose`: several adapters as one."""

from __future__ import annotations

from typing import Annotated

import typer

from lorimer.cli._options import (
    AsJson,
    Energy,
    Error,
    FileFormat,
    OutputFile,
    PlainModel,
    Precision,
    Rank,
)
from lorimer.errors import UsageError


def compose(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN|FILE[=WEIGHT]...",
            help="Run folders, or adapters in any known format, e.g. a.safetensors=0.7.",
        ),
    ],
    output: OutputFile,
    weight: Annotated[
        list[float] | None,
        typer.Option(
            metavar="NUMBER", help="Once for each adapter, in their order, instead of =WEIGHT; by default 1."
        ),
    ] = None,
    how: Annotated[
        str, typer.Option(metavar="WAY", help="linear, cat, svd, ties, dare or prune.")
    ] = "linear",
    density: Annotated[
        float, typer.Option(metavar="SHARE", help="What ties, dare and prune keep of each update's entries.")
    ] = 0.5,
    seed: Annotated[int, typer.Option(metavar="NUMBER", help="Of what dare drops.")] = 0,
    full: Annotated[
        str, typer.Option(metavar="RULE", help="For what was trained in full: refuse, average or drop.")
    ] = "refuse",
    rank: Rank = None,
    energy: Energy = None,
    error: Error = None,
    to: FileFormat = None,
    dtype: Precision = None,
    model: PlainModel = None,
    as_json: AsJson = False,
) -> None:
    """Combine adapters into one.

    What comes out does to the weights what the parts do, weighed. linear and cat are exact; svd, ties, dare
    and prune keep the largest rank among the parts unless told otherwise.
    """
    import lorimer
    from lorimer.cli._derived import finish
    from lorimer.cli._models import load_model
    from lorimer.cli._runs import adapter_file, weighed

    named = [weighed(source) for source in sources]
    if weight and any(each is not None for _, each in named):
        raise UsageError("give weights either as FILE=WEIGHT or by --weight, not both")
    files = [adapter_file(source) for source, _ in named]
    derived = lorimer.compose(
        [lorimer.read(file) for file in files],
        weight or [1.0 if each is None else each for _, each in named],
        how,
        rank=rank,
        energy=energy,
        error=error,
        density=density,
        seed=seed,
        full=full,
        model=None if model is None else load_model(model),
    )
    typer.echo(finish(derived, output, files, to=to, dtype=dtype, as_json=as_json))
