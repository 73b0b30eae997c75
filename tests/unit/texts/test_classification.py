"""Classifiers: labels are found out, heads are kept, and the adapter file alone says what they mean."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import lorimer
from lorimer.errors import DataError, RecipeError
from lorimer.tasks import text_classification
from lorimer.tasks._classified_texts import as_texts
from lorimer.tasks._labels import find_labels
from lorimer.tasks._text_rows import Rows
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe, load_recipe
from lorimer.train.setup import build
from tests.tiny_texts import save_tiny_causal, save_tiny_encoder

TRAIN = {"steps": 3, "batch_size": 2, "checkpoint_every": 0, "evaluate_every": 3, "learning_rate": 0.01}


def recipe(folder: Path, rows: list[dict[str, Any]], *overrides: str, causal: bool = False) -> Recipe:
    path = folder / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    save = save_tiny_causal if causal else save_tiny_encoder
    values = {
        "task": "text-classification",
        "model": str(save(folder / "model")),
        "data": {"path": str(path), "validation": {"fraction": 0.5}},
        "adapter": {"rank": 2},
        "train": TRAIN,
        "output": str(folder / "run"),
    }
    return load_recipe(values, overrides, {})


def rows_of(*labels: Any) -> list[dict[str, Any]]:
    return [{"text": f"text {place}", "label": label} for place, label in enumerate(labels)]


@pytest.mark.parametrize(
    ("values", "kind", "names"),
    [
        (["b", "a", "b"], "single", ("a", "b")),
        ([10, 9, "10"], "single", ("9", "10")),
        ([True, False], "single", ("False", "True")),
        ([["a"], ["b", "c"], []], "multi", ("a", "b", "c")),
        ([0.5, 1, 2.25], "regression", ()),
    ],
)
def test_labels_are_found_out(values: list[Any], kind: str, names: tuple[str, ...]) -> None:
    labels = find_labels(Rows(rows_of(*values), "x"), "label", None, ())
    assert (labels.kind, labels.names) == (kind, names)
    texts, told = as_texts(Rows(rows_of(*values), "x"), labels, "text", None, "label")
    assert len(texts) == len(values) and f"{len(values)} texts" in told[0]


def test_rows_without_a_text_or_a_known_label_are_counted() -> None:
    rows = Rows([*rows_of("a", "b", "c"), {"text": "", "label": "a"}, {"text": "x"}], "x")
    labels = find_labels(rows, "label", None, ["a", "b"])
    texts, told = as_texts(rows, labels, "text", None, "label")
    assert len(texts) == 2 and "3 skipped" in told[0] and "'c' is none of the labels" in told[0]


def test_labels_in_tables_may_stand_between_commas() -> None:
    rows = Rows(rows_of("a, b", "b", "c"), "x")
    labels = find_labels(rows, "label", "multi", ())
    assert labels.names == ("a", "b", "c") and labels.of("c,a") == (0, 2)


@pytest.mark.parametrize("nothing", [None, "", "  ", float("nan")])
def test_what_tables_write_for_nothing_is_no_label(nothing: Any) -> None:
    rows = Rows(rows_of(0.0, 1.0, nothing, 1.0), "x")
    labels = find_labels(rows, "label", None, ())
    assert (labels.kind, labels.names) == ("single", ("0", "1"))
    texts, told = as_texts(rows, labels, "text", None, "label")
    assert len(texts) == 3 and "1 because 'label' is empty" in told[0]


def test_labels_that_do_not_fit_their_kind_are_counted() -> None:
    for values, kind in (
        ([0.5, [1.0], float("inf"), 2.5], "regression"),
        (["a", ["a"], ["b"], "b"], "single"),
    ):
        rows = Rows(rows_of(*values), "x")
        texts, told = as_texts(rows, find_labels(rows, "label", kind, ("a", "b")), "text", None, "label")
        assert len(texts) == 2 and "2 skipped" in told[0]


def test_texts_longer_than_the_models_positions_are_cut(tmp_path: Path) -> None:
    rows = [{"text": "x" * 400, "label": label} for label in "abab"]
    setup = build(recipe(tmp_path, rows, "data.max_length=512"))
    assert max(setup.data.lengths) == 256  # type: ignore[attr-defined]
    assert "has positions for 256 tokens" in "".join(setup.task.describe(setup.model, setup.data))


def test_what_cannot_be_labels_is_refused() -> None:
    with pytest.raises(DataError, match="two labels or more, each once"):
        find_labels(Rows(rows_of("a", "b"), "x"), "label", None, ("a", "a"))
    with pytest.raises(DataError, match="no row has any label"):
        find_labels(Rows(rows_of([], []), "x"), "label", None, ())
    with pytest.raises(DataError, match=r"no row has a 'mood'.*data\.label.*text, label"):
        find_labels(Rows(rows_of("a", "b"), "x"), "mood", None, ())
    with pytest.raises(DataError, match="every row has the label 'a'"):
        find_labels(Rows(rows_of("a", "a"), "x"), "label", None, ())
    with pytest.raises(DataError, match="201 different values"):
        find_labels(Rows(rows_of(*map(str, range(201))), "x"), "label", None, ())


@pytest.mark.parametrize(
    ("values", "scores"),
    [
        (["a", "b"] * 4, {"accuracy", "macro_f1", "calibration_error"}),
        ([["a"], ["a", "b"]] * 4, {"micro_f1", "macro_f1", "all_right"}),
        ([0.5, 2.25] * 4, {"mean_absolute_error", "pearson", "spearman"}),
    ],
)
@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
def test_every_kind_trains_and_its_file_gives_the_same_answers(
    values: list[Any], scores: set[str], causal: bool, tmp_path: Path
) -> None:
    wanted = recipe(tmp_path, rows_of(*values), causal=causal)
    result = train(wanted)
    assert {"validation_loss", *scores} <= result.metrics.keys()
    setup = build(wanted)  # another head, at random
    lorimer.detach(setup.model)
    with torch.no_grad():
        for parameter in setup.model.score.parameters() if causal else setup.model.classifier.parameters():
            parameter.add_(1.0)
    lorimer.load(setup.model, result.adapter)
    with torch.no_grad():
        again = setup.task.evaluate(setup.model.eval())
    assert again == pytest.approx({name: result.metrics[name] for name in again}, abs=1e-6)
    metadata = lorimer.read(result.adapter).metadata
    assert json.loads(metadata["labels"]) == list(setup.task.labels.names)  # type: ignore[attr-defined]


@pytest.mark.parametrize("causal", [False, True], ids=["encoder", "causal"])
@pytest.mark.parametrize("packs", [True, False], ids=["packed", "in parts"])
def test_recomputing_in_bfloat16_takes_the_same_kernels(
    causal: bool, packs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where it did not, torch would find other tensors in the backward pass than in the forward pass."""
    if not packs:
        monkeypatch.setattr(text_classification, "layers_of", lambda model: None)
    ways = (
        "train.gradient_checkpointing=true",
        "train.mixed_precision=bf16",
        "train.base_dropout=false",
        "data.validation.fraction=null",
    )
    assert train(recipe(tmp_path, rows_of(*"aaaab"), *ways, causal=causal)).steps == TRAIN["steps"]


def test_balanced_classes_count_the_same_together(tmp_path: Path) -> None:
    rows = rows_of(*["a"] * 9, *["b"] * 3)
    wanted = recipe(tmp_path, rows, "objective.class_weights=balanced", "data.validation.fraction=null")
    data: Any = build(wanted).data
    sums = {place: sum(row["weight"] for row in data.rows if row["label"] == place) for place in (0, 1)}
    assert sums[0] == pytest.approx(sums[1]) and sum(sums.values()) == pytest.approx(12)
    with pytest.raises(RecipeError, match="no classes to weigh"):
        build(recipe(tmp_path, rows_of(0.5, 1.5, 2.5), "objective.class_weights=balanced"))


def test_pairs_are_read_together(tmp_path: Path) -> None:
    rows = [{**row, "second": "and that"} for row in rows_of("a", "b", "a", "b")]
    data: Any = build(recipe(tmp_path, rows, "data.pair=second")).data
    assert len(data.rows[0]["input_ids"]) == len("text 0") + len("and that")


def test_the_confusion_matrix_is_a_picture(tmp_path: Path) -> None:
    setup = build(recipe(tmp_path, rows_of(*["calm", "a very long name of a label"] * 3)))
    with torch.no_grad():
        (path,) = setup.task.preview(setup.model.eval(), tmp_path / "samples", 3)
    with Image.open(path) as picture:
        assert picture.width > picture.height > 200
