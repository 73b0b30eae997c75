"""What a recipe for text-to-image may hold under `data:`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, field_validator, model_validator

from lorimer.tasks._base import Section

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]


class Validation(Section):
    """Pictures held out of training: a share of those in `data.path`, or a folder of their own."""

    fraction: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the pictures to hold out, chosen by their names' hash."""
    path: Path | None = None
    """A folder of pictures with captions; instead of `fraction`."""


# Names of options that hold for one source as for all of them, in kohya's files.
_KOHYA_NAMES = {
    "caption_extension": "caption_suffix",
    "class_tokens": "default_caption",
    "num_repeats": "repeats",
    "flip_aug": "flip",
    "shuffle_caption": "shuffle_tags",
    "keep_tokens": "keep_tags",
    "caption_separator": "tag_separator",
    "caption_tag_dropout_rate": "tag_dropout",
    "bucket_reso_steps": "bucket_step",
    "min_bucket_reso": "smallest_side",
    "max_bucket_reso": "largest_side",
}


class PictureSource(Section):
    """One folder or set of shards among several. What is null here is as `data:` says."""

    aliases: ClassVar[Mapping[str, str]] = {"image_dir": "path", "is_reg": "regularisation", **_KOHYA_NAMES}

    path: Path
    """A folder, webdataset shards (`x.tar`, `x-{000..010}.tar`) or a kohya dataset `.toml`."""
    repeats: PositiveInt | None = None
    """How often an epoch shows each picture; null takes it from folders called like `10_name`, else 1."""
    weight: PositiveFloat | None = None
    """The share of an epoch's draws that goes to this source, relative to the others' weights. Every source
    has one or none has; then the largest one in proportion is shown once, the others more often."""
    regularisation: bool = False
    """These pictures show the class that the subject belongs to, so that the model keeps it. Without weights
    an epoch shows as many of them as of the others."""
    caption_suffix: str | None = None
    """Ending of caption files."""
    default_caption: str | None = None
    """The caption of pictures that have none."""
    trigger: str | None = None
    """A word put before every caption that lacks it; `""` for none."""
    masks: Literal["alpha"] | Path | None = None
    """Where to learn from each picture."""
    resolution: PositiveInt | None = None
    """Side of the square whose area pictures are resized to, in pixels."""
    shapes: Literal["buckets", "square"] | None = None
    """What pictures are cut to."""
    bucket_step: PositiveInt | None = None
    """Sides of buckets are multiples of it, in pixels."""
    smallest_side: PositiveInt | None = None
    """No side of a bucket is below it, in pixels."""
    largest_side: PositiveInt | None = None
    """No side of a bucket is above it, in pixels."""
    flip: bool | None = None
    """Also learn from each picture's mirror image."""
    shuffle_tags: bool | None = None
    """Show a caption's tags in another order each time."""
    keep_tags: NonNegativeInt | None = None
    """So many tags at the beginning are neither moved nor dropped."""
    tag_separator: Annotated[str, Field(min_length=1)] | None = None
    """What stands between tags."""
    tag_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Probability of leaving out each tag."""


class Prior(Section):
    """Pictures of the class that the subject belongs to, drawn by the frozen model before training and
    learned from beside the others, so that it keeps what it knows of the class (arXiv 2208.12242)."""

    prompt: Annotated[str, Field(min_length=1)]
    """What to draw, such as `a photo of a dog`; also their caption."""
    pictures: PositiveInt = 100
    """How many; they are kept in the cache, drawn once for the same model and settings."""
    steps: PositiveInt = 30
    """Sampling steps."""
    guidance: float | None = None
    """Guidance; null is what is usual for the model."""
    seed: NonNegativeInt = 0
    """That of the first picture; each further one takes the next."""


class PictureData(Section):
    """Pictures with captions: beside each a text file of the same name, or one metadata.jsonl or
    metadata.csv with the fields file_name and text."""

    aliases: ClassVar[Mapping[str, str]] = {
        "train_data_dir": "path",
        "image_folder": "path",
        "dataset_config": "path",
        **_KOHYA_NAMES,
        "trigger_word": "trigger",
        "random_flip": "flip",
    }

    path: Path | None = None
    """A folder, with folders in it and kohya's `10_name` folders as their names say; webdataset shards
    (`x.tar`, `x-{000..010}.tar`); or a kohya dataset `.toml`."""
    sources: tuple[PictureSource, ...] = ()
    """Several of these, each with its own settings; instead of `path`."""
    repeats: PositiveInt | None = None
    """How often an epoch shows each picture; null takes it from folders called like `10_name`, else 1."""
    caption_suffix: str = "auto"
    """Ending of caption files; `auto` takes .txt and .caption."""
    default_caption: str | None = None
    """The caption of pictures that have none; null takes the words of a `10_name` folder, and where there are
    none makes a missing caption an error."""
    trigger: str | None = None
    """A word put before every caption that lacks it, to call the style or subject by afterwards."""
    masks: Literal["alpha"] | Path | None = None
    """Where to learn from each picture: its alpha channel (`alpha`), or a folder of grey pictures of the same
    names, ending in .png; white is learned."""
    mask_background: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Weight of what a mask leaves out; 0 learns nothing there."""
    resolution: PositiveInt | None = None
    """Side of the square whose area pictures are resized to, in pixels; null takes the model's own."""
    shapes: Literal["buckets", "square"] = "buckets"
    """What pictures are cut to: the nearest of several shapes of that area, or squares alone. A picture too
    small for its bucket gets a smaller one; for squares it is enlarged, to twice its size at most."""
    bucket_step: PositiveInt | None = None
    """Sides of buckets are multiples of it, in pixels; null takes 64, or for resolutions below 256 what the
    model allows."""
    smallest_side: PositiveInt | None = None
    """No side of a bucket is below it, in pixels, and pictures that are smaller are refused; null takes half
    the resolution."""
    largest_side: PositiveInt | None = None
    """No side of a bucket is above it, in pixels; null takes twice the resolution."""
    crops: PositiveInt = 1
    """Crops of each picture: 1 is its centre; more are placed by chance, each a further picture."""
    flip: bool = False
    """Also learn from each picture's mirror image. Not for text, logos or faces that must stay alike."""
    shuffle_tags: bool = False
    """Show a caption's tags in another order each time."""
    keep_tags: NonNegativeInt = 0
    """So many tags at the beginning are neither moved nor dropped."""
    tag_separator: Annotated[str, Field(min_length=1)] = ","
    """What stands between tags."""
    tag_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Probability of leaving out each tag, each time."""
    caption_variants: PositiveInt = 8
    """How many forms of each caption are encoded beforehand where tags are shuffled or dropped and the text
    encoder does not learn."""
    duplicates: Literal["report", "drop"] = "report"
    """What to do about pictures that are there twice, or nearly: tell, or leave out all but the first."""
    prior: Prior | None = None
    """Pictures of the class that the model draws itself; `objective.prior_weight` is how much they count."""
    tokens: dict[str, str] = Field({})
    """New tokens: name -> the words that it starts as, such as `{"<me>": a dog}`. Their embeddings are
    learned beside the adapter and saved with it; captions must say the name.
    `adapter.learning_rate_pattern: {token_embedding: 1.0e-3}` gives them a rate of their own."""
    clip_skip: PositiveInt | None = None
    """How many of CLIP's last layers to leave out, for a model that was trained so; other programs call 1
    `clip skip 2`."""
    validation: Validation = Validation()
    """What is held out to measure progress on."""
    cache: Path | None = None
    """Where encoded pictures and captions are kept; null takes the user's cache folder."""

    @model_validator(mode="after")
    def _one_origin(self) -> PictureData:
        if (self.path is None) == (not self.sources):
            raise ValueError("needs a path, or several sources, and not both")
        return self

    @field_validator("tokens")
    @classmethod
    def _can_be_said(cls, tokens: dict[str, str]) -> dict[str, str]:
        for name in tokens:
            if not re.fullmatch(r"[^\s.]+", name):
                raise ValueError(f"{name!r} must be one word without a point, such as <me>")
            for other in tokens:
                if other != name and other.startswith(name):
                    raise ValueError(f"{other!r} begins like {name!r}; give them names that do not")
        return tokens
