"""Pictures with boxes from any of the forms they come in, found out by what is there.

Annotations/ or annotations/, or .xml beside pictures      Pascal VOC
data.yaml or classes.txt, images/ and labels/              YOLO
.json with images, annotations, categories                 COCO
metadata.jsonl, .parquet or a name on the hub              Hugging Face's `objects`
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from lorimer.errors import DataError
from lorimer.tasks._box_pictures import WrittenSet
from lorimer.tasks._boxes_coco import choose_coco, coco_files, read_coco
from lorimer.tasks._boxes_objects import choose_objects, objects_files, read_hub, read_metadata
from lorimer.tasks._boxes_voc import is_voc, read_voc
from lorimer.tasks._boxes_yolo import read_yolo, yolo_config

FORMS = (
    "Pascal VOC (.xml in Annotations/ or beside pictures), YOLO (data.yaml or classes.txt), COCO (.json with "
    "images, annotations and categories), or metadata.jsonl or .parquet with objects"
)


def read_boxes(
    place: str,
    *,
    split: str | None = None,
    subset: str | None = None,
    pictures: str | None = None,
    names: Sequence[str] = (),
) -> WrittenSet:
    """Pictures and boxes as their files have them, not yet checked.

    Args:
        split: of a set that has several; None is all of Pascal VOC and of a set without splits, and `train`
            elsewhere.
        subset: a configuration of a dataset on the hub.
        pictures: where the pictures of a COCO file are.
        names: what the ids of categories are called where the data do not say.

    Raises:
        DataError: there is nothing, nothing of a known form, or no such split.
    """
    path = Path(place).expanduser()
    if path.is_file():
        return _of_file(path, split, pictures, names)
    if path.is_dir():
        return _of_folder(path, split, pictures, names)
    if place.startswith((".", "/", "~")) or place.count("/") > 1 or path.suffix in _FILES:
        raise DataError(f"data: there is no file or folder {place}")
    return read_hub(place, split or "train", subset, names)


_FILES = (".json", ".yaml", ".yml", ".jsonl", ".parquet")


def _of_file(path: Path, split: str | None, pictures: str | None, names: Sequence[str]) -> WrittenSet:
    if path.suffix == ".json":
        return read_coco(path, None if pictures is None else Path(pictures).expanduser())
    if path.suffix in (".yaml", ".yml"):
        return read_yolo(path, split)
    if path.suffix in (".jsonl", ".parquet"):
        return read_metadata([path], names)
    raise DataError(f"{path}: no known form of boxes. Known files: {', '.join(_FILES)}")


def _of_folder(folder: Path, split: str | None, pictures: str | None, names: Sequence[str]) -> WrittenSet:
    found: dict[str, Callable[[], WrittenSet]] = {}
    if is_voc(folder) or (split is not None and is_voc(folder / split)):
        found["Pascal VOC"] = lambda: read_voc(folder, split)
    if (config := yolo_config(folder)) is not None:
        found["YOLO"] = lambda: read_yolo(config, split)
    if tables := objects_files(folder, split):
        found["Hugging Face objects"] = lambda: read_metadata(choose_objects(folder, tables, split), names)
    elif files := coco_files(folder):
        root = None if pictures is None else Path(pictures).expanduser()
        found["COCO"] = lambda: read_coco(choose_coco(folder, files, split), root)
    if not found:
        raise DataError(f"{folder}: holds no boxes in a known form: {FORMS}")
    if len(found) > 1:
        raise DataError(
            f"{folder}: holds boxes as {' and as '.join(found)}; give the file of one as the path"
        )
    return next(iter(found.values()))()
