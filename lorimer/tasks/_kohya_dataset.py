"""kohya's dataset TOML (`--dataset_config` of sd-scripts), read as sources of pictures.

Options stand in `[general]`, `[[datasets]]` or `[[datasets.subsets]]`; the inner one counts. Format:
kohya-ss/sd-scripts, docs/config_README-en.md. Folders named there mean their own files alone, and names such
as `10_name` mean nothing, as in kohya's reading.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from lorimer.errors import DataError, suggest
from lorimer.tasks._picture_sections import PictureSource

# kohya's option -> ours, where the value means the same.
_SAME = {
    **PictureSource.aliases,
    "caption_prefix": "trigger",
    "conditioning_data_dir": "masks",  # what kohya's --masked_loss reads
}
_TRANSLATED = ("resolution", "enable_bucket", "alpha_mask")
# Options that stand elsewhere in a recipe -> where.
_ELSEWHERE = {
    "batch_size": "train.batch_size",
    "caption_dropout_rate": "objective.caption_dropout",
    "prior_loss_weight": "objective.prior_weight",
    "random_crop": "data.crops",
    "validation_split": "data.validation.fraction",
}
_WITHOUT_EFFECT = ("cache_info", "debug_dataset", "validation_seed")  # nothing is lost without them
_NOT_DONE = (
    "caption_dropout_every_n_epochs", "caption_suffix", "color_aug", "custom_attributes", "enable_wildcard",
    "face_crop_aug_range", "keep_tokens_separator", "network_multiplier", "resize_interpolation",
    "secondary_separator", "token_warmup_min", "token_warmup_step",
)  # fmt: skip


def read_kohya_dataset(path: Path) -> tuple[list[PictureSource], list[str]]:
    """The sources in a kohya dataset file, and a note on each option that is not followed.

    Raises:
        DataError: it is no TOML, holds no subset, or options have wrong values; all are listed.
    """
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, RecursionError) as error:
        raise DataError(f"{path}: the dataset file cannot be read: {error}") from error
    sources: list[PictureSource] = []
    notes: dict[str, None] = {}
    problems = _unknown_tables(table)
    for place, options in _subsets(table, problems):
        told = [note for name, value in options.items() if (note := _note(name, value))]
        notes |= dict.fromkeys(told)
        try:
            sources.append(PictureSource.model_validate(_translated(options)))
        except (ValidationError, DataError) as error:
            problems += [f"{place}: {line}" for line in _lines(error)]
    if not sources and not problems:
        problems.append("names no pictures; a subset with image_dir stands under [[datasets.subsets]]")
    if problems:
        raise DataError(
            "\n  ".join([f"{path}: {len(problems)} problem{'s' * (len(problems) > 1)}", *problems])
        )
    return sources, [f"{path.name}: {note}" for note in notes]


def _subsets(table: Mapping[str, Any], problems: list[str]) -> list[tuple[str, dict[str, Any]]]:
    """(place, options that hold there) for every subset."""
    found = []
    general = _table(table.get("general", {}), "general", problems)
    for number, each in enumerate(_tables(table.get("datasets", []), "datasets", problems)):
        place = f"datasets[{number}]"
        outer = general | {name: value for name, value in each.items() if name != "subsets"}
        subsets = _tables(each.get("subsets", []), f"{place}.subsets", problems)
        found += [(f"{place}.subsets[{index}]", outer | subset) for index, subset in enumerate(subsets)]
    return found


def _tables(value: Any, place: str, problems: list[str]) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        problems.append(f"{place}: is written [[{place.split('[')[0]}]], a list of tables")
        return []
    return [_table(each, place, problems) for each in value]


def _table(value: Any, place: str, problems: list[str]) -> dict[str, Any]:
    if isinstance(value, dict):
        return value
    problems.append(f"{place}: must be a table of options")
    return {}


def _unknown_tables(table: Mapping[str, Any]) -> list[str]:
    return [
        f"{name}: no such table; options stand under [general], [[datasets]] or [[datasets.subsets]]"
        for name in table
        if name not in ("general", "datasets")
    ]


def _translated(options: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a `PictureSource`.

    Raises:
        DataError: an option has a wrong value, or captions stand where they cannot be read.
    """
    if "metadata_file" in options:
        raise DataError(
            "metadata_file: captions are read from files beside the pictures, or from one "
            "metadata.jsonl with the fields file_name and text"
        )
    known = (*_SAME, *_TRANSLATED, *_WITHOUT_EFFECT, *_ELSEWHERE, *_NOT_DONE)
    if unknown := [f"{name}: unknown option.{suggest(name, known)}" for name in options if name not in known]:
        raise DataError("; ".join(unknown))
    if "image_dir" not in options:
        raise DataError("image_dir: is required")
    fields = {ours: options[name] for name, ours in _SAME.items() if name in options}
    fields.setdefault("repeats", 1)
    if prefix := fields.get("trigger"):
        fields["trigger"] = str(prefix).strip()
    if options.get("alpha_mask"):
        fields["masks"] = "alpha"
    if "enable_bucket" in options:
        fields["shapes"] = "buckets" if options["enable_bucket"] else "square"
    if "resolution" in options:
        fields["resolution"] = _resolution(options["resolution"])
    return fields


def _resolution(value: Any) -> int:
    """Side of the square of the same area as `512` or `[512, 768]`, rounded down to eights."""
    sides = value if isinstance(value, list) else [value, value]
    if len(sides) != 2 or not all(type(side) is int and side > 0 for side in sides):
        raise DataError(f"resolution: must be a side in pixels or two of them, not {value!r}")
    side = math.isqrt(sides[0] * sides[1])
    return side if sides[0] == sides[1] else side // 8 * 8


def _note(name: str, value: Any) -> str | None:
    """What to tell of an option that is not followed; None where it is, or asks for nothing."""
    if name in _ELSEWHERE:
        return f"{name} = {value!r} is set with {_ELSEWHERE[name]}" if value else None
    if name in _NOT_DONE:
        return f"{name} = {value!r} is not followed" if value is True or value not in (0, 1, "") else None
    if name == "bucket_no_upscale":
        return None if value else "bucket_no_upscale = false is not followed: buckets never enlarge a picture"
    if name == "resolution" and isinstance(value, list) and len(set(map(str, value))) > 1:
        return f"resolution = {value} gives the area; shapes follow from the pictures"
    return None


def _lines(error: ValidationError | DataError) -> list[str]:
    if isinstance(error, DataError):
        return [str(error)]
    theirs = {ours: name for name, ours in _SAME.items()}
    return [
        f"{theirs.get(str(item['loc'][0]), item['loc'][0])}: {item['msg'][:1].lower()}{item['msg'][1:]}, "
        f"not {item['input']!r}"
        for item in error.errors(include_url=False)
    ]
