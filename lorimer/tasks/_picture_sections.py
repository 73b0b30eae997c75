"""What a recipe for text-to-image may hold under `data:`, `objective:` and `preview:`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field, PositiveFloat, PositiveInt

from lorimer.tasks._base import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Validation(Section):
    """Pictures held out of training: a share of those in `data.path`, or a folder of their own."""

    fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the pictures to hold out, chosen by their names' hash."""
    path: Path | None = None
    """A folder of pictures with captions; instead of `fraction`."""


class PictureData(Section):
    """Pictures with captions: beside each a text file of the same name, or one metadata.jsonl or
    metadata.csv with the fields file_name and text."""

    aliases: ClassVar[Mapping[str, str]] = {
        "train_data_dir": "path",
        "image_folder": "path",
        "caption_extension": "caption_suffix",
        "trigger_word": "trigger",
        "flip_aug": "flip",
        "random_flip": "flip",
    }

    path: Path
    """The folder; folders in it are searched too."""
    caption_suffix: str = "auto"
    """Ending of caption files; `auto` takes .txt and .caption."""
    default_caption: str | None = None
    """The caption of pictures that have none; null makes a missing caption an error."""
    trigger: str | None = None
    """A word put before every caption that lacks it, to call the style or subject by afterwards."""
    resolution: PositiveInt | None = None
    """Side of the square that pictures are cropped to, in pixels; null takes the model's own."""
    flip: bool = False
    """Also learn from each picture's mirror image. Not for text, logos or faces that must stay alike."""
    validation: Validation = Validation()
    """What is held out to measure progress on."""
    cache: Path | None = None
    """Where encoded pictures and captions are kept; null takes the user's cache folder."""


class DiffusionObjective(Section):
    """The loss. What the model predicts (noise or velocity) stands in its scheduler's config."""

    aliases: ClassVar[Mapping[str, str]] = {
        "snr_gamma": "min_snr_gamma",
        "caption_dropout_rate": "caption_dropout",
        "noise_offset_strength": "noise_offset",
    }

    min_snr_gamma: PositiveFloat | None = None
    """Caps the weight of nearly clean timesteps (arXiv 2303.09556); 5 is usual, null weighs all alike."""
    noise_offset: Annotated[float, Field(ge=0.0)] = 0.0
    """Adds to the noise one random number per channel, of this size, so that very dark and very bright
    pictures can be learned; 0.05 to 0.1 is usual."""
    caption_dropout: Fraction = 0.1
    """Share of examples that are shown without their caption, which guidance needs."""


class PicturePreview(Section):
    """Pictures drawn during training, always with the same seeds."""

    aliases: ClassVar[Mapping[str, str]] = {
        "sample_prompts": "prompts",
        "guidance_scale": "guidance",
        "cfg_scale": "guidance",
        "num_inference_steps": "steps",
    }

    prompts: tuple[str, ...] | None = None
    """What to draw; null takes the captions of the first four pictures."""
    negative_prompt: str = ""
    """What not to draw."""
    seeds: tuple[int, ...] = (0,)
    """One row per prompt and seed."""
    strengths: tuple[float, ...] = (0.0, 1.0)
    """One column each; 0 is the base model."""
    steps: PositiveInt = 30
    """Sampling steps."""
    guidance: float = 7.5
    """Classifier-free guidance scale; 1 is none."""
