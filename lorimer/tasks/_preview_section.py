"""What a recipe for text-to-image may hold under `preview:`: what is drawn to look at, and to judge by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

from pydantic import Field, PositiveInt

from lorimer.tasks._base import Section


class Judging(Section):
    """Pictures drawn at every evaluation and measured rather than shown. Of the training captions, each with
    several seeds: how much they differ among each other, and whether they are the training pictures again. Of
    prompts that have nothing to do with the training: how far they move from the base model's."""

    captions: PositiveInt = 4
    """How many training captions are drawn, spread evenly over all of them."""
    prompts: tuple[str, ...] = ("a dog", "a house by the sea", "a bowl of fruit", "a portrait of a woman")
    """What has nothing to do with the training; drawn without the trigger word."""
    seeds: Annotated[int, Field(ge=2)] = 4
    """How many pictures of each caption are drawn."""
    steps: PositiveInt = 12
    """Sampling steps."""


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
    guidance: float | None = None
    """Classifier-free guidance scale; 1 is none, null takes what is usual for the model's family."""
    judge: Judging | None = None
    """Measure diversity, memorising and drift at every evaluation (`train.evaluate_every`); `{}` takes the
    defaults, null leaves it out, which saves drawing the pictures."""
