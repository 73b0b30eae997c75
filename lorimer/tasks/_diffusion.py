"""A Stable Diffusion model as lorimer adapts it: loading its parts, predicting, sampling.

    DiffusionModel
      ├── unet            UNet2DConditionModel, what adapters usually go to
      ├── text_encoder    CLIPTextModel, adapted when a recipe asks for it
      ├── vae             AutoencoderKL, never adapted
      ├── tokenizer       CLIPTokenizer
      └── scheduler       the model's own sampler, whose config fixes the noise schedule

The embedded model, a folder in diffusers' layout and a hub name all go through `load_diffusion`, so
what is tested on the small model is what loads the large one.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorimer.errors import LorimerError, UsageError
from lorimer.layers.slots import LayerSlots
from lorimer.tasks._diffusers_folder import (
    folder_from_hub,
    load_scheduler,
    load_tokenizer,
    load_weights,
    quiet,
    require_parts,
    require_picture_packages,
)

if TYPE_CHECKING:
    from PIL.Image import Image

EMBEDDED = Path(__file__).parents[1] / "models" / "embedded"


class DiffusionModel(nn.Module):
    """The parts of a latent diffusion model under one roof.

    Attributes:
        components: the children that may be adapted; adapter paths begin with one of them.
        source: what it was loaded from, as the recipe says it.
        prediction_type: what the U-Net predicts, "epsilon" or "v_prediction".
        alphas_cumprod: ᾱ_t of the noise schedule, shape (timesteps,), float32, on the CPU. Not a buffer,
            so that no `.to(dtype)` can round it.
    """

    components = ("unet", "text_encoder")

    def __init__(
        self,
        unet: nn.Module,
        text_encoder: nn.Module,
        vae: nn.Module,
        tokenizer: Any,
        scheduler: Any,
        source: str,
    ) -> None:
        super().__init__()
        self.unet = unet
        self.text_encoder = text_encoder
        self.vae = vae
        self.tokenizer = tokenizer
        self.scheduler = scheduler
        self.source = source
        self.prediction_type: str = scheduler.config.prediction_type
        self.alphas_cumprod = _alphas_cumprod(scheduler)
        self.requires_grad_(False).eval()

    def forward(
        self,
        latents: Tensor,
        timesteps: Tensor,
        embeddings: Tensor | None = None,
        input_ids: Tensor | None = None,
    ) -> Tensor:
        """The U-Net's prediction, in the shape of `latents`.

        Args:
            latents: noisy latents (batch, channels, height, width).
            timesteps: (batch,) integers.
            embeddings: the text encoder's output (batch, tokens, width), or
            input_ids: token ids (batch, tokens), which the text encoder then encodes.
        """
        if embeddings is None:
            assert input_ids is not None
            embeddings = self.text_encoder(input_ids)[0]
        return self.unet(latents, timesteps, encoder_hidden_states=embeddings, return_dict=False)[0]

    def train(self, mode: bool = True) -> DiffusionModel:
        """Put adapters into training mode; frozen parts stay in evaluation mode, as dropout in a frozen
        network is only noise. Blocks that checkpoint gradients are told the mode since transformers
        asks them for it; what is inside them is not."""
        super().train(False)
        self.training = mode
        for module in self.modules():
            if isinstance(module, LayerSlots):
                module.train(mode)
            elif getattr(module, "gradient_checkpointing", False):
                module.training = mode
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of U-Net and text encoder in the backward pass instead of keeping them."""
        self.unet.enable_gradient_checkpointing()  # type: ignore[operator]
        self.text_encoder.activation_checkpointing_enable()  # type: ignore[operator]
        self.train(self.training)

    @property
    def pixels_per_latent(self) -> int:
        """How many pixels along a side become one latent, 8 for Stable Diffusion."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)  # type: ignore[union-attr, arg-type]

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures that the model was made for."""
        return int(self.unet.config.sample_size) * self.pixels_per_latent  # type: ignore[union-attr, arg-type]

    def checked_resolution(self, resolution: int | None) -> int:
        """`resolution`, or the model's own where it is None.

        Raises:
            UsageError: the model cannot draw pictures of that side.
        """
        side = resolution or self.resolution
        unit = math.lcm(8, self.pixels_per_latent)  # the pipeline asks for eights
        if side % unit:
            lower = max(side // unit * unit, unit)
            raise UsageError(
                f"resolution must be a multiple of {unit} for this model, such as {lower} or {lower + unit}, "
                f"not {side}"
            )
        return side

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids (len(texts), tokens), padded and cut to the length that the text encoder takes."""
        return self.tokenizer(
            list(texts),
            padding="max_length",
            max_length=self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        ).input_ids

    @torch.no_grad()
    def encode_texts(self, input_ids: Tensor) -> Tensor:
        """The frozen text encoder's output (batch, tokens, width) for token ids (batch, tokens)."""
        device = next(self.text_encoder.parameters()).device
        return self.text_encoder(input_ids.to(device))[0]

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each (batch, channels, height, width) and in the
        U-Net's scale, for pixels (batch, 3, height, width) in [-1, 1]."""
        parameter = next(self.vae.parameters())
        posterior = self.vae.encode(pixels.to(parameter)).latent_dist  # type: ignore[operator]
        scale = self.vae.config.scaling_factor  # type: ignore[union-attr]
        return posterior.mean * scale, posterior.std * scale


def load_diffusion(model: str, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """The diffusion model called `model`, frozen, in evaluation mode, on the CPU.

    Args:
        model: "embedded" (the small model shipped with lorimer), a folder in the layout of diffusers'
            `StableDiffusionPipeline`, or the name of such a model on the Hugging Face hub.
        dtype: precision of the weights in memory.

    Raises:
        UsageError: there is no such folder, and the hub does not give it either.
        FileFormatError: the folder lacks parts (all are named), or a part is broken.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_picture_packages()
    folder = EMBEDDED if model == "embedded" else Path(model).expanduser()
    if folder.is_file():
        raise UsageError(
            f"model {model!r} is a single file; give a folder in diffusers' layout. "
            "StableDiffusionPipeline.from_single_file(file).save_pretrained(folder) makes one"
        )
    if not folder.is_dir():
        folder = folder_from_hub(model)
    require_parts(folder)
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextModel

    with quiet():
        return DiffusionModel(
            unet=load_weights(UNet2DConditionModel, folder, "unet", torch_dtype=dtype),
            text_encoder=load_weights(CLIPTextModel, folder, "text_encoder", dtype=dtype),
            vae=load_weights(AutoencoderKL, folder, "vae", torch_dtype=dtype),
            tokenizer=load_tokenizer(folder),
            scheduler=load_scheduler(folder),
            source=model,
        )


def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 30,
    guidance: float = 7.5,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 8,
) -> list[Image]:
    """One picture per prompt and seed, by diffusers' `StableDiffusionPipeline` with the model's own sampler.

    Adapters act as they do on `model` at the time; wrap the call in `lorimer.strength(model, 0.5)` for
    another strength. Each picture has its own generator, so it depends on its prompt, seed and the
    settings alone, up to rounding, and torch's global random state is left as it was.

    Args:
        prompts, seeds: of equal length.
        steps: sampling steps.
        guidance: classifier-free guidance scale; 1 is none.
        resolution: side in pixels; by default the model's own.
        batch_size: how many pictures are drawn at once; bounds the memory.

    Raises:
        UsageError: lengths differ, or the model cannot draw pictures of that resolution.
        LorimerError: a picture came out with NaN or infinity.
    """
    if len(prompts) != len(seeds):
        raise UsageError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    side = model.checked_resolution(resolution)
    pictures: list[Image] = []
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.callback(model.train, model.training)
        model.eval()
        pipeline = _pipeline(model)
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            arrays = pipeline(
                batch,
                negative_prompt=[negative_prompt] * len(batch),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=side,
                width=side,
                output_type="pt",
            ).images
            if not torch.isfinite(arrays).all():
                raise LorimerError("sampling gave NaN or infinity; try a lower strength, or float32 weights")
            pictures += pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(arrays))
    return pictures


def save_diffusion(model: DiffusionModel, folder: Path) -> None:
    """Write `model` as a folder in the layout of diffusers' `StableDiffusionPipeline`, in safetensors, whole
    or not at all. Adapters are not part of it: merge them first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside, quiet():
        written = Path(beside) / "model"
        _pipeline(model).save_pretrained(written)
        for weights in written.rglob("*.safetensors"):  # which safetensors lets their owner alone read
            weights.chmod((written / "model_index.json").stat().st_mode)
        written.rename(folder)


def _pipeline(model: DiffusionModel) -> Any:
    """diffusers' pipeline around the parts; the scheduler is a fresh one, as sampling changes its state."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=model.vae,
        text_encoder=model.text_encoder,
        tokenizer=model.tokenizer,
        unet=model.unet,
        scheduler=type(model.scheduler).from_config(model.scheduler.config),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _alphas_cumprod(scheduler: Any) -> Tensor:
    """ᾱ_t as training needs it. Samplers may alter theirs (some lift a zero at the end), so it is made anew
    by the training scheduler from the fields that say what the noise schedule is."""
    from diffusers import DDPMScheduler

    known = inspect.signature(DDPMScheduler.__init__).parameters
    fields = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
              "rescale_betas_zero_snr")  # fmt: skip
    given = {name: scheduler.config[name] for name in fields if name in known and name in scheduler.config}
    return DDPMScheduler(**given).alphas_cumprod.to(torch.float32)
