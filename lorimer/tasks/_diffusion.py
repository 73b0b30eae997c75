"""A latent picture model as lorimer adapts it: loading its parts, predicting, sampling.

    DiffusionModel
      ├── unet or transformer     the denoiser, what adapters usually go to
      ├── text_encoder, ...       adapted when a recipe asks for it
      ├── vae                     never adapted
      ├── tokenizer, ...
      └── scheduler               the model's own sampler, whose config fixes the noise schedule

What differs between families (Stable Diffusion 1, SDXL, FLUX, ...) is asked of `model.family`. The embedded
model, a folder in diffusers' layout, a hub name and a single checkpoint file all go through
`load_diffusion`, so what is tested on the small model is what loads the large one.
"""

from __future__ import annotations

import inspect
import math
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState
from lorimer.errors import LorimerError, UsageError
from lorimer.families._base import Conditioning, Family
from lorimer.formats._bundle import Tokens
from lorimer.layers.slots import LayerSlots
from lorimer.tasks._diffusers_folder import (
    quiet,
    require_picture_packages,
    require_process,
)
from lorimer.tasks._model_files import ModelName, model_files
from lorimer.tasks._tokens import facts as token_facts
from lorimer.tasks._tokens import make_room

if TYPE_CHECKING:
    from PIL.Image import Image


class DiffusionModel(nn.Module):
    """The parts of a latent picture model under one roof.

    Attributes:
        family: what kind of model it is.
        components: the children that may be adapted, the denoiser first; adapter paths begin with one of
            them.
        source: what it was loaded from, as the recipe says it.
        reload: gives one network anew from its files, by its component.
        settings: what the model's own files say of its pipeline; see `Family.pipeline_settings`.
        clip_skip: how many of CLIP's last layers captions are read without, for families with `clip_skip`.
        tokens: new tokens -> text encoder -> rows of its embedding; see `_tokens.py`.
        token_words: new tokens -> the words that they started as.
    """

    unet: Any  # one of these is the denoiser
    transformer: Any
    vae: Any
    text_encoder: Any
    tokenizer: Any
    scheduler: Any

    def __init__(
        self,
        family: type[Family],
        parts: Mapping[str, Any],
        source: str,
        reload: Callable[[str], nn.Module] | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.family = family
        self.source = source
        self.reload = reload
        self.settings = dict(settings or {})
        self.clip_skip: int | None = None
        self.tokens: Tokens = {}
        self.token_words: dict[str, str] = {}
        for name, part in parts.items():
            setattr(self, name, part)
        self.components = tuple(name for name in family.adaptable() if parts.get(name) is not None)
        self.requires_grad_(False).eval()

    @property
    def facts(self) -> dict[str, str]:
        """What files of adapters on this model must say of it."""
        return {"family": self.family.name, **token_facts(self)}

    def make_room(self, state: AdapterState) -> AdapterState:
        """`state` as it fits this model, which is given the tokens that it lacks."""
        return make_room(self, state)

    @property
    def parts(self) -> dict[str, Any]:
        """Component -> network, tokenizer or scheduler; None for an optional one that the model lacks."""
        return {name: getattr(self, name) for name in self.family.parts}

    @property
    def denoiser(self) -> Any:
        """The U-Net or transformer."""
        return getattr(self, self.family.denoiser)

    @property
    def prediction_type(self) -> str:
        """What the denoiser predicts, as its scheduler says: "epsilon", "v_prediction", "flow"."""
        return "flow" if self.family.process == "flow" else self.scheduler.config.prediction_type

    @property
    def idle_layers(self) -> tuple[str, ...]:
        """Paths of what changes no prediction and is not adapted; see `Family.idle`."""
        return self.family.idle(self)

    @property
    def text_encoders(self) -> dict[str, Any]:
        """The text encoders that the model has, by component."""
        return {name: getattr(self, name) for name in self.family.text_encoders if name in self.components}

    def forward(
        self,
        noisy: Tensor,
        times: Tensor,
        conditioning: Conditioning | None = None,
        captions: Sequence[str] | None = None,
    ) -> Tensor:
        """The denoiser's prediction, in the shape of `noisy`.

        Args:
            noisy: noisy latents (batch, channels, height, width).
            times: (batch,), integer timesteps or, for flow matching, σ.
            conditioning: what `encode_texts` gave for the captions, and "sizes"; see `Family.predict`.
            captions: texts for the text encoders to read now, with gradients, instead of what they gave.
        """
        conditioning = dict(conditioning or {})
        if captions is not None:
            conditioning |= self.condition(captions)
        if "sizes" not in conditioning:
            conditioning["sizes"] = self.default_sizes(noisy)
        dtype = self.denoiser.dtype
        known = {
            name: each.to(dtype) if each.is_floating_point() else each for name, each in conditioning.items()
        }
        return self.family.predict(self, noisy.to(dtype), times, known)

    def train(self, mode: bool = True) -> DiffusionModel:
        """Put adapters into training mode; frozen parts stay in evaluation mode, as dropout in a frozen
        network is only noise. Blocks that checkpoint gradients are told the mode since transformers
        asks them for it; what is inside them is not, as T5's attention would drop weights."""
        from transformers.modeling_layers import GradientCheckpointingLayer

        super().train(False)
        self.training = mode
        for module in self.modules():
            if isinstance(module, LayerSlots):
                module.train(mode)
            elif isinstance(module, GradientCheckpointingLayer) and module.gradient_checkpointing:
                module.training = mode
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recompute activations of the denoiser and the text encoders in the backward pass instead of
        keeping them."""
        self.denoiser.enable_gradient_checkpointing()
        for encoder in self.text_encoders.values():
            encoder.activation_checkpointing_enable()
        self.train(self.training)

    @property
    def pixel_unit(self) -> int:
        """Sides of pictures are multiples of this many pixels."""
        return self.family.pixel_unit(self)

    @property
    def resolution(self) -> int:
        """The side in pixels of the pictures that the model was made for."""
        return self.family.resolution(self)

    def checked_resolution(self, resolution: int | None) -> int:
        """`resolution`, or the model's own where it is None.

        Raises:
            UsageError: the model cannot draw pictures of that side.
        """
        side = resolution or self.resolution
        unit = math.lcm(8, self.pixel_unit)  # the pipeline asks for eights
        if side % unit:
            lower = max(side // unit * unit, unit)
            raise UsageError(
                f"resolution must be a multiple of {unit} for this model, such as {lower} or {lower + unit}, "
                f"not {side}"
            )
        return side

    def default_sizes(self, latents: Tensor) -> Tensor:
        """`sizes` (batch, 6) of pictures that were neither resized nor cropped."""
        scale = self.family.pixels_per_latent(self)
        height, width = latents.shape[-2] * scale, latents.shape[-1] * scale
        sizes = torch.tensor([height, width, 0, 0, height, width], device=latents.device)
        return sizes.expand(len(latents), 6)

    def condition(self, captions: Sequence[str]) -> Conditioning:
        """What the text encoders give for captions, with gradients; see `Family.encode`."""
        with quiet():
            return self.family.encode(self.pipeline(), captions, self.clip_skip)

    @torch.no_grad()
    def encode_texts(self, captions: Sequence[str]) -> Conditioning:
        """What the frozen text encoders give for captions."""
        return self.condition(captions)

    @torch.no_grad()
    def encode_pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each (batch, channels, height, width) and in the
        denoiser's scale, for pixels (batch, 3, height, width) in [-1, 1]."""
        return self.family.encode_pixels(self, pixels.to(next(self.vae.parameters())))

    def pipeline(self) -> Any:
        """diffusers' pipeline around the parts, with a fresh scheduler, as sampling changes its state."""
        import diffusers

        cls: Any = getattr(diffusers, self.family.pipeline)
        parts = {name: part for name, part in self.parts.items() if name != "scheduler"}
        scheduler = type(self.scheduler).from_config(self.scheduler.config)
        options = {**self.family.pipeline_options, **self.settings}
        pipeline = self.family.mended(cls(**parts, scheduler=scheduler, **options), self.clip_skip)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def load_diffusion(model: ModelName, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    """The picture model called `model`, frozen, in evaluation mode, on the CPU.

    Args:
        model: "embedded" (the small model shipped with lorimer), a folder in the layout of diffusers'
            pipelines, the name of such a model on the Hugging Face hub, or a checkpoint file; or one of
            these as `path` of a mapping that says where further parts are, see `_model_files.py`.
        dtype: precision of the weights in memory.

    Raises:
        UsageError: there is no such model, or something of the mapping is no part of it.
        FileFormatError: it is no model of a known family, or lacks parts (all are named), or one is broken.
        MissingDependencyError: diffusers or transformers is not installed.
    """
    require_picture_packages()
    files = model_files(model)

    def load(name: str) -> Any:
        part = files.parts[name]
        return None if part is None else part.load(dtype)

    parts = {name: load(name) for name in files.family.parts}
    require_process(parts["scheduler"], files.family, str(files.place))
    return DiffusionModel(files.family, parts, files.source, load, files.settings)


def alphas_cumprod(scheduler: Any) -> Tensor:
    """ᾱ_t of the noise schedule, shape (timesteps,), float32, as training needs it. Samplers may alter theirs
    (some lift a zero at the end), so it is made anew by the training scheduler from the fields that say what
    the noise schedule is."""
    from diffusers import DDPMScheduler

    known = inspect.signature(DDPMScheduler.__init__).parameters
    fields = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas",
              "rescale_betas_zero_snr")  # fmt: skip
    given = {name: scheduler.config[name] for name in fields if name in known and name in scheduler.config}
    return DDPMScheduler(**given).alphas_cumprod.to(torch.float32)


def sample(
    model: DiffusionModel,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    steps: int = 30,
    guidance: float | None = None,
    negative_prompt: str = "",
    resolution: int | tuple[int, int] | None = None,
    batch_size: int = 8,
) -> list[Image]:
    """One picture per prompt and seed, by diffusers' pipeline with the model's own sampler.

    Adapters act as they do on `model` at the time; wrap the call in `lorimer.strength(model, 0.5)` for
    another strength. Each picture has its own generator, so it depends on its prompt, seed and the
    settings alone, up to rounding, and torch's global random state is left as it was.

    Args:
        prompts, seeds: of equal length.
        steps: sampling steps.
        guidance: classifier-free guidance scale; 1 is none, None is what is usual for the family.
        resolution: side in pixels, or width and height; by default the model's own.
        batch_size: how many pictures are drawn at once; bounds the memory.

    Raises:
        UsageError: lengths differ, or the model cannot draw pictures of that resolution.
        LorimerError: a picture came out with NaN or infinity.
    """
    if len(prompts) != len(seeds):
        raise UsageError(f"{len(prompts)} prompts but {len(seeds)} seeds; give one seed for each prompt")
    sides = resolution if isinstance(resolution, tuple) else (resolution, resolution)
    width, height = map(model.checked_resolution, sides)
    pictures: list[Image] = []
    with ExitStack() as stack:
        stack.enter_context(quiet())
        stack.callback(model.train, model.training)
        model.eval()
        pipeline = model.pipeline()
        scale = model.family.guidance if guidance is None else guidance
        for start in range(0, len(prompts), batch_size):
            batch = list(prompts[start : start + batch_size])
            arrays = pipeline(
                prompt=batch,
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                num_inference_steps=steps,
                height=height,
                width=width,
                output_type="pt",
                **({} if model.clip_skip is None else {"clip_skip": model.clip_skip}),
                **model.family.sampling(scale, [negative_prompt] * len(batch)),
            ).images
            if not torch.isfinite(arrays).all():
                raise LorimerError("sampling gave NaN or infinity; try a lower strength, or float32 weights")
            pictures += pipeline.image_processor.numpy_to_pil(pipeline.image_processor.pt_to_numpy(arrays))
    return pictures


def save_diffusion(model: DiffusionModel, folder: Path) -> None:
    """Write `model` as a folder in the layout of diffusers' pipelines, in safetensors, whole or not at
    all. Adapters are not part of it: merge them first."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as beside, quiet():
        written = Path(beside) / "model"
        model.pipeline().save_pretrained(written)
        for weights in written.rglob("*.safetensors"):  # which safetensors lets their owner alone read
            weights.chmod((written / "model_index.json").stat().st_mode)
        written.rename(folder)
