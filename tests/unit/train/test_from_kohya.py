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
from lorimer.train.from_kohya.network import ARGUMENTS, KINDS, REFUSED_ARGUMENTS
from lorimer.train.from_kohya.options import LEFT_OUT, READ, REFUSED, SAME
from lorimer.train.recipe import Recipe, load_recipe, recipe_class
from tests.unit.docs.pages import ROOT, script

# Every option that the parsers of sd-scripts' train_network.py and of its sisters for SDXL, FLUX, SD 3 and
# Lumina know, read from `add_argument` in commit 48d368f of February 2026.
EVERY_OPTION = """
adaptive_noise_scale ae alpha_mask apply_lg_attn_mask apply_t5_attn_mask async_upload base_weights
base_weights_multiplier blocks_to_swap bucket_no_upscale bucket_reso_steps cache_info cache_latents
cache_latents_to_disk cache_text_encoder_outputs cache_text_encoder_outputs_to_disk
caption_dropout_every_n_epochs caption_dropout_rate caption_extension caption_extention caption_prefix
caption_separator caption_suffix caption_tag_dropout_rate clip_g clip_g_dropout_rate clip_l
clip_l_dropout_rate clip_skip color_aug conditioning_data_dir config_file console_log_file console_log_level
console_log_simple controlnet_model_name_or_path cpu_offload_checkpointing dataset_class dataset_config
dataset_repeats ddp_gradient_as_bucket_view ddp_static_graph ddp_timeout debiased_estimation_loss
debug_dataset deepspeed dim_from_weights disable_mmap_load_safetensors discrete_flow_shift dynamo_backend
enable_bucket enable_scaled_pos_embed enable_wildcard face_crop_aug_range flip_aug
fp16_master_weights_and_gradients fp8_base fp8_base_unet full_bf16 full_fp16 fused_backward_pass gemma2
gemma2_max_token_length gradient_accumulation_steps gradient_checkpointing guidance_scale highvram huber_c
huber_scale huber_schedule huggingface_path_in_repo huggingface_repo_id huggingface_repo_type
huggingface_repo_visibility huggingface_token in_json initial_epoch initial_step ip_noise_gamma
ip_noise_gamma_random_strength keep_tokens keep_tokens_separator learning_rate log_config log_prefix
log_tracker_config log_tracker_name log_with logging_dir logit_mean logit_std loss_type lowram
lr_decay_steps lr_scheduler lr_scheduler_args lr_scheduler_min_lr_ratio lr_scheduler_num_cycles
lr_scheduler_power lr_scheduler_timescale lr_scheduler_type lr_warmup_steps masked_loss max_bucket_reso
max_data_loader_n_workers max_grad_norm max_timestep max_token_length max_train_epochs max_train_steps
max_validation_steps mem_eff_attn metadata_author metadata_description metadata_is_negative_embedding
metadata_license metadata_merged_from metadata_preprocessor metadata_tags metadata_thumbnail metadata_title
metadata_trigger_phrase metadata_usage_hint min_bucket_reso min_snr_gamma min_timestep mixed_precision
mode_scale model_prediction_type model_type multires_noise_discount multires_noise_iterations network_alpha
network_args network_dim network_dropout network_module network_train_text_encoder_only
network_train_unet_only network_weights no_half_vae no_metadata noise_offset noise_offset_random_strength
offload_optimizer_device offload_optimizer_nvme_path offload_param_device offload_param_nvme_path
optimizer_args optimizer_type output_config output_dir output_name persistent_data_loader_workers
pos_emb_random_crop_rate pretrained_model_name_or_path prior_loss_weight random_crop reg_data_dir
resize_interpolation resolution resume resume_from_huggingface sample_at_first sample_batch_size
sample_every_n_epochs sample_every_n_steps sample_prompts sample_sampler save_clip save_every_n_epochs
save_every_n_steps save_last_n_epochs save_last_n_epochs_state save_last_n_steps save_last_n_steps_state
save_model_as save_n_epoch_ratio save_precision save_state save_state_on_train_end save_state_to_huggingface
save_t5xxl scale_v_pred_loss_like_noise_pred scale_weight_norms sdpa secondary_separator seed
shuffle_caption sigmoid_scale skip_cache_check skip_until_initial_step split_mode system_prompt
t5_dropout_rate t5xxl t5xxl_device t5xxl_dtype t5xxl_max_token_length text_encoder_batch_size
text_encoder_lr timestep_sampling token_warmup_min token_warmup_step tokenizer_cache_dir torch_compile
train_batch_size train_data_dir training_comment training_shift unet_lr use_8bit_adam use_flash_attn
use_lion_optimizer use_sage_attn use_safetensors v2 v_parameterization v_pred_like_loss vae vae_batch_size
validate_every_n_epochs validate_every_n_steps validation_seed validation_split wandb_api_key wandb_run_name
weighted_captions weighting_scheme xformers zero3_init_flag zero3_save_16bit_model zero_stage
zero_terminal_snr
"""
# What networks.lora, lora_flux, lora_sd3, lora_lumina, oft and LyCORIS read from network_args.
EVERY_ARGUMENT = """
algo attn_dim block_alphas block_dims block_lr_zero_threshold block_size bypass_mode constraint
context_attn_dim context_mlp_dim context_mod_dim conv_alpha conv_block_alphas conv_block_dims conv_dim
decompose_both dora_wd down_lr_weight dropout emb_dims embedder_dims enable_all_linear enable_conv factor
full_matrix ggpo_beta ggpo_sigma img_attn_dim img_mlp_dim img_mod_dim in_dims loraplus_lr_ratio
loraplus_text_encoder_lr_ratio loraplus_unet_lr_ratio mid_lr_weight mlp_dim mod_dim module_dropout
network_reg_dims network_reg_lrs preset rank_dropout refiner_dim rescaled rs_lora single_dim single_mod_dim
split_qkv train_block_indices train_blocks train_double_block_indices train_norm train_single_block_indices
train_t5xxl txt_attn_dim txt_mlp_dim txt_mod_dim unbalanced_factorization unit up_lr_weight use_cp
use_scalar use_tucker verbose wd_on_output x_attn_dim x_mlp_dim x_mod_dim
"""

SD1 = """
[model_arguments]
v2 = false
v_parameterization = false
pretrained_model_name_or_path = "models/v1-5-pruned.safetensors"

[additional_network_arguments]
no_metadata = false
unet_lr = 1e-4
text_encoder_lr = 5e-5
network_module = "networks.lora"
network_dim = 32
network_alpha = 16
network_args = ["conv_dim=8", "conv_alpha=4"]

[optimizer_arguments]
optimizer_type = "AdamW8bit"
optimizer_args = ["weight_decay=0.1", "betas=0.9,0.99"]
learning_rate = 1e-4
max_grad_norm = 1.0
lr_scheduler = "cosine_with_restarts"
lr_scheduler_num_cycles = 1
lr_warmup_steps = 100

[dataset_arguments]
train_data_dir = "train"
resolution = "512,512"
caption_extension = ".txt"
shuffle_caption = true
keep_tokens = 1
enable_bucket = true
bucket_no_upscale = true
min_bucket_reso = 320
max_bucket_reso = 960
cache_latents = true

[training_arguments]
output_dir = "out"
output_name = "mine"
save_precision = "fp16"
save_every_n_steps = 500
train_batch_size = 2
max_train_steps = 2000
mixed_precision = "fp16"
xformers = true
seed = 42
min_snr_gamma = 5
noise_offset = 0.05
"""
SDXL = """
pretrained_model_name_or_path = "sd_xl_base_1.0.safetensors"
network_module = "networks.lora"
network_dim = 8
network_train_unet_only = true
learning_rate = 4e-4
optimizer_type = "adafactor"
optimizer_args = ["scale_parameter=False", "relative_step=False", "warmup_init=False"]
lr_scheduler = "constant_with_warmup"
lr_warmup_steps = 0.05
max_train_steps = 1000
mixed_precision = "bf16"
gradient_checkpointing = true
cache_text_encoder_outputs = true
no_half_vae = true
train_data_dir = "train"
resolution = "1024,1024"
multires_noise_iterations = 6
multires_noise_discount = 0.4
"""
FLUX = """
pretrained_model_name_or_path = "flux1-dev.safetensors"
clip_l = "clip_l.safetensors"
t5xxl = "t5xxl_fp16.safetensors"
ae = "ae.safetensors"
network_module = "networks.lora_flux"
network_dim = 16
network_alpha = 16
network_train_unet_only = true
network_args = ["train_blocks=single", "loraplus_unet_lr_ratio=4"]
learning_rate = 1e-4
optimizer_type = "adamw8bit"
guidance_scale = 1.0
timestep_sampling = "shift"
discrete_flow_shift = 3.1582
model_prediction_type = "raw"
fp8_base = true
blocks_to_swap = 18
sdpa = true
max_train_steps = 1000
train_data_dir = "train"
resolution = "1024,1024"
"""
LYCORIS = """
pretrained_model_name_or_path = "sdxl.safetensors"
network_module = "lycoris.kohya"
network_dim = 16
network_alpha = 8
network_args = ["algo=lokr", "preset=full", "factor=8", "use_tucker=True", "dora_wd=True"]
unet_lr = 1.0
text_encoder_lr = [1.0, 0.5]
optimizer_type = "Prodigy"
optimizer_args = ["decouple=True", "weight_decay=0.01", "d_coef=2"]
train_data_dir = "train"
resolution = "1024"
max_train_steps = 100
"""
DATASET = """
[general]
caption_extension = ".txt"
enable_bucket = true
shuffle_caption = true

[[datasets]]
resolution = 768
batch_size = 3

  [[datasets.subsets]]
  image_dir = "cat"
  num_repeats = 4

  [[datasets.subsets]]
  image_dir = "other"
  is_reg = true
  class_tokens = "cat"
"""


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
    source = tmp_path / "flux.toml"
    source.write_text(FLUX, encoding="utf-8")
    text = translate(source).text
    for part in ("path: flux1-dev", "text_encoder: clip_l", "text_encoder_2: t5xxl", "vae: ae"):
        assert part in text
    written = tmp_path / "recipe.yaml"
    written.write_text(text, encoding="utf-8")
    made = load_recipe(written, ["model=flux"], environment={})
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
        ("clip_skip = 2", "clip_skip = 2"),
        ('network_module = "lycoris.kohya"\nnetwork_args = ["dora_wd=true", "wd_on_output=false"]', "wd_on_output"),
    ],
)  # fmt: skip
def test_what_would_train_something_else_is_refused(option: str, part: str, tmp_path: Path) -> None:
    assert part in refusals(f'train_data_dir = "t"\n{option}\n', tmp_path)


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
