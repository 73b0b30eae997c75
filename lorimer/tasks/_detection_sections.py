"""What a recipe for object detection may hold under `data:` and `preview:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from lorimer.tasks._base import Section
from lorimer.tasks._box_augment import Augment


class HeldOutPictures(Section):
    """Pictures that are not learned from, by which training is judged. Copies of these are not learned from
    either."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """This share of the pictures, chosen by the seed; such as are alike stay on one side."""
    path: str | None = None
    """Pictures of their own, in any form that `data.path` may have; null: those of `data.path`."""
    split: str | None = None
    """Which of their splits, such as `val` or `test`."""


class BoxData(Section):
    """What it learns from."""

    aliases: ClassVar[Mapping[str, str]] = {"dataset": "path", "image_size": "resolution", "names": "classes"}

    path: str
    """A folder or file in one of the forms COCO (.json), YOLO (data.yaml), Pascal VOC (.xml), metadata.jsonl
    or Parquet with `objects`, or a name on the hub. The form is found out and said."""
    split: str | None = None
    """Which split of it; null: all of Pascal VOC and of sets without splits, and `train` elsewhere."""
    subset: str | None = None
    """Which configuration of a dataset on the hub."""
    pictures: str | None = None
    """The folder of a COCO file's pictures, if they are not beside it."""
    classes: tuple[str, ...] = ()
    """The classes in the order of the head; by default as the data have them, else sorted."""
    keep_classes: bool = False
    """Whether the base goes on to know its own classes beside those of the data."""
    box_format: Literal["xyxy", "xywh", "cxcywh"] | None = None
    """How four numbers are a box: two corners, a corner and a size, or a centre and a size; null: as the form
    has it. Of `path` alone, not of held-out pictures elsewhere."""
    bad_boxes: Literal["refuse", "leave-out"] = "refuse"
    """What becomes of boxes that do not fit their picture; both ways name the first 50."""
    resolution: PositiveInt | None = None
    """Pixels of the longer side as the model sees pictures; null: as its image processor says. RT-DETR and
    NanoDet want a multiple of 32."""
    augment: Augment | None = Augment()
    """How pictures are changed at random; null: never."""
    validation: HeldOutPictures = HeldOutPictures()
    """Held-out pictures."""
    also_knows: str | None = None
    """Held-out pictures of classes that the base knew before, in any form that `data.path` may have:
    `known_map` and `known_map50` say whether it still knows them. Needs `keep_classes`, or the same names."""


class BoxPreview(Section):
    """What is drawn before, during and after training."""

    pictures: NonNegativeInt = 6
    """How many held-out pictures are drawn, what is there beside what was found."""
    threshold: float = Field(0.3, ge=0.0, lt=1.0)
    """How sure a box must be to be drawn."""
