"""A language model, a classifier or a detector with its adapter folded in, as a folder. Commands import this
file when they run, since it imports torch."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import lorimer
from lorimer.errors import UsageError
from lorimer.formats.safe_io import publish_folder, write_safetensors
from lorimer.ops.merge import MergeReport
from lorimer.tasks._classifier import Classifier
from lorimer.tasks._image_classifier import ImageClassifier
from lorimer.tasks._image_preparation import Asked, ByProcessor
from lorimer.tasks._language_files import load_causal, quietly
from lorimer.tasks._nanodet import NanoDetDetector
from lorimer.tasks._nanodet_files import write_nanodet
from lorimer.tasks._trained_detector import TrainedDetector
from lorimer.tasks._transformers_detector import TransformersDetector

_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}


def write_merged_folder(
    adapter: Path, base: str, output: Path, strength: float = 1.0, dtype: torch.dtype | None = None
) -> MergeReport:
    """Fold an adapter into its base and write the model, with its tokenizer or image processor and its head.

    The folder is in transformers' layout, a NanoDet's in its own; of another network it holds
    `model.safetensors`, its state dict.

    Args:
        dtype: precision of the weights; None keeps the base's own.

    Raises:
        UsageError: `output` is there or named like a file, or the adapter's task has no such folder.
        FileFormatError: the adapter or the base cannot be read, or they do not fit each other.
        LorimerError: the adapter cannot be merged, or would give NaN; nothing is written.
    """
    if output.exists():
        raise UsageError(f"{output} exists already; name another folder or remove it")
    if output.suffix == ".safetensors":
        raise UsageError(f"--output: {output}: such a model becomes a folder; name it without .safetensors")
    adapted = adapted_base(adapter, base, strength)
    report = lorimer.merge(adapted.model, keep_original=False)
    if dtype is not None:
        adapted.model.to(dtype)
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent) as beside:
        staged = Path(beside) / "model"
        staged.mkdir()
        with quietly():
            adapted.save(staged)
        _settle(staged)
        publish_folder(staged, output)
    return replace(report, notes=(*report.notes, *adapted.notes))


@dataclass(frozen=True)
class AdaptedBase:
    """A base model in its own precision with an adapter on it, on the CPU.

    Attributes:
        save: writes it into a folder that is there.
        notes: what the folder does not say of it, for a person to read.
    """

    model: nn.Module
    save: Callable[[Path], object]
    notes: tuple[str, ...] = ()


def adapted_base(adapter: Path, base: str, strength: float) -> AdaptedBase:
    """The base model that the adapter's task loads, with its head.

    Raises: as `write_merged_folder`.
    """
    task = lorimer.read(adapter).metadata.get("task", "")
    if task not in _OF_TASK:
        raise UsageError(f"{adapter}: is of the task {task or '(unknown)'}, whose models are no such folders")
    return _OF_TASK[task](adapter, base, strength)


def _causal(adapter: Path, base: str, strength: float) -> AdaptedBase:
    model, tokenizer = load_causal(base, "auto")
    lorimer.load(model, adapter).strength = strength
    return AdaptedBase(model, _saving(model, tokenizer))


def _text_classifier(adapter: Path, base: str, strength: float) -> AdaptedBase:
    found = Classifier.load(adapter, base, strength, dtype="auto")
    model: Any = found.model.cpu()
    model.config.problem_type = _PROBLEMS[found.kind]
    return AdaptedBase(model, _saving(model, found.tokenizer))


def _image_classifier(adapter: Path, base: str, strength: float) -> AdaptedBase:
    found = ImageClassifier.load(adapter, base, strength, dtype="auto")
    model: Any = found.model.cpu()
    facts = lorimer.read(adapter).metadata
    if not isinstance(found.preparation.values, ByProcessor):
        told = {name: facts[name] for name in ("labels", "label_kind", "preparation")}

        def save(folder: Path) -> None:
            state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
            write_safetensors(state, folder / "model.safetensors", told)

        return AdaptedBase(model, save, ("model.safetensors is the network's state dict",))
    model.config.problem_type = _PROBLEMS[found.kind]
    asked, processor = Asked.read(facts["preparation"]), found.preparation.values.processor
    for name, values in (("image_mean", asked.mean), ("image_std", asked.std)):
        if values is not None:
            setattr(processor, name, list(values))
    notes: tuple[str, ...] = ()
    if asked.size is not None or asked.fit is not None:
        notes = (f"trained on pictures prepared with {asked}, which the folder's image processor cannot say",)
    return AdaptedBase(model, _saving(model, processor), notes)


def _detector(adapter: Path, base: str, strength: float) -> AdaptedBase:
    found = TrainedDetector.load(adapter, base, strength, dtype="auto")
    model: Any = found.model.cpu()
    detector = found.detector
    if isinstance(detector, NanoDetDetector):
        config = replace(detector.config, input_size=detector.side)
        return AdaptedBase(model, lambda folder: write_nanodet(model, config, folder))
    assert isinstance(detector, TransformersDetector) and detector.canvas is not None
    height, width = detector.canvas
    processor = detector.processor
    if detector.stretches:
        processor.size = {"height": height, "width": width}
        return AdaptedBase(model, _saving(model, processor))
    note = f"trained on pictures fitted into {width} x {height} px; the image processor is the base's"
    return AdaptedBase(model, _saving(model, processor), (note,))


_OF_TASK: dict[str, Callable[[Path, str, float], AdaptedBase]] = {
    "text-generation": _causal,
    "text-classification": _text_classifier,
    "image-classification": _image_classifier,
    "object-detection": _detector,
}


def _saving(*parts: Any) -> Callable[[Path], None]:
    """Writes a model of transformers and what prepares its input."""

    def save(folder: Path) -> None:
        for part in parts:
            part.save_pretrained(folder)

    return save


def _settle(folder: Path) -> None:
    """Make files last, and as readable as others: safetensors leaves its own to their owner alone."""
    mode = (folder / "config.json").stat().st_mode if (folder / "config.json").is_file() else None
    for path in folder.iterdir():
        if mode is not None:
            path.chmod(mode)
        with path.open("rb") as file:
            os.fsync(file.fileno())
