"""Names of kohya's options, and settings such as people have."""

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
