"""kohya's settings as recipes: nothing is passed over, and the recipe trains what kohya would."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from typer.testing import CliRunner

from lorimer.cli import app
from lorimer.errors import RecipeError
from lorimer.train.from_kohya import translate
from lorimer.train.from_kohya.kinds import KINDS
from lorimer.train.from_kohya.network import ARGUMENTS, REFUSED_ARGUMENTS
from lorimer.train.from_kohya.options import LEFT_OUT, READ, REFUSED, SAME
from lorimer.train.recipe import Recipe, load_recipe, recipe_class
from tests.unit.docs.pages import ROOT, script
from tests.unit.train.kohya_settings import DATASET, EVERY_ARGUMENT, EVERY_OPTION, FLUX, LYCORIS, SD1, SDXL


def recipe(text: str, folder: Path, **arguments: Any) -> tuple[Recipe, list[str]]:
    """The checked recipe for settings in TOML, and what was told."""
    source = folder / "kohya.toml"
    source.write_text(text, encoding="utf-8")
    translation = translate(source, **arguments)
    written = folder / "recipe.yaml"
    written.write_text(translation.text, encoding="utf-8")
    return load_recipe(written, environment={}), list(translation.told)


def refusals(text: str, folder: Path) -> str:
    with pytest.raises(RecipeError) as caught:
        recipe(text, folder)
    return str(caught.value)


def pictures(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.new("RGB", (8, 8)).save(folder / f"{number}.png")
    return folder


def test_every_option_of_the_scripts_is_accounted_for_once() -> None:
    tables = [set(SAME), set(READ), set(LEFT_OUT), set(REFUSED)]
    assert set().union(*tables) >= set(EVERY_OPTION.split())
    assert sum(map(len, tables)) == len(set().union(*tables))
    assert not set(ARGUMENTS) & set(REFUSED_ARGUMENTS)
    assert {*ARGUMENTS, *REFUSED_ARGUMENTS} >= set(EVERY_ARGUMENT.split())


def test_every_field_that_the_tables_name_is_there() -> None:
    places = {
        *SAME.values(),
        *(place for place, _ in READ.values()),
        *(place for place, _ in ARGUMENTS.values()),
    }
    for place in places - {""}:
        models = [recipe_class("text-to-image", method) for method in ("lora", "lokr", "oft")]
        for part in place.split("."):
            fields = [getattr(model, "model_fields", {}).get(part) for model in models]
            assert any(fields) or place.startswith("model."), place
            models = [field.annotation for field in fields if field]


def test_a_recipe_of_stable_diffusion_1(tmp_path: Path) -> None:
    made, told = recipe(SD1, tmp_path)
    assert made.model == "models/v1-5-pruned.safetensors" and made.output == Path("out/mine")
    assert (made.adapter.rank, made.adapter.alpha) == (32, 16)
    assert made.adapter.rank_pattern["conv1"] == 8 and made.adapter.alpha_pattern["conv1"] == 4
    assert made.adapter.components == ("unet", "text_encoder")
    assert made.adapter.learning_rate_pattern == {"text_encoder": 5e-5}
    assert {"to_q", "ff.net.2", "conv1", "fc1"} <= set(made.adapter.targets)
    train = made.train
    assert (train.steps, train.batch_size, train.seed, train.warmup_steps) == (2000, 2, 42, 100)
    assert (train.optimizer, train.weight_decay, train.schedule) == ("adamw-8bit", 0.1, "cosine")
    assert train.optimizer_options == {"betas": [0.9, 0.99]}
    assert (train.checkpoint_every, train.keep_checkpoints) == (500, 4)
    data = made.data
    assert (data.resolution, data.shapes, data.smallest_side, data.largest_side) == (512, "buckets", 320, 960)
    assert (data.caption_suffix, data.shuffle_tags, data.keep_tags) == (".txt", True, 1)
    assert made.objective.min_snr_gamma == 5 and made.objective.noise_offset == 0.05
    assert any(line.startswith("left out: xformers") for line in told)


def test_a_recipe_of_sdxl(tmp_path: Path) -> None:
    made, told = recipe(SDXL, tmp_path)
    assert told[0].startswith("trains sdxl")
    assert made.adapter.components is None and "fc1" not in made.adapter.targets  # the denoiser alone
    assert (made.train.optimizer, made.train.schedule, made.train.warmup_steps) == (
        "adafactor",
        "constant",
        50,
    )
    assert made.objective.pyramid_noise == 0.4 and made.data.resolution == 1024


def test_a_recipe_of_flux(tmp_path: Path) -> None:
    made, _ = recipe(FLUX, tmp_path)
    assert made.model == {
        "path": "flux1-dev.safetensors",
        "text_encoder": "clip_l.safetensors",
        "text_encoder_2": "t5xxl_fp16.safetensors",
        "vae": "ae.safetensors",
    }
    assert made.adapter.targets == ("all-linear",) and "transformer_blocks" in made.adapter.exclude
    assert made.objective.timesteps == "sigmoid" and made.objective.timestep_shift == 3.1582
    assert (made.train.base_precision, made.train.offload, made.train.fast_ratio) == ("8bit", "blocks", 4)


def test_a_recipe_of_lycoris(tmp_path: Path) -> None:
    made, _ = recipe(LYCORIS, tmp_path)
    adapter = made.adapter
    assert (adapter.method, adapter.rank, adapter.alpha) == ("dora", 16, 8)
    config = adapter.method_config()
    assert config.direction == "lokr" and config.options == {"factor": 8, "tucker": True}  # type: ignore[attr-defined]
    assert {"conv_in", "time_embedding.linear_1", "conv1", "to_q", "fc2"} <= set(adapter.targets)
    assert adapter.learning_rate_pattern == {"text_encoder_2": 0.5}
    assert made.train.optimizer == "prodigy" and made.train.optimizer_options == {
        "decouple": True,
        "d_coef": 2,
    }


def test_what_kohya_takes_by_default_is_said_and_not_our_default(tmp_path: Path) -> None:
    """Silence means alpha 1, no dropped caption, squares, decay 0.01 and text encoders that learn."""
    made, _ = recipe('pretrained_model_name_or_path = "v1.safetensors"\ntrain_data_dir = "t"\n', tmp_path)
    assert made.adapter.alpha == 1 and made.adapter.rank == 4
    assert made.adapter.components == ("unet", "text_encoder")
    assert made.objective.caption_dropout == 0 and made.data.shapes == "square"
    assert made.data.caption_suffix == ".caption"
    assert (made.train.weight_decay, made.train.steps, made.train.batch_size) == (0.01, 1600, 1)


def test_a_dataset_file_becomes_sources_in_the_same_recipe(tmp_path: Path) -> None:
    dataset = tmp_path / "dataset.toml"
    dataset.write_text(DATASET, encoding="utf-8")
    made, told = recipe(SDXL.replace('train_data_dir = "train"', ""), tmp_path, dataset=dataset)
    cat, other = made.data.sources
    assert (str(cat.path), cat.repeats, str(other.path), other.regularisation) == ("cat", 4, "other", True)
    assert other.default_caption == "cat"
    assert (made.data.resolution, made.data.shapes, made.data.shuffle_tags) == (768, "buckets", True)
    assert made.train.batch_size == 3
    assert not any("batch_size" in line for line in told)  # it was translated


def test_a_dataset_file_alone_makes_a_recipe_to_fill_in(tmp_path: Path) -> None:
    made, told = recipe(DATASET, tmp_path)
    assert made.model == "embedded" and len(made.data.sources) == 2
    assert any("fill in `model`" in line for line in told)


@pytest.mark.parametrize(("batch", "steps"), [(1, 2 * 23), (2, 2 * 12), (8, 2 * 3)])
def test_epochs_become_steps_by_counting_pictures(tmp_path: Path, batch: int, steps: int) -> None:
    """Five pictures four times and three once make 23; a last batch that is not full counts."""
    pictures(tmp_path / "train" / "4_cat", 5)
    pictures(tmp_path / "train" / "1_dog", 3)
    options = (
        f'max_train_epochs = 2\ntrain_batch_size = {batch}\ntrain_data_dir = "{tmp_path.as_posix()}/train"\n'
    )
    made, _ = recipe(options + "save_every_n_epochs = 1\n", tmp_path)
    assert made.train.steps == steps and made.train.checkpoint_every == steps // 2


def test_regularisation_doubles_an_epoch(tmp_path: Path) -> None:
    pictures(tmp_path / "train" / "2_cat", 3)
    pictures(tmp_path / "reg" / "1_cat", 1)
    base = tmp_path.as_posix()
    options = f'max_train_epochs = 1\ntrain_data_dir = "{base}/train"\nreg_data_dir = "{base}/reg"\n'
    made, _ = recipe(options, tmp_path)
    assert made.train.steps == 12
    assert [source.regularisation for source in made.data.sources] == [False, True]


def test_epochs_without_the_pictures_are_an_error_with_a_mend(tmp_path: Path) -> None:
    message = refusals('max_train_epochs = 10\ntrain_data_dir = "nowhere"\n', tmp_path)
    assert "nowhere is not there" in message and "give max_train_steps" in message


@pytest.mark.parametrize(
    ("option", "part"),
    [
        ("color_aug = true", "color_aug = True: pictures are encoded once"),
        ('optimizer_type = "DAdaptation"', "is not there; these are"),
        ('lr_scheduler = "cosine_with_restarts"\nlr_scheduler_num_cycles = 3', "lr_scheduler_num_cycles = 3"),
        ('network_args = ["algo=glora"]\nnetwork_module = "lycoris.kohya"', "algo=glora: no such method"),
        ('network_args = ["block_dims=1,2"]', "write adapter.rank_pattern"),
        ('network_module = "networks.dylora"', "networks.dylora"),
        ('loss_type = "smooth_l1"', "l2, l1 and huber are there"),
        ('network_dimm = 4', "Did you mean 'network_dim'"),
        ("masked_loss = true", "conditioning_data_dir"),
        ('network_args = ["conv_dimm=4"]', "Did you mean 'conv_dim'"),
        ('clip_skip = 2\nnetwork_module = "networks.lora_flux"', "clip_skip = 2: for flux"),
        ('network_args = ["dora_wd=1", "wd_on_output=false"]', "wd_on_output"),
    ],
)  # fmt: skip
def test_what_would_train_something_else_is_refused(option: str, part: str, tmp_path: Path) -> None:
    assert part in refusals(f'train_data_dir = "t"\n{option}\n', tmp_path)


def test_clip_skip_counts_the_layers_that_are_left_out(tmp_path: Path) -> None:
    made, _ = recipe('train_data_dir = "t"\nclip_skip = 2\n', tmp_path)
    assert made.data.clip_skip == 1
    larger = 'train_data_dir = "t"\nclip_skip = 2\npretrained_model_name_or_path = "sdxl.safetensors"\n'
    made, told = recipe(larger, tmp_path)
    assert made.data.clip_skip is None and any("clip_skip: SDXL" in line for line in told)


def test_all_refusals_are_told_at_once(tmp_path: Path) -> None:
    message = refusals('train_data_dir = "t"\ncolor_aug = true\nin_json = "x"\n', tmp_path)
    assert "2 options" in message and "color_aug" in message and "in_json" in message


@pytest.mark.parametrize(
    "option", ["color_aug = false", "scale_weight_norms = 0", 'in_json = ""', "clip_skip = 1"]
)
def test_an_option_that_asks_for_nothing_is_as_good_as_absent(option: str, tmp_path: Path) -> None:
    base = 'train_data_dir = "t"\n'
    assert recipe(base + option, tmp_path) == recipe(base, tmp_path)


def test_a_rate_of_zero_leaves_the_text_encoder_alone(tmp_path: Path) -> None:
    made, _ = recipe('train_data_dir = "t"\nunet_lr = 1e-4\ntext_encoder_lr = 0\n', tmp_path)
    assert made.adapter.components is None and not made.adapter.learning_rate_pattern


def test_settings_of_the_window(tmp_path: Path) -> None:
    settings = {
        "LoRA_type": "LyCORIS/LoHa", "LyCORIS_preset": "attn-mlp", "pretrained_model_name_or_path":
        "m.safetensors", "sdxl": True, "train_data_dir": "t", "max_resolution": "1024,1024", "optimizer":
        "AdamW8bit", "optimizer_args": "", "lr_scheduler": "cosine", "lr_warmup": 10, "learning_rate":
        0.0001, "unet_lr": 0.0001, "text_encoder_lr": 0, "network_dim": 8, "network_alpha": 4, "conv_dim":
        1, "max_train_steps": 200, "epoch": 4, "train_batch_size": 2, "seed": "7", "mixed_precision":
        "bf16", "xformers": "xformers", "noise_offset_type": "Original", "noise_offset": 0.03,
        "multires_noise_iterations": 6, "keep_tokens": "0", "guidance_scale": 3.5, "num_processes": 1,
        "caption_extension": ".txt", "output_dir": "o", "output_name": "n",
    }  # fmt: skip
    source = tmp_path / "gui.json"
    source.write_text(json.dumps(settings), encoding="utf-8")
    written = tmp_path / "recipe.yaml"
    written.write_text(translate(source).text, encoding="utf-8")
    made = load_recipe(written, environment={})
    assert (made.adapter.method, made.adapter.rank, made.adapter.components) == ("loha", 8, None)
    assert (made.train.steps, made.train.warmup_steps, made.train.seed) == (200, 20, 7)
    assert made.objective.noise_offset == 0.03 and made.objective.pyramid_noise == 0


def test_prompts_of_a_file(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("# mine\na cat --n blurry --s 20 --l 6.5 --d 3\na dog --n blurry\n", encoding="utf-8")
    options = f'train_data_dir = "t"\nsample_prompts = "{prompts.as_posix()}"\nsample_every_n_steps = 50\n'
    made, _ = recipe(options, tmp_path)
    assert made.preview.prompts == ("a cat", "a dog") and made.train.preview_every == 50
    assert (made.preview.negative_prompt, made.preview.steps, made.preview.guidance) == ("blurry", 20, 6.5)
    assert made.preview.seeds == (3,)


@pytest.mark.parametrize("family", KINDS)
def test_a_family_can_be_given(family: str, tmp_path: Path) -> None:
    options = 'train_data_dir = "t"\nmax_train_steps = 5\nnetwork_train_unet_only = true\n'
    _, told = recipe(options, tmp_path, family=family)
    assert told[0] == f"trains {family}: as asked"


def test_an_unknown_family_suggests_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="Did you mean 'sdxl'"):
        translate(tmp_path / "x.toml", family="sdx")


def test_the_command_writes_a_recipe_and_tells(tmp_path: Path) -> None:
    source, target = tmp_path / "kohya.toml", tmp_path / "recipe.yaml"
    source.write_text(SD1, encoding="utf-8")
    done = CliRunner().invoke(app, ["convert", str(source), "-o", str(target)])
    assert done.exit_code == 0 and "left out: xformers" in done.output and "lorimer check" in done.output
    assert load_recipe(target, environment={}).adapter.rank == 32
    again = CliRunner().invoke(app, ["convert", str(source), "-o", str(target)])
    assert isinstance(again.exception, RecipeError) and "name a new file" in str(again.exception)
    printed = CliRunner().invoke(app, ["convert", str(source)])
    assert printed.output == target.read_text(encoding="utf-8")


def test_the_page_says_what_is_done(tmp_path: Path) -> None:
    """Its tables are those that are followed, and its example comes out as it stands there."""
    reference, page = script("kohya_reference"), (ROOT / "docs" / "from-kohya.md").read_text(encoding="utf-8")
    assert page.endswith(reference.reference())
    before, after, told = (
        re.search(rf"```{kind}\n(.*?)```", page, re.DOTALL) for kind in ("toml", "yaml", "")
    )
    assert before and after and told
    made = translate(_written(tmp_path / "kohya.toml", before[1]))
    assert made.text.endswith(after[1])
    assert "```\n" + "\n".join(made.told) + "\n```" in page


def _written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path
