"""What a family of picture models is: all that differs between Stable Diffusion 1, SDXL, FLUX and so on.

A family is stateless: it knows which parts such a model has, how a caption becomes conditioning, how the
denoiser is called, and what its layers are called in files. Loading, training, sampling and the file
formats ask it, and name none. A new family is one new file.

Importing a family imports neither diffusers nor transformers, so that file formats can ask for names alone.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from lorimer.families._names import FileNames
from lorimer.families._single_file import SingleFile

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

Conditioning = dict[str, Tensor]
Config = Mapping[str, Any]


@dataclass(frozen=True)
class Part:
    """One component of a pipeline in diffusers' layout.

    Attributes:
        library: "diffusers" or "transformers".
        cls: the class's name there; fixed, whatever a config names.
        kind: "network" has weights, "tokenizer" and "scheduler" have none. The class of a scheduler is the
            one that its config names.
        optional: whether a model may lack it.
    """

    library: Literal["diffusers", "transformers"]
    cls: str
    kind: Literal["network", "tokenizer", "scheduler"] = "network"
    optional: bool = False

    @property
    def config_file(self) -> str:
        """The file in the part's folder that says what it is."""
        return {
            "network": "config.json",
            "tokenizer": "tokenizer_config.json",
            "scheduler": "scheduler_config.json",
        }[self.kind]

    @property
    def weight_stem(self) -> str | None:
        """The name of its weight files up to the first "-" or ".", or None where it has none."""
        if self.kind != "network":
            return None
        return "model" if self.library == "transformers" else "diffusion_pytorch_model"


SCHEDULER = Part("diffusers", "", "scheduler")
CLIP_TOKENIZER = Part("transformers", "CLIPTokenizer", "tokenizer")
T5_TOKENIZER = Part("transformers", "T5TokenizerFast", "tokenizer")
QWEN_TOKENIZER = Part("transformers", "Qwen2Tokenizer", "tokenizer")
CLIP = Part("transformers", "CLIPTextModel")
CLIP_PROJECTED = Part("transformers", "CLIPTextModelWithProjection")
T5 = Part("transformers", "T5EncoderModel")
KL_VAE = Part("diffusers", "AutoencoderKL")


@dataclass(frozen=True)
class TimeSampling:
    """How a flow-matching family was trained to meet noise levels; the recipe's `objective` may differ.

    Attributes:
        density: "uniform", "logit-normal", "mode", "cosmap" or "sigmoid".
        mean, std: of the normal distribution that "logit-normal" and "sigmoid" draw from.
        scale: how far "mode" is from uniform; more than 0 prefers the middle.
        shift: s in σ' = sσ / (1 + (s - 1)σ); "auto" derives it from the picture's size.
        range: the smallest and the largest share of noise that is drawn, out of [0, 1].
    """

    density: str = "uniform"
    mean: float = 0.0
    std: float = 1.0
    scale: float = 1.29
    shift: float | Literal["auto"] = 1.0
    range: tuple[float, float] = (0.0, 1.0)


class Family(ABC):
    """One family of latent picture models.

    Attributes:
        pipeline: the name of diffusers' pipeline class.
        pipeline_options: further arguments of its constructor.
        pipeline_settings: arguments of it that a folder's model_index.json may set.
        parts: component -> what it is, in diffusers' folder layout.
        denoiser: the component that denoises, "unet" or "transformer".
        text_encoders: components that read the caption, in order.
        process: "diffusion" (noise levels are integer timesteps of a schedule ᾱ) or "flow" (σ in (0, 1]).
        times: how a flow family draws σ unless the recipe says.
        guidance: classifier-free guidance that such models are usually sampled with.
        targets: what adapters go to unless the recipe says; a preset or names.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    pipeline: ClassVar[str]
    pipeline_options: ClassVar[Mapping[str, Any]] = {}
    pipeline_settings: ClassVar[tuple[str, ...]] = ()
    parts: ClassVar[Mapping[str, Part]]
    denoiser: ClassVar[str] = "transformer"
    text_encoders: ClassVar[tuple[str, ...]] = ("text_encoder",)
    process: ClassVar[Literal["diffusion", "flow"]] = "flow"
    times: ClassVar[TimeSampling] = TimeSampling()
    guidance: ClassVar[float] = 4.0
    targets: ClassVar[tuple[str, ...]] = ("attention",)
    kohya: ClassVar[FileNames] = FileNames()  # what its layers are called in adapter files
    single_file: ClassVar[SingleFile | None] = None  # its checkpoints, where they are read from one file
    clip_skip: ClassVar[bool] = False  # whether `encode` can leave out CLIP's last layers

    @classmethod
    def adaptable(cls) -> tuple[str, ...]:
        """The components that adapters may go to, the denoiser first."""
        return (cls.denoiser, *cls.text_encoders)

    @classmethod
    def fits(cls, configs: Mapping[str, Config]) -> bool:
        """Whether a model whose parts have these configs (component -> config.json) is of this family.
        Exactly one family must say so."""
        return configs.get(cls.denoiser, {}).get("_class_name") == cls.parts[cls.denoiser].cls

    @classmethod
    def idle(cls, model: DiffusionModel) -> tuple[str, ...]:
        """Paths of what changes no prediction, such as the layers of a text encoder behind the one that is
        read: adapters leave it alone, as they would learn nothing there."""
        return ()

    # ---- what goes in: captions and pictures

    @staticmethod
    @abstractmethod
    def encode(pipeline: Any, captions: Sequence[str], clip_skip: int | None = None) -> Conditioning:
        """The conditioning of each caption: name -> tensor (len(captions), ...), with gradients to the text
        encoders. Entries of different length along axis 1 are padded with zeros when they meet in a batch,
        so a family whose network must know gives a mask.

        Args:
            pipeline: diffusers' pipeline around the model's parts; its own `encode_prompt` is the truth, so
                that training and sampling agree.
            clip_skip: how many of CLIP's last layers to leave out, for families with `clip_skip`.
        """

    @classmethod
    def scale_latents(cls, model: DiffusionModel, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the VAE's latents in the scale that the denoiser knows."""
        config = model.vae.config
        shift = getattr(config, "shift_factor", None) or 0.0
        return (mean - shift) * config.scaling_factor, std * config.scaling_factor

    @classmethod
    def encode_pixels(cls, model: DiffusionModel, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the latents, each (batch, channels, height, width) in the denoiser's
        scale, for pixels (batch, 3, height, width) in [-1, 1]."""
        posterior = model.vae.encode(pixels).latent_dist
        return cls.scale_latents(model, posterior.mean, posterior.std)

    # ---- what the denoiser says

    @staticmethod
    @abstractmethod
    def predict(model: DiffusionModel, noisy: Tensor, times: Tensor, conditioning: Conditioning) -> Tensor:
        """The denoiser's prediction in the shape of `noisy` (batch, channels, height, width): noise or
        velocity dx/dt for a diffusion family, the flow ε - x0 for a flow family.

        Args:
            noisy: in the denoiser's precision, as are the embeddings in `conditioning`.
            times: (batch,), integer timesteps of a diffusion family, or σ of a flow family.
            conditioning: what `encode` gave, and "sizes" (batch, 6): the picture's height and width before
                it was cropped, the crop's top and left, and its height and width, in pixels.
        """

    # ---- what comes out

    @staticmethod
    def mended(pipeline: Any, clip_skip: int | None = None) -> Any:
        """A pipeline that was just made, with what diffusers has wrong for this family put right."""
        return pipeline

    @classmethod
    def sampling(cls, guidance: float, negative: list[str]) -> dict[str, Any]:
        """The pipeline's arguments for guidance away from the `negative` prompts."""
        return {"guidance_scale": guidance, "negative_prompt": negative}

    @classmethod
    def pixels_per_latent(cls, model: DiffusionModel) -> int:
        """How many pixels along a side become one latent."""
        factor: int = 2 ** (len(model.vae.config.block_out_channels) - 1)
        return factor

    @classmethod
    def pixel_unit(cls, model: DiffusionModel) -> int:
        """Sides of pictures are multiples of this many pixels, which make one token of the denoiser."""
        return cls.pixels_per_latent(model) * int(getattr(model.denoiser.config, "patch_size", None) or 1)

    @classmethod
    def resolution(cls, model: DiffusionModel) -> int:
        """The side in pixels of the square pictures that such a model was made for."""
        return 1024


def trimmed(hidden: Tensor, mask: Tensor) -> Conditioning:
    """Embeddings (batch, length, width) and their mask (batch, length) without the end that the mask hides in
    all of them."""
    length = int(mask.sum(1).max())
    return {"hidden": hidden[:, :length], "mask": mask[:, :length]}


def pack(latents: Tensor, patch: int = 2) -> Tensor:
    """(batch, channels, height, width) -> (batch, height/patch · width/patch, channels · patch²), the tokens
    that FLUX-like transformers read: channels outermost within a token."""
    batch, channels, height, width = latents.shape
    tokens = latents.view(batch, channels, height // patch, patch, width // patch, patch)
    return tokens.permute(0, 2, 4, 1, 3, 5).reshape(batch, -1, channels * patch * patch)


def unpack(tokens: Tensor, height: int, width: int, patch: int = 2) -> Tensor:
    """The inverse of `pack` for latents of this height and width."""
    batch, _, size = tokens.shape
    channels = size // (patch * patch)
    latents = tokens.view(batch, height // patch, width // patch, channels, patch, patch)
    return latents.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, height, width)


def image_ids(height: int, width: int, device: torch.device) -> Tensor:
    """Positions (height · width, 3) of a grid of tokens as FLUX counts them: (0, row, column)."""
    rows = torch.arange(height, device=device).view(-1, 1).expand(height, width)
    columns = torch.arange(width, device=device).view(1, -1).expand(height, width)
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).reshape(-1, 3)
