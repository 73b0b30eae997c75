"""`lorimer control`: ask a run that goes on for something."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

import typer

from lorimer.cli._options import RunSource


class Wish(StrEnum):
    """What can be asked of a run; names of files in its folder `control/`."""

    preview = "preview"
    checkpoint = "checkpoint"
    stop = "stop"


def control(
    run: RunSource,
    wish: Annotated[Wish, typer.Argument(metavar="preview|checkpoint|stop", show_default=False)],
) -> None:
    """Ask a run for a preview, a checkpoint, or to stop.

    Done after the step under way; stopping saves first. The same as making an empty file of that name in the
    run's folder control/.
    """
    from lorimer.cli._runs import state_of
    from lorimer.errors import UsageError
    from lorimer.train.run_folder import RunFolder

    folder = RunFolder(run)
    folder.require_run()
    if (state := state_of(folder)) != "running":
        raise UsageError(f"{run}: nobody is there to ask: the run is {state}")
    folder.control.mkdir(exist_ok=True)
    (folder.control / wish.value).touch()
    typer.echo(f"asked for: {wish.value}; what comes of it stands in {folder.events}")
