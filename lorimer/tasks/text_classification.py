"""Text classification: an encoder or a language model with a head learns to say what texts are.

The head is always trained in full and saved with the adapter, and so is whatever else the base's files lack;
what the labels are called stands in the adapter's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from accelerate.utils import send_to_device
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import Dataset

from lorimer.errors import RecipeError
from lorimer.tasks._base import Section, Task
from lorimer.tasks._classified_texts import Text, as_texts
from lorimer.tasks._classifier import MAY_LACK, heads_of, load_with_head, spared_in
from lorimer.tasks._confusion import save_confusion
from lorimer.tasks._fixed_examples import FixedExamples, behind
from lorimer.tasks._held_out import split
from lorimer.tasks._label_losses import balanced, judged, losses, predicted, targets
from lorimer.tasks._label_sections import LabelObjective
from lorimer.tasks._labels import Labels, find_labels
from lorimer.tasks._language_files import load_tokenizer, within_positions
from lorimer.tasks._linear_probe import KNOWN, begin_head
from lorimer.tasks._model_files import shown_name
from lorimer.tasks._packed_texts import Layers, Packed, layers_of
from lorimer.tasks._scores import confusion
from lorimer.tasks._sequences import in_parts
from lorimer.tasks._text_rows import read_rows
from lorimer.tasks._text_sections import HeldOut

if TYPE_CHECKING:
    from lorimer.attachment.attached import AttachedAdapter
    from lorimer.train.recipe import Recipe


_OF_EXAMPLES = ("label", "weight", "states")  # of a batch, what the tokenizer and the model are not told


class Examples(FixedExamples):
    """Tokenised texts: "input_ids", ... and "label", with the `weights` of their classes where these are
    asked for. Not in groups of like lengths: batches would differ more than by chance, and teach less.

    Args:
        kept: whether what the model's frozen layers give for a text can be kept.
    """

    def __init__(
        self,
        texts: Sequence[Text],
        tokenizer: Any,
        max_length: int,
        counts: Sequence[float] = (),
        kept: bool = False,
    ) -> None:
        pairs = [text.pair for text in texts]
        second = pairs if texts and pairs[0] is not None else None
        told = tokenizer([text.text for text in texts], second, truncation=True, max_length=max_length)
        tokens = [{name: told[name][place] for name in told} for place in range(len(texts))]
        self.rows = [
            {**each, "label": text.label, "weight": 1.0} for each, text in zip(tokens, texts, strict=True)
        ]
        self.lengths = [len(row["input_ids"]) for row in self.rows]
        self.weights: tuple[float, ...] = ()
        if counts:
            for row in self.rows:
                row["weight"] = counts[row["label"]]
            self.weights = tuple(row["weight"] for row in self.rows)
        self.keys = tuple(json.dumps(each) for each in tokens) if kept else ()

    def __len__(self) -> int:
        return len(self.rows)

    def example(self, index: int) -> dict[str, Any]:
        return self.rows[index]


class TextClassification(Task):
    """Adapts an encoder or a language model of transformers, and trains its head."""

    name = "text-classification"
    description = "A text model learns labels, several labels or a number for texts"

    class Data(Section):
        """What it learns from."""

        aliases: ClassVar[Mapping[str, str]] = {
            "dataset": "path",
            "text_column": "text",
            "label_column": "label",
            "max_samples": "max_rows",
        }

        path: str
        """A file (CSV, TSV, JSON, JSONL, Parquet, YAML), a folder of such or with a folder for each label, or
        a name on the hub."""
        split: str | None = None
        """Which split of a dataset on the hub; null: `train`."""
        subset: str | None = None
        """Which configuration of a dataset on the hub."""
        max_rows: PositiveInt | None = None
        """Read no more rows than these, the first. JSONL, tables and Parquet are read no further; a dataset
        on the hub is streamed, and no more of it fetched."""
        text: str = "text"
        """The column of the texts."""
        pair: str | None = None
        """The column of second texts, where pairs are classified."""
        label: str = "label"
        """The column of the labels."""
        kind: Literal["single", "multi", "regression"] | None = None
        """One label a text, several, or a number; null finds it out: lists are several labels, numbers with
        fractions a number."""
        labels: tuple[str, ...] = ()
        """The labels, in the order that the head has them; by default all that there are, sorted."""
        max_length: PositiveInt = 256
        """Tokens of the longest text; longer ones are cut."""
        validation: HeldOut = HeldOut()
        """Held-out texts."""

    Objective: ClassVar[type[LabelObjective]] = LabelObjective

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self.held_out: Examples | None = None
        self._told: list[str] = []
        self._new: list[str] = []
        self._layers: Layers | None = None

    def model(self) -> nn.Module:
        data, name = self.recipe.data, self.recipe.model
        if not isinstance(name, str):
            raise RecipeError("model: text-classification needs `minilm`, a folder or a hub name")
        self._rows = read_rows(
            data.path, split=data.split, subset=data.subset, limit=data.max_rows, by_label=True
        )
        self.labels = find_labels(self._rows, data.label, data.kind, data.labels)
        if self.labels.kind != "single" and self.recipe.objective.class_weights != "none":
            raise RecipeError(
                "objective.class_weights: there are no classes to weigh unless each text has one"
            )
        names = self.labels.names or ("value",)
        self.tokenizer = load_tokenizer(name)
        self.tokenizer.padding_side = "right"  # positions and poolers count from the first token
        dtype = self.recipe.train.weights_dtype()
        model, self._new = load_with_head(name, names, self.tokenizer, dtype)
        self._layers = layers_of(model)
        self._section, self._told = within_positions(data, model)
        return model

    def full(self, model: nn.Module) -> Mapping[str, Sequence[int] | None]:
        """The head, and modules whose weights are new."""
        return dict.fromkeys(heads_of(model, self._new, MAY_LACK))

    def spared(self, model: nn.Module) -> Sequence[str]:
        """What is trained in full."""
        return spared_in(model, self.full(model))

    def data(self, model: nn.Module) -> Dataset[Any]:
        data = self._section
        texts, told = as_texts(self._rows, self.labels, data.text, data.pair, data.label)
        self._told += told
        held_out: list[Text] = []
        if data.validation.path is not None:
            rows = read_rows(
                data.validation.path, split=data.validation.split, subset=data.subset, by_label=True
            )
            held_out, told = as_texts(rows, self.labels, data.text, data.pair, data.label)
            self._told += [f"held out: {line}" for line in told]
        elif data.validation.fraction is not None:
            texts, held_out = split(texts, data.validation.fraction, self.recipe.train.seed)
            self._told.append(f"{len(texts):,} to learn from, {len(held_out):,} held out")
        kept = self._layers is not None
        if held_out:
            self.held_out = Examples(held_out, self.tokenizer, data.max_length, kept=kept)
        asked = self.recipe.objective.class_weights == "balanced"
        counts = balanced([text.label for text in texts], self.labels) if asked else ()
        examples = Examples(texts, self.tokenizer, data.max_length, counts, kept)
        cut = sum(length >= data.max_length for length in examples.lengths)
        if cut:
            self._told.append(f"{cut} texts reach data.max_length, {data.max_length} tokens, and may be cut")
        return examples

    def begin(self, adapter: AttachedAdapter, batches: Iterable[Any]) -> str:
        if self.recipe.objective.head_start == "random":
            return ""
        if not self._new:
            return KNOWN
        return begin_head(
            adapter,
            tuple(self.full(adapter.model)),
            len(self.labels.names) or 1,
            batches,
            partial(self._logits, adapter.model),
            self._losses,
        )

    def collate(self, examples: Sequence[Any]) -> Any:
        texts = [
            {key: value for key, value in example.items() if key not in _OF_EXAMPLES} for example in examples
        ]
        batch = dict(self.tokenizer.pad(texts, return_tensors="pt"))
        batch["weight"] = torch.tensor([example["weight"] for example in examples])
        if "states" in examples[0]:
            states = zip(*(example["states"] for example in examples), strict=True)
            batch["states"] = tuple(pad_sequence(list(each), batch_first=True) for each in states)
        return {**batch, "label": targets([example["label"] for example in examples], self.labels)}

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        each = self._losses(self._logits(model, batch), batch["label"])
        return (each * batch["weight"]).sum() / batch["weight"].sum()

    def _losses(self, logits: Tensor, target: Tensor) -> Tensor:
        return losses(logits, target, self.labels.kind, self.recipe.objective.label_smoothing)

    def _logits(self, model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """(texts, labels) Without padding, or in parts of like lengths, each padded to its own longest: the
        same as at once, cheaper."""
        told = {key: value for key, value in batch.items() if key not in _OF_EXAMPLES}
        mask, anew = told["attention_mask"], self.recipe.train.gradient_checkpointing
        if self._layers is None:
            logits = in_parts(lambda part: model(**part).logits, told, mask.sum(1), recomputed=anew)
        else:
            with self._layers.packed(mask, recomputed=anew) as rows:
                states = {"states": tuple(map(rows.pack, batch["states"]))} if "states" in batch else {}
                with behind(self.prefix, states, None):
                    logits = model(**told).logits
        return logits.float()

    def ragged(self, batch: Any) -> bool:
        return True

    def record(self, model: nn.Module, batch: Any) -> list[tuple[Tensor, ...]]:
        assert self.prefix is not None
        rows = Packed.of(batch["attention_mask"])
        states = self.prefix.record(lambda: self._logits(model, batch))
        padded = [rows.unpack(each) for each in states]
        lengths = batch["attention_mask"].sum(1).tolist()
        return [tuple(each[text, :length] for each in padded) for text, length in enumerate(lengths)]

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self.held_out is None:
            return {}
        smoothing = self.recipe.objective.label_smoothing
        return judged(*self._predicted(model), self.labels.kind, smoothing)

    def _predicted(self, model: nn.Module) -> tuple[Tensor, Tensor]:
        """Logits and labels of all held-out texts, on the CPU."""
        return predicted(partial(self._logits, model), self._batches(model))

    def _batches(self, model: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Held-out texts, shortest first, so that batches need little padding."""
        assert self.held_out is not None
        device, size = next(model.parameters()).device, self.recipe.train.batch_size
        lengths = self.held_out.lengths
        order = sorted(range(len(lengths)), key=lambda place: (lengths[place], place))
        for begin in range(0, len(order), size):
            batch = self.collate([self.held_out[place] for place in order[begin : begin + size]])
            yield send_to_device(batch, device)

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """The confusion matrix of the held-out texts, where each has one label."""
        if self.held_out is None or self.labels.kind != "single":
            return []
        logits, labels = self._predicted(model)
        matrix = confusion(logits.argmax(1), labels, len(self.labels.names))
        return [save_confusion(matrix, self.labels.names, self.recipe.name, step, folder)]

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        if self._layers is None:
            return [*self._told, "texts are padded: this model cannot keep texts apart that share a row"]
        return self._told

    def metadata(self) -> dict[str, str]:
        labels: Labels = self.labels
        return {
            "base_model": shown_name(str(self.recipe.model)),
            "task": self.name,
            "labels": json.dumps(labels.names, ensure_ascii=False),
            "label_kind": labels.kind,
            "max_length": str(self._section.max_length),
            **({"pair": self.recipe.data.pair} if self.recipe.data.pair else {}),
        }
