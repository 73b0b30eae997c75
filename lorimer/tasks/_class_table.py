"""How well each label is told: precision, recall and F1, as a table."""

from __future__ import annotations

import csv
import io

from torch import Tensor

from lorimer.tasks._labels import Labels
from lorimer.tasks._scores import confusion, f1


def class_table(logits: Tensor, target: Tensor, labels: Labels) -> str:
    """CSV with a row for each label: label, precision, recall, f1, count (that have it), predicted.

    Args:
        logits: (N, labels).
        target: (N,) places, or (N, labels) of 0 and 1.
    """
    if labels.kind == "multi":
        predicted, wanted = logits > 0, target > 0.5
        both, told, there = ((predicted & wanted).sum(0), predicted.sum(0), wanted.sum(0))
    else:
        matrix = confusion(logits.argmax(1), target, len(labels.names))
        both, told, there = matrix.diag(), matrix.sum(0), matrix.sum(1)
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(("label", "precision", "recall", "f1", "count", "predicted"))
    columns = (both / told.clamp(min=1), both / there.clamp(min=1), f1(both, told, there))
    shares = [[f"{value:.4f}" for value in column.tolist()] for column in columns]
    table.writerows(zip(labels.names, *shares, there.tolist(), told.tolist(), strict=True))
    return written.getvalue()
