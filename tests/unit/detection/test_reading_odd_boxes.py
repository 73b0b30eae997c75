"""What is odd in files of boxes is read rightly, or named with its file and the mend."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lorimer.errors import DataError
from lorimer.tasks._box_check import BoxSet, checked, class_names
from lorimer.tasks._boxes import read_boxes
from tests.unit.detection import box_folders
from tests.unit.detection.box_folders import NAMES, SIZE


def read(place: Path, **options: Any) -> BoxSet:
    written = read_boxes(str(place), **options)
    return checked(written, class_names(written, ()), False, None)


def stems(found: BoxSet) -> list[str]:
    return [Path(each.name).stem for each in found.pictures]


def tables(folder: Path, *files: str) -> Path:
    """A Parquet file of each name with one picture, in turn."""
    import pyarrow
    import pyarrow.parquet

    box_folders.pictures(folder / "pictures")
    folder.joinpath("data").mkdir()
    for file, row in zip(files, box_folders.rows(), strict=False):
        name = str(row["file_name"])
        image = {"bytes": (folder / "pictures" / name).read_bytes(), "path": name}
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist([{"image": image, "objects": row["objects"]}]), folder / "data" / file
        )
    return folder


def test_a_split_in_several_tables_is_read_whole(tmp_path: Path) -> None:
    shards = ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet", "test-00000-of-00001.parquet")
    folder = tables(tmp_path, *shards)
    assert stems(read(folder)) == ["a", "b"] and stems(read(folder, split="train")) == ["a", "b"]
    assert len(read_boxes(str(folder), split="test").pictures) == 1
    with pytest.raises(DataError, match=r"no file is of the split 'tset'.*test.*Known: test, train"):
        read(folder, split="tset")


def test_tables_of_no_split_are_read_all_and_of_several_none_by_guess(tmp_path: Path) -> None:
    assert stems(read(tables(tmp_path / "one", "boxes-0-of-2.parquet", "boxes-1-of-2.parquet"))) == ["a", "b"]
    with pytest.raises(DataError, match=r"no file is of the split 'train'. Known: test, val"):
        read(tables(tmp_path / "two", "test.parquet", "val.parquet"))


def test_a_split_that_a_set_has_not_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"Known: none, metadata.jsonl is of all"):
        read(box_folders.objects(tmp_path / "objects"), split="val")
    yolo = box_folders.yolo(tmp_path / "yolo")
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_text("\ufeffcat\ndog\n", encoding="utf-8")
    assert read(yolo, split="train").names == read(yolo).names == NAMES
    with pytest.raises(DataError, match=r"has no split 'tarin': .*Did you mean 'train'\? Known: train"):
        read(yolo, split="tarin")


def coco_with(folder: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    file = box_folders.coco(folder) / "annotations" / "instances_train.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))
    return folder


def test_ids_that_are_there_twice_are_named(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["images"][1]["id"] = 1
        told["categories"][1]["id"] = 10

    with pytest.raises(DataError) as caught:
        read(coco_with(tmp_path, change))
    assert "instances_train.json: 2 images have the id 1; give each its own" in str(caught.value)
    assert "instances_train.json: 2 categories have the id 10" in str(caught.value)


def test_categories_of_one_name_are_one_class(tmp_path: Path) -> None:
    def change(told: dict[str, Any]) -> None:
        told["categories"].append({"id": 7, "name": "cat"})
        told["annotations"][0]["category_id"] = 7

    found = read(coco_with(tmp_path, change))
    assert found.names == NAMES and found.pictures[0].labels.tolist() == [0, 0]
    assert "3 categories have 2 names; those of one name are one class" in found.told


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("category_id", [1], r"there is no category \[1\]"),
        ("bbox", [10**400, 1, 2, 3], "bbox must be four numbers"),
    ],
)
def test_annotations_of_odd_values_are_named(field: str, value: Any, message: str, tmp_path: Path) -> None:
    folder = coco_with(tmp_path, lambda told: told["annotations"][0].update({field: value}))
    with pytest.raises(DataError, match=f"annotation 1: {message}"):
        read(folder)


@pytest.mark.parametrize("name", ["a\0.png", "x" * 5000])
def test_names_that_no_file_has_are_named(name: str, tmp_path: Path) -> None:
    folder = coco_with(tmp_path, lambda told: told["images"][0].update({"file_name": name}))
    with pytest.raises(DataError, match=r"instances_train.json: the picture"):
        read(folder)


def test_windows_parts_folders_otherwise(tmp_path: Path) -> None:
    folder = coco_with(tmp_path, lambda told: told["images"][0].update({"file_name": "images\\a.png"}))
    found = read_boxes(str(folder), pictures=str(tmp_path))
    assert [each.name for each in found.pictures] == ["images\\a.png"]
    (tmp_path / "x.json").mkdir()
    assert len(found.problems) == 2 and read_boxes(str(folder)).form == "COCO"


@pytest.mark.parametrize(
    ("annotations", "pictures"),
    [("annotations", "images"), ("Annotations", "images"), ("annotations/xmls", "images")],
)
def test_folders_of_voc_have_several_names(annotations: str, pictures: str, tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path / "voc")
    shutil.move(folder / "Annotations", folder / "moved")
    (folder / annotations).parent.mkdir(exist_ok=True)
    shutil.move(folder / "moved", folder / annotations)
    shutil.move(folder / "JPEGImages", folder / pictures)
    assert stems(read(folder)) == ["a", "b", "c"] and stems(read(folder, split="val")) == ["b"]


def test_lists_of_splits_may_have_marks_and_names_with_spaces(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path)
    for place, ending in (("Annotations", "xml"), ("JPEGImages", "png")):
        shutil.move(folder / place / f"b.{ending}", folder / place / f"b 2.{ending}")
    (folder / "ImageSets" / "Main" / "val.txt").write_text("\ufeffa  1\nb 2\n", encoding="utf-8")
    assert stems(read(folder, split="val")) == ["a", "b 2"]


def test_what_hides_all_boxes_is_told_first(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path / "voc")
    shutil.rmtree(folder / "JPEGImages")
    with pytest.raises(DataError, match=r"Annotations/a.xml: there is no picture a in JPEGImages"):
        read(folder)
    nameless = box_folders.voc(tmp_path / "nameless")
    file = nameless / "Annotations" / "a.xml"
    file.write_text(file.read_text().replace("<name>dog</name>", ""))
    with pytest.raises(DataError, match=r"Annotations/a.xml, object 1: needs a name, its class"):
        read(nameless)


def test_an_encoding_of_no_such_name_is_told(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path)
    (folder / "Annotations" / "a.xml").write_text('<?xml version="1.0" encoding="foo"?><annotation/>')
    with pytest.raises(DataError, match=r"Annotations/a.xml: is no XML"):
        read(folder)


def test_sides_exchanged_without_exif_are_not_its_fault(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path)
    picture = Image.new("RGB", SIZE[::-1])
    picture.save(folder / "JPEGImages" / "c.png")
    with pytest.raises(DataError, match="width and height may be exchanged there"):
        read(folder)
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", SIZE).save(folder / "JPEGImages" / "c.png", exif=turned)
    with pytest.raises(DataError, match="its EXIF data turn it"):
        read(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("names: {0: cat, x: dog}", "names must list the classes"),
        ("train: {outside}\nnames: [cat, dog]", "there is no '.*' in the data folder"),
        ("date: 2020-99-99\nnames: [cat]", "is no YAML"),
    ],
)
def test_configs_that_cannot_be_are_told(config: str, message: str, tmp_path: Path) -> None:
    folder = box_folders.yolo(tmp_path / "data")
    (tmp_path / "outside").mkdir()
    (folder / "data.yaml").write_text(config.replace("{outside}", str(tmp_path / "outside")))
    with pytest.raises(DataError, match=f"data.yaml.*{message}"):
        read(folder)


def test_whole_paths_within_the_folder_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = box_folders.yolo(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    for train in (folder / "images" / "train", "list.txt"):
        (folder / "data.yaml").write_text(f"train: {train}\nnames: [cat, dog]", encoding="utf-8-sig")
        (folder / "list.txt").write_text(f"{folder}/images/train/a.png\nimages\\train\\b.png\n", "utf-8-sig")
        assert stems(read(Path("data")))[:2] == ["a", "b"]


def test_labels_that_are_no_text_or_have_scores_are_named(tmp_path: Path) -> None:
    folder = box_folders.yolo(tmp_path)
    (folder / "labels" / "train" / "a.txt").write_bytes(b"\xff\xfe0 0.5")
    (folder / "labels" / "train" / "b.txt").write_text("0 0.5 0.5 0.1 0.1 0.9", encoding="utf-8-sig")
    with pytest.raises(DataError) as caught:
        read(folder)
    assert "labels/train/a.txt: is not UTF-8 text" in str(caught.value)
    assert "labels/train/b.txt, line 1: has 5 numbers behind its class: a score" in str(caught.value)


def test_a_broken_yaml_of_something_else_is_left_alone(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path)
    (folder / "other.yaml").write_text("a: [")
    assert len(read(folder).pictures) == 3


@pytest.mark.parametrize("objects", [[{"bbox": [1, 1, 2, 2], "category": 0}, "y"], [1, 2], "x"])
def test_objects_of_no_form_are_named(objects: Any, tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path)
    rows = [{"file_name": "a.png", "objects": objects}, {"file_name": "b.png", "objects": None}]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    written = read_boxes(str(folder))
    assert written.problems == ("metadata.jsonl, row 1: needs objects: {bbox: [...], category: [...]}",)
    assert written.pictures[1].boxes == ()


@pytest.mark.parametrize("image", [{}, {"path": "../secret.png"}, {"path": "{outside}"}])
def test_rows_reach_no_picture_outside(image: dict[str, str], tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path / "data")
    Image.new("RGB", SIZE).save(tmp_path / "secret.png")
    told = {key: value.replace("{outside}", str(tmp_path / "secret.png")) for key, value in image.items()}
    row = {"image": told, "objects": {"bbox": [], "category": []}}
    (folder / "metadata.jsonl").write_text(json.dumps(row))
    with pytest.raises(DataError, match="row 1: image holds no picture, nor the path of one"):
        read(folder)
