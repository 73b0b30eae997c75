"""Boxes are the same whatever form they come in, and those that cannot be right are named, all of them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from lorimer.errors import DataError
from lorimer.tasks._box_check import BoxSet, checked, class_names
from lorimer.tasks._box_split import hold_out, without_held_out
from lorimer.tasks._boxes import read_boxes
from lorimer.tasks._boxes_voc import parse_xml
from tests.unit.detection import box_folders
from tests.unit.detection.box_folders import BOXES, FORMS, NAMES, SIZE

BCCD = Path(__file__).parents[4] / "shared" / "data" / "bccd"


def read(place: Path, leave_out: bool = False, **options: str) -> BoxSet:
    written = read_boxes(str(place), **options)  # type: ignore[arg-type]
    return checked(written, class_names(written, ()), leave_out, None)


@pytest.mark.parametrize("form", FORMS)
def test_every_form_says_the_same(form: str, tmp_path: Path) -> None:
    found = read(FORMS[form](tmp_path / "data"))
    assert found.names == NAMES
    assert [Path(each.name).stem for each in found.pictures] == list(BOXES)
    for picture, own in zip(found.pictures, BOXES.values(), strict=True):
        assert picture.size == SIZE
        wanted = torch.tensor([box for _, box in own], dtype=torch.float32).reshape(-1, 4)
        torch.testing.assert_close(picture.boxes, wanted, atol=1e-3, rtol=0)
        assert picture.labels.tolist() == [NAMES.index(label) for label, _ in own]
    assert f"read as {form}: 3 pictures, 3 boxes of 2 classes; 1 without a box" in found.told[0]


def test_splits_are_those_of_the_set(tmp_path: Path) -> None:
    voc = box_folders.voc(tmp_path / "voc")
    assert [len(read(voc, split=split).pictures) for split in ("train", "val")] == [2, 1]
    with pytest.raises(DataError, match=r"no split 'exam' in ImageSets/Main. Known: train, val"):
        read(voc, split="exam")
    yolo = box_folders.yolo(tmp_path / "yolo")
    with pytest.raises(DataError, match=r"val: there is no 'images/val' in the data folder"):
        read(yolo, split="val")
    with pytest.raises(DataError, match=r"has no split 'exam'.*Known: train, val"):
        read(yolo, split="exam")


def test_crowds_are_left_out_and_said(tmp_path: Path) -> None:
    file = box_folders.coco(tmp_path / "data") / "annotations" / "instances_train.json"
    told = json.loads(file.read_text())
    told["annotations"][0]["iscrowd"] = 1
    file.write_text(json.dumps(told))
    found = read(tmp_path / "data")
    assert sum(len(each.boxes) for each in found.pictures) == 2
    assert "1 annotations of crowds left out" in found.told


def test_tables_hold_pictures_as_well(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    box_folders.pictures(tmp_path)
    table = [
        {
            "image": {"bytes": (tmp_path / str(row["file_name"])).read_bytes(), "path": row["file_name"]},
            "objects": row["objects"],
        }
        for row in box_folders.rows()
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(table), tmp_path / "train.parquet")
    found = read(tmp_path / "train.parquet")
    assert [each.name for each in found.pictures] == ["a.png", "b.png", "c.png"]
    assert found.pictures[1].boxes.tolist() == [[40, 5, 79, 59]]


def test_datasets_tell_what_their_ids_are_called(tmp_path: Path) -> None:
    """As the hub has them, from a folder of its files."""
    import datasets

    box_folders.pictures(tmp_path / "pictures")
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "objects": {
                "bbox": datasets.List(datasets.List(datasets.Value("float32"))),
                "category": datasets.List(datasets.ClassLabel(names=list(NAMES))),
            },
        }
    )
    table = [
        {"image": str(tmp_path / "pictures" / str(row["file_name"])), "objects": row["objects"]}
        for row in box_folders.rows()
    ]
    (tmp_path / "set").mkdir()
    datasets.Dataset.from_list(table, features=features).to_parquet(tmp_path / "set" / "train.parquet")
    from lorimer.tasks._boxes_objects import read_hub

    written = read_hub(str(tmp_path / "set"), "train", None, ())
    found = checked(written, class_names(written, ()), False, None)
    assert found.names == NAMES and found.pictures[0].labels.tolist() == [1, 0]


BAD = [
    ((10, 10, 10, 20), "[10, 10, 10, 20] is empty, 0 x 10 pixels: draw it anew or remove it"),
    ((30, 10, 20, 20), "ends before it begins: write x0, y0, x1, y1 in order"),
    ((90, 10, 99, 20), "lies outside its picture of 80 x 60 pixels"),
    ((10, 10, 90, 20), "sticks out of its picture of 80 x 60 pixels by 10: cut it"),
    ((math.nan, 10, 20, 20), "is not finite; write four numbers"),
]


def test_all_bad_boxes_are_named_at_once(tmp_path: Path) -> None:
    boxes = {"a": [("dog", box) for box, _ in BAD], "b": [("cat", (1, 1, 9, 9))], "c": []}
    folder = box_folders.voc(tmp_path / "data", boxes)  # type: ignore[arg-type]
    with pytest.raises(DataError) as caught:
        read(folder)
    lines = str(caught.value).splitlines()
    assert lines[0] == "data: 5 problems"
    for number, (line, (_, expected)) in enumerate(zip(lines[1:], BAD, strict=False), 1):
        assert f"Annotations/a.xml, object {number}: " in line and expected in line
    found = read(folder, leave_out=True)
    assert [len(each.boxes) for each in found.pictures] == [0, 1, 0]
    assert any("5 boxes left out" in line for line in found.told)


def test_boxes_that_stick_out_by_a_pixel_are_cut_and_counted(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path / "data", {"a": [("dog", (-1, 0, 81, 62))], "b": [], "c": []})
    found = read(folder)
    assert found.pictures[0].boxes.tolist() == [[0, 0, 80, 60]]
    assert "1 boxes stuck out by at most 2 pixels and were cut to their pictures" in found.told


def test_wrong_units_are_told_both_ways(tmp_path: Path) -> None:
    shares = {"a": [("dog", (0.1, 0.2, 0.5, 0.6))], "b": [], "c": []}
    with pytest.raises(DataError, match="is in shares of the picture instead of pixels: multiply x by 80"):
        read(box_folders.coco(tmp_path / "coco", shares))
    folder = box_folders.yolo(tmp_path / "yolo")
    (folder / "labels" / "train" / "b.txt").write_text("0 40 20 10 10")
    with pytest.raises(DataError, match=r"labels/train/b.txt, line 1: .* is in pixels instead of shares"):
        read(folder)


def test_corners_where_sizes_are_wanted_are_hinted_at_and_can_be_said(tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    rows[0]["objects"] = {"bbox": [[30, 20, 70, 50]], "category": ["dog"]}
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows[:1])))
    with pytest.raises(DataError, match=r"by 20: cut it; if these are corners, say data\.box_format"):
        read(folder)
    written = read_boxes(str(folder))
    assert checked(written, ("dog",), False, "xyxy").pictures[0].boxes.tolist() == [[30, 20, 70, 50]]


def test_unknown_classes_and_other_sizes_are_told(tmp_path: Path) -> None:
    written = read_boxes(str(box_folders.voc(tmp_path / "data")))
    with pytest.raises(DataError, match=r"is of the class 'dog', which is none of the classes.*dogs"):
        checked(written, ("cat", "dogs"), False, None)
    Image.new("RGB", SIZE[::-1]).save(tmp_path / "data" / "JPEGImages" / "c.png")
    with pytest.raises(DataError, match=r"says 80 x 60 pixels, and JPEGImages/c\.png has 60 x 80"):
        read(tmp_path / "data")


def test_missing_pictures_and_paths_that_lead_out_are_told(tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path / "data")
    Image.new("RGB", (9, 9)).save(tmp_path / "secret.png")
    rows = [
        {"file_name": name, "objects": {"bbox": [], "category": []}} for name in ("../secret.png", "z.png")
    ]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"row 1: there is no picture '../secret.png'.*\n.*row 2"):
        read_boxes_checked(folder)
    coco = box_folders.coco(tmp_path / "coco") / "annotations" / "instances_train.json"
    told = json.loads(coco.read_text())
    told["images"][0]["file_name"] = "../../secret.png"
    coco.write_text(json.dumps(told))
    with pytest.raises(DataError, match=r"leads out of the data folder|is not in"):
        read_boxes_checked(tmp_path / "coco")


def read_boxes_checked(folder: Path) -> BoxSet:
    return checked(read_boxes(str(folder)), ("cat", "dog"), False, None)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_documents_that_define_entities_are_refused(encoding: str) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "haha">]><annotation>&x;</annotation>'
    with pytest.raises(ValueError, match="declares a document type"):
        parse_xml(bomb.encode(encoding))
    assert parse_xml("<annotation/>".encode(encoding)).tag == "annotation"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("Annotations/a.xml", "<annotation><object>", "Annotations/a.xml: is no XML"),
        ("Annotations/a.xml", "<annotation><object/></annotation>", "object 1: its bndbox must have"),
        ("JPEGImages/a.png", "no picture", "JPEGImages/a.png: is broken or no picture"),
    ],
)
def test_broken_files_are_named(file: str, text: str, message: str, tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path / "data")
    (folder / file).write_text(text)
    with pytest.raises(DataError, match=message):
        read(folder)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("0 0.1 0.1 0.2 0.2 0.9", "has 5 numbers behind its class: a score"),
        ("0 0.1 0.1 0.2 0.2 0.3 0.3 0.4", "has 7 numbers behind its class: no outline"),
        ("0 0.1 0.1 nan 0.2 0.3 0.3", "a point of the outline is not finite"),
        ("0 0.1 0.1 0.2", "has 3 numbers behind its class: too short"),
        ("7 0.1 0.1 0.2 0.2", "the class 7 has no name; there are 2"),
        ("dog 0.1 0.1 0.2 0.2", "must be a class and four numbers"),
    ],
)
def test_lines_that_are_no_boxes_are_named(line: str, message: str, tmp_path: Path) -> None:
    folder = box_folders.yolo(tmp_path / "data")
    (folder / "labels" / "train" / "a.txt").write_text(line)
    with pytest.raises(DataError, match=f"labels/train/a.txt, line 1: .*{message}"):
        read(folder)


def test_an_outline_is_learned_as_the_box_around_it(tmp_path: Path) -> None:
    folder = box_folders.yolo(tmp_path / "data")
    expected = read(folder)
    for picture, own in zip(expected.pictures, BOXES.values(), strict=True):
        lines = []
        for label, (x0, y0, x1, y1) in own:
            middle = (x0 + x1) / 2
            points = [(x0, y1), (middle, y0), (x1, y1), (middle, (y0 + y1) / 2)]
            shares = " ".join(f"{x / SIZE[0]:.6f} {y / SIZE[1]:.6f}" for x, y in points)
            lines.append(f"{NAMES.index(label)} {shares}")
        (folder / "labels" / "train" / f"{Path(picture.name).stem}.txt").write_text("\n".join(lines))
    found = read(folder)
    assert "3 outlines are learned as the boxes around them" in found.told
    for picture, outlined in zip(expected.pictures, found.pictures, strict=True):
        torch.testing.assert_close(outlined.boxes, picture.boxes, atol=1e-3, rtol=0)


def test_a_folder_that_holds_nothing_or_two_forms_is_refused(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(DataError, match="holds no boxes in a known form"):
        read_boxes(str(tmp_path / "none"))
    folder = box_folders.voc(tmp_path / "two")
    (folder / "data.yaml").write_text("names: [cat]")
    with pytest.raises(DataError, match="holds boxes as Pascal VOC and as YOLO"):
        read_boxes(str(folder))
    with pytest.raises(DataError, match="there is no file or folder"):
        read_boxes("./nowhere")


def test_pictures_that_are_alike_are_on_one_side(tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path / "data")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    with Image.open(folder / "a.png") as picture:
        picture.resize((160, 120)).save(folder / "a-again.jpg", quality=90)
    rows.append({"file_name": "a-again.jpg", "objects": {"bbox": [], "category": []}})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    found = read_boxes_checked(folder)
    for seed in range(6):
        learned, held, told = hold_out(found, 0.5, seed)
        sides = [{each.name for each in side} for side in (learned, held)]
        assert not sides[0] & sides[1] and sides[0] | sides[1] == {each.name for each in found.pictures}
        assert any({"a.png", "a-again.jpg"} <= side for side in sides) and len(told) == 1
    own = BoxSet(found.pictures[3:], found.names, found.likenesses[3:], ())
    learned, told = without_held_out(found, own)
    assert [each.name for each in learned] == ["a.png", "b.png", "c.png"]  # a split that was made stays
    assert told == [
        "1 pictures are held out as well and are not learned from",
        "1 pictures to learn from are like held-out ones, which may then be too easy",
    ]


@pytest.mark.skipif(not BCCD.is_dir(), reason="the blood cells are not at ../shared/data/bccd")
def test_the_blood_cells_are_read() -> None:
    written = read_boxes(str(BCCD))
    boxes = sum(len(each.boxes) for each in written.pictures)
    assert len(written.pictures) == 364 and boxes == 4888 and not written.problems
    assert class_names(written, ()) == ("Platelets", "RBC", "WBC")
    assert torch.tensor([box.values for box in written.pictures[0].boxes]).shape[1] == 4
