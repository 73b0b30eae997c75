"""Boxes as plain maths: (N, 4) float tensors of x0, y0, x1, y1, where x1 >= x0 and y1 >= y0."""

from __future__ import annotations

import torch
from torch import Tensor


def areas(boxes: Tensor) -> Tensor:
    """(..., 4) -> (...)."""
    sides = boxes[..., 2:] - boxes[..., :2]
    return sides[..., 0] * sides[..., 1]


def clip(boxes: Tensor, width: float, height: float) -> Tensor:
    """Boxes (..., 4) cut to a picture; one wholly beside it keeps no area."""
    return clip_to(boxes, boxes.new_tensor([0.0, 0.0, width, height]))


def clip_to(boxes: Tensor, window: Tensor) -> Tensor:
    """Boxes (..., 4) cut to a window (4,), itself a box; one wholly beside it keeps no area."""
    return torch.minimum(torch.maximum(boxes, window[..., [0, 1, 0, 1]]), window[..., [2, 3, 2, 3]])


def iou(one: Tensor, other: Tensor) -> Tensor:
    """(N, 4), (M, 4) -> (N, M): the shared area of each pair over the area of both together; 0 where neither
    box has an area."""
    shared, union = _shared_and_union(one[:, None], other[None])
    return _ratio(shared, union)


def giou_pairs(one: Tensor, other: Tensor) -> Tensor:
    """(..., 4), (..., 4) -> (...): IoU less the share of the smallest box around both that neither fills, in
    [-1, 1] (arXiv 1902.09630, algorithm 1)."""
    shared, union = _shared_and_union(one, other)
    sides = torch.maximum(one[..., 2:], other[..., 2:]) - torch.minimum(one[..., :2], other[..., :2])
    around = sides[..., 0] * sides[..., 1]
    return _ratio(shared, union) - _ratio(around - union, around)


def to_boxes(points: Tensor, distances: Tensor) -> Tensor:
    """Points (..., 2) and the distances (..., 4) from them to left, top, right and bottom -> (..., 4)."""
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def to_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """The inverse of `to_boxes`; a distance is negative where the point lies beyond that side."""
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def nms(boxes: Tensor, scores: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """(K,) places of the boxes that are kept, surest first: a box goes if a kept, surer one of its label
    overlaps it by an IoU above `threshold`.

    The greedy rule is the one solution of kept[j] = no kept i < j overlaps j, which is reached by iterating:
    after n rounds the first n are right, and mostly all are after a few (Cluster-NMS, arXiv 2005.03572).

    Args:
        boxes: (N, 4).
        scores: (N,); the earlier of two equal ones counts as surer.
        labels: (N,).
    """
    order = scores.argsort(descending=True, stable=True)
    boxes, labels = boxes[order], labels[order]
    overlaps = (iou(boxes, boxes) > threshold) & (labels[:, None] == labels)
    overlaps = overlaps.triu(diagonal=1)
    kept = torch.ones_like(labels, dtype=torch.bool)
    while True:
        after = ~(overlaps & kept[:, None]).any(dim=0)
        if after.equal(kept):
            return order[kept]
        kept = after


def _shared_and_union(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    sides = torch.minimum(one[..., 2:], other[..., 2:]) - torch.maximum(one[..., :2], other[..., :2])
    sides = sides.clamp(min=0.0)
    shared = sides[..., 0] * sides[..., 1]
    return shared, areas(one) + areas(other) - shared


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """part / whole, and 0 (with no gradient) where there is no whole."""
    there = whole > 0.0
    return torch.where(
        there, part / torch.where(there, whole, torch.ones_like(whole)), torch.zeros_like(part)
    )
