"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AdapterSource = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|FILE", help="A run folder, or an adapter in any known format.", show_default=False
    ),
]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base model: embedded, a folder, or a hub name. By default what the run was trained on.",
    ),
]
