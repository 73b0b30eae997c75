"""What a NanoDet learns from: which points answer for which box, and how wrong they are.

    loss = QFL + 2 · GIoU + 1/4 · DFL, the weights of NanoDet's configs

The assigner is NanoDet-Plus's, which asks the network itself which points see a box best. A network that
knows how to draw boxes, and is to learn what new ones are called, begins by assigning well, and has nothing
to unlearn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div

from lorimer.tasks._box_maths import giou_pairs, iou, to_boxes, to_distances
from lorimer.tasks._detector import Truth

_GIOU_WEIGHT, _DFL_WEIGHT = 2.0, 0.25
_FOCUS = 2.0  # the exponent β of the quality focal loss
_MOST_POINTS = 13  # of one box
_OVERLAP_WEIGHT = 3.0
_EPSILON = 1e-7
_SAYS_SOMETHING = 0.1  # the least score of a point where the base sees a thing


@dataclass(frozen=True)
class Assigned:
    """K points that answer for boxes, each for one.

    Attributes:
        points: (K,) their places.
        boxes: (K,) which boxes.
        overlaps: (K,) the IoU of what each point draws and its box.
    """

    points: Tensor
    boxes: Tensor
    overlaps: Tensor


def quality_focal_loss(logits: Tensor, quality: Tensor) -> Tensor:
    """|y - σ|^β · BCE(σ, y) of each logit, where y in [0, 1] is the quality of its box, and 0 where there is
    none: arXiv 2006.04388, equation 2, with β = 2. Any shape -> the same."""
    distance = (quality - logits.sigmoid()).abs()
    return distance**_FOCUS * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def distribution_focal_loss(logits: Tensor, values: Tensor) -> Tensor:
    """The cross entropy of the two bins around each value, each weighted by how near it is:
    arXiv 2006.04388, equation 6. Logits (N, bins), values (N,) in [0, bins - 1) -> (N,)."""
    left = values.long()
    share = values - left
    below, above = (cross_entropy(logits, bin, reduction="none") for bin in (left, left + 1))
    return (1.0 - share) * below + share * above


def expected_boxes(distances: Tensor, points: Tensor, strides: Tensor) -> Tensor:
    """Logits (..., P, 4, bins) of distances in strides -> boxes (..., P, 4) in pixels, by the expectation of
    each distance (arXiv 2006.04388, equation 5).

    Args:
        points: (P, 2) in pixels.
        strides: (P,) in pixels.
    """
    bins = torch.arange(distances.shape[-1], device=distances.device, dtype=distances.dtype)
    return to_boxes(points, distances.softmax(-1) @ bins * strides[:, None])


def assign(logits: Tensor, boxes: Tensor, points: Tensor, truth: Truth) -> Assigned:
    """The points that answer for the boxes of one picture: `DynamicSoftLabelAssigner` of
    https://github.com/RangiLyu/nanodet, which goes back to OTA (arXiv 2103.14430).

    Of the points inside a box those answer that cost least: by the loss of their scores, if the quality were
    the overlap, and by -3 log IoU. As many do as the 13 best overlaps add up to, but at least one. A point
    that several boxes want goes to the one where it costs least. A box without a point inside, as only one
    below the finest stride can be, has none.

    Args:
        logits: (P, classes).
        boxes: (P, 4) that the points draw.
        points: (P, 2).
    """
    inside = (to_distances(points[:, None], truth.boxes[None]) > 0.0).all(-1)  # (P, G)
    places = inside.any(1).nonzero()[:, 0]
    if not len(places):
        return Assigned(places, places, logits.new_zeros(0))
    overlaps = iou(boxes[places], truth.boxes)
    costs = _class_costs(logits[places], overlaps, truth.labels)
    costs = costs - _OVERLAP_WEIGHT * (overlaps + _EPSILON).log()
    costs = costs.masked_fill(~inside[places], torch.inf)
    counts = overlaps.topk(min(_MOST_POINTS, len(places)), dim=0).values.sum(0).long().clamp(min=1)
    ranks = costs.argsort(dim=0, stable=True).argsort(dim=0)
    wanted = (ranks < counts) & costs.isfinite()
    least, chosen = costs.masked_fill(~wanted, torch.inf).min(1)
    answering = least.isfinite()
    chosen = chosen[answering]
    return Assigned(places[answering], chosen, overlaps[answering].gather(1, chosen[:, None])[:, 0])


def detection_loss(
    logits: Tensor, distances: Tensor, points: Tensor, strides: Tensor, truths: Sequence[Truth]
) -> Tensor:
    """The mean loss of a batch, a scalar.

    Args:
        logits: (B, P, classes) of the scores.
        distances: (B, P, 4, bins) logits.
        points: (P, 2) in pixels.
        strides: (P,) in pixels.
        truths: of each picture; one without boxes teaches what is none.
    """
    boxes = expected_boxes(distances, points, strides)
    with torch.no_grad():
        each = [
            assign(said, drawn, points, truth)
            for said, drawn, truth in zip(logits, boxes, truths, strict=True)
        ]
    picture = torch.cat([torch.full_like(one.points, place) for place, one in enumerate(each)])
    point = torch.cat([one.points for one in each])
    labels = torch.cat([truth.labels[one.boxes] for one, truth in zip(each, truths, strict=True)])
    wanted = torch.cat([truth.boxes[one.boxes] for one, truth in zip(each, truths, strict=True)])

    quality = torch.zeros_like(logits)
    quality[picture, point, labels] = torch.cat([one.overlaps for one in each])
    scoring = quality_focal_loss(logits, quality).sum() / max(len(point), 1)

    sureness = logits.detach()[picture, point].sigmoid().amax(1)
    bins = distances.shape[-1]
    sides = to_distances(points[point], wanted) / strides[point][:, None]
    blur = distribution_focal_loss(
        distances[picture, point].flatten(0, 1), sides.clamp(0.0, bins - 1.1).flatten()
    )
    placing = _GIOU_WEIGHT * (1.0 - giou_pairs(boxes[picture, point], wanted))
    placing = placing + _DFL_WEIGHT * blur.view(-1, 4).mean(1)
    return scoring + (sureness * placing).sum() / sureness.sum().clamp(min=1.0)


def drift(now: tuple[Tensor, Tensor], before: tuple[Tensor, Tensor]) -> Tensor:
    """How far old classes and their boxes have moved from what the base says of the same pictures, a scalar:
    learning without forgetting (arXiv 1606.09282) for a detector.

    Scores are pulled to the base's by the quality focal loss, and each distance's distribution by its
    Kullback-Leibler divergence, as in localization distillation (arXiv 2102.12252). A point counts as much
    as the base is sure of something there, scores of all points together as the sure ones.

    Args:
        now, before: logits (B, P, old classes) of the scores, and (B, P, 4, bins) of the distances.
    """
    (logits, distances), (said, drawn) = now, before
    wanted = said.sigmoid()
    sureness = wanted.amax(-1)
    sureness = sureness * (sureness > _SAYS_SOMETHING)
    count = sureness.sum().clamp(min=1.0)
    moved = kl_div(distances.log_softmax(-1), drawn.log_softmax(-1), reduction="none", log_target=True)
    placing = (sureness * moved.sum(-1).mean(-1)).sum()
    return (quality_focal_loss(logits, wanted).sum() + placing) / count


def _class_costs(logits: Tensor, overlaps: Tensor, labels: Tensor) -> Tensor:
    """(P, G): the quality focal loss of a point's scores if it answered for a box of this overlap."""
    none = quality_focal_loss(logits, torch.zeros_like(logits))
    right = quality_focal_loss(logits[:, labels], overlaps)
    return none.sum(1, keepdim=True) - none[:, labels] + right
