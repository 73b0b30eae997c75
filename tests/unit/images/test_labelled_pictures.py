"""Pictures are found with their labels in every form they come in, and whatever is wrong is said at once."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lorimer.errors import DataError
from lorimer.tasks._checked_pictures import LabelledPicture, checked
from lorimer.tasks._idx_files import read_idx
from lorimer.tasks._labelled_pictures import Columns, find_pictures, held_out_split
from lorimer.tasks._labels import find_labels
from lorimer.tasks._picture_decoding import decode
from lorimer.tasks._text_rows import Rows
from tests.tiny_images import picture, save_pictures


def read(
    place: Path | str, split: str | None = None, **columns: Any
) -> tuple[list[LabelledPicture], list[str], tuple[str, ...]]:
    """(pictures, lines, labels)"""
    asked = Columns(**columns)
    found = find_pictures(str(place), split, asked)
    labels = find_labels(found.labels(asked.label), asked.label, None, asked.names)
    return *checked(found, labels), labels.names


def png(seed: int) -> bytes:
    written = io.BytesIO()
    picture(seed).save(written, "PNG")
    return written.getvalue()


def save_idx(folder: Path, stem: str, values: np.ndarray, labels: list[int], zipped: bool = True) -> None:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3", values), ("labels-idx1", np.array(labels, dtype=np.uint8))):
        data = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()
        file = folder / f"{stem}-{name}-ubyte{'.gz' * zipped}"
        file.write_bytes(gzip.compress(data) if zipped else data)


def test_folders_are_labels_and_deeper_ones_belong_to_them(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "red" / "dark").mkdir()
    picture(9).save(tmp_path / "red" / "dark" / "x.JPG")
    (tmp_path / "red" / ".hidden.png").write_bytes(b"no picture")
    (tmp_path / "empty").mkdir()
    (tmp_path / "blue" / "y.heic").write_bytes(b"x")
    pictures, told, labels = read(tmp_path)
    assert labels == ("blue", "red")
    assert {each.name: labels[each.label] for each in pictures}["red/dark/x.JPG"] == "red"  # type: ignore[index]
    assert "7 pictures of 2 labels (blue 3, red 4)" in told[0]
    assert "no labels: empty" in told[1] and "blue/y.heic" in told[2]


def test_the_first_of_a_folder_hold_all_labels(tmp_path: Path) -> None:
    assert read(save_pictures(tmp_path, 5), limit=2)[2] == ("blue", "red")


def test_parts_of_a_dataset_are_not_labels(tmp_path: Path) -> None:
    save_pictures(tmp_path / "train", 3)
    save_pictures(tmp_path / "Val", 2)
    assert len(read(tmp_path)[0]) == 6 and held_out_split(str(tmp_path)) == "validation"
    assert len(read(tmp_path, "validation")[0]) == 4
    (tmp_path / "bus").mkdir()
    assert held_out_split(str(tmp_path)) == "validation"
    picture(0).save(tmp_path / "bus" / "0.png")  # now train is a label beside bus
    assert held_out_split(str(tmp_path)) is None


@pytest.mark.parametrize("name", ["metadata.jsonl", "metadata.csv"])
def test_a_metadata_file_names_pictures_and_labels(name: str, tmp_path: Path) -> None:
    rows = [{"file_name": f"{number}.png", "label": "ab"[number % 2]} for number in range(4)]
    for number in range(4):
        picture(number).save(tmp_path / f"{number}.png")
    write(tmp_path / name, rows)
    pictures, _, labels = read(tmp_path)
    assert labels == ("a", "b") and [each.label for each in pictures] == [0, 1, 0, 1]


def test_a_table_may_call_its_columns_otherwise(tmp_path: Path) -> None:
    save_pictures(tmp_path, 2)
    rows = [{"where": f"{label}/0.png", "what": label, "more": 1} for label in ("blue", "red")]
    write(tmp_path / "table.csv", rows)
    assert read(tmp_path / "table.csv", picture="where", label="what")[2] == ("blue", "red")
    with pytest.raises(DataError, match=r"pictures, which data\.image names, among where, what, more"):
        read(tmp_path / "table.csv", label="what")
    with pytest.raises(DataError, match=r"labels, which data\.label names"):
        read(tmp_path / "table.csv", picture="where")


def test_several_labels_stand_in_lists(tmp_path: Path) -> None:
    rows = [{"image": "0.png", "label": ["a", "b"]}, {"image": "1.png", "label": []}]
    for number in range(2):
        picture(number).save(tmp_path / f"{number}.png")
    write(tmp_path / "t.jsonl", rows)
    assert [each.label for each in read(tmp_path / "t.jsonl")[0]] == [(0, 1), ()]


def test_parquet_holds_the_pictures_themselves(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [
        {"image": {"bytes": png(number), "path": f"{number}.png"}, "label": number % 2} for number in range(4)
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "t.parquet")
    pictures, _, labels = read(tmp_path / "t.parquet")
    assert labels == ("0", "1") and [each.name for each in pictures] == [f"{n}.png" for n in range(4)]
    assert np.array_equal(np.asarray(pictures[2].open()), np.asarray(picture(2)))


def test_a_dataset_of_the_hub_is_read_undecoded_with_its_labels_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [{"bytes": png(number), "path": None} for number in range(4)], "label": [0, 1, -1, 1]}
    made = datasets.Dataset.from_dict(rows, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    pictures, told, labels = read("someone/pets")
    assert labels == ("cat", "dog") and [each.label for each in pictures] == [0, 1, 1]
    assert "1 skipped: 1 because its label is empty" in told[0]
    assert np.array_equal(np.asarray(pictures[2].open()), np.asarray(picture(3)))


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files_are_read_with_names_for_their_numbers(zipped: bool, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 256, (4, 5, 7), dtype=np.uint8)
    save_idx(tmp_path, "train", values, [0, 1, 1, 0], zipped)
    save_idx(tmp_path, "t10k", values[:2], [1, 0], zipped)
    pictures, _, labels = read(tmp_path, names=("coat", "bag"))
    assert labels == ("coat", "bag") and [each.label for each in pictures] == [0, 1, 1, 0]
    assert np.array_equal(np.asarray(pictures[1].open())[..., 0], values[1])
    assert held_out_split(str(tmp_path)) == "test" and len(read(tmp_path, "test")[0]) == 2
    with pytest.raises(DataError, match=r"data\.labels: are 1, and .* has numbers up to 1"):
        read(tmp_path, names=("coat",))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (struct.pack(">HBB1I", 0, 8, 1, 9) + b"123", "holds less than the 9 bytes"),
        (struct.pack(">HBB1I", 0, 8, 1, 2) + b"123", "holds more than the 2 bytes"),
        (struct.pack(">HBB1I", 0, 13, 1, 2) + b"12345678", "is no IDX file of bytes"),
        (struct.pack(">HBB4I", 0, 8, 4, *[65535] * 4), "is no IDX file of bytes"),
        (b"\x00", "is no whole IDX file"),
        (gzip.compress(struct.pack(">HBB1I", 0, 8, 1, 2) + b"12")[:-12], "is no whole IDX file"),
    ],
    ids=["short", "long", "doubles", "huge", "a byte", "cut"],
)
def test_broken_idx_files_are_refused(data: bytes, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x-idx1-ubyte"
    file.write_bytes(data)
    with pytest.raises(DataError, match=message):
        read_idx(file)


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    save_pictures(tmp_path, 3)
    (tmp_path / "red" / "0.png").write_bytes(b"not a picture")
    (tmp_path / "red" / "1.png").write_bytes(b"")
    whole = (tmp_path / "blue" / "2.png").read_bytes()
    (tmp_path / "blue" / "2.png").write_bytes(whole[: len(whole) // 2])
    picture(8).save(tmp_path / "stray.png")
    with pytest.raises(DataError) as caught:
        read(tmp_path)
    said = str(caught.value)
    assert "4 problems" in said
    for each in ("red/0.png: is broken", "red/1.png: is empty", "blue/2.png: is broken", "stray.png: lies"):
        assert each in said


def test_rows_without_their_picture_are_named(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    rows = [{"path": name, "label": label} for name, label in (("b.png", "x"), ("", "y"), ("../a.png", "x"))]
    write(tmp_path / "in" / "t.jsonl", [*rows, {"path": 3, "label": "x"}])
    with pytest.raises(DataError) as caught:
        read(tmp_path / "in" / "t.jsonl")
    said = str(caught.value)
    assert "4 problems" in said and "row 1: there is no picture 'b.png'" in said
    assert "row 3: '../a.png' leads out" in said and "row 4: 'path' is neither a path nor a picture" in said


def test_what_is_no_data_says_what_would_be(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="Put a folder for each label there"):
        read(tmp_path)
    with pytest.raises(DataError, match="there is no file or folder"):
        read(tmp_path / "nothing")


def test_transparent_pictures_stand_on_white(tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "red" / "clear.png")
    clear = next(each for each in read(tmp_path)[0] if each.name == "red/clear.png")
    assert clear.open().getpixel((4, 4)) == (255, 255, 255)


def write(file: Path, rows: list[dict[str, Any]]) -> None:
    if file.suffix == ".jsonl":
        file.write_text("\n".join(map(json.dumps, rows)))
        return
    with file.open("w", newline="") as opened:
        table = csv.DictWriter(opened, list(rows[0]))
        table.writeheader()
        table.writerows(rows)


def test_what_lies_beside_parts_without_pictures_is_no_part(tmp_path: Path) -> None:
    save_pictures(tmp_path / "train", 2)
    save_pictures(tmp_path / "test", 1)
    (tmp_path / "annotations").mkdir()
    (tmp_path / "__MACOSX").mkdir()
    picture(0).save(tmp_path / "__MACOSX" / "0.png")
    assert read(tmp_path)[2] == ("blue", "red") and held_out_split(str(tmp_path)) == "test"
    assert held_out_split(str(tmp_path), "test") is None


def test_a_part_that_is_not_there_is_refused(tmp_path: Path) -> None:
    save_pictures(tmp_path / "train", 2)
    save_pictures(tmp_path / "val", 2)
    with pytest.raises(DataError, match="has no part 'tset'; it has train, val"):
        read(tmp_path, "tset")
    with pytest.raises(DataError, match="has no part 'test'; it is in one piece"):
        read(tmp_path / "val", "test")
    save_pictures(tmp_path / "dev", 1)
    assert [len(read(tmp_path, each)[0]) for each in ("VAL", "dev", "training")] == [4, 2, 4]


def test_names_of_folders_and_classes_are_labels_however_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    for number in range(201):
        (tmp_path / f"{number}.5").mkdir()
        Image.new("L", (1, 1)).save(tmp_path / f"{number}.5" / "a.png")
    found = find_pictures(str(tmp_path), None, Columns())
    assert len(find_labels(found.labels("label"), "label", None, ()).names) == 201
    features = {"image": datasets.Value("binary"), "label": datasets.ClassLabel(num_classes=201)}
    rows = {"image": [b"x"] * 201, "label": list(range(201))}
    made = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)
    found = find_pictures("someone/many", None, Columns())
    assert len(find_labels(found.labels("label"), "label", None, ()).names) == 201


def test_columns_may_begin_below_the_first_row(tmp_path: Path) -> None:
    for number in range(3):
        picture(number).save(tmp_path / f"{number}.png")
    write(tmp_path / "t.jsonl", [{"image": "0.png"}, *({"image": f"{n}.png", "label": n} for n in (1, 2))])
    pictures, told, labels = read(tmp_path / "t.jsonl")
    assert labels == ("1", "2") and len(pictures) == 2 and "1 skipped" in told[0]
    write(tmp_path / "t.jsonl", [{"image": f"{number}.png", "label": ""} for number in range(3)])
    with pytest.raises(DataError, match="'label' is empty in every row"):
        read(tmp_path / "t.jsonl")


def test_only_numbers_are_in_the_order_of_numbers() -> None:
    def names(*values: Any) -> tuple[str, ...]:
        return find_labels(Rows([{"label": each} for each in values], "x"), "label", None, ()).names

    assert names("nan", "10", "9", "inf", "b") == ("9", "10", "b", "inf", "nan")
    assert names("2", "nan", "1") == ("1", "2", "nan")
    assert names("0.5", "nan", "1") == ()  # numbers, one of them missing


def test_a_link_to_a_picture_elsewhere_is_a_picture_of_the_folder(tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "b.png").symlink_to(tmp_path / "a.png")
    write(tmp_path / "in" / "t.jsonl", [{"path": "b.png", "label": label} for label in "xy"])
    assert len(read(tmp_path / "in" / "t.jsonl")[0]) == 2


def test_broken_tags_of_a_tiff_are_a_broken_picture() -> None:
    written = io.BytesIO()
    picture(0).save(written, "TIFF", compression="tiff_lzw")
    whole = written.getvalue()
    directory = struct.unpack("<I", whole[4:8])[0]
    for place in range(directory, len(whole)):
        for value in (0, 255):
            broken = whole[:place] + bytes([value]) + whole[place + 1 :]
            with contextlib.suppress(DataError), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                decode(broken, "x.tif")


def test_idx_files_must_hold_pictures(tmp_path: Path) -> None:
    save_idx(tmp_path, "train", np.zeros((0, 5, 7), np.uint8), [])
    with pytest.raises(DataError, match="holds no pictures"):
        read(tmp_path)
    save_pictures(tmp_path / "folders" / "train-images-idx3-ubyte", 1)
    assert read(tmp_path / "folders" / "train-images-idx3-ubyte")[2] == ("blue", "red")
    with pytest.raises(DataError, match="every row has the label"):
        read(tmp_path / "folders")
