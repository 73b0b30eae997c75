"""The parts of NanoDet's loss against their formulas, and the assigner against a loop."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from lorimer.models.nanodet import STRIDES, points_of
from lorimer.tasks._box_maths import iou
from lorimer.tasks._detector import Truth
from lorimer.tasks._nanodet_loss import (
    assign,
    detection_loss,
    distribution_focal_loss,
    drift,
    expected_boxes,
    quality_focal_loss,
)

SIZE, BINS = 64, 11
POINTS, ACROSS = points_of(SIZE, SIZE)


def _truth(*boxes: tuple[float, float, float, float], labels: tuple[int, ...] = ()) -> Truth:
    return Truth(torch.tensor(boxes).view(-1, 4), torch.tensor(labels or [0] * len(boxes), dtype=torch.long))


def _outputs(seed: int, classes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(2, len(POINTS), classes, generator=generator)
    return logits, torch.randn(2, len(POINTS), 4, BINS, generator=generator)


@pytest.mark.parametrize(("logit", "quality"), [(-2.0, 0.0), (0.5, 0.7), (3.0, 1.0)])
def test_quality_focal_loss_is_its_formula(logit: float, quality: float) -> None:
    sigma = 1 / (1 + math.exp(-logit))
    entropy = -((1 - quality) * math.log(1 - sigma) + quality * math.log(sigma))
    found = quality_focal_loss(torch.tensor(logit), torch.tensor(quality)).item()
    assert found == pytest.approx(abs(quality - sigma) ** 2 * entropy, rel=1e-5)


def test_quality_focal_loss_is_least_where_the_score_is_the_quality() -> None:
    logits = torch.linspace(-3, 3, 61)
    losses = quality_focal_loss(logits, torch.full_like(logits, 0.7))
    assert logits[losses.argmin()].sigmoid().item() == pytest.approx(0.7, abs=0.02)


def test_distribution_focal_loss_is_its_formula() -> None:
    logits, value = torch.randn(1, BINS, generator=torch.Generator().manual_seed(0)), 3.25
    shares = logits.softmax(1)[0]
    expected = -(0.75 * shares[3].log() + 0.25 * shares[4].log())
    torch.testing.assert_close(distribution_focal_loss(logits, torch.tensor([value]))[0], expected)


def test_a_distribution_at_one_bin_is_a_box_of_so_many_strides() -> None:
    distances = torch.full((len(POINTS), 4, BINS), -100.0)
    distances[:, [0, 1, 2, 3], [1, 2, 3, 4]] = 100.0
    boxes = expected_boxes(distances, POINTS, ACROSS)
    for box, (x, y), stride in zip(boxes.tolist(), POINTS.tolist(), ACROSS.tolist(), strict=True):
        assert box == pytest.approx([x - stride, y - 2 * stride, x + 3 * stride, y + 4 * stride], abs=1e-4)


def test_points_lie_in_the_middles_of_their_cells() -> None:
    assert len(POINTS) == sum((SIZE // stride) ** 2 for stride in STRIDES)
    points, strides = points_of(32, 64)
    assert points[:9].tolist() == [[4 + 8 * place, 4] for place in range(8)] + [[4, 12]]
    assert points[-2:].tolist() == [[16, 16], [48, 16]] and strides[-2:].tolist() == [32, 32]


def _by_hand(logits: Tensor, boxes: Tensor, truth: Truth) -> set[tuple[int, int]]:
    """(point, box) of `assign`, by loops."""
    costs: dict[tuple[int, int], float] = {}
    for number, (x0, y0, x1, y1) in enumerate(truth.boxes.tolist()):
        for place, (x, y) in enumerate(POINTS.tolist()):
            if x0 < x < x1 and y0 < y < y1:
                overlap = iou(boxes[[place]], truth.boxes[[number]])[0, 0]
                quality = torch.zeros(logits.shape[1])
                quality[truth.labels[number]] = overlap
                cost = quality_focal_loss(logits[place], quality).sum() - 3 * (overlap + 1e-7).log()
                costs[place, number] = cost.item()
    candidates = sorted({place for place, _ in costs})
    wanted = []
    for number in range(len(truth.boxes)):
        overlaps = iou(boxes[candidates], truth.boxes[[number]])[:, 0].sort(descending=True).values
        count = max(1, int(overlaps[:13].sum().item()))
        mine = sorted((cost, place) for (place, other), cost in costs.items() if other == number)
        wanted += [(place, number, cost) for cost, place in mine[:count]]
    best: dict[int, tuple[float, int]] = {}
    for place, number, cost in wanted:
        best[place] = min(best.get(place, (math.inf, -1)), (cost, number))
    return {(place, number) for place, (_, number) in best.items()}


@pytest.mark.parametrize("seed", range(4))
def test_points_are_assigned_as_by_hand(seed: int) -> None:
    logits, distances = _outputs(seed)
    truth = _truth((3, 5, 40, 44), (20, 20, 60, 62), (21, 24, 58, 60), labels=(0, 2, 1))
    boxes = expected_boxes(distances, POINTS, ACROSS)
    found = assign(logits[0], boxes[0], POINTS, truth)
    pairs = set(zip(found.points.tolist(), found.boxes.tolist(), strict=True))
    assert pairs == _by_hand(logits[0], boxes[0], truth)
    overlaps = iou(boxes[0][found.points], truth.boxes)
    torch.testing.assert_close(found.overlaps, overlaps[range(len(found.boxes)), found.boxes])


def test_no_point_answers_for_no_box_or_one_that_holds_none() -> None:
    logits, distances = _outputs(0)
    boxes = expected_boxes(distances, POINTS, ACROSS)
    for truth in (_truth(), _truth((5, 5, 7, 7))):
        assert len(assign(logits[0], boxes[0], POINTS, truth).points) == 0


def test_a_picture_without_a_box_teaches_scores_alone() -> None:
    logits, distances = (each.requires_grad_() for each in _outputs(0))
    detection_loss(logits, distances, POINTS, ACROSS, [_truth(), _truth()]).backward()
    assert logits.grad is not None and (logits.grad > 0).all()
    assert distances.grad is not None and not distances.grad.any()


def test_the_loss_of_a_perfect_answer_is_near_nothing() -> None:
    """A point draws the box exactly and is sure of it; all others are sure of nothing."""
    truth = _truth((4, 4, 36, 20), labels=(1,))
    logits = torch.full((1, len(POINTS), 3), -20.0)
    distances = torch.zeros(1, len(POINTS), 4, BINS)
    place = next(place for place, point in enumerate(POINTS.tolist()) if point == [12, 12])
    logits[0, place, 1] = 20.0
    distances[0, place] = -100.0
    for side, strides in enumerate((1, 1, 3, 1)):
        distances[0, place, side, strides] = 100.0
    assert detection_loss(logits, distances, POINTS, ACROSS, [truth]).item() < 1e-3


def test_what_the_base_says_has_not_drifted_and_pulls_nothing() -> None:
    before = _outputs(0)
    now = tuple(each.clone().requires_grad_() for each in before)
    loss = drift((now[0], now[1]), before)
    loss.backward()
    assert loss.item() == pytest.approx(0.0, abs=1e-6)
    assert all(each.grad is not None and each.grad.abs().max() < 1e-6 for each in now)


def test_drift_is_undone_where_the_base_sees_a_thing_alone() -> None:
    """One point sees a thing; it and another draw other boxes than before."""
    said, drawn = torch.full((1, len(POINTS), 2), -20.0), torch.zeros(1, len(POINTS), 4, BINS)
    said[0, 5, 1] = 1.0
    distances = drawn.clone()
    distances[0, [5, 6], :, 3] = 2.0
    logits = torch.full_like(said, -2.0).requires_grad_()
    distances.requires_grad_()
    drift((logits, distances), (said, drawn)).backward()
    assert logits.grad is not None and distances.grad is not None
    assert logits.grad[0, 5, 1] < 0 and logits.grad[0, 5, 0] > 0 and (logits.grad[0, 6] > 0).all()
    assert (distances.grad[0, 5, :, 3] > 0).all() and not distances.grad[0, 6].any()
