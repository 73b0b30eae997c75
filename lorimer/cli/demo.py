"""`lorimer demo`: a frozen picture model learns a new style, and a picture shows before and after."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe

DEMO_DATA = Path(__file__).parents[1] / "demo_data"


def demo(
    output: Annotated[Path, typer.Option(metavar="FOLDER", help="Where the run and the picture go.")] = Path(
        "runs/demo"
    ),
) -> None:
    """Teach the small model in the package a new style.

    Trains on 24 pictures and draws things that were not among them, at strengths 0, 0.5 and 1. Takes a few
    minutes on two CPU cores and no network. Called again after an interruption, it goes on where it stopped;
    once finished, it only draws again.
    """
    from lorimer.cli._pictures import draw, load_adapted
    from lorimer.tasks._grid import labelled_grid
    from lorimer.tasks._picture_captions import with_trigger
    from lorimer.train.run_folder import RunFolder

    recipe, seconds = _train(output)
    adapted = load_adapted(output, None)
    shown = recipe.preview
    prompts = [with_trigger(prompt, adapted.trigger) for prompt in shown.prompts for _ in shown.seeds]
    seeds = [seed for _ in shown.prompts for seed in shown.seeds]
    rows = draw(adapted.model, prompts, seeds, shown.strengths, **adapted.settings)
    heads = [f"strength {value:g}" if value else "strength 0, before" for value in shown.strengths]
    title = "Before and after: none of these was among the 24 pictures it learned from"
    picture = output / "before-and-after.png"
    labelled_grid(rows, prompts, heads, title).save(picture)
    kohya = RunFolder(output).adapter / f"{output.name}.safetensors"
    typer.echo(f"""
picture   {picture}
adapter   {kohya} ({kohya.stat().st_size / 1e3:.0f} kB)
training  {seconds}

Try next:
  lorimer sample {output} --prompt "a red apple" --strength 0 --strength 0.5 --strength 1
  lorimer inspect {kohya}
  lorimer train {output / "recipe.yaml"} output=runs/mine data.path=FOLDER

FOLDER holds pictures, each with its caption beside it in a text file of the same name.""")


def _train(output: Path) -> tuple[Recipe, str]:
    """The run's recipe and how long training took, after training what is not trained yet."""
    from lorimer.cli._runs import adapter_of
    from lorimer.train import engine
    from lorimer.train.recipe import load_recipe
    from lorimer.train.run_folder import RunFolder

    if RunFolder(output).recipe.is_file():
        recipe = load_recipe(RunFolder(output).recipe, environment={})
        if adapter_of(output).is_file():
            return recipe, f"done before; for a new run: lorimer demo --output {output}-2"
        typer.echo(f"going on with the run in {output}")
        result = engine.train(recipe, resume=output)
    else:
        overrides = [f"data.path={DEMO_DATA / 'openmoji'}", f"output={output}"]
        recipe = load_recipe(DEMO_DATA / "demo.yaml", overrides)
        result = engine.train(recipe)
    return recipe, f"{result.seconds:.0f} s"
