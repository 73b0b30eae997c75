"""A trained classifier of texts, from its adapter's file: labels and head stand in it."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

import lorimer
from lorimer.adapters._state import AdapterState
from lorimer.errors import FileFormatError
from lorimer.tasks._language_files import load_pretrained, load_tokenizer

# What a file of a base model may lack: heads and poolers, which are trained and saved with the adapter.
MAY_LACK = (
    r"(^|\.)(classifier|score|pre_classifier|pooler|pre_pooler|head|classification_head|summary"
    r"|sequence_summary|logits_proj)\b"
)


def load_with_head(
    name: str, labels: Sequence[str], tokenizer: Any, dtype: torch.dtype | Literal["auto"] = torch.float32
) -> tuple[nn.Module, list[str]]:
    """A base model with a head for these labels, and which of its weights are new.

    Raises: as `load_pretrained`.
    """
    from transformers import AutoModelForSequenceClassification

    model, new = load_pretrained(
        AutoModelForSequenceClassification,
        name,
        dtype,
        may_lack=MAY_LACK,
        **labelled(labels),
    )
    config: Any = model.config
    config.pad_token_id = tokenizer.pad_token_id
    return model, new


def labelled(labels: Sequence[str]) -> dict[str, Any]:
    """What `from_pretrained` must be told for a head with these labels."""
    return {
        "id2label": dict(enumerate(labels)),
        "label2id": {each: place for place, each in enumerate(labels)},
        "ignore_mismatched_sizes": True,
    }


def heads_of(model: nn.Module, new: Sequence[str], may_lack: str) -> list[str]:
    """Paths of what is trained in full in a classifier of transformers: its head, whose name `may_lack`
    matches, and modules whose weights are new."""
    base = getattr(model, "base_model_prefix", "")  # need not be the name of a child
    heads = [
        name
        for name, child in model.named_children()
        if name != base and re.search(may_lack, name) and any(True for _ in child.parameters())
    ]
    others = sorted({key.rpartition(".")[0] for key in new})
    return [*heads, *(each for each in others if each.partition(".")[0] not in heads)]


def spared_in(model: nn.Module, paths: Collection[str]) -> list[str]:
    """The modules at these paths and all in them."""
    return [
        name
        for name, _ in model.named_modules()
        if any(name == path or name.startswith(f"{path}.") for path in paths)
    ]


def fill(model: nn.Module, new: Sequence[str], state: AdapterState) -> None:
    """Weights that the base lacks are as trained at every strength, since there is no base to go back to."""
    for name in state.full.keys() & set(new):
        parameter, value = model.get_parameter(name), state.full[name].value
        if parameter.shape == value.shape:
            parameter.data.copy_(value)


def answer(logits: Tensor, kind: str, labels: Sequence[str]) -> dict[str, Any]:
    """Of one example `labels` (those that hold) and `probabilities` (label -> share), or a `value`."""
    if kind == "regression":
        return {"value": logits.item()}
    shares = logits.softmax(0) if kind == "single" else logits.sigmoid()
    named = dict(zip(labels, shares.tolist(), strict=True))
    several = [label for label, share in named.items() if share > 0.5]
    return {"labels": [labels[int(shares.argmax())]] if kind == "single" else several, "probabilities": named}


def put_on(model: nn.Module, adapter: Path, strength: float) -> None:
    """Load an adapter's file onto its base, ready to answer on the fastest device."""
    lorimer.load(model, adapter).strength = strength
    model.to(torch.accelerator.current_accelerator(check_available=True) or "cpu").eval()


@dataclass(frozen=True)
class Classifier:
    """A base model with a trained adapter and head.

    Attributes:
        kind: "single", "multi" or "regression".
        labels: what its outputs are called; none for a number.
        max_length: tokens of the longest text in training; longer ones are cut.
        pair: the column of second texts, where pairs were learned.
    """

    model: nn.Module
    tokenizer: Any
    kind: str
    labels: tuple[str, ...]
    max_length: int
    pair: str | None = None

    @classmethod
    def load(
        cls,
        adapter: Path,
        base: str,
        strength: float = 1.0,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
    ) -> Classifier:
        """The classifier of an adapter's file, on the fastest device; `dtype` as for `load_pretrained`.

        Raises:
            FileFormatError: the file is of no classifier, or does not fit the base.
        """
        state = lorimer.read(adapter)
        facts = state.metadata
        if "label_kind" not in facts:
            raise FileFormatError(f"{adapter}: is not the adapter of a text classifier: it names no labels")
        labels = tuple(json.loads(facts["labels"]))
        tokenizer = load_tokenizer(base)
        tokenizer.padding_side = "right"  # as in training
        model, new = load_with_head(base, labels or ("value",), tokenizer, dtype)
        fill(model, new, state)
        put_on(model, adapter, strength)
        length = int(facts.get("max_length", 256))
        return cls(model, tokenizer, facts["label_kind"], labels, length, facts.get("pair"))

    def predict(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None, batch_size: int = 32
    ) -> list[dict[str, Any]]:
        """Of each text `labels` (those that hold) and `probabilities` (label -> share), or a `value`.

        Args:
            pairs: of each text the second one, where pairs were learned.
        """
        order = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        found: dict[int, dict[str, Any]] = {}
        device = next(self.model.parameters()).device
        for begin in range(0, len(order), batch_size):
            places = order[begin : begin + batch_size]
            batch = self.tokenizer(
                [texts[place] for place in places],
                None if pairs is None else [pairs[place] for place in places],
                truncation=True,
                max_length=self.max_length,
                padding=True,
                return_tensors="pt",
            ).to(device)
            with torch.no_grad():
                logits = self.model(**batch).logits.float().cpu()
            found |= {
                place: answer(row, self.kind, self.labels) for place, row in zip(places, logits, strict=True)
            }
        return [found[place] for place in range(len(texts))]
