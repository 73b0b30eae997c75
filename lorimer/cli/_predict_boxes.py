"""What a trained detector finds in pictures. Imported when it is asked, since it imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorimer.cli._answers import Answer, Asked
from lorimer.cli._predict_images import opened_pictures, picture_files
from lorimer.cli._runs import adapter_file
from lorimer.cli._texts import base_of, run_recipe
from lorimer.errors import DataError, UsageError
from lorimer.formats.safe_io import write_json
from lorimer.tasks._box_drawing import Marks, draw_boxes
from lorimer.tasks._box_scores import MOST
from lorimer.tasks._detector import Found
from lorimer.tasks._trained_detector import TrainedDetector

if TYPE_CHECKING:
    from PIL.Image import Image

THRESHOLD = 0.3  # how sure a box must be unless the command line says


def answers(asked: Asked) -> Iterator[Answer]:
    """What is in the pictures that were given, and in all in folders, in their order. Where an output folder
    is asked for, drawn copies of them go there, and at the end `predictions.json`, all boxes in COCO's form
    with scores.

    Raises:
        DataError: some pictures are broken; they are named once the others are answered.
    """
    if not asked.inputs or asked.file is not None:
        raise UsageError("say what to look at: pictures, and folders of such")
    if asked.output is not None and asked.output.exists() and not asked.output.is_dir():
        raise UsageError(f"--output: {asked.output} is a file; name a folder")
    names = _files(asked.inputs)
    files = list(names)
    recipe = run_recipe(asked.source, "object-detection")
    base = base_of(asked.source, recipe, asked.model)
    trained = TrainedDetector.load(adapter_file(asked.source), base, asked.strength)
    least = THRESHOLD if asked.threshold is None else asked.threshold
    written = _Written(trained.names, asked.output)
    broken: list[str] = []
    for begin in range(0, len(files), asked.batch_size):
        opened = opened_pictures(files[begin : begin + asked.batch_size], broken)
        found = trained.predict([picture for _, picture in opened], least, MOST, asked.batch_size)
        for (file, picture), each in zip(opened, found, strict=True):
            written.take(names[file], picture, each)
            yield Answer(str(file), {"picture": str(file), "boxes": _boxes(each, trained.names)})
    written.finish()
    if broken:
        raise DataError(
            f"{len(broken)} of {len(files)} pictures cannot be answered\n  " + "\n  ".join(broken)
        )


def _files(inputs: Sequence[str]) -> dict[Path, str]:
    """Pictures, and what each is called: its path in the folder that was given, or, where that would be the
    name of several, the whole path."""
    found: dict[Path, str] = {}
    for given in (Path(each).expanduser() for each in inputs):
        for file in picture_files(given):
            found[file] = file.name if file == given else file.relative_to(given).as_posix()
    clash = len(set(found.values())) < len(found)
    return {file: file.as_posix() for file in found} if clash else found


def _boxes(found: Found, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Of each box its class, score, and x, y, width and height in pixels."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        {
            "label": names[label],
            "score": round(score, 4),
            "bbox": [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)],
        }
        for (x0, y0, x1, y1), score, label in rows
    ]


class _Written:
    """The output folder; nothing where none is asked for."""

    def __init__(self, names: tuple[str, ...], folder: Path | None) -> None:
        self.names, self.folder = names, folder
        self.images: list[dict[str, Any]] = []
        self.annotations: list[dict[str, Any]] = []
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)

    def take(self, name: str, picture: Image, found: Found) -> None:
        """Draw what was found in a picture, and keep it for the end."""
        if self.folder is None:
            return
        number = len(self.images) + 1
        size = {"width": picture.width, "height": picture.height}
        self.images.append({"id": number, "file_name": name, **size})
        for label, box in zip(found.labels.tolist(), _boxes(found, self.names), strict=True):
            width, height = box["bbox"][2:]
            self.annotations.append(
                {
                    "id": len(self.annotations) + 1,
                    "image_id": number,
                    "category_id": label + 1,
                    "bbox": box["bbox"],
                    "area": round(width * height, 2),
                    "iscrowd": 0,
                    "score": box["score"],
                }
            )
        marks = Marks(found.boxes, found.labels, found.scores)
        # Numbers keep apart pictures from several folders that have one name.
        draw_boxes(picture, marks, self.names).save(self.folder / f"{number:04d}-{Path(name).stem}.png")

    def finish(self) -> None:
        """Write `predictions.json`."""
        if self.folder is not None:
            categories = [{"id": place, "name": name} for place, name in enumerate(self.names, 1)]
            told = {"images": self.images, "categories": categories, "annotations": self.annotations}
            write_json(self.folder / "predictions.json", told)
