"""`lorimer sample`: pictures by prompt, seed and strength, each as a file and all in one grid."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import AdapterSource, BaseModel
from lorimer.errors import UsageError


def sample(
    source: AdapterSource,
    prompt: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="What to draw; may be repeated.")
    ] = None,
    prompts: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A text file with one prompt a line.")
    ] = None,
    model: BaseModel = None,
    seed: Annotated[
        list[int] | None, typer.Option(metavar="NUMBER", help="May be repeated; 0 by default.")
    ] = None,
    strength: Annotated[
        list[float] | None,
        typer.Option(
            metavar="NUMBER",
            help="0 is the base model, 1 the adapter as trained; may be repeated; 1 by default.",
        ),
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, metavar="NUMBER", help="Sampling steps.")] = None,
    guidance: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Classifier-free guidance; 1 is none.")
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What not to draw.")] = None,
    resolution: Annotated[int | None, typer.Option(metavar="PIXELS", help="Side of the pictures.")] = None,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the pictures.")] = Path(
        "samples"
    ),
) -> None:
    """Draw pictures with an adapter at one or more strengths.

    Writes one PNG per prompt, seed and strength, and grid.png with all of them. The adapter's trigger is put
    before prompts that lack it. Steps, guidance, negative prompt and resolution are by default those of the
    run's previews; for a file 30, 7.5, none and the model's own.
    """
    from lorimer.cli._pictures import draw, load_adapted
    from lorimer.tasks._grid import labelled_grid
    from lorimer.tasks._picture_captions import with_trigger

    wanted = [*(prompt or []), *(_read_prompts(prompts) if prompts else [])]
    if not wanted:
        raise UsageError("say what to draw with --prompt or --prompts FILE")
    seeds, strengths = seed or [0], strength or [1.0]
    adapted = load_adapted(source, model)
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--output {output}: cannot be a folder to write into: {error.strerror}") from error
    texts = [with_trigger(text, adapted.trigger) for text in wanted]
    pairs = [(text, each) for text in texts for each in seeds]
    given = {
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
        "resolution": resolution,
    }
    settings = adapted.settings | {name: value for name, value in given.items() if value is not None}
    rows = draw(
        adapted.model, [text for text, _ in pairs], [each for _, each in pairs], strengths, **settings
    )
    for (text, each), row in zip(pairs, rows, strict=True):
        for value, picture in zip(strengths, row, strict=True):
            place = f"{texts.index(text) + 1:02d}-{_slug(text)}"  # numbered, as long prompts may begin alike
            file = output / f"{place}-seed{each}-strength{value:g}.png"
            picture.save(file)
            typer.echo(file)
    labels = [text if len(seeds) == 1 else f"{text}, seed {each}" for text, each in pairs]
    grid = output / "grid.png"
    labelled_grid(rows, labels, [f"strength {value:g}" for value in strengths]).save(grid)
    typer.echo(grid)


def _read_prompts(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: prompts must be text in UTF-8: {error}") from error
    return [line for line in lines if line and not line.startswith("#")]


def _slug(text: str) -> str:
    """A prompt as a file name: letters and digits of any script, at most 60 of them."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:60] or "empty"
