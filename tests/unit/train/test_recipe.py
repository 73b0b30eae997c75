"""Recipes: what wins over what, whose names are taken, and that every mistake is told at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from lorimer.errors import RecipeError
from lorimer.train.recipe import AdapterSection, Recipe, load_recipe, recipe_class

BASE: dict[str, Any] = {"task": "module", "model": "a:b", "data": {"dataset": "a:c"}, "output": "runs/x"}


def load(*overrides: str, environment: dict[str, str] | None = None, **sections: Any) -> Recipe:
    return load_recipe({**BASE, **sections}, overrides, environment or {})


def mistakes(*overrides: str, **sections: Any) -> str:
    with pytest.raises(RecipeError) as caught:
        load(*overrides, **sections)
    return str(caught.value)


def test_defaults_are_those_of_the_reference() -> None:
    recipe = load()
    assert (recipe.adapter.method, recipe.adapter.rank, recipe.adapter.alpha) == ("lora", 8, None)
    assert (recipe.train.optimizer, recipe.train.schedule, recipe.train.max_grad_norm) == (
        "adamw",
        "constant",
        1.0,
    )
    assert recipe.name == "x"


def test_command_line_wins_over_environment_over_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**BASE, "train": {"steps": 1, "seed": 1, "batch_size": 1}}))
    environment = {"LORIMER_TRAIN__STEPS": "2", "LORIMER_TRAIN__SEED": "2", "LORIMER_CACHE": "elsewhere"}
    recipe = load_recipe(file, ["train.steps=3"], environment)
    assert (recipe.train.steps, recipe.train.seed, recipe.train.batch_size) == (3, 2, 1)


def test_values_of_overrides_are_yaml() -> None:
    recipe = load(
        "train.learning_rate=1e-3",
        "adapter.targets=[to_q, to_k]",
        "adapter.rank_pattern={to_q: 4}",
        "adapter.alpha=null",
        "data.arguments={rate: 2e-4}",
        "train.mixed_precision=no",
    )
    assert recipe.train.learning_rate == 1e-3
    assert recipe.adapter.targets == ("to_q", "to_k")
    assert recipe.adapter.rank_pattern == {"to_q": 4}
    assert recipe.data.arguments == {"rate": 2e-4}
    assert recipe.train.mixed_precision == "no"


@pytest.mark.parametrize(
    ("theirs", "place"),
    [
        ({"adapter": {"r": 3}}, "adapter.rank"),
        ({"adapter": {"lora_r": 3}}, "adapter.rank"),
        ({"adapter": {"network_dim": 3}}, "adapter.rank"),
        ({"adapter": {"lora_alpha": 3}}, "adapter.alpha"),
        ({"adapter": {"network_alpha": 3}}, "adapter.alpha"),
        ({"train": {"lr": 3}}, "train.learning_rate"),
        ({"train": {"max_train_steps": 3}}, "train.steps"),
        ({"train": {"train_batch_size": 3}}, "train.batch_size"),
    ],
)
def test_names_of_other_tools_are_taken(theirs: dict[str, Any], place: str) -> None:
    section, field = place.split(".")
    assert getattr(getattr(load(**theirs), section), field) == 3


def test_target_modules_may_be_one_name() -> None:
    assert load(adapter={"target_modules": "attention"}).adapter.targets == ("attention",)


def test_an_override_by_another_name_wins_over_the_file() -> None:
    assert load("train.lr=0.5", train={"learning_rate": 0.1}).train.learning_rate == 0.5


def test_the_same_field_by_two_names_is_a_mistake() -> None:
    assert "adapter.r: is another word for 'rank'" in mistakes(adapter={"rank": 4, "r": 8})


def test_every_mistake_is_told_at_once_with_its_place() -> None:
    text = mistakes(
        "adapter.ranks=3",
        data={},
        train={"stepps": 3, "batch_size": 0, "schedule": "cosin"},
        objective={"loss": "mse", "seed": 1},
    )
    assert "5 mistakes" not in text and "6 mistakes" in text
    assert "adapter.ranks: unknown key. Did you mean 'rank'" in text
    assert "train.stepps: unknown key. Did you mean 'steps'" in text
    assert "train.batch_size: input should be greater than 0, not 0" in text
    assert "train.schedule: input should be 'constant', 'linear' or 'cosine', not 'cosin'" in text
    assert "data.dataset: is required" in text
    assert "objective.seed: unknown key. It belongs under 'train'." in text


def test_a_key_in_the_wrong_section_is_told_where_it_belongs() -> None:
    assert "learning_rate: unknown key. It belongs under 'train'." in mistakes("learning_rate=1")


def test_a_near_miss_of_another_tool_s_name_suggests_ours() -> None:
    assert "train.max_train_step: unknown key. Did you mean 'steps'?" in mistakes("train.max_train_step=3")
    assert "train.batchsize: unknown key. Did you mean 'batch_size'?" in mistakes("train.batchsize=3")


def test_sections_in_a_list_are_read_as_sections() -> None:
    base = {"task": "text-to-image", "model": None, "adapter": {"method": "lora"}}
    fine = load(data={"sources": [{"image_dir": "a", "num_repeats": 3}, {"path": "b"}]}, **base)
    assert [(str(each.path), each.repeats) for each in fine.data.sources] == [("a", 3), ("b", None)]
    text = mistakes(data={"sources": [{"path": "a", "image_dir": "b"}, {"path": "a", "repeat": 3}]}, **base)
    assert "data.sources.0.image_dir: is another word for 'path'" in text
    assert "data.sources.1.repeat: unknown key. Did you mean 'repeats'?" in text


def test_unknown_task_and_method_are_suggested_and_the_rest_is_still_checked() -> None:
    text = mistakes("task=modul", "adapter.method=lorra", "train.step=1")
    assert "task: no task is called 'modul'. Did you mean 'module'?" in text
    assert "adapter.method: no method is called 'lorra'. Did you mean 'lora'" in text
    assert "train.step: unknown key" in text


def test_a_missing_task_is_a_mistake() -> None:
    with pytest.raises(RecipeError, match="task: is required"):
        load_recipe({"output": "x"}, (), {})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("task: module\ntask: module\n", "line 2: 'task' is given twice"),
        ("task: [", "line"),
        ("- a\n", "a recipe is a mapping"),
        ("", "a recipe is a mapping"),
        ("\x00", "not YAML"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    with pytest.raises(RecipeError, match=r"broken\.yaml") as caught:
        load_recipe(file, (), {})
    assert message in str(caught.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml", (), {})


@pytest.mark.parametrize("override", ["train.steps", "=3", "train.steps=[", "train=3", "train.steps.x=1"])
def test_overrides_that_mean_nothing_are_refused(override: str) -> None:
    with pytest.raises(RecipeError):
        load(override)


@pytest.mark.parametrize("value", [".inf", ".nan", "-1", "0", "text"])
def test_impossible_rates_are_refused(value: str) -> None:
    assert "train.learning_rate" in mistakes(f"train.learning_rate={value}")


def test_a_recipe_written_down_loads_as_the_same() -> None:
    recipe = load(adapter={"rank_pattern": {"fc": 4}, "exclude": "head"}, train={"trackers": "tensorboard"})
    assert load_recipe(yaml.safe_load(yaml.safe_dump(recipe.as_dict())), (), {}).as_dict() == recipe.as_dict()


def test_the_section_of_a_method_has_the_method_s_own_fields() -> None:
    section = recipe_class("module", "lora").model_fields["adapter"].annotation
    assert section is not None and {"rank", "alpha", "targets"} <= section.model_fields.keys()
    method = load("adapter.alpha=4").adapter.method_config()
    assert (method.name, method.rank, method.scaled_alpha) == ("lora", 8, 4.0)


def test_every_field_says_what_it_is() -> None:
    for name, field in recipe_class("module").model_fields.items():
        section = field.annotation
        assert field.description or name in ("preview",), name
        for inner, inner_field in getattr(section, "model_fields", {}).items():
            assert inner_field.description, f"{name}.{inner}"


def test_numbers_are_names_too() -> None:
    """Parts of an `nn.Sequential` are called 0, 1, 2, and YAML reads those as numbers."""
    for given in (2, [2], "2"):
        section = AdapterSection.model_validate({"targets": given, "rank_pattern": {2: 4}, "full": {4: [0]}})
        assert section.targets == ("2",)
        assert section.rank_pattern == {"2": 4}
        assert section.full == {"4": (0,)}
