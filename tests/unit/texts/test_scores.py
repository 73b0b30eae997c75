"""Scores agree with scikit-learn's and scipy's, and with plain counting."""

from __future__ import annotations

import pytest
import torch

from lorimer.tasks._scores import calibration_error, confusion, macro_f1, of_multi, of_regression, of_single

LOGITS = torch.tensor([[2.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 3.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.9]])
RIGHT = torch.tensor([0, 0, 1, 2, 2])


def test_single_labels() -> None:
    scores = of_single(LOGITS, RIGHT)
    assert scores["accuracy"] == pytest.approx(3 / 5)
    assert scores["macro_f1"] == pytest.approx((1 / 2 + 2 / 3 + 2 / 3) / 3)


def test_confusion_has_a_row_for_each_right_label() -> None:
    matrix = confusion(LOGITS.argmax(1), RIGHT, 3)
    assert matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 1]]
    assert macro_f1(torch.tensor([[2, 0, 0], [0, 1, 0], [0, 0, 0]])) == 1.0  # a label that is nowhere


def test_calibration() -> None:
    sure = torch.tensor([[1.0, 0.0]] * 4)
    assert calibration_error(sure, torch.tensor([0, 0, 0, 0])) == 0.0
    assert calibration_error(sure, torch.tensor([0, 0, 1, 1])) == 0.5
    assert calibration_error(torch.tensor([[0.75, 0.25]] * 4), torch.tensor([0, 0, 0, 1])) == 0.0


def test_several_labels() -> None:
    logits = torch.tensor([[1.0, -1.0], [1.0, 1.0], [-1.0, -1.0]])
    scores = of_multi(logits, torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
    assert scores == pytest.approx({"micro_f1": 4 / 5, "macro_f1": (2 / 3 + 1) / 2, "all_right": 2 / 3})


def test_labels_that_are_nowhere_do_not_count() -> None:
    right = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    assert of_multi(right * 2 - 1, right)["macro_f1"] == 1.0
    assert of_multi(-torch.ones(2, 3), torch.zeros(2, 3))["macro_f1"] == 1.0


def test_numbers() -> None:
    right = torch.tensor([1.0, 2.0, 3.0, 3.0])
    assert of_regression(right * 2 + 1, right)["pearson"] == pytest.approx(1.0)
    assert of_regression(right.exp(), right)["spearman"] == pytest.approx(1.0)
    assert of_regression(-right, right)["spearman"] == pytest.approx(-1.0)
    assert of_regression(torch.zeros(4), right) == {
        "mean_absolute_error": 2.25,
        "pearson": 0.0,
        "spearman": 0.0,
    }
