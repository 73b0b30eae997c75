"""`lorimer plot`: what a run measured, over its steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import RunSource


def plot(
    run: RunSource,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Where to write the SVG; by default plots/progress.svg in the run."
        ),
    ] = None,
) -> None:
    """Draw what a run measured over its steps.

    One panel a metric, with the best step marked; the run may still be going on. The best step is that of the
    lowest validation loss; where diversity, memorising or drift (preview.judge in the recipe) speak against
    it, that is said.
    """
    from lorimer.errors import UsageError
    from lorimer.formats.safe_io import write_bytes_atomic
    from lorimer.train.plot import progress_svg
    from lorimer.train.progress import read_progress
    from lorimer.train.run_folder import RunFolder

    progress = read_progress(RunFolder(run))
    drawn = progress_svg(progress)
    if not drawn:
        raise UsageError(f"{run}: nothing has been measured yet")
    file = output or run / "plots" / "progress.svg"
    file.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomic(file, drawn.encode())
    for line in progress.verdict():
        typer.echo(line)
    typer.echo(file)
