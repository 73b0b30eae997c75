"""What a classifier learns by and is judged by, whatever it classifies: targets, losses, weights, scores."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, mse_loss

from lorimer.errors import DataError
from lorimer.tasks._labels import Label, Labels
from lorimer.tasks._scores import of_multi, of_regression, of_single


def targets(found: Sequence[Label], labels: Labels) -> Tensor:
    """(N,) places or numbers; (N, labels) of 0 and 1 where there may be several."""
    if labels.kind != "multi":
        return torch.tensor(found)
    target = torch.zeros(len(found), len(labels.names))
    for row, places in enumerate(found):
        target[row, list(places)] = 1.0  # type: ignore[arg-type]
    return target


def losses(logits: Tensor, target: Tensor, kind: str, smoothing: float = 0.0) -> Tensor:
    """(N,) of each example: cross-entropy, its mean over labels that each hold or not, or the squared error.

    Args:
        logits: (N, labels), or (N, 1) for a number.
        target: as from `targets`.
        smoothing: the share of the target that is spread over all labels (arXiv 1512.00567, section 7).
    """
    if kind == "single":
        return cross_entropy(logits, target, reduction="none", label_smoothing=smoothing)
    if kind == "multi":
        smoothed = target * (1.0 - smoothing) + 0.5 * smoothing
        return binary_cross_entropy_with_logits(logits, smoothed, reduction="none").mean(1)
    return mse_loss(logits[:, 0], target.float(), reduction="none")


def scores(logits: Tensor, target: Tensor, kind: str) -> dict[str, float]:
    """How good these predictions are, by what suits the kind."""
    if kind == "single":
        return of_single(logits, target)
    return of_multi(logits, target) if kind == "multi" else of_regression(logits[:, 0], target)


def predicted(
    logits_of: Callable[[dict[str, Tensor]], Tensor], batches: Iterable[dict[str, Tensor]]
) -> tuple[Tensor, Tensor]:
    """Logits (N, labels) and targets of all batches, on the CPU."""
    found = [(logits_of(batch).cpu(), batch["label"].cpu()) for batch in batches]
    return torch.cat([logits for logits, _ in found]), torch.cat([target for _, target in found])


def judged(logits: Tensor, target: Tensor, kind: str, smoothing: float) -> dict[str, float]:
    """The mean loss of held-out examples, and scores."""
    loss = losses(logits, target, kind, smoothing).mean().item()
    return {"validation_loss": loss, **scores(logits, target, kind)}


def balanced(found: Sequence[Label], labels: Labels) -> list[float]:
    """Of each label, so that all count the same together: examples / (labels · examples of that label).

    Raises:
        DataError: a label has no example.
    """
    counts = Counter(found)
    missing = [name for place, name in enumerate(labels.names) if not counts[place]]
    if missing:
        raise DataError(f"objective.class_weights: nothing that is learned from has the label {missing[0]!r}")
    return [len(found) / (len(counts) * counts[place]) for place in range(len(labels.names))]
