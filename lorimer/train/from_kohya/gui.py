"""The settings that kohya_ss' window saves as JSON, as the options of the scripts that it calls."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_NAMES = {  # the window's name -> the script's
    "max_resolution": "resolution",
    "optimizer": "optimizer_type",
    "epoch": "max_train_epochs",
    "create_buckets": "enable_bucket",
    "sdxl_checkbox": "sdxl",
    "sdxl_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "flux1_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sd3_cache_text_encoder_outputs": "cache_text_encoder_outputs",
    "sd3_clip_l": "clip_l",
    "sd3_t5xxl": "t5xxl",
}
_ARGUMENTS = (  # which the window puts into network_args
    "conv_dim", "conv_alpha", "down_lr_weight", "mid_lr_weight", "up_lr_weight", "block_lr_zero_threshold",
    "block_dims", "block_alphas", "conv_block_dims", "conv_block_alphas", "rank_dropout", "module_dropout",
    "loraplus_lr_ratio", "loraplus_unet_lr_ratio", "loraplus_text_encoder_lr_ratio", "train_blocks",
    "split_qkv",
    "train_t5xxl", "img_attn_dim", "img_mlp_dim", "img_mod_dim", "single_dim", "txt_attn_dim", "txt_mlp_dim",
    "txt_mod_dim", "single_mod_dim", "in_dims", "train_double_block_indices", "train_single_block_indices",
)  # fmt: skip
_LYCORIS = (
    "factor", "bypass_mode", "dora_wd", "use_cp", "use_tucker", "use_scalar", "rank_dropout_scale",
    "rescaled",
    "train_norm", "decompose_both", "train_on_input",
)  # fmt: skip
_ALGORITHMS = {"LoHa": "loha", "LoKr": "lokr", "LoCon": "locon", "iA3": "ia3", "Diag-OFT": "diag-oft",
               "DyLoRA": "dylora", "GLoRA": "glora", "BOFT": "boft",
               "Native Fine-Tuning": "full"}  # fmt: skip
_MODULES = {"Flux1": "networks.lora_flux", "Flux1 OFT": "networks.oft_flux", "SD3": "networks.lora_sd3",
            "LoRA-FA": "networks.lora_fa", "Kohya DyLoRA": "networks.dylora"}  # fmt: skip
# Of the window itself, of other tabs, or of how the script is started.
_OF_THE_WINDOW = (
    "LoRA_type", "LyCORIS_preset", "constrain", "stop_text_encoder_training", "model_list",
    "train_inpainting",
    "num_cpu_threads_per_process", "num_processes", "num_machines", "multi_gpu", "gpu_ids",
    "main_process_port",
    "dynamo_mode", "dynamo_use_fullgraph", "dynamo_use_dynamic", "extra_accelerate_launch_args", "lowvram",
    "additional_parameters", "noise_offset_type", "lr_warmup", "t5xxl_lr", "train_lora_ggpo", 
    "ggpo_sigma", "ggpo_beta",
    "flux1_checkbox", "sd3_checkbox", "mem_eff_save", "show_timesteps", "show_timesteps_resolution", "unit",
    "single_blocks_to_swap", "double_blocks_to_swap", "enable_all_linear", "full_path", "block_lr",
    "use_latent_files",
    "create_caption", "train_text_encoder", "sdxl_no_half_vae", "batch_size",
    "flux1_cache_text_encoder_outputs_to_disk",
    "sd3_cache_text_encoder_outputs_to_disk",
)  # fmt: skip
_FLOW = ("discrete_flow_shift", "model_prediction_type", "timestep_sampling", "guidance_scale", "model_type",
         "ae",
         "clip_l", "clip_g", "t5xxl", "logit_mean", "logit_std", "mode_scale", "weighting_scheme",
         "t5xxl_max_token_length", "apply_t5_attn_mask", "sigmoid_scale")  # fmt: skip
_OTHER_MODELS = ("hunyuan", "anima_", "lumina_", "sd3_")


def is_gui(options: Mapping[str, Any]) -> bool:
    """Whether these are the window's settings and not a script's options."""
    return "LoRA_type" in options or "max_resolution" in options


def script_options(gui: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the window would start a script with."""
    kind = str(gui.get("LoRA_type") or "Standard")
    lycoris = kind.startswith("LyCORIS/")
    flow = kind in ("Flux1", "Flux1 OFT", "SD3") or bool(gui.get("flux1_checkbox") or gui.get("sd3_checkbox"))
    options = {
        _NAMES.get(name, name): value
        for name, value in gui.items()
        if name not in (*_OF_THE_WINDOW, *_ARGUMENTS, *_LYCORIS, *(() if flow else _FLOW))
        and (name in _NAMES or not name.startswith(_OTHER_MODELS))
        and value not in ("", None)
    }
    options["network_module"] = "lycoris.kohya" if lycoris else _MODULES.get(kind, "networks.lora")
    names = (*_ARGUMENTS, *(_LYCORIS if lycoris else ())) if kind != "Standard" else _ARGUMENTS[4:]
    arguments = [f"{name}={gui[name]}" for name in names if gui.get(name) not in ("", None, 0, "0", False)]
    if lycoris:
        algorithm = _ALGORITHMS.get(kind.partition("/")[2], kind.partition("/")[2].lower())
        arguments += [f"algo={algorithm}", f"preset={gui.get('LyCORIS_preset') or 'full'}"]
    options["network_args"] = arguments
    return _rates(_steps(options, gui), gui)


def _steps(options: dict[str, Any], gui: Mapping[str, Any]) -> dict[str, Any]:
    """Steps where they are given, else epochs; warm-up is a percentage in the window."""
    if float(gui.get("max_train_steps") or 0):
        options.pop("max_train_epochs", None)
    elif float(gui.get("max_train_epochs") or 0):
        options["max_train_epochs"] = gui["max_train_epochs"]
    if not gui.get("lr_warmup_steps") and float(gui.get("lr_warmup") or 0):
        options["lr_warmup_steps"] = float(gui["lr_warmup"]) / 100
        if options.get("lr_scheduler") == "constant":
            del options["lr_warmup_steps"]
    if gui.get("noise_offset_type") == "Multires":
        options.pop("noise_offset", None)
    elif gui.get("noise_offset_type") == "Original":
        options.pop("multires_noise_iterations", None)
    return options


def _rates(options: dict[str, Any], gui: Mapping[str, Any]) -> dict[str, Any]:
    """0 means "not given"; a rate for the U-Net alone means that the text encoder does not learn."""
    unet, text = float(gui.get("unet_lr") or 0), gui.get("text_encoder_lr") or 0
    text_is_given = any(float(rate) for rate in (text if isinstance(text, list) else str(text).split()))
    for name, given in (("unet_lr", bool(unet)), ("text_encoder_lr", text_is_given)):
        if not given:
            options.pop(name, None)
    if unet and not text_is_given:
        options["network_train_unet_only"] = True
    if text_is_given and not unet:
        options["network_train_text_encoder_only"] = True
    return options
