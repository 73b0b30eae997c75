"""`lorimer predict` for detectors: what is where in pictures, as COCO's JSON and drawn. Imported when it runs,
since it imports torch."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from lorimer.cli._runs import adapter_file
from lorimer.cli._texts import base_of, run_recipe
from lorimer.errors import DataError, UsageError
from lorimer.formats.safe_io import write_json
from lorimer.tasks._box_drawing import Marks, draw_boxes
from lorimer.tasks._box_scores import MOST
from lorimer.tasks._detector import Found
from lorimer.tasks._picture_decoding import Stored, decode, on_white
from lorimer.tasks._picture_folder import PICTURE_SUFFIXES
from lorimer.tasks._trained_detector import TrainedDetector

if TYPE_CHECKING:
    from PIL.Image import Image

PREDICTIONS = "predictions.json"
NamedFile = tuple[Path, str]


def predict_boxes(
    source: Path,
    places: Sequence[str],
    output: Path,
    model: str | None,
    strength: float,
    threshold: float,
    batch_size: int,
    as_json: bool,
) -> None:
    """Find things in pictures; see `lorimer predict`.

    Writes into `output` `predictions.json`, COCO's form with a score for each annotation, and a drawn copy of
    every picture; prints a line for each.
    """
    files = _pictures(places)
    recipe = run_recipe(source, "object-detection")
    trained = TrainedDetector.load(adapter_file(source), base_of(source, recipe, model), strength)
    output.mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for (file, name), picture, found in _looked_at(trained, files, threshold, batch_size):
        number = len(images) + 1
        own = list(_annotations(found, number, len(annotations) + 1))
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        annotations += own
        marks = Marks(found.boxes, found.labels, found.scores)
        draw_boxes(picture, marks, trained.names).save(output / _drawn_name(number, name))
        _say(file, own, trained.names, as_json)
    categories = [{"id": place, "name": name} for place, name in enumerate(trained.names, 1)]
    told = {"images": images, "categories": categories, "annotations": annotations}
    write_json(output / PREDICTIONS, told)


def _looked_at(
    trained: TrainedDetector, files: Sequence[NamedFile], threshold: float, batch_size: int
) -> Iterator[tuple[NamedFile, Image, Found]]:
    """Each picture and what was found in it, some at a time."""
    for begin in range(0, len(files), batch_size):
        some = files[begin : begin + batch_size]
        pictures = [on_white(decode(Stored(file).read(str(file)), str(file))) for file, _ in some]
        yield from zip(some, pictures, trained.predict(pictures, threshold, MOST, batch_size), strict=True)


def _pictures(places: Sequence[str]) -> list[NamedFile]:
    """The picture files that are named, and those in folders that are, each with its name in there."""
    found: dict[Path, str] = {}
    for place in places:
        path = Path(place).expanduser()
        if path.is_dir():
            within = [each for each in sorted(path.rglob("*")) if each.suffix.lower() in PICTURE_SUFFIXES]
            if not within:
                raise DataError(f"{path}: holds no picture; known endings: {', '.join(PICTURE_SUFFIXES)}")
            found |= {each: each.relative_to(path).as_posix() for each in within}
        elif path.is_file():
            found[path] = path.name
        else:
            raise UsageError(f"there is no picture and no folder {place}")
    if not found:
        raise UsageError("say what to look at: pictures, or folders of pictures")
    return list(found.items())


def _drawn_name(number: int, name: str) -> str:
    """What a drawn picture is called: numbers keep those apart that have one name."""
    return f"{number:04d}-{Path(name).stem}.png"


def _annotations(found: Found, picture: int, first: int) -> Iterator[dict[str, Any]]:
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    for number, ((x0, y0, x1, y1), score, label) in enumerate(rows, first):
        yield {
            "id": number,
            "image_id": picture,
            "category_id": label + 1,
            "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
            "area": round((x1 - x0) * (y1 - y0), 2),
            "iscrowd": 0,
            "score": round(score, 4),
        }


def _say(file: Path, annotations: Sequence[dict[str, Any]], names: Sequence[str], as_json: bool) -> None:
    """A line for a picture: how many of each class, or JSON."""
    if as_json:
        boxes = [
            {"class": names[each["category_id"] - 1], "bbox": each["bbox"], "score": each["score"]}
            for each in annotations
        ]
        typer.echo(json.dumps({"picture": str(file), "boxes": boxes}, ensure_ascii=False))
        return
    counts = Counter(names[each["category_id"] - 1] for each in annotations)
    shown = ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "nothing"
    typer.echo(f"{shown}\t{file}")
