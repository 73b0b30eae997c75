"""Box maths against counting pixels, loops, and transformers' own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.loss.loss_for_object_detection import box_iou, generalized_box_iou

from lorimer.tasks._box_maths import areas, clip, clip_to, giou_pairs, iou, nms, to_boxes, to_distances

_PICTURE = 12


def _boxes(count: int, seed: int, whole: bool = False) -> Tensor:
    corners = torch.rand(count, 2, 2, generator=torch.Generator().manual_seed(seed)) * _PICTURE
    corners = corners.round() if whole else corners
    return torch.cat([corners.amin(1), corners.amax(1)], dim=1)


def _drawn(box: Tensor) -> Tensor:
    """The pixels of a box with whole corners."""
    canvas = torch.zeros(_PICTURE, _PICTURE, dtype=torch.bool)
    x0, y0, x1, y1 = box.long().tolist()
    canvas[y0:y1, x0:x1] = True
    return canvas


def test_areas_and_iou_are_what_counting_pixels_gives() -> None:
    one, other = _boxes(20, 0, whole=True), _boxes(15, 1, whole=True)
    assert areas(one).tolist() == [_drawn(box).sum().item() for box in one]
    for row, left in zip(iou(one, other), one, strict=True):
        for found, right in zip(row, other, strict=True):
            union = (_drawn(left) | _drawn(right)).sum()
            expected = (_drawn(left) & _drawn(right)).sum() / union if union else torch.tensor(0.0)
            assert found.item() == pytest.approx(expected.item())


def test_iou_and_giou_agree_with_transformers() -> None:
    one, other = _boxes(30, 2), _boxes(30, 3)
    torch.testing.assert_close(iou(one, other), box_iou(one, other)[0])
    torch.testing.assert_close(giou_pairs(one, other), generalized_box_iou(one, other).diag())


def test_boxes_without_area_have_no_overlap_and_finite_gradients() -> None:
    boxes = torch.zeros(3, 4, requires_grad=True)
    assert iou(boxes, boxes).eq(0).all()
    giou_pairs(boxes, boxes).sum().backward()
    assert boxes.grad is not None and boxes.grad.isfinite().all()


def test_giou_draws_boxes_that_do_not_touch_together() -> None:
    still, moved = torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[6.0, 0, 8, 2]], requires_grad=True)
    giou = giou_pairs(still, moved)
    assert giou.item() == pytest.approx(-0.5)  # 8 of 16 are filled
    giou.sum().backward()
    assert moved.grad is not None and moved.grad[0, 0] < 0


def test_distances_and_boxes_are_inverse() -> None:
    boxes = _boxes(10, 4)
    points = (boxes[:, :2] + boxes[:, 2:]) / 2 + 1.0
    torch.testing.assert_close(to_boxes(points, to_distances(points, boxes)), boxes)


def test_clipped_boxes_lie_in_the_picture() -> None:
    found = clip(torch.tensor([[-3.0, 2, 50, 9], [20, 20, 30, 30]]), width=12, height=8)
    assert found.tolist() == [[0, 2, 12, 8], [12, 8, 12, 8]]
    found = clip_to(torch.tensor([[-3.0, 2, 50, 9], [0, 0, 1, 1]]), torch.tensor([2.0, 3, 12, 8]))
    assert found.tolist() == [[2, 3, 12, 8], [2, 3, 2, 3]]


def _greedy(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> list[int]:
    kept: list[int] = []
    for place in sorted(range(len(scores)), key=lambda place: -scores[place].item()):
        rivals = [other for other in kept if labels[other] == labels[place]]
        if not any(iou(boxes[[place]], boxes[[other]]).item() > threshold for other in rivals):
            kept.append(place)
    return kept


@given(seed=st.integers(0, 10_000), count=st.integers(0, 25), threshold=st.sampled_from([0.1, 0.3, 0.6]))
@settings(max_examples=60, deadline=None)
def test_nms_keeps_what_the_greedy_loop_keeps(seed: int, count: int, threshold: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    boxes = _boxes(count, seed)
    scores = (torch.rand(count, generator=generator) * 10).round() / 10  # some are equal
    labels = torch.randint(0, 2, (count,), generator=generator)
    assert nms(boxes, scores, labels, threshold).tolist() == _greedy(boxes, scores, labels, threshold)


def test_nms_follows_a_long_chain_of_overlaps() -> None:
    """Each box overlaps the next alone, so that every second one stays: the slowest case of the iteration."""
    left = torch.arange(100.0)
    boxes = torch.stack([left, torch.zeros(100), left + 1.5, torch.ones(100)], dim=1)
    kept = nms(boxes, -left, torch.zeros(100, dtype=torch.long), threshold=0.15)
    assert kept.tolist() == list(range(0, 100, 2))
