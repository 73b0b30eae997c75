"""What a recipe for image classification may hold under `data:` and `objective:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from lorimer.tasks._base import Section
from lorimer.tasks._image_augmentation import Augmentation
from lorimer.tasks._image_preparation import Asked, Fit
from lorimer.tasks._label_sections import LabelObjective

Channels = tuple[float, float, float]
PositiveChannels = tuple[PositiveFloat, PositiveFloat, PositiveFloat]


class HeldOutPictures(Section):
    """Pictures that are not trained on, by which training is judged. By default those in a folder `val` or
    `test` beside `train`, where there is one."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """This share of the pictures, of every label, chosen by the seed."""
    folds: Annotated[int, Field(ge=2)] | None = None
    """Instead of a share: one of so many parts, which `fold` chooses; every picture is in one of them."""
    fold: NonNegativeInt | None = None
    """Which part, from 0; null: the first."""
    path: str | None = None
    """Pictures of their own, in any form that `data.path` may have."""
    split: str | None = None
    """Which part of `path`, or of `data.path`, where either is a dataset in several; null: of a folder `val`
    rather than `test`, of a dataset on the hub that `path` names `test`."""

    @model_validator(mode="after")
    def _one_way(self) -> HeldOutPictures:
        if sum(each is not None for each in (self.fraction, self.path, self.folds)) > 1:
            raise ValueError("give one of fraction, path and folds")
        if self.split is not None and (self.fraction is not None or self.folds is not None):
            raise ValueError("split is a part that is there already; give it, or a fraction or folds")
        if self.fold is not None and self.folds is None:
            raise ValueError(f"fold {self.fold} of how many? Give folds, too")
        if self.folds is not None and (self.fold or 0) >= self.folds:
            raise ValueError(f"fold {self.fold} is none of {self.folds}, which are counted from 0")
        return self


class ImageData(Section):
    """What it learns from."""

    aliases: ClassVar[Mapping[str, str]] = {
        "dataset": "path",
        "image_column": "image",
        "label_column": "label",
        "max_samples": "max_rows",
        "resolution": "size",
    }

    path: str
    """A folder with a folder for each label, with `metadata.jsonl` or `metadata.csv`, or with IDX files; a
    table with a column of paths; a Parquet file; or a name on the hub."""
    split: str | None = None
    """Which part of a dataset in several; null: `train`."""
    subset: str | None = None
    """Which configuration of a dataset on the hub."""
    max_rows: PositiveInt | None = None
    """Use no more pictures than these, the first; of a folder of labels from each in turn."""
    image: str | None = None
    """The column of the pictures, where it is not called `file_name`, `image`, `path` or the like."""
    label: str = "label"
    """The column of the labels."""
    kind: Literal["single", "multi", "regression"] | None = None
    """One label a picture, several, or a number; null finds it out: lists are several labels, numbers with
    fractions a number."""
    labels: tuple[str, ...] = ()
    """The labels, in the order that the head has them; by default all that there are, sorted. Of IDX files
    what their numbers are called."""
    size: PositiveInt | None = None
    """Side of the square that the model sees, in pixels; null: as the model was trained."""
    fit: Fit | None = None
    """How a picture becomes a square: `crop` takes the middle, `pad` puts white around, `stretch` changes the
    proportions; null: as the model was trained, which most often is to crop."""
    mean: Channels | None = None
    """Of red, green and blue, from 0 to 1, which the model expects taken off; null: as it says itself."""
    std: PositiveChannels | None = None
    """Their standard deviation, by which it expects them divided; null: as it says itself."""
    duplicates: Literal["apart", "ignore"] = "apart"
    """`apart`: what is there twice, exactly or nearly, is never learned from and held out as well. `ignore`
    does not look, for datasets whose parts are given and must stay as they are."""
    augment: Augmentation = Augmentation()
    """How pictures are varied."""
    validation: HeldOutPictures = HeldOutPictures()
    """Held-out pictures."""

    @property
    def asked(self) -> Asked:
        """What is said of how pictures are prepared."""
        return Asked(self.size, self.fit, self.mean, self.std)


class ImageObjective(LabelObjective):
    """The loss, and where the head begins."""

    mixup: NonNegativeFloat = 0.0
    """Mixes pictures of a batch, and their labels, two and two, by shares from Beta(mixup, mixup)
    (arXiv 1710.09412); 0.1 to 0.4 are usual, 0 mixes nothing."""
