"""`lorimer grid`: pictures of several checkpoints or adapters side by side, as a page and as PNGs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from lorimer.cli._options import (
    BaseModel,
    BatchSize,
    Guidance,
    NegativePrompt,
    Prompt,
    PromptFile,
    Resolution,
    SamplingSteps,
    Seed,
    Strength,
)
from lorimer.errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

    from lorimer.cli._gallery import Heading


def grid(
    sources: Annotated[
        list[Path],
        typer.Argument(metavar="RUN|FILE...", help="Run folders or adapter files.", show_default=False),
    ],
    checkpoints: Annotated[
        str,
        typer.Option(metavar="WHICH", help="Of runs: all, final, 'last 3', or steps such as 100,200,final."),
    ] = "all",
    prompt: Prompt = None,
    prompts: PromptFile = None,
    model: BaseModel = None,
    seed: Seed = None,
    strength: Strength = None,
    steps: SamplingSteps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = None,
    resolution: Resolution = None,
    batch_size: BatchSize = 8,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Where to write; by default grid/ in the first run, or here."),
    ] = None,
) -> None:
    """Compare checkpoints or adapters side by side.

    Writes index.html, a page that opens from disk, with every picture as a PNG beside it, and one labelled
    PNG a prompt. Prompts, seeds and settings are by default those of the run's previews; strengths 0 (the
    base model) and 1. The trigger of the first adapter is put before prompts that lack it.
    """
    from lorimer.cli._columns import adapters_of, draw_columns
    from lorimer.cli._pictures import (
        given_settings,
        load_base,
        make_folder,
        prompts_in,
    )
    from lorimer.tasks._picture_captions import with_trigger

    several = len(sources) > 1
    adapters = [
        shown
        for source in sources
        for shown in adapters_of(source, checkpoints, f"{source.name}, " if several else "")
    ]
    base = load_base(sources[0], adapters[0].file, model)
    wanted = [*(prompt or []), *prompts_in(prompts)] or list(base.prompts)
    if not wanted:
        raise UsageError("say what to draw with --prompt or --prompts FILE")
    texts = list(dict.fromkeys(with_trigger(text, base.trigger) for text in wanted))
    seeds, strengths = list(dict.fromkeys(seed or base.seeds)), list(dict.fromkeys(strength or [0.0, 1.0]))
    place = output or (sources[0] / "grid" if sources[0].is_dir() else Path("grid"))
    make_folder(place)
    settings = base.settings | given_settings(
        steps=steps, guidance=guidance, negative_prompt=negative_prompt, resolution=resolution
    )
    rows = [(text, each) for text in texts for each in seeds]
    columns = draw_columns(
        base.model,
        adapters,
        strengths,
        [text for text, _ in rows],
        [each for _, each in rows],
        batch_size=batch_size,
        **settings,
    )
    facts = [base.model.source, *(f"{name} {value}" for name, value in settings.items() if value)]
    for file in _write(place, columns, rows, sources, ", ".join(facts)):
        typer.echo(file)


def _write(
    folder: Path,
    columns: list[tuple[Heading, list[Image]]],
    rows: list[tuple[str, int]],
    sources: list[Path],
    facts: str,
) -> list[Path]:
    """Write the page, its pictures, and a sheet for each prompt; returns the page and the sheets."""
    from lorimer.cli._gallery import Row, gallery
    from lorimer.cli._pictures import make_folder, slug
    from lorimer.formats.safe_io import write_bytes_atomic
    from lorimer.tasks._grid import labelled_grid

    make_folder(folder / "pictures")
    names = [
        [f"pictures/{row:03d}-{column:03d}.png" for column in range(len(columns))] for row in range(len(rows))
    ]
    for column, (_, pictures) in enumerate(columns):
        for row, picture in enumerate(pictures):
            picture.save(folder / names[row][column])
    shown = [Row(text, each, tuple(files)) for (text, each), files in zip(rows, names, strict=True)]
    title = " and ".join(source.name for source in sources)
    page = gallery(title, facts, [heading for heading, _ in columns], shown, _plots(sources))
    write_bytes_atomic(folder / "index.html", page.encode())
    written = [folder / "index.html"]
    heads = [f"{heading.name} {heading.detail}".strip() for heading, _ in columns]
    texts = list(dict.fromkeys(text for text, _ in rows))
    for number, text in enumerate(texts, 1):
        own = [place for place, (other, _) in enumerate(rows) if other == text]
        cells = [[pictures[place] for _, pictures in columns] for place in own]
        sheet = folder / f"{number:02d}-{slug(text)}.png"
        labelled_grid(cells, [f"seed {rows[place][1]}" for place in own], heads, text).save(sheet)
        written.append(sheet)
    return written


def _plots(sources: list[Path]) -> str:
    """Of each run what it measured, and which step that speaks for, as HTML."""
    from html import escape

    from lorimer.train.plot import progress_svg
    from lorimer.train.progress import read_progress
    from lorimer.train.run_folder import RunFolder

    parts = []
    for source in sources:
        if not RunFolder(source).recipe.is_file():
            continue
        progress = read_progress(RunFolder(source))
        lines = "".join(f"<li>{escape(line)}</li>" for line in progress.verdict())
        head = f"<h2>{escape(source.name)} over its steps</h2>"
        parts.append(
            f'<section class="plots">{head}{progress_svg(progress)}<ul class="verdict">{lines}</ul></section>'
        )
    return "".join(parts)
