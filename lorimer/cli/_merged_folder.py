"""A language model or a classifier with its adapter folded in, as a folder in transformers' layout.
Commands import this file when they run, since it imports torch."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch

import lorimer
from lorimer.errors import UsageError
from lorimer.formats.safe_io import publish_folder
from lorimer.ops.merge import MergeReport
from lorimer.tasks._classifier import Classifier
from lorimer.tasks._language_files import load_causal, quietly

_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def write_merged_folder(
    adapter: Path, base: str, output: Path, strength: float = 1.0, dtype: torch.dtype | None = None
) -> MergeReport:
    """Fold an adapter into its base and write the model, its tokenizer and a classifier's head.

    Args:
        dtype: precision of the weights; None keeps the base's own.

    Raises:
        UsageError: there is something at `output`.
        FileFormatError: the adapter or the base cannot be read, or they do not fit each other.
        LorimerError: the adapter cannot be merged, or would give NaN; nothing is written.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; name another folder or remove it")
    model, tokenizer = _adapted(adapter, base, strength)
    report = lorimer.merge(model, keep_original=False)
    if dtype is not None:
        model.to(dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as beside:
        staged = Path(beside) / "model"
        with quietly():
            model.save_pretrained(staged)
            tokenizer.save_pretrained(staged)
        _settle(staged)
        publish_folder(staged, output)
    return report


def _settle(folder: Path) -> None:
    """Make files last, and as readable as others: safetensors leaves its own to their owner alone."""
    mode = (folder / "config.json").stat().st_mode
    for path in folder.iterdir():
        path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _adapted(adapter: Path, base: str, strength: float) -> tuple[Any, Any]:
    """The base model in its own precision with the adapter on it, and its tokenizer."""
    if "label_kind" in lorimer.read(adapter).metadata:
        classifier = Classifier.load(adapter, base, strength, dtype="auto")
        model: Any = classifier.model.cpu()
        model.config.problem_type = _PROBLEMS[classifier.kind]
        return model, classifier.tokenizer
    model, tokenizer = load_causal(base, "auto")
    lorimer.load(model, adapter).strength = strength
    return model, tokenizer
