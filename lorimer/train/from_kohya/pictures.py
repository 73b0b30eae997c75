"""Where the pictures are: kohya's folders or dataset file as the `data:` section, and how many there are."""

from __future__ import annotations

import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorimer.errors import DataError, RecipeError
from lorimer.train.from_kohya.draft import Draft

_PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".avif", ".jxl"}
_ELSEWHERE = {  # of a dataset file -> the training option that it stands for
    "batch_size": "train_batch_size",
    "caption_dropout_rate": "caption_dropout_rate",
    "validation_split": "validation_split",
    "random_crop": "random_crop",
}


def dataset_options(path: Path) -> dict[str, Any]:
    """Options in a dataset file that belong to training as a whole: kohya's option -> value.

    Raises:
        RecipeError: data sets in it do not agree, so that no one value can hold.
        DataError: it cannot be read.
    """
    found: dict[str, Any] = {}
    for options in _subsets(path):
        for name, ours in _ELSEWHERE.items():
            value = options.get(name)
            if value is not None and found.setdefault(ours, value) != value:
                raise RecipeError(f"{path}: {name} is {found[ours]!r} and {value!r}; a run has one")
    return found


def _subsets(path: Path) -> list[dict[str, Any]]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        outer = table.get("general", {})
        return [
            outer | {key: value for key, value in each.items() if key != "subsets"} | subset
            for each in table.get("datasets", [])
            for subset in each.get("subsets", [{}])
        ]
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, AttributeError, TypeError) as error:
        raise DataError(f"{path}: the dataset file cannot be read: {error}") from error


def put_data(draft: Draft, dataset: Path | None) -> list[tuple[Path, int, bool]]:
    """Set `data:`; returns (folder, repeats or 0 for what its name says, regularisation) of each source."""
    if dataset is not None:
        return _put_sources(draft, dataset)
    given = draft.given
    if "train_data_dir" not in given:
        raise RecipeError("no pictures: give train_data_dir, or a dataset file as the second argument")
    _put_options(draft)
    repeats = draft.whole("dataset_repeats", 0)
    folders = [(Path(str(given["train_data_dir"])), repeats, False)]
    if "reg_data_dir" not in given:
        draft.put("data.path", str(folders[0][0]), "train_data_dir")
        if repeats > 1:
            draft.put("data.repeats", repeats, "dataset_repeats")
        return folders
    folders.append((Path(str(given["reg_data_dir"])), repeats, True))
    sources = [{"path": str(folders[0][0])}, {"path": str(folders[1][0]), "regularisation": True}]
    draft.put("data.sources", sources, "train_data_dir, reg_data_dir")
    return folders


def _put_sources(draft: Draft, dataset: Path) -> list[tuple[Path, int, bool]]:
    """One source for each subset of a dataset file, with what they have in common said once."""
    from lorimer.tasks._kohya_dataset import read_kohya_dataset

    sources, notes = read_kohya_dataset(dataset)
    handled = tuple(f"{dataset.name}: {name} =" for name in _ELSEWHERE)
    draft.changed += [note for note in notes if not note.startswith(handled)]
    written = [source.model_dump(mode="json", exclude_unset=True) for source in sources]
    explicit = {"caption_suffix": ".caption", "shapes": "square", "resolution": 512}  # kohya's defaults
    written = [explicit | source for source in written]
    shared = {
        key: value for key, value in written[0].items()
        if key not in ("path", "repeats", "regularisation", "weight")
        and all(key in other and other[key] == value for other in written)
    }  # fmt: skip
    for key, value in shared.items():
        draft.put(f"data.{key}", value, dataset.name)
    own = [{key: value for key, value in source.items() if key not in shared} for source in written]
    draft.put("data.sources", own, f"the subsets of {dataset.name}")
    _put_crops(draft)
    return [(source.path, source.repeats or 1, source.regularisation) for source in sources]


def _put_options(draft: Draft) -> None:
    """What stands for all folders of `train_data_dir`."""
    given = draft.given
    suffix = given.get("caption_extension", given.get("caption_extention"))
    draft.put(
        "data.caption_suffix", suffix or ".caption", "caption_extension" if suffix else "kohya's default"
    )
    draft.put("data.resolution", _side(draft, str(given.get("resolution", "512"))), "resolution")
    draft.put("data.shapes", "buckets" if "enable_bucket" in given else "square",
              "enable_bucket" if "enable_bucket" in given else "no enable_bucket")  # fmt: skip
    if "enable_bucket" in given:
        side = draft.fields["data.resolution"]
        draft.put("data.bucket_step", draft.whole("bucket_reso_steps", 64), "bucket_reso_steps")
        draft.put("data.smallest_side", min(side, draft.whole("min_bucket_reso", 256)), "min_bucket_reso")
        draft.put("data.largest_side", max(side, draft.whole("max_bucket_reso", 1024)), "max_bucket_reso")
        if "bucket_no_upscale" not in given:
            draft.changed.append("bucket_no_upscale is not set: buckets never enlarge a picture here")
    for name, place in (("caption_separator", "data.tag_separator"), ("caption_prefix", "data.trigger")):
        if name in given:
            draft.put(place, str(given[name]).strip(), name)
    _put_masks(draft)
    _put_crops(draft)


def put_clip_skip(draft: Draft, kind: str) -> None:
    """How many of CLIP's layers are left out; kohya counts the last one as the first, and minds it in
    SD 1 and 2 alone."""
    if "clip_skip" not in draft.given:
        return
    if kind in ("sd1", "sd2"):
        draft.put("data.clip_skip", draft.whole("clip_skip") - 1, "clip_skip, less one")
    elif kind == "sdxl":
        draft.left_out.append("clip_skip: SDXL leaves out CLIP's last layer by itself, as with kohya")
    else:
        draft.refused.append(
            f"clip_skip = {draft.given['clip_skip']!r}: for {kind}, captions are encoded as its pipeline does"
        )


def _put_masks(draft: Draft) -> None:
    given = draft.given
    if "alpha_mask" in given:
        draft.put("data.masks", "alpha", "alpha_mask")
    elif "masked_loss" in given and "conditioning_data_dir" in given:
        draft.put("data.masks", str(given["conditioning_data_dir"]), "masked_loss, conditioning_data_dir")
    elif "masked_loss" in given:
        draft.refused.append("masked_loss: give alpha_mask, or conditioning_data_dir with the masks")


def _put_crops(draft: Draft) -> None:
    if "random_crop" in draft.given:
        draft.put("data.crops", 4, "random_crop")
        draft.changed.append(
            "random_crop: four crops of each picture are cut once, instead of a new one each time"
        )


def _side(draft: Draft, text: str) -> int:
    """Side of the square of the same area as `512` or `512,768`, rounded down to eights."""
    sides = [int(part) for part in re.findall(r"\d+", text)]
    if len(sides) not in (1, 2):
        raise RecipeError(f"resolution: must be a side in pixels or two of them, not {text!r}")
    side = math.isqrt(sides[0] * sides[-1])
    if sides[0] == sides[-1]:
        return side
    draft.changed.append(f"resolution = {text}: gives the area; shapes follow from the pictures")
    return side // 8 * 8


def steps_per_epoch(
    folders: list[tuple[Path, int, bool]], given: Mapping[str, Any], base: Path
) -> tuple[int | None, str]:
    """(optimiser steps of one epoch as kohya counts them, ""), or (None, why they cannot be counted).

    Every picture counts as often as it is repeated, and regularisation doubles that; batches are counted as
    if all pictures had one shape.
    """
    pictures, doubled = 0, False
    for folder, repeats, regularisation in folders:
        place = base / folder
        if not place.is_dir():
            return None, f"{folder} is not there"
        doubled |= regularisation
        pictures += 0 if regularisation else _drawn(place, repeats)
    if not pictures:
        return None, f"{folders[0][0]} holds no pictures"
    batch, accumulation = (
        int(given.get("train_batch_size", 1)),
        int(given.get("gradient_accumulation_steps", 1)),
    )
    return math.ceil(math.ceil(pictures * (1 + doubled) / batch) / accumulation), ""


def _drawn(folder: Path, repeats: int) -> int:
    """Draws of an epoch from a folder: its own pictures, and those in folders called `10_name`."""
    own = sum(path.suffix.lower() in _PICTURES for path in folder.iterdir()) * (repeats or _repeats(folder))
    if repeats:
        return own
    inner = [path for path in folder.iterdir() if path.is_dir() and re.match(r"\d+_", path.name)]
    return own + sum(_drawn(path, 0) for path in inner)


def _repeats(folder: Path) -> int:
    found = re.match(r"(\d+)_", folder.name)
    return int(found[1]) if found else 1
