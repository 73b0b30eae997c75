"""How good predictions are: plain formulas over logits and labels."""

from __future__ import annotations

import torch
from torch import Tensor

_BINS = 10
_FIRST = 5


def confusion(predicted: Tensor, right: Tensor, labels: int) -> Tensor:
    """(labels, labels): how many of each right label (row) were predicted as each (column)."""
    return torch.bincount(right * labels + predicted, minlength=labels * labels).view(labels, labels)


def f1(true_positive: Tensor, predicted: Tensor, right: Tensor) -> Tensor:
    """2·tp / (predicted + right), which is 0 where both are 0."""
    return 2.0 * true_positive / (predicted + right).clamp(min=1)


def macro_f1(matrix: Tensor) -> float:
    """The mean of each label's F1 from a confusion matrix, over labels that are there or were predicted."""
    predicted, right = matrix.sum(0), matrix.sum(1)
    return f1(matrix.diag(), predicted, right)[(predicted + right) > 0].mean().item()


def calibration_error(probabilities: Tensor, right: Tensor) -> float:
    """The expected calibration error (arXiv 1706.04599, equation 3), over ten bins of confidence: by how much
    confidence and accuracy differ.

    Args:
        probabilities: (N, labels).
        right: (N,).
    """
    confidence, predicted = probabilities.max(1)
    bins = (confidence * _BINS).long().clamp(max=_BINS - 1)
    gaps = torch.zeros(_BINS, dtype=torch.float64)
    gaps.index_add_(0, bins, (confidence - (predicted == right).to(confidence.dtype)).double())
    return (gaps.abs().sum() / len(right)).item()


def top_accuracy(logits: Tensor, right: Tensor, count: int) -> float:
    """The share of (N, labels) logits whose `count` highest hold that of the right label, (N,)."""
    return (logits.topk(count, dim=1).indices == right[:, None]).any(1).double().mean().item()


def of_single(logits: Tensor, right: Tensor) -> dict[str, float]:
    """Accuracy, macro F1 and calibration error of (N, labels) logits against (N,) labels; of more than five
    labels also how often the right one is among the five likeliest."""
    predicted = logits.argmax(1)
    among = (
        {} if logits.shape[1] <= _FIRST else {f"top_{_FIRST}_accuracy": top_accuracy(logits, right, _FIRST)}
    )
    return {
        "accuracy": (predicted == right).double().mean().item(),
        **among,
        "macro_f1": macro_f1(confusion(predicted, right, logits.shape[1])),
        "calibration_error": calibration_error(logits.softmax(1), right),
    }


def of_multi(logits: Tensor, right: Tensor) -> dict[str, float]:
    """Micro and macro F1, over labels as in `macro_f1`, and how many rows are all right, of logits and 0/1
    labels, both (N, labels)."""
    predicted, wanted = logits > 0, right > 0.5
    both, there = (predicted & wanted).sum(0).double(), (predicted | wanted).any(0)
    each = f1(both, predicted.sum(0), wanted.sum(0))[there]
    return {
        "micro_f1": f1(both.sum(), predicted.sum(), wanted.sum()).item(),
        "macro_f1": each.mean().item() if there.any() else 1.0,
        "all_right": (predicted == wanted).all(1).double().mean().item(),
    }


def of_regression(values: Tensor, right: Tensor) -> dict[str, float]:
    """Mean absolute error and the correlation coefficients of Pearson and Spearman, of (N,) values."""
    return {
        "mean_absolute_error": (values - right).abs().mean().item(),
        "pearson": _correlation(values, right),
        "spearman": _correlation(_ranks(values), _ranks(right)),
    }


def _correlation(one: Tensor, other: Tensor) -> float:
    """0 where either never varies."""
    one, other = one.double() - one.double().mean(), other.double() - other.double().mean()
    length = one.norm() * other.norm()
    return (one @ other / length).item() if length > 0 else 0.0


def _ranks(values: Tensor) -> Tensor:
    """Ranks, equal values sharing their mean rank."""
    _, place, count = values.unique(return_inverse=True, return_counts=True)
    last = count.cumsum(0).double()
    return (last - (count - 1) / 2.0)[place]
