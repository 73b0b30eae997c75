"""`lorimer predict` on pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import lorimer
from lorimer.cli import app
from lorimer.errors import DataError, UsageError
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.tiny_images import COLOURS, picture, save_pictures, save_tiny_vit


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    values = {
        "task": "image-classification",
        "model": str(save_tiny_vit(folder / "model")),
        "data": {"path": str(save_pictures(folder / "pictures", 3)), "fit": "pad"},
        "adapter": {"rank": 2},
        "train": {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "learning_rate": 0.1},
        "output": str(folder / "run"),
    }
    return train(load_recipe(values, [], {})).folder


def call(*arguments: object) -> tuple[str, BaseException | None]:
    result = CliRunner().invoke(app, ["predict", *map(str, arguments)])
    return result.stdout, None if isinstance(result.exception, SystemExit) else result.exception


def answers(*arguments: object) -> list[dict[str, Any]]:
    shown, wrong = call(*arguments, "--json")
    assert wrong is None
    return [json.loads(line) for line in shown.splitlines()]


def test_files_and_folders_are_answered_in_order(run: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 2)
    one = tmp_path / "one.webp"
    picture(7, COLOURS["red"]).save(one)
    told = answers(run, one, tmp_path / "blue", tmp_path / "red", "--batch-size", 2)
    names = [Path(each["picture"]).relative_to(tmp_path).as_posix() for each in told]
    assert names == ["one.webp", "blue/0.png", "blue/1.png", "red/0.png", "red/1.png"]
    for each in told:
        assert sum(each["probabilities"].values()) == pytest.approx(1.0)
        assert each["labels"] == [max(each["probabilities"], key=each["probabilities"].get)]
    assert answers(run, one)[0]["probabilities"] == pytest.approx(told[0]["probabilities"], abs=1e-5)
    assert call(run, one)[0].endswith(f"%\t{one}\n")


def test_the_adapters_file_alone_will_do_with_a_model(run: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    file, model = run / "adapter" / "adapter.safetensors", run.parent / "model"
    assert answers(file, tmp_path, "--model", model) == answers(run, tmp_path)


def test_strength_moves_from_the_base_with_the_trained_head(run: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    shares = [
        answers(run, tmp_path, "--strength", each)[0]["probabilities"]["red"] for each in (0, 0.5, 1, 1)
    ]
    assert len(set(shares)) == 3 and shares[2] == shares[3]


def test_broken_pictures_are_named_and_the_others_answered(run: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 2)
    for name in ("a.png", "z.jpg"):
        (tmp_path / "red" / name).write_bytes(b"no picture")
    shown, wrong = call(run, tmp_path, "--json")
    assert len(shown.splitlines()) == 4
    assert isinstance(wrong, DataError) and "2 of 6 pictures cannot be answered" in str(wrong)
    assert "a.png: is broken" in str(wrong) and "z.jpg: is broken" in str(wrong)


def test_wrong_calls_say_what_would_be_right(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    picture_file = save_pictures(tmp_path / "some", 1)
    file = run / "adapter" / "adapter.safetensors"
    for arguments, message in (
        ((run,), "say what to classify: pictures"),
        ((run, tmp_path / "no.png"), "there is no such picture or folder"),
        ((run, tmp_path / "empty"), "holds no pictures"),
        ((file, picture_file), "say which base model to load with --model; the file names 'model'"),
    ):
        wrong = call(*arguments)[1]
        assert isinstance(wrong, UsageError) and message in str(wrong), (wrong, message)


def test_an_adapter_of_another_kind_is_none(tmp_path: Path) -> None:
    import torch

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    adapter = lorimer.attach(model, lorimer.LoRA(1), "all-linear")
    file = lorimer.save(adapter, tmp_path / "x.safetensors", format="lorimer")
    wrong = call(file, tmp_path)[1]
    assert isinstance(wrong, UsageError) and "is no adapter of text-classification or image" in str(wrong)


def test_a_picture_that_is_given_twice_is_answered_twice(run: Path, tmp_path: Path) -> None:
    save_pictures(tmp_path, 1)
    one = tmp_path / "red" / "0.png"
    told = answers(run, one, one)
    assert len(told) == 2 and told[0] == told[1]
