"""One small set of pictures with boxes, written in every form there is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

NAMES = ("cat", "dog")
SIZE = (80, 60)
Box = tuple[float, float, float, float]  # x0, y0, x1, y1
BOXES: Mapping[str, Sequence[tuple[str, Box]]] = {
    "a": [("dog", (10, 20, 30, 50)), ("cat", (0, 0, 80, 60))],
    "b": [("cat", (40, 5, 79, 59))],
    "c": [],
}


def pictures(folder: Path) -> None:
    """Three pictures, alike in nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, name in enumerate(BOXES):
        picture = Image.radial_gradient("L").rotate(40 * number).resize(SIZE).convert("RGB")
        picture.paste(
            ((200, 0, 0), (0, 200, 0), (0, 0, 200))[number], (20 * number, 10, 20 * number + 15, 40)
        )
        picture.save(folder / f"{name}.png")


def voc(folder: Path, boxes: Mapping[str, Sequence[tuple[str, Box]]] = BOXES) -> Path:
    pictures(folder / "JPEGImages")
    (folder / "Annotations").mkdir()
    for name, own in boxes.items():
        objects = "".join(
            f"<object><name>{label}</name><bndbox>"
            + "".join(f"<{side}>{value}</{side}>" for side, value in zip(SIDES, box, strict=True))
            + "</bndbox></object>"
            for label, box in own
        )
        size = f"<size><width>{SIZE[0]}</width><height>{SIZE[1]}</height></size>"
        (folder / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{objects}</annotation>")
    lists = folder / "ImageSets" / "Main"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("a\nc\n")
    (lists / "val.txt").write_text("b\n")
    return folder


SIDES = ("xmin", "ymin", "xmax", "ymax")


def coco(folder: Path, boxes: Mapping[str, Sequence[tuple[str, Box]]] = BOXES) -> Path:
    pictures(folder / "images")
    images, annotations = [], []
    for number, (name, own) in enumerate(boxes.items(), 1):
        images.append({"id": number, "file_name": f"{name}.png", "width": SIZE[0], "height": SIZE[1]})
        for label, (x0, y0, x1, y1) in own:
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": 10 + NAMES.index(label),
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "iscrowd": 0,
                }
            )
    categories = [{"id": 10 + place, "name": name} for place, name in enumerate(NAMES)]
    (folder / "annotations").mkdir()
    told = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(told))
    return folder


def yolo(folder: Path, boxes: Mapping[str, Sequence[tuple[str, Box]]] = BOXES) -> Path:
    pictures(folder / "images" / "train")
    labels = folder / "labels" / "train"
    labels.mkdir(parents=True)
    for name, own in boxes.items():
        lines = [
            f"{NAMES.index(label)} {(x0 + x1) / 2 / SIZE[0]:.6f} {(y0 + y1) / 2 / SIZE[1]:.6f} "
            f"{(x1 - x0) / SIZE[0]:.6f} {(y1 - y0) / SIZE[1]:.6f}"
            for label, (x0, y0, x1, y1) in own
        ]
        (labels / f"{name}.txt").write_text("\n".join(lines))
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat, dog]\n")
    return folder


def rows(boxes: Mapping[str, Sequence[tuple[str, Box]]] = BOXES) -> list[dict[str, object]]:
    return [
        {
            "file_name": f"{name}.png",
            "objects": {
                "bbox": [[x0, y0, x1 - x0, y1 - y0] for _, (x0, y0, x1, y1) in own],
                "category": [label for label, _ in own],
            },
        }
        for name, own in boxes.items()
    ]


def objects(folder: Path, boxes: Mapping[str, Sequence[tuple[str, Box]]] = BOXES) -> Path:
    pictures(folder)
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows(boxes))))
    return folder


FORMS = {"Pascal VOC": voc, "COCO": coco, "YOLO": yolo, "Hugging Face objects": objects}
