"""Every option of kohya's training scripts for adapters, and what becomes of it: the tables behind it all.

The names are those of `train_network.py`, `sdxl_`, `flux_`, `sd3_` and `lumina_train_network.py` of
kohya-ss/sd-scripts, as they stand in its TOML files (0.10). An option is translated, left out because it
changes nothing that is learned, or refused because it does and there is nothing like it here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

Verdict = Literal["translated", "left out", "refused"]

# The value means the same.
SAME = {
    "train_batch_size": "train.batch_size",
    "gradient_accumulation_steps": "train.gradient_accumulation_steps",
    "gradient_checkpointing": "train.gradient_checkpointing",
    "mixed_precision": "train.mixed_precision",
    "seed": "train.seed",
    "flip_aug": "data.flip",
    "shuffle_caption": "data.shuffle_tags",
    "keep_tokens": "data.keep_tags",
    "caption_tag_dropout_rate": "data.tag_dropout",
    "caption_dropout_rate": "objective.caption_dropout",
    "min_snr_gamma": "objective.min_snr_gamma",
    "debiased_estimation_loss": "objective.debiased",
    "noise_offset": "objective.noise_offset",
    "ip_noise_gamma": "objective.input_perturbation",
    "zero_terminal_snr": "objective.zero_terminal_snr",
    "prior_loss_weight": "objective.prior_weight",
    "network_dropout": "adapter.dropout",
    "validation_split": "data.validation.fraction",
    "validate_every_n_steps": "train.evaluate_every",
}

# Read by a rule: (places in the recipe, what to know).
READ: Mapping[str, tuple[str, str]] = {
    "pretrained_model_name_or_path": ("model", "With the parts below it becomes a mapping."),
    "vae": ("model.vae", ""),
    "ae": ("model.vae", ""),
    "clip_l": ("model.text_encoder", ""),
    "clip_g": ("model.text_encoder_2", "SD 3."),
    "t5xxl": ("model.text_encoder_2", "FLUX; `model.text_encoder_3` in SD 3."),
    "gemma2": ("model.text_encoder", "Lumina 2."),
    "v2": ("", "A model says itself what it is."),
    "v_parameterization": ("objective.prediction", "Or null, where the model's scheduler says so."),
    "model_type": ("", "`chroma`; a model says itself what it is."),
    "clip_skip": ("data.clip_skip", "One less, for SD 1 and 2; SDXL leaves one out by itself."),
    "output_dir": ("output", "Joined with `output_name`."),
    "output_name": ("output", ""),
    "network_module": ("adapter.method", "`networks.lora*`, `networks.oft*`, `lycoris.kohya`."),
    "network_dim": ("adapter.rank", ""),
    "network_alpha": ("adapter.alpha", "1 where it is not given, as with kohya."),
    "network_args": ("adapter", "See the next table."),
    "network_train_unet_only": ("adapter.components", "The text encoders learn too where it is not set."),
    "network_train_text_encoder_only": ("adapter.components", ""),
    "learning_rate": ("train.learning_rate", ""),
    "unet_lr": ("train.learning_rate", "Wins over `learning_rate`."),
    "text_encoder_lr": ("adapter.learning_rate_pattern", "One for all or for each; 0 leaves it alone."),
    "optimizer_type": ("train.optimizer", "AdamW where it is not given."),
    "use_8bit_adam": ("train.optimizer", "`adamw-8bit`."),
    "use_lion_optimizer": ("train.optimizer", "`lion`."),
    "optimizer_args": ("train.optimizer_options", "`weight_decay` becomes `train.weight_decay`."),
    "lr_scheduler": ("train.schedule", "`constant`, `linear`, `cosine`; others are refused."),
    "lr_scheduler_num_cycles": ("", "1 is what `cosine` does; more is refused."),
    "lr_scheduler_power": ("", "1 is what `linear` does; others are refused."),
    "lr_warmup_steps": ("train.warmup_steps", "A share of the steps becomes a number of them."),
    "max_grad_norm": ("train.max_grad_norm", "0 becomes null."),
    "max_train_steps": ("train.steps", "1600 where neither it nor epochs are given."),
    "max_train_epochs": ("train.steps", "Pictures are counted, so their folders must be there."),
    "save_every_n_steps": ("train.checkpoint_every", ""),
    "save_every_n_epochs": ("train.checkpoint_every", ""),
    "save_n_epoch_ratio": ("train.checkpoint_every", ""),
    "save_last_n_steps": ("train.keep_checkpoints", ""),
    "save_last_n_epochs": ("train.keep_checkpoints", ""),
    "validate_every_n_epochs": ("train.evaluate_every", ""),
    "sample_every_n_steps": ("train.preview_every", ""),
    "sample_every_n_epochs": ("train.preview_every", ""),
    "sample_prompts": ("preview", "Of `.txt` files; `--n`, `--s`, `--l`, `--d` of the first line."),
    "save_precision": ("train.save_precision", "`float` is `fp32`."),
    "full_bf16": ("train.adapter_precision", "Here with stochastic rounding."),
    "fp8_base": ("train.base_precision", "`8bit`, of another kind than kohya's float8."),
    "fp8_base_unet": ("train.base_precision", "As `fp8_base`."),
    "blocks_to_swap": ("train.offload", "`blocks`; how many stay is `train.offload_resident`."),
    "max_data_loader_n_workers": ("train.workers", "0 is enough, as pictures are encoded once."),
    "log_with": ("train.trackers", "`all` is TensorBoard and wandb."),
    "train_data_dir": ("data.path", "Folders such as `10_name` count as they do with kohya."),
    "reg_data_dir": ("data.sources", "A source with `regularisation: true`."),
    "dataset_config": ("data.sources", "Its subsets become sources."),
    "dataset_repeats": ("data.repeats", ""),
    "resolution": ("data.resolution", "The side of a square of the same area."),
    "enable_bucket": ("data.shapes", "`buckets`; squares where it is not set, as with kohya."),
    "min_bucket_reso": ("data.smallest_side", ""),
    "max_bucket_reso": ("data.largest_side", ""),
    "bucket_reso_steps": ("data.bucket_step", ""),
    "bucket_no_upscale": ("", "Buckets never enlarge a picture here."),
    "caption_extension": ("data.caption_suffix", "`.caption` where it is not given, as with kohya."),
    "caption_extention": ("data.caption_suffix", "As `caption_extension`."),
    "caption_separator": ("data.tag_separator", ""),
    "caption_prefix": ("data.trigger", ""),
    "random_crop": ("data.crops", "4 crops of each picture, cut once."),
    "alpha_mask": ("data.masks", "`alpha`."),
    "masked_loss": ("data.masks", "With `conditioning_data_dir`."),
    "conditioning_data_dir": ("data.masks", ""),
    "loss_type": ("objective.loss", "`l2` is `mse`; `smooth_l1` is refused."),
    "huber_c": ("objective.huber_delta", ""),
    "huber_schedule": ("objective.huber_schedule", ""),
    "scale_v_pred_loss_like_noise_pred": ("objective.p2_gamma", "0, which weighs a velocity like its noise."),
    "multires_noise_iterations": ("objective.pyramid_noise", "All levels are used, whatever their number."),
    "multires_noise_discount": ("objective.pyramid_noise", ""),
    "min_timestep": ("objective.timestep_range", "Of 1000."),
    "max_timestep": ("objective.timestep_range", "Of 1000."),
    "timestep_sampling": ("objective.timesteps", "`shift`: `sigmoid`, shifted; `flux_shift`: by size."),
    "sigmoid_scale": ("objective.timestep_std", ""),
    "discrete_flow_shift": ("objective.timestep_shift", "Where `timestep_sampling` uses it."),
    "training_shift": ("objective.timestep_shift", "SD 3."),
    "weighting_scheme": ("objective.weighting", "`logit_normal` and `mode` are `objective.timesteps`."),
    "logit_mean": ("objective.timestep_mean", ""),
    "logit_std": ("objective.timestep_std", ""),
    "mode_scale": ("objective.timestep_scale", ""),
    "guidance_scale": ("", "FLUX learns at guidance 1 here; other values are refused."),
    "model_prediction_type": ("", "`raw`; others are refused."),
}  # fmt: skip

_ALWAYS = "always so: pictures and captions are encoded once and kept on disk"
_ATTENTION = "PyTorch's own attention is used"
_HUB = "nothing is sent anywhere; upload the file yourself"
_STATE = "every checkpoint holds the whole state; `lorimer train --resume RUN` goes on from it"
_ONE_FORMAT = "safetensors is written; `lorimer convert` writes other formats"
_CARD = "of kohya's own way of saving memory; see train.offload and train.base_precision"
_SCALE_OUT = "of how several devices share the work; accelerate's own settings hold"
_LOGS = "the log's place and names are those of the run's folder"
_MODEL_SPEC = "described in the file's own metadata, without it"
_MASKING = "padding is masked as the family's pipeline in diffusers does it"

# Changes nothing that is learned: why it is not there.
LEFT_OUT: Mapping[str, str] = {
    **dict.fromkeys(("max_token_length", "t5xxl_max_token_length", "gemma2_max_token_length"),
                    "captions are read up to what diffusers' pipeline takes (77 tokens for CLIP), as they "
                    "will be when pictures are drawn with it; `lorimer check` counts those that are cut"),
    **dict.fromkeys(
        ("cache_latents", "cache_latents_to_disk", "cache_text_encoder_outputs", "vae_batch_size",
         "cache_text_encoder_outputs_to_disk", "text_encoder_batch_size", "skip_cache_check", "cache_info"),
        _ALWAYS,
    ),
    **dict.fromkeys(
        ("mem_eff_attn", "xformers", "sdpa", "use_flash_attn", "use_sage_attn", "split_attn", "attn_mode"),
        _ATTENTION,
    ),
    **dict.fromkeys(
        ("huggingface_repo_id", "huggingface_repo_type", "huggingface_path_in_repo", "huggingface_token",
         "huggingface_repo_visibility", "save_state_to_huggingface", "async_upload"),
        _HUB,
    ),
    **dict.fromkeys(
        ("save_state", "save_state_on_train_end", "save_last_n_epochs_state", "save_last_n_steps_state"),
        _STATE,
    ),
    **dict.fromkeys(("save_model_as", "use_safetensors"), _ONE_FORMAT),
    **dict.fromkeys(
        ("lowram", "highvram", "cpu_offload_checkpointing", "t5xxl_device", "split_mode", "t5xxl_dtype",
         "disable_mmap_load_safetensors", "no_half_vae", "fused_backward_pass", "vae_chunk_size"),
        _CARD,
    ),
    **dict.fromkeys(
        ("ddp_timeout", "ddp_gradient_as_bucket_view", "ddp_static_graph", "deepspeed", "zero_stage",
         "offload_optimizer_device", "offload_optimizer_nvme_path", "offload_param_device",
         "offload_param_nvme_path", "zero3_init_flag", "zero3_save_16bit_model",
         "fp16_master_weights_and_gradients"),
        _SCALE_OUT,
    ),
    **dict.fromkeys(("torch_compile", "dynamo_backend"), "compiling changes the speed alone"),
    **dict.fromkeys(
        ("logging_dir", "log_prefix", "log_tracker_name", "wandb_run_name", "log_tracker_config",
         "wandb_api_key",
         "log_config", "console_log_level", "console_log_file", "console_log_simple"),
        _LOGS,
    ),
    **dict.fromkeys(
        ("metadata_title", "metadata_author", "metadata_description", "metadata_license", "metadata_tags",
         "metadata_usage_hint", "metadata_thumbnail", "metadata_merged_from", "metadata_trigger_phrase",
         "metadata_preprocessor", "metadata_is_negative_embedding", "training_comment", "no_metadata"),
        _MODEL_SPEC,
    ),
    **dict.fromkeys(("apply_t5_attn_mask", "apply_lg_attn_mask"), _MASKING),
    **dict.fromkeys(("save_clip", "save_t5xxl"), "only the adapter is written"),
    "persistent_data_loader_workers": "workers stay alive",
    "sample_sampler": "previews use the model's own scheduler",
    "sample_batch_size": "previews find their own batch",
    "sample_at_first": "previews begin before the first step",
    "config_file": "this is it",
    "output_config": "the run's folder holds the whole recipe",
    "debug_dataset": "`lorimer check` shows what was read",
    "tokenizer_cache_dir": "the usual caches are used",
    "full_fp16": "the adapter is kept in float32, which learns no less",
    "validation_seed": "validation always draws the same noise",
    "max_validation_steps": "validation reads all that was held out",
    "lr_decay_steps": "for schedules that are refused anyway",
    "lr_scheduler_timescale": "for schedules that are refused anyway",
    "lr_scheduler_min_lr_ratio": "for schedules that are refused anyway",
    "base_weights_multiplier": "for base_weights, which is refused",
    "resize_interpolation": "pictures are made smaller with Lanczos' filter",
    "controlnet_model_name_or_path": "plays no part in training an adapter",
    "initial_epoch": "for kohya's way of going on, see skip_until_initial_step",
    "initial_step": "for kohya's way of going on, see skip_until_initial_step",
    "token_warmup_min": "for token_warmup_step, which is refused",
}  # fmt: skip

_CAPTION_RULES = "captions are used as they stand; write what is meant into the caption files"
_RANDOM_STRENGTH = "the strength is the same in each step"
_CLIP_DROPOUT = "captions are dropped for all encoders at once: objective.caption_dropout"
_AUGMENT = "pictures are encoded once, unchanged; add changed copies to the folder"

# Changes what is learned, and nothing here does it: what to do instead.
REFUSED: Mapping[str, str] = {
    **dict.fromkeys(
        ("keep_tokens_separator", "secondary_separator", "enable_wildcard", "caption_suffix",
         "weighted_captions"),
        _CAPTION_RULES,
    ),
    **dict.fromkeys(("noise_offset_random_strength", "ip_noise_gamma_random_strength"), _RANDOM_STRENGTH),
    **dict.fromkeys(("clip_l_dropout_rate", "clip_g_dropout_rate", "t5_dropout_rate"), _CLIP_DROPOUT),
    **dict.fromkeys(("color_aug", "face_crop_aug_range"), _AUGMENT),
    **dict.fromkeys(
        ("pos_emb_random_crop_rate", "enable_scaled_pos_embed"),
        "positions are those that the model was trained on"
    ),
    **dict.fromkeys(
        ("resume", "resume_from_huggingface", "skip_until_initial_step"),
        "the state of another program cannot be gone on with; train anew",
    ),
    **dict.fromkeys(
        ("network_weights", "dim_from_weights"),
        "training begins afresh; `lorimer merge` the adapter into the model"
    ),
    "base_weights": "merge them into the model first: lorimer merge",
    "token_warmup_step": "all of a caption is shown from the beginning",
    "caption_dropout_every_n_epochs": "captions are dropped by chance: objective.caption_dropout",
    "adaptive_noise_scale": "noise_offset is the same for all pictures",
    "v_pred_like_loss": "a second loss cannot be added",
    "scale_weight_norms": "weights are not cut; train.weight_decay keeps them small",
    "huber_scale": "the loss is not scaled; scale learning_rate instead",
    "in_json": "write one metadata.jsonl with the fields file_name and text into the folder",
    "dataset_class": "Python from a file is not run",
    "lr_scheduler_type": "schedules are constant, linear and cosine",
    "lr_scheduler_args": "schedules have no further options",
    "system_prompt": "captions stand alone; write it into the caption files",
}  # fmt: skip

# Values that ask for nothing, beside false, 0, nothing and "".
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "huber_scale": (1,),
    "clip_skip": (1, "1"),
    "lr_scheduler_args": ([],),
}
_ZERO_MEANS_ZERO = ("text_encoder_lr", "unet_lr", "max_grad_norm", "guidance_scale", "logit_mean")


def asks_for_nothing(name: str, value: Any) -> bool:
    """Whether an option with this value is as good as not given."""
    if name in _ZERO_MEANS_ZERO:
        return value in (None, "", []) or value is False
    return value in (None, False, "", 0, "0", []) or value in _NEUTRAL.get(name, ())


def known_options() -> dict[str, tuple[Verdict, str, str]]:
    """Option -> (verdict, places in the recipe, remark), in the order of the page about it."""
    table: dict[str, tuple[Verdict, str, str]] = {}
    table |= {name: ("translated", place, remark) for name, (place, remark) in READ.items()}
    table |= {name: ("translated", place, "") for name, place in SAME.items()}
    table |= {name: ("left out", "", reason) for name, reason in LEFT_OUT.items()}
    table |= {name: ("refused", "", reason) for name, reason in REFUSED.items()}
    return table
