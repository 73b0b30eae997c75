"""A recipe from what kohya's scripts are started with: TOML of training or data, JSON of kohya_ss.

Nothing is passed over in silence: an option is translated, left out with a reason, done otherwise and said
so, or refused. What becomes of which option stands in the tables of `options` and `network`.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorimer.errors import RecipeError, suggest
from lorimer.train.from_kohya.draft import Draft
from lorimer.train.from_kohya.gui import is_gui, script_options
from lorimer.train.from_kohya.kinds import KINDS, Kind, kind_of
from lorimer.train.from_kohya.network import put_network
from lorimer.train.from_kohya.noise import put_objective
from lorimer.train.from_kohya.options import LEFT_OUT, READ, REFUSED, SAME, asks_for_nothing
from lorimer.train.from_kohya.pictures import dataset_options, put_clip_skip, put_data, steps_per_epoch
from lorimer.train.from_kohya.training import put_preview, put_training
from lorimer.train.from_kohya.writing import recipe_text

_EXTRA = ("sdxl",)  # of the window's settings, which kind_of reads


@dataclass(frozen=True)
class Translation:
    """A recipe made from kohya's options.

    Attributes:
        text: the recipe, as YAML with comments.
        told: what became of the options, line by line.
    """

    text: str
    told: tuple[str, ...]


def translate(source: Path, dataset: Path | None = None, family: str | None = None) -> Translation:
    """The recipe for what kohya's options in `source` train.

    Args:
        source: training TOML, the JSON that kohya_ss' window saves, or a dataset TOML alone.
        dataset: a dataset TOML, instead of the one that `source` names.
        family: "sd1", "sdxl", ...: what the options train, where they do not show it.

    Raises:
        RecipeError: lists every option that is unknown, or that would train something else.
        DataError: the dataset file is broken.
    """
    if family is not None and family not in KINDS:
        raise RecipeError(
            f"no family is called {family!r}.{suggest(family, KINDS)} Known: {', '.join(KINDS)}"
        )
    options = _read(source)
    if {"datasets", "general"} & set(options) and "pretrained_model_name_or_path" not in options:
        dataset, options = source, {}
    if dataset is None and "dataset_config" in options:
        dataset = _beside(source, str(options["dataset_config"]))
    options |= dataset_options(dataset) if dataset else {}
    draft = Draft({name: value for name, value in options.items() if not asks_for_nothing(name, value)})
    _sort(draft, options)
    name, clue = kind_of(draft, family)
    _fill(draft, KINDS[name], source, dataset)
    put_clip_skip(draft, name)
    if draft.refused:
        count = "1 option" if len(draft.refused) == 1 else f"{len(draft.refused)} options"
        raise RecipeError(
            f"{source}: {count} would train something else here. Take out what you can do without and try "
            "again:\n  " + "\n  ".join(draft.refused)
        )
    told = [f"trains {name}: {clue}", *draft.changed, *(f"left out: {line}" for line in draft.left_out)]
    header = [f"From {source.name}, written for kohya's scripts.", *told, ""]
    return Translation(recipe_text(draft.fields, draft.comments, header), tuple(told))


def write_recipe(translation: Translation, path: Path) -> None:
    """Write the recipe to `path`, which must not be there.

    Raises:
        RecipeError: something is there, or it cannot be written.
    """
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(translation.text)
    except OSError as error:
        raise RecipeError(f"{path}: cannot be written: {error.strerror}; name a new file") from error


def _fill(draft: Draft, kind: Kind, source: Path, dataset: Path | None) -> None:
    draft.put("task", "text-to-image")
    _put_model(draft, kind)
    folders = put_data(draft, dataset)
    put_network(draft, kind)
    put_objective(draft, kind)
    counted = steps_per_epoch(folders, draft.given, Path())
    put_training(draft, *counted)
    put_preview(draft, Path())
    given = draft.given
    draft.put(
        "output",
        (Path(str(given.get("output_dir", "runs"))) / str(given.get("output_name", source.stem))).as_posix(),
    )


def _read(source: Path) -> dict[str, Any]:
    """The options in a file; the sections of a TOML file mean nothing, as with kohya."""
    try:
        text = source.read_text(encoding="utf-8-sig")
        found = json.loads(text) if source.suffix.lower() == ".json" else tomllib.loads(text)
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise RecipeError(f"{source}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise RecipeError(f"{source}: holds no options of kohya's")
    if "datasets" in found:
        return found
    flat: dict[str, Any] = {}
    for name, value in found.items():
        flat |= value if isinstance(value, Mapping) else {name: value}
    return script_options(flat) if is_gui(flat) else flat


def _beside(source: Path, named: str) -> Path:
    """A file that `source` names: from the current directory, as with kohya, or from its own folder."""
    return Path(named) if Path(named).is_file() else source.parent / named


def _sort(draft: Draft, options: Mapping[str, Any]) -> None:
    """Copy what means the same, note what is left out, and refuse what is unknown or cannot be done."""
    known = (*SAME, *READ, *LEFT_OUT, *REFUSED)
    for name, value in options.items():
        if name not in (*known, *_EXTRA):
            draft.refused.append(
                f"{name} = {value!r}: is no option of kohya's scripts.{suggest(name, known)}"
            )
        elif name not in draft.given:
            continue
        elif name in REFUSED:
            draft.refused.append(f"{name} = {value!r}: {REFUSED[name]}")
        elif name in LEFT_OUT:
            draft.left_out.append(f"{name}: {LEFT_OUT[name]}")
        elif name in SAME and name not in ("network_dropout", "train_batch_size", "seed"):
            draft.put(SAME[name], _value(value), name)


def _value(value: Any) -> Any:
    """A number that the window saved as text, as a number."""
    try:
        return value if not isinstance(value, str) else float(value) if "." in value else int(value)
    except ValueError:
        return value


def _put_model(draft: Draft, kind: Kind) -> None:
    given = draft.given
    model = str(given.get("pretrained_model_name_or_path", "embedded"))
    if "pretrained_model_name_or_path" not in given:
        draft.changed.append(
            "no pretrained_model_name_or_path: fill in `model`; until then it is the embedded one"
        )
    parts = {part: str(given[name]) for name, part in (kind.files or {}).items() if name in given}
    parts |= {"vae": str(given["vae"])} if "vae" in given else {}
    draft.put("model", {"path": model, **parts} if parts else model, "pretrained_model_name_or_path")
