"""What a recipe for text generation may hold under `data:`, `objective:` and `preview:`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from lorimer.tasks._base import Section

Kind = Literal["chat", "sharegpt", "alpaca", "prompt-completion", "pairs", "text", "preference"]


class HeldOut(Section):
    """Examples that are not trained on, by which training is judged."""

    fraction: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """This share of the examples, chosen by the seed."""
    path: str | None = None
    """Examples of their own, in any form that `data.path` may have."""
    split: str = "test"
    """Which split of a dataset on the hub that `path` names, which may be that of `data.path`."""

    @model_validator(mode="after")
    def _one_way(self) -> HeldOut:
        if self.path is not None and self.fraction is not None:
            raise ValueError("give a path or a fraction, not both")
        return self


class TextData(Section):
    """What it learns from."""

    aliases: ClassVar[Mapping[str, str]] = {
        "dataset": "path",
        "cutoff_len": "max_length",
        "sample_packing": "packing",
        "max_samples": "max_rows",
    }

    path: str
    """A file (JSON, JSONL, CSV, TSV, Parquet, YAML, plain text), a folder of such, or a name on the hub."""
    split: str | None = None
    """Which split of a dataset on the hub; null: `train`."""
    subset: str | None = None
    """Which configuration of a dataset on the hub."""
    max_rows: PositiveInt | None = None
    """Read no more rows than these, the first. JSONL, tables and Parquet are read no further; a dataset on
    the hub is streamed, and no more of it fetched."""
    kind: Kind | None = None
    """How rows are read; null finds it out and says it."""
    columns: dict[str, str] = Field({})
    """What your columns are called: our name -> yours, such as `{prompt: question, completion: answer}`."""
    system: str | None = None
    """A system message for conversations that have none."""
    loss_on: Literal["assistant", "all"] = "assistant"
    """Which tokens are learned: what the assistant says (completions, in prompt-completion), or all."""
    max_length: PositiveInt = 1024
    """Tokens of the longest text, and of a packed row. Longer texts are cut; what is cut is said."""
    packing: bool | None = None
    """Several texts in one row, without attention between them; null: where the model can. False: padded
    batches of like lengths."""
    validation: HeldOut = HeldOut()
    """Held-out examples."""
    choices: str | None = None
    """Multiple-choice questions, of which evaluation says how many are answered rightly: rows of `prompt`,
    `choices` (a list) and `answer` (a number from 0, or one of the choices)."""


class TextObjective(Section):
    """The loss."""

    loss: Literal["auto", "cross-entropy", "dpo", "ipo", "orpo"] = "auto"
    """`auto`: cross-entropy, and `dpo` where the data are preferences. The reference model of `dpo`
    (arXiv 2305.18290) and `ipo` (2310.12036) is the base itself; `orpo` (2403.07691) needs none."""
    beta: PositiveFloat = 0.1
    """How strongly preferences hold to the reference; for `orpo` the weight of the odds ratio."""
    label_smoothing: NonNegativeFloat = Field(0.0, lt=0.5)
    """For `dpo`: the share of preferences that may be the wrong way round."""


class TextPreview(Section):
    """What is written before, during and after training."""

    prompts: tuple[str, ...] = ()
    """What the model is asked; by default the first three of the held-out prompts."""
    max_tokens: PositiveInt = 48
    """Length of the answers."""
    strengths: tuple[float, ...] = (0.0, 1.0)
    """Of the adapter; 0 is the base model."""
