"""Presets: valid with few fields filled, weaker than the file, and named right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorimer import registry
from lorimer.errors import RecipeError
from lorimer.train.presets import preset_names, preset_text
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.recipe_text import parse_yaml

EVERY = [(task, name) for task in registry.names("task") for name in preset_names(task)]


def few_fields(**more: Any) -> dict[str, Any]:
    task = more.pop("task", "text-to-image")
    data = {"path": "p"} | ({"trigger": "sks"} if task == "text-to-image" else {})
    return {"task": task, "model": "embedded", "data": data, "output": "o"} | more


def load(source: dict[str, Any], *overrides: str, environment: dict[str, str] | None = None) -> Recipe:
    return load_recipe(source, overrides, environment or {})


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_every_preset_makes_a_whole_recipe_of_few_fields(task: str, name: str) -> None:
    """Each of its fields reaches the recipe: none is misspelt, or another tool's word."""
    recipe = load(few_fields(task=task, preset=name)).flat()
    said = load(few_fields(task=task)).flat()
    fields = parse_yaml(preset_text(task, name), name)
    flat = {f"{section}.{field}" for section, values in fields.items() for field in values}
    assert flat and all(any(place.startswith(field) for place in said) for field in flat)
    assert {place for place in recipe if recipe[place] != said[place]} - {"preset"}


@pytest.mark.parametrize(("task", "name"), EVERY)
def test_a_preset_says_what_it_is_for(task: str, name: str) -> None:
    text = preset_text(task, name)
    assert text.startswith("# ")
    assert "  # " in text  # and why it chose what it chose


def test_there_is_a_preset_for_a_style_a_subject_and_a_small_card() -> None:
    assert {"style", "subject", "8gb"} <= set(preset_names("text-to-image"))


def test_what_counts_first_to_last() -> None:
    """Command line > environment > file > preset > default."""
    preset = load(few_fields(preset="style"))
    assert preset.train.steps == 2000 and preset.adapter.rank == 16
    assert preset.train.weight_decay == load(few_fields()).train.weight_decay
    file = few_fields(preset="style", train={"steps": 5})
    assert load(file).train.steps == 5 and load(file).train.batch_size == preset.train.batch_size
    environment = {"LORIMER_TRAIN__STEPS": "6"}
    assert load(file, environment=environment).train.steps == 6
    assert load(file, "train.steps=7", environment=environment).train.steps == 7


def test_the_preset_itself_may_come_from_outside() -> None:
    assert load(few_fields(preset="style"), "preset=subject").adapter.rank == 8
    assert load(few_fields(), environment={"LORIMER_PRESET": "style"}).adapter.rank == 16


def test_of_several_presets_the_later_wins() -> None:
    recipe = load(few_fields(preset=["style", "8gb"]))
    assert recipe.adapter.rank == 16 and recipe.train.batch_size == 1
    assert load(few_fields(preset=["8gb", "style"])).train.batch_size == 2


def test_the_runs_recipe_records_the_preset_and_stands_without_it() -> None:
    """A recorded recipe says every field, so that the preset under it no longer changes anything."""
    recipe = load(few_fields(preset="subject", train={"steps": 3}))
    recorded = recipe.as_dict()
    assert recorded["preset"] == ["subject"]
    assert load(recorded) == recipe
    assert load(recorded | {"preset": []}).train == recipe.train


@pytest.mark.parametrize("preset", ["stile", ["8gb", "stile"]])
def test_an_unknown_preset_suggests_the_nearest(preset: Any) -> None:
    with pytest.raises(
        RecipeError, match=r"preset: no preset is called 'stile'\. Did you mean 'style'\? Known"
    ):
        load(few_fields(preset=preset))


def test_a_task_without_presets_says_so(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="The task module has none"):
        load({"task": "module", "model": "a:b", "preset": "style", "output": str(tmp_path)})


def test_check_names_the_preset(tmp_path: Path) -> None:
    from lorimer.train import engine

    pictures = tmp_path / "10_sks dog"  # which stands in for captions; no preset may speak instead
    pictures.mkdir()
    for colour in ("red", "green"):
        Image.new("RGB", (64, 64), colour).save(pictures / f"{colour}.png")
    source = few_fields(preset="subject", output=str(tmp_path / "run"))
    source["data"] = {"path": str(pictures), "trigger": "sks", "cache": str(tmp_path / "cache")}
    recipe = load(source)
    assert recipe.data.default_caption is None
    lines = engine.check(recipe).lines()
    assert any(line.startswith("preset subject") for line in lines)
