"""The task as a whole: recipes, runs, what their files say, and what comes of them."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import lorimer
from lorimer.cli import app
from lorimer.errors import DataError, FileFormatError, RecipeError, UsageError
from lorimer.tasks._box_maths import clip
from lorimer.tasks._detectors import fill_new, load_detector
from lorimer.tasks._trained_detector import TrainedDetector
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.setup import build
from tests.tiny_detectors import save_tiny_detector, shapes
from tests.unit.detection import box_folders

TRAIN = {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "evaluate_every": 3, "preview_every": 0}


@cache
def model(kind: str) -> str:
    return str(save_tiny_detector(Path(mkdtemp()), kind, ("red", "green")))


def recipe(folder: Path, *overrides: str, kind: str = "yolos", **data: Any) -> Recipe:
    values = {
        "task": "object-detection",
        "model": model(kind),
        "data": {
            "path": str(shapes(folder / "shapes", 8, ("blue", "green"))),
            "validation": {"fraction": 0.4},
            **data,
        },
        "adapter": {"rank": 2},
        "train": {**TRAIN, "learning_rate": 0.01},
        "output": str(folder / "run"),
    }
    return load_recipe(values, overrides, {})


def opened(folder: Path) -> list[Image.Image]:
    return [Image.open(file).convert("RGB") for file in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize("kind", ["yolos", "deformable-detr", "rt-detr"])
@pytest.mark.parametrize("keep", [False, True])
def test_the_adapters_file_gives_the_same_boxes(kind: str, keep: bool, tmp_path: Path) -> None:
    wanted = recipe(tmp_path, kind=kind, keep_classes=keep)
    result = train(wanted)
    assert {"validation_loss", "map", "map50", "map75"} <= result.metrics.keys()
    setup = build(wanted)
    lorimer.detach(setup.model)
    lorimer.load(setup.model, result.adapter)
    setup.model.eval()
    again = TrainedDetector.load(result.adapter, model(kind))
    assert again.names == (("red", "green", "blue") if keep else ("blue", "green"))
    task: Any = setup.task
    pictures = opened(tmp_path / "shapes")[:3]
    for picture, found in zip(pictures, again.predict(pictures, 0.0), strict=True):
        prepared = task.detector.prepare(picture)
        (wanted_one,) = task.detector.find(
            setup.model, prepared.pixels[None], 0.0, windows=prepared.window[None]
        )
        torch.testing.assert_close(found.scores, wanted_one.scores, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            found.boxes, clip(prepared.back(wanted_one.boxes), *picture.size), atol=1e-2, rtol=1e-4
        )


def test_at_strength_0_a_detector_that_keeps_classes_finds_them_as_its_base_does(tmp_path: Path) -> None:
    result = train(recipe(tmp_path, kind="conditional-detr", keep_classes=True))
    off = TrainedDetector.load(result.adapter, model("conditional-detr"), strength=0.0)
    base = lorimer.tasks._detectors.load_detector(model("conditional-detr"), ("red", "green"), False)
    base.fit_to([(64, 64)])
    base.network.eval()
    for picture in opened(tmp_path / "shapes")[:2]:
        pixels = base.prepare(picture).pixels[None]
        with torch.no_grad():
            before: Any = base.network(pixels)
            after: Any = off.model(pixels)
        torch.testing.assert_close(after.logits[..., :2], before.logits, atol=1e-5, rtol=1e-5)


def test_what_it_read_and_what_it_learns_is_said(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, keep_classes=True, also_knows=str(shapes(tmp_path / "old", 2, ("red",)))))
    told = setup.task.describe(setup.model, setup.data)
    assert told[0].startswith("read as COCO: 8 pictures, ")
    assert "5 pictures to learn from, 3 held out" in told
    assert "the head knows 2 classes (blue, green), and still 1 classes (red)" in told
    assert "pictures are fitted, with their ratio kept, into 64 x 64 pixels" in told
    assert any(line.startswith("also knows: read as COCO: 2 pictures") for line in told)
    setup.model.eval()
    with torch.no_grad():
        assert {"known_map", "known_map50", "known_map75"} <= setup.task.evaluate(setup.model).keys()


def test_old_rows_of_a_kept_head_stay_to_the_bit(tmp_path: Path) -> None:
    result = train(recipe(tmp_path, keep_classes=True))
    state = lorimer.read(result.adapter)
    assert {each.rows for each in state.full.values()} == {(2,)}
    metadata = state.metadata
    assert json.loads(metadata["classes"]) == ["blue", "green"] and metadata["picture_size"] == "64x64"


def test_examples_have_keys_where_they_are_always_the_same(tmp_path: Path) -> None:
    assert build(recipe(tmp_path)).data.keys == ()  # type: ignore[attr-defined]
    still: Any = build(recipe(tmp_path, augment=None)).data
    assert len(set(still.keys)) == len(still) == 5 and all(len(key) == 64 for key in still.keys)
    assert still.keys == build(recipe(tmp_path, augment=None)).data.keys  # type: ignore[attr-defined]
    smaller: Any = build(recipe(tmp_path, augment=None, resolution=32)).data
    assert not set(smaller.keys) & set(still.keys) and smaller[0]["pixels"].shape == (3, 32, 32)
    assert still[1]["pixels"].equal(still[1]["pixels"])


def test_held_out_pictures_come_from_splits(tmp_path: Path) -> None:
    folder = box_folders.voc(tmp_path / "voc")
    wanted = recipe(tmp_path, path=str(folder), split="train", validation={"split": "val"})
    setup = build(wanted)
    assert len(setup.data) == 2  # type: ignore[arg-type]
    told = setup.task.describe(setup.model, setup.data)
    assert "no held-out picture shows dog" in told and "2 pictures to learn from, 1 held out" in told
    # Without a split all pictures are read, and those that are held out are not learned from.
    whole = build(recipe(tmp_path, path=str(folder), validation={"split": "val"}))
    assert len(whole.data) == 2  # type: ignore[arg-type]


@pytest.mark.parametrize("other", [("red",), ("red", "yellow"), ("red", "green", "yellow")])
def test_another_base_is_refused(other: tuple[str, ...], tmp_path: Path) -> None:
    """Rows of its head would be of other classes."""
    result = train(recipe(tmp_path, keep_classes=True))
    base = save_tiny_detector(tmp_path / "other", "yolos", other)
    with pytest.raises(FileFormatError, match="is not the base of this adapter, whose head then has"):
        TrainedDetector.load(result.adapter, str(base))
    detector = load_detector(str(base), ("blue", "green"), keep=True)
    if detector.new:  # as of files that do not tell their head
        with pytest.raises(FileFormatError, match="rows that its base does not lack"):
            fill_new(detector.network, detector.new, lorimer.read(result.adapter))


def test_weights_that_cannot_read_pictures_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"set train\.mixed_precision: bf16 as well"):
        build(recipe(tmp_path, "train.base_dtype=bf16"))


def test_the_order_of_numbers_is_that_of_the_learned_pictures_alone(tmp_path: Path) -> None:
    folder = box_folders.objects(tmp_path / "boxes")
    rows = [json.loads(line) for line in (folder / "metadata.jsonl").read_text().splitlines()]
    for row in rows:
        row["objects"]["bbox"] = [[x, y, x + w, y + h] for x, y, w, h in row["objects"]["bbox"]]
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    other = box_folders.coco(tmp_path / "other", {"b": [("dog", (40, 5, 79, 59))]})
    known = box_folders.coco(tmp_path / "known", {"c": [("cat", (50, 30, 79, 59))]})
    wanted = {"path": str(folder), "box_format": "xyxy", "validation": {"path": str(other)}}
    task: Any = build(recipe(tmp_path, **wanted, also_knows=str(known))).task
    assert task.held_out.pictures[0].boxes.tolist() == [[40, 5, 79, 59]]
    assert task._known.pictures[0].boxes.tolist() == [[50, 30, 79, 59]]


def test_what_was_known_can_be_judged(tmp_path: Path) -> None:
    red = shapes(tmp_path / "red", 2, ("red",))
    with pytest.raises(RecipeError, match=r"no class 'red'; set data\.keep_classes: true"):
        build(recipe(tmp_path, also_knows=str(red)))
    bare = box_folders.coco(tmp_path / "bare", {"a": []})
    with pytest.raises(DataError, match=r"data\.also_knows: no picture has a box"):
        build(recipe(tmp_path, keep_classes=True, also_knows=str(bare)))
    setup = build(recipe(tmp_path, also_knows=str(tmp_path / "shapes")))
    told = setup.task.describe(setup.model, setup.data)
    assert "also knows: 5 of its pictures are learned from, and tell little" in told


@pytest.mark.parametrize("kind", ["yolos", "conditional-detr"])
def test_what_is_found_lies_in_its_picture(kind: str, tmp_path: Path) -> None:
    """And not in the padding beside it."""
    result = train(recipe(tmp_path, kind=kind))
    wide = opened(tmp_path / "shapes")[0].crop((0, 0, 64, 24))
    (found,) = TrainedDetector.load(result.adapter, model(kind)).predict([wide], 0.0)
    assert len(found.boxes) and found.boxes.min() >= 0
    assert (found.boxes <= torch.tensor([64.0, 24, 64, 24])).all()


def test_the_preview_shows_pictures_and_a_table(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, "preview.threshold=0"))
    with torch.no_grad():
        sheet, table = setup.task.preview(setup.model.eval(), tmp_path / "samples", 12)
    with Image.open(sheet) as picture:
        assert picture.width > 4 * 480 and picture.height > 480
    assert table.read_text().splitlines()[0] == "class,boxes,average_precision,average_precision_50"


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"classes": ["blue"]}, DataError, "is of the class 'green', which is none of the classes"),
        ({"also_knows": "shapes"}, DataError, "there is no file or folder|none of the classes"),
        ({"augment": {"flip": 2}}, RecipeError, r"data\.augment\.flip"),
        ({"validation": {"fraction": 0.99}}, DataError, "none left"),
    ],
)
def test_recipes_that_cannot_be_are_refused(
    change: dict[str, Any], error: type[Exception], message: str, tmp_path: Path
) -> None:
    with pytest.raises(error, match=message):
        build(recipe(tmp_path, **change))


def test_predict_writes_what_coco_tools_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from faster_coco_eval import COCO

    train(recipe(tmp_path))
    output = tmp_path / "out"
    (tmp_path / "shapes" / "broken.png").write_text("no picture")
    asked = ["predict", str(tmp_path / "run"), str(tmp_path / "shapes"), "--output", str(output)]
    result = CliRunner().invoke(app, [*asked, "--threshold", "0", "--json"])
    assert isinstance(result.exception, DataError) and "broken.png" in str(result.exception)
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert len(lines) == 8 and all(len(line["boxes"]) == 12 for line in lines)
    told = json.loads((output / "predictions.json").read_text())
    right = COCO(str(tmp_path / "shapes" / "coco.json"), print_function=lambda *_: None)
    names = [[each["file_name"] for each in images] for images in (told["images"], right.imgs.values())]
    assert names[0] == names[1]
    assert [each["name"] for each in told["categories"]] == ["blue", "green"]
    assert len(told["annotations"]) == 8 * 12 and COCO(told, print_function=lambda *_: None).anns
    assert right.loadRes(told["annotations"]).anns
    for each in told["images"]:
        with Image.open(output / f"{each['id']:04d}-{Path(each['file_name']).stem}.png") as picture:
            assert max(picture.size) == 480


def test_pictures_of_one_name_are_told_apart(tmp_path: Path) -> None:
    train(recipe(tmp_path))
    for name in ("one", "two/deep"):
        shapes(tmp_path / "sets" / name, 1)
    asked = ["predict", str(tmp_path / "run")]
    for inputs, wanted in (
        (["sets"], ["one/001.png", "two/deep/001.png"]),
        (["sets/one", "sets/two/deep"], [f"{tmp_path}/sets/{name}/001.png" for name in ("one", "two/deep")]),
    ):
        given = [str(tmp_path / each) for each in inputs]
        CliRunner().invoke(app, [*asked, *given, "--output", str(tmp_path / "out")], catch_exceptions=False)
        told = json.loads((tmp_path / "out" / "predictions.json").read_text())
        assert [each["file_name"] for each in told["images"]] == wanted
    for options, message in (
        (["--output", __file__], "is a file; name a folder"),
        (["--column", "x"], "texts"),
    ):
        result = CliRunner().invoke(app, [*asked, *given, *options])
        assert isinstance(result.exception, UsageError) and message in str(result.exception)


def test_predict_needs_the_adapter_of_a_detector_and_a_base(tmp_path: Path) -> None:
    result = train(recipe(tmp_path))
    one = str(tmp_path / "shapes" / "001.png")
    asked = ["predict", str(result.adapter), one, "--strength", "0.5"]
    refused = CliRunner().invoke(app, asked)
    assert "say which base model to load with --model" in str(refused.exception)
    found = CliRunner().invoke(app, [*asked, "--model", model("yolos"), "--threshold", "0.9"])
    assert found.exit_code == 0 and found.stdout == f"nothing\t{one}\n"
    with pytest.raises(FileFormatError, match="picture_size must be height x width"):
        facts = {"picture_size": "9999999x2"}
        lorimer.tasks._detectors.load_detector(model("yolos"), ("a",), False).restored(facts)
