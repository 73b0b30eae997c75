"""Text generation: a causal language model learns from conversations, texts or preferences.

Only learned tokens go through the vocabulary head, in chunks, so that no batch's logits are ever held; short
texts share rows without seeing each other. The reference model of preferences is the base: the adapter off.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import lorimer
from lorimer.errors import RecipeError
from lorimer.tasks._base import Task
from lorimer.tasks._causal import CausalHead, head_of, log_likelihoods, losses, mean_loss
from lorimer.tasks._generation import PLAIN_KINDS, answer, prompt_ids
from lorimer.tasks._language_files import load_causal, within_positions
from lorimer.tasks._model_files import shown_name
from lorimer.tasks._preference_loss import dpo, ipo, orpo
from lorimer.tasks._sequences import collate_rows
from lorimer.tasks._text_data import TextExamples, read_choices, read_texts
from lorimer.tasks._text_sections import TextData, TextObjective, TextPreview

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe


class TextGeneration(Task):
    """Adapts a causal language model of transformers."""

    name = "text-generation"
    description = "A language model learns from conversations, texts or preferences"
    Data = TextData
    Objective = TextObjective
    Preview = TextPreview

    def __init__(self, recipe: Recipe) -> None:
        super().__init__(recipe)
        self._head = CausalHead()
        self._examples: TextExamples | None = None
        self._shape: dict[str, str] = {}

    def model(self) -> nn.Module:
        if not isinstance(self.recipe.model, str):
            raise RecipeError("model: text-generation needs `smollm2`, a folder, a .gguf file or a hub name")
        model, self.tokenizer = load_causal(self.recipe.model, self.recipe.train.weights_dtype())
        self._head = head_of(model)
        self._section, self._cut = within_positions(self.recipe.data, model)
        self._shape = _shape_of(model)
        if self.recipe.data.packing and not self._head.packs:
            raise RecipeError(
                f"data.packing: {type(model).__name__} looks across packed texts; set it to false"
            )
        return model

    def spared(self, model: nn.Module) -> Sequence[str]:
        """The vocabulary head."""
        head = model.get_output_embeddings()  # type: ignore[operator]
        return [name for name, module in model.named_modules() if module is head]

    def data(self, model: nn.Module) -> Dataset[Any]:
        recipe = self.recipe
        packing = self._head.packs if recipe.data.packing is None else recipe.data.packing
        self._examples = read_texts(recipe, self._section, self.tokenizer, packing=packing)
        self._choices = read_choices(self._section, self.tokenizer) if recipe.data.choices else []
        wanted = recipe.objective.loss
        self._loss = (
            ("dpo" if self._examples.preferences else "cross-entropy") if wanted == "auto" else wanted
        )
        if self._examples.preferences != (self._loss != "cross-entropy"):
            raise RecipeError(
                f"objective.loss: {self._loss} does not go with data read as {self._examples.kind}: "
                "dpo, ipo and orpo learn from rows of prompt, chosen and rejected, cross-entropy from others"
            )
        self._require_meant()
        return self._examples.training

    def _require_meant(self) -> None:
        """Raise `RecipeError` for what would have no effect on these data."""
        assert self._examples is not None
        if self._examples.preferences and self.recipe.data.packing:
            raise RecipeError(
                "data.packing: preferences are read in pairs, which are not packed; leave it out"
            )
        if self.recipe.objective.label_smoothing and self._loss != "dpo":
            raise RecipeError(
                f"objective.label_smoothing: is for dpo, and the loss is {self._loss}; leave it out"
            )

    def collate(self, examples: Sequence[Any]) -> Any:
        assert self._examples is not None
        if not self._examples.preferences:
            return collate_rows(examples, self.tokenizer.pad_token_id)
        rows = [pair.chosen for pair in examples] + [pair.rejected for pair in examples]
        return collate_rows(rows, self.tokenizer.pad_token_id)

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        if self._loss == "cross-entropy":
            return mean_loss(model, self._head, batch)
        return self._preference(model, batch)[0]

    def _preference(self, model: nn.Module, batch: Any) -> tuple[Tensor, Tensor]:
        """((), (pairs,)): the mean loss, and by how much each chosen text is preferred."""
        options = self.recipe.objective
        sums, counts = log_likelihoods(model, self._head, batch)
        chosen, rejected = sums.chunk(2)
        if self._loss == "orpo":
            few, many = counts.chunk(2)
            mean, other = chosen / few, rejected / many
            return orpo(mean, other, options.beta), mean - other
        with torch.no_grad(), lorimer.disabled(model):
            first, second = log_likelihoods(model, self._head, batch)[0].chunk(2)
        if self._loss == "ipo":
            few, many = counts.chunk(2)
            chosen, first, rejected, second = chosen / few, first / few, rejected / many, second / many
        margin = (chosen - first) - (rejected - second)
        if self._loss == "ipo":
            return ipo(chosen, rejected, first, second, options.beta), margin
        return dpo(chosen, rejected, first, second, options.beta, options.label_smoothing), margin

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        assert self._examples is not None
        held_out = self._examples.validation
        found: dict[str, float] = {}
        if held_out and self._examples.preferences:
            found = self._evaluate_preferences(model, held_out)
        elif held_out:
            total = tokens = 0.0
            for batch in self._batches(held_out, model):
                each = losses(model, self._head, batch)
                total, tokens = total + each.double().sum().item(), tokens + len(each)
            loss = total / tokens
            found = {"validation_loss": loss, "perplexity": math.exp(min(loss, 700.0))}
        if self._choices:
            found["choice_accuracy"] = self._choice_accuracy(model)
        return found

    def _evaluate_preferences(self, model: nn.Module, held_out: Sequence[Any]) -> dict[str, float]:
        total = right = 0.0
        for batch in self._batches(held_out, model):
            loss, margin = self._preference(model, batch)
            total, right = total + loss.item() * len(margin), right + (margin > 0).sum().item()
        return {"validation_loss": total / len(held_out), "preferred": right / len(held_out)}

    def _choice_accuracy(self, model: nn.Module) -> float:
        """How often the right answer is the likeliest by its mean token."""
        right = 0
        for rows, answer_place in self._choices:
            batch = self._on_device(collate_rows(rows, self.tokenizer.pad_token_id), model)
            sums, counts = log_likelihoods(model, self._head, batch)
            right += int((sums / counts).argmax().item() == answer_place)
        return right / len(self._choices)

    def _batches(self, examples: Sequence[Any], model: nn.Module) -> Any:
        """Held-out examples in batches of the recipe's size, the longest first."""
        size = self.recipe.train.batch_size
        for begin in range(0, len(examples), size):
            yield self._on_device(self.collate(examples[begin : begin + size]), model)

    def _on_device(self, batch: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
        device = next(model.parameters()).device
        return {name: tensor.to(device) for name, tensor in batch.items()}

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """One text file: each prompt, and the answer at each strength."""
        wanted = self.recipe.preview
        prompts = self._prompts()
        assert self._examples is not None
        if not prompts or not wanted.strengths:
            return []
        lines = [f"{self.recipe.name}, after {step} steps"]
        for prompt in prompts:
            lines += ["", f"> {prompt}"]
            plain = self._examples.kind in PLAIN_KINDS
            ids = prompt_ids(self.tokenizer, prompt, self.recipe.data.system, plain=plain)
            for strength in wanted.strengths:
                with lorimer.strength(model, strength):
                    said = answer(model, self.tokenizer, ids, max_tokens=wanted.max_tokens)
                name = f"strength {strength:g}" if strength else "base"
                lines.append(f"{name}: {said.strip()}")
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"step-{step:06d}.txt"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return [path]

    def _prompts(self) -> Sequence[str]:
        assert self._examples is not None
        return self.recipe.preview.prompts or self._examples.prompts

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        assert self._examples is not None
        lines = [*self._cut, *self._examples.told]
        if not self._head.in_chunks:
            lines.append("the head of this model is not a plain one: all logits of learned tokens are held")
        return lines

    def example(self) -> str:
        """The tokens of the first text, those that are learned between ⟦ and ⟧."""
        assert self._examples is not None
        return self._examples.shown(self.tokenizer)

    def metadata(self) -> dict[str, str]:
        kind = {} if self._examples is None else {"text_kind": self._examples.kind}
        return {"base_model": shown_name(str(self.recipe.model)), "task": self.name, **kind, **self._shape}


def _shape_of(model: Any) -> dict[str, str]:
    """What files for other programs say of the model that they are for."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", None)
    if not isinstance(heads, int):
        return {}
    few = getattr(config, "num_key_value_heads", None) or heads
    tied = {"tied_head": "yes"} if getattr(config, "tie_word_embeddings", False) else {}
    shape = {"architecture": config.model_type, "attention_heads": str(heads), "key_value_heads": str(few)}
    return {**shape, **tied}
