"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorimer import registry

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]
AdapterSource = Annotated[
    Path,
    typer.Argument(
        metavar="RUN|FILE", help="A run folder, or an adapter in any known format.", show_default=False
    ),
]
RunSource = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.", show_default=False)]
BaseModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base model: a folder, a file, a hub name, or a name such as embedded, smollm2 or minilm. "
        "By default what the run was trained on.",
    ),
]
Rank = Annotated[int | None, typer.Option(metavar="NUMBER", help="Keep at most this rank in every layer.")]
Energy = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Keep this share of each update's energy, e.g. 0.95."),
]
Error = Annotated[
    float | None,
    typer.Option(metavar="SHARE", help="Stay within this relative error of each update, e.g. 0.1."),
]
FileFormat = Annotated[
    str | None,
    typer.Option(
        "--to",
        metavar="FORMAT",
        help="The format to write: " + ", ".join(registry.names("format")) + "; by default the source's.",
    ),
]
Precision = Annotated[
    str | None,
    typer.Option(
        "--dtype",
        metavar="TYPE",
        help="Precision in the file: float32, float16 or bfloat16; by default as it is.",
    ),
]
OutputFile = Annotated[Path, typer.Option("--output", metavar="FILE", help="Where to write.")]
PlainModel = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="MODEL",
        help="The base model: embedded, or a folder in the layout of diffusers or transformers.",
    ),
]
Prompt = Annotated[list[str] | None, typer.Option(metavar="TEXT", help="What to draw; may be repeated.")]
PromptFile = Annotated[
    Path | None, typer.Option("--prompts", metavar="FILE", help="A text file with one prompt a line.")
]
Seed = Annotated[list[int] | None, typer.Option(metavar="NUMBER", help="May be repeated.")]
Strength = Annotated[
    list[float] | None,
    typer.Option(metavar="NUMBER", help="0 is the base model, 1 the adapter as trained; may be repeated."),
]
SamplingSteps = Annotated[
    int | None, typer.Option("--steps", min=1, metavar="NUMBER", help="Sampling steps.")
]
Guidance = Annotated[
    float | None, typer.Option(metavar="NUMBER", help="Classifier-free guidance; 1 is none.")
]
NegativePrompt = Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw.")]
Resolution = Annotated[
    str | None,
    typer.Option(metavar="PIXELS", help="Side of the pictures, or width and height such as 768x1024."),
]
BatchSize = Annotated[
    int, typer.Option(min=1, metavar="NUMBER", help="How many pictures are drawn at once; bounds the memory.")
]
