"""`lorimer sample`: pictures by prompt, seed and strength, each as a file and all in one grid."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from lorimer.cli._options import (
    AdapterSource,
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


def sample(
    source: AdapterSource,
    prompt: Prompt = None,
    prompts: PromptFile = None,
    model: BaseModel = None,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            metavar="RUN|FILE[=STRENGTH]", help="A further adapter, always at this strength; may be repeated."
        ),
    ] = None,
    seed: Seed = None,
    strength: Strength = None,
    steps: SamplingSteps = None,
    guidance: Guidance = None,
    negative_prompt: NegativePrompt = None,
    resolution: Resolution = None,
    batch_size: BatchSize = 8,
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write the pictures.")] = Path(
        "samples"
    ),
) -> None:
    """Draw pictures with an adapter at one or more strengths.

    Writes one PNG per prompt, seed and strength, and grid.png with all of them; by default seed 0 and
    strength 1. The adapter's trigger is put before prompts that lack it. Steps, guidance, negative prompt and
    resolution are by default those of the run's previews; for a file 30, what is usual for the model, none
    and the model's own.
    """
    from lorimer.cli._pictures import draw, given_settings, load_adapted, make_folder, prompts_in, slug
    from lorimer.tasks._grid import labelled_grid
    from lorimer.tasks._picture_captions import with_trigger

    wanted = [*(prompt or []), *prompts_in(prompts)]
    if not wanted:
        raise UsageError("say what to draw with --prompt or --prompts FILE")
    given = given_settings(
        steps=steps, guidance=guidance, negative_prompt=negative_prompt, resolution=resolution
    )
    seeds, strengths = seed or [0], strength or [1.0]
    adapted = load_adapted(source, model, adapter or [])
    make_folder(output)
    texts = [with_trigger(text, adapted.trigger) for text in wanted]
    pairs = [(text, each) for text in texts for each in seeds]
    settings = adapted.settings | given | {"batch_size": batch_size}
    rows = draw(
        adapted.model, [text for text, _ in pairs], [each for _, each in pairs], strengths, **settings
    )
    for (text, each), row in zip(pairs, rows, strict=True):
        for value, picture in zip(strengths, row, strict=True):
            place = f"{texts.index(text) + 1:02d}-{slug(text)}"  # numbered, as long prompts may begin alike
            file = output / f"{place}-seed{each}-strength{value:g}.png"
            picture.save(file)
            typer.echo(file)
    labels = [text if len(seeds) == 1 else f"{text}, seed {each}" for text, each in pairs]
    grid = output / "grid.png"
    labelled_grid(rows, labels, [f"strength {value:g}" for value in strengths]).save(grid)
    typer.echo(grid)
