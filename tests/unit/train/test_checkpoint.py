"""Checkpoint folders: complete or not there, pruned in the right order, leftovers removed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import lorimer
from lorimer.errors import FileFormatError, LorimerError
from lorimer.train.checkpoint import (
    Checkpoint,
    is_complete,
    list_checkpoints,
    newest_checkpoint,
    prune,
    read_checkpoint,
    remove_unfinished,
    write_checkpoint,
)
from tests.unit.train import small


def checkpoint(step: int) -> Checkpoint:
    adapter = lorimer.attach(small.net(), lorimer.LoRA(1))
    return Checkpoint(
        step, adapter.state(), ({"moment": torch.full((2,), float(step))}, {"items": []}), {"best": None}
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    written = checkpoint(7)
    place = write_checkpoint(tmp_path / "checkpoints", written)
    assert place.name == "step-000007" and is_complete(place)
    again = read_checkpoint(place)
    assert again.step == 7 and again.trainer == {"best": None}
    assert torch.equal(again.optimizer[0]["moment"], written.optimizer[0]["moment"])
    for path, layer in written.adapter.layers.items():
        assert torch.equal(again.adapter.layers[path].tensors["A"], layer.tensors["A"])


@pytest.mark.parametrize("name", ["adapter.safetensors", "optimizer.json", "trainer.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_a_checkpoint_with_any_damage_does_not_exist(tmp_path: Path, name: str, damage: str) -> None:
    write_checkpoint(tmp_path, checkpoint(1))
    place = write_checkpoint(tmp_path, checkpoint(2))
    file = place / name
    data = file.read_bytes()
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(data[:-3] if damage == "cut" else data.replace(b'"', b"'", 1))
    assert newest_checkpoint(tmp_path) == tmp_path / "step-000001"
    with pytest.raises(FileFormatError, match="not a complete checkpoint"):
        read_checkpoint(place)
    assert is_complete(write_checkpoint(tmp_path, checkpoint(2)))  # and it can be written anew


def test_a_file_that_was_not_there_makes_it_another_checkpoint(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, checkpoint(1))
    (place / "more.json").write_text("{}")
    assert not is_complete(place)


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    for step in (5, 10, 999999, 1000000):
        write_checkpoint(tmp_path, checkpoint(step))
    prune(tmp_path, keep=1, best=5)
    assert [place.name for place in list_checkpoints(tmp_path)] == ["step-000005", "step-1000000"]


def test_leftovers_of_a_killed_write_are_removed_and_never_read(tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path, checkpoint(3))
    place.rename(tmp_path / ".unfinished-step-000003")
    (tmp_path / "step-x").mkdir()
    assert newest_checkpoint(tmp_path) is None
    remove_unfinished(tmp_path)
    assert [each.name for each in tmp_path.iterdir()] == ["step-x"]


def test_a_folder_that_cannot_be_made_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(LorimerError, match="could not be written"):
        write_checkpoint(tmp_path / "checkpoints", checkpoint(1))
