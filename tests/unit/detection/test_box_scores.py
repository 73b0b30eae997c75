"""Average precision is COCO's."""

from __future__ import annotations

import pytest
import torch

from lorimer.tasks._box_scores import average_precision
from lorimer.tasks._detector import Found, Truth

NAMES = ("cat", "dog", 'never, "there"')
BOXES = torch.tensor([[10.0, 10, 50, 50], [60, 60, 90, 100]])


def truth(boxes: torch.Tensor, *labels: int) -> Truth:
    return Truth(boxes, torch.tensor(labels, dtype=torch.long))


def found(boxes: torch.Tensor, scores: list[float], labels: list[int]) -> Found:
    return Found(boxes.reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.long))


def test_all_found_is_one_and_nothing_found_is_none() -> None:
    truths = [truth(BOXES, 0, 1), truth(torch.zeros(0, 4))]
    nothing = found(torch.zeros(0, 4), [], [])
    best = average_precision(truths, [found(BOXES, [0.9, 0.8], [0, 1]), nothing], NAMES)
    assert (best.map, best.map50, best.map75) == pytest.approx((1, 1, 1))
    assert [(each.name, each.boxes) for each in best.classes] == [("cat", 1), ("dog", 1)]
    none = average_precision(truths, [nothing, nothing], NAMES)
    assert (none.map, none.map50) == (0.0, 0.0) and len(none.classes) == 2


def test_a_box_that_is_off_counts_up_to_its_overlap() -> None:
    """Shifted by 3.9 of its 40 pixels the first box overlaps itself by 0.822: seven of ten thresholds."""
    shifted = BOXES + torch.tensor([3.9, 0.0, 3.9, 0.0])
    scores = average_precision([truth(BOXES[:1], 0)], [found(shifted[:1], [0.9], [0])], NAMES)
    assert (scores.map, scores.map50, scores.map75) == pytest.approx((0.7, 1.0, 1.0), abs=1e-6)


def test_wrong_classes_and_false_alarms_cost() -> None:
    wrong = average_precision([truth(BOXES, 0, 1)], [found(BOXES, [0.9, 0.8], [1, 0])], NAMES)
    assert wrong.map50 == 0.0
    alarm = torch.tensor([[0.0, 0, 5, 5], [10, 10, 50, 50]])
    half = average_precision([truth(BOXES[:1], 0)], [found(alarm, [0.9, 0.8], [0, 0])], NAMES)
    assert half.map50 == pytest.approx(0.5)
    # What is found of classes that are nowhere does not count.
    odd = average_precision([truth(BOXES[:1], 0)], [found(BOXES, [0.9, 0.8], [0, 2])], NAMES)
    assert odd.map == pytest.approx(1.0)


def test_scaling_a_picture_changes_no_score() -> None:
    generator = torch.Generator().manual_seed(0)
    corners = torch.rand(20, 2, generator=generator) * 50
    boxes = torch.cat([corners, corners + 5 + torch.rand(20, 2, generator=generator) * 40], 1)
    off = boxes + torch.randn(20, 4, generator=generator) * 2
    labels = [place % 2 for place in range(20)]
    values = torch.rand(20, generator=generator).tolist()
    first = average_precision([truth(boxes, *labels)], [found(off, values, labels)], NAMES)
    scale = torch.tensor([3.0, 0.25, 3.0, 0.25])
    other = average_precision([truth(boxes * scale, *labels)], [found(off * scale, values, labels)], NAMES)
    assert 0.0 < first.map < 1.0 and other.as_metrics() == pytest.approx(first.as_metrics(), abs=1e-6)


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    scores = average_precision([truth(BOXES, 0, 2)], [found(BOXES, [0.9, 0.8], [0, 2])], NAMES)
    assert capsys.readouterr() == ("", "")
    assert scores.as_table().splitlines()[-1] == '"never, ""there""",1,1.0000,1.0000'
    assert scores.as_metrics("known_").keys() == {"known_map", "known_map50", "known_map75"}
