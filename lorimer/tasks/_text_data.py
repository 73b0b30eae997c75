"""From a recipe's `data:` to rows of tokens, and what a person should know of them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch.utils.data import Dataset

from lorimer.errors import DataError
from lorimer.tasks._chat_tokens import (
    Completion,
    Plain,
    Preference,
    Tokens,
    encode,
    encode_preference,
    show_tokens,
)
from lorimer.tasks._held_out import split
from lorimer.tasks._sequences import Row, Rows, length_groups, pack, row_of
from lorimer.tasks._text_kinds import as_examples
from lorimer.tasks._text_rows import read_rows

if TYPE_CHECKING:
    from lorimer.train.recipe import Recipe

_PROMPTS = 3  # how many held-out prompts stand in for those that a recipe does not give


@dataclass(frozen=True)
class Pair:
    """Two texts of one prompt, of which the first is preferred."""

    chosen: Row
    rejected: Row


class Pairs(Dataset[Pair]):
    """Preferences to train on, in `groups` of like lengths."""

    def __init__(self, pairs: Sequence[Pair], batch_size: int) -> None:
        self.pairs = list(pairs)
        self.groups = length_groups([_length(pair) for pair in self.pairs], batch_size)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> Pair:
        return self.pairs[index]


@dataclass
class TextExamples:
    """What there is to learn from.

    Attributes:
        kind: how the data were read.
        training: `Rows`, or `Pairs` where they are preferences.
        validation: held-out rows or pairs, longest first.
        prompts: of the first held-out examples.
        told: lines for the preflight.
        first: the tokens of the first example.
    """

    kind: str
    training: Dataset[Any]
    validation: Sequence[Any]
    prompts: tuple[str, ...]
    told: tuple[str, ...]
    first: Tokens
    preferences: bool = field(init=False)

    def __post_init__(self) -> None:
        self.preferences = self.kind == "preference"

    def shown(self, tokenizer: Any) -> str:
        """The first example, each token marked as learned or not."""
        return show_tokens(self.first, tokenizer)


def read_texts(recipe: Recipe, data: Any, tokenizer: Any, *, packing: bool) -> TextExamples:
    """Read, split and tokenise what `data`, a recipe's section, names.

    Raises:
        DataError: nothing can be read, or nothing is left to learn from or, where asked for, to judge by.
    """
    found = _read(data, data.path, data.split, data.max_rows)
    training, held_out = list(found.examples), []
    told = list(found.told)
    if data.validation.path is not None:
        other = _read(data, data.validation.path, data.validation.split)
        if other.kind != found.kind:
            raise DataError(f"data.validation.path: read as {other.kind}, but data.path as {found.kind}")
        held_out = list(other.examples)
        told += [f"held out: {line}" for line in other.told]
    elif data.validation.fraction is not None:
        training, held_out = split(training, data.validation.fraction, recipe.train.seed)
    skipped: list[str] = []
    encoded = _encode(training, tokenizer, data, skipped)
    judged = _encode(held_out, tokenizer, data, skipped)
    if not encoded:
        raise DataError(f"{data.path}: nothing to learn from; {'; '.join(skipped)}")
    if held_out and not judged:
        raise DataError(
            f"{data.validation.path or data.path}: nothing held out is left; {'; '.join(skipped)}"
        )
    told += skipped
    prompts = tuple(text for text in map(_prompt_of, held_out or training) if text)[:_PROMPTS]
    first = encoded[0] if isinstance(encoded[0], Tokens) else encoded[0][0]
    if found.kind == "preference":
        pairs, judged_pairs = _pairs(encoded), _pairs(judged)
        told.append(f"{len(pairs):,} preferences to learn from, {len(judged_pairs):,} held out")
        ordered = sorted(judged_pairs, key=_length, reverse=True)
        return TextExamples(
            found.kind, Pairs(pairs, recipe.train.batch_size), ordered, prompts, tuple(told), first
        )
    rows = _rows(encoded, data.max_length, recipe.train.batch_size, packing)
    texts = [row_of([text]) for text in judged]
    told.append(_counted(encoded, rows, judged, packing))
    ordered_rows = sorted(texts, key=lambda row: len(row.ids), reverse=True)
    return TextExamples(found.kind, rows, ordered_rows, prompts, tuple(told), first)


def read_choices(data: Any, tokenizer: Any) -> list[tuple[list[Row], int]]:
    """Of each multiple-choice question a row per choice, and the place of the right one.

    Raises:
        DataError: a question lacks something; all are named.
    """
    read = read_rows(data.choices)
    questions, problems = [], list(read.skipped)
    for number, row in enumerate(read.rows, 1):
        choices, right = row.get("choices"), row.get("answer")
        if not isinstance(choices, list) or len(choices) < 2 or not isinstance(row.get("prompt"), str):
            problems.append(f"question {number}: needs `prompt` and a list of two `choices` or more")
            continue
        place = choices.index(right) if right in choices else right
        if not isinstance(place, int) or not 0 <= place < len(choices):
            problems.append(f"question {number}: its answer {right!r} is none of its choices")
            continue
        texts = [
            _without_end(
                encode(Completion(row["prompt"], str(choice)), tokenizer, "assistant", sys.maxsize), tokenizer
            )
            for choice in choices
        ]
        if max(len(text.ids) for text in texts) > data.max_length or not all(any(t.learn) for t in texts):
            problems.append(f"question {number}: is longer than data.max_length, or a choice is empty")
            continue
        questions.append(([row_of([text]) for text in texts], place))
    if problems:
        raise DataError("\n  ".join([f"{data.choices}: {len(problems)} mistakes", *problems[:10]]))
    return questions


def _without_end(tokens: Tokens, tokenizer: Any) -> Tokens:
    """A choice is judged by what it says, not by its being over then."""
    ends = tokens.ids[-1:] == (tokenizer.eos_token_id,)
    return tokens.first(len(tokens.ids) - 1) if ends else tokens


def _read(data: Any, place: str, split: str | None, limit: int | None = None) -> Any:
    rows = read_rows(place, split=split, subset=data.subset, limit=limit)
    return as_examples(rows, data.kind, data.columns, data.system)


def _encode(examples: Sequence[Any], tokenizer: Any, data: Any, skipped: list[str]) -> list[Any]:
    """Tokens, or pairs of them, of all examples in which something is learned; plain texts may be several."""
    encoded: list[Any] = []
    refused: Counter[str] = Counter()
    longest = data.max_length
    empty = cut = 0
    for example in examples:
        try:
            texts = _tokens_of(example, tokenizer, data)
        except DataError as error:
            refused[str(error)] += 1
            continue
        if isinstance(example, Plain):
            pieces = [text for text in texts if any(text.learn[1:])]
            empty += not pieces
            encoded += pieces
        elif all(any(text.learn[1:]) for text in texts):
            cut += any(len(text.ids) == longest for text in texts)
            encoded.append(texts if len(texts) > 1 else texts[0])
        else:
            empty += 1
    if refused:
        reasons = "; ".join(reason for reason, _ in refused.most_common(3))
        skipped.append(f"{refused.total()} skipped: {reasons}")
    if empty:
        skipped.append(f"{empty} skipped: nothing to learn in their first {longest} tokens")
    if cut:
        skipped.append(f"{cut} reach data.max_length, {longest} tokens, and may be cut")
    return encoded


def _tokens_of(example: Any, tokenizer: Any, data: Any) -> tuple[Tokens, ...]:
    """The tokens of an example: of both answers, of a plain text in pieces, else one text.

    Raises: as `encode`.
    """
    if isinstance(example, Preference):
        return encode_preference(example, tokenizer, data.max_length)
    if not isinstance(example, Plain):
        return (encode(example, tokenizer, data.loss_on, data.max_length),)
    whole = encode(example, tokenizer, data.loss_on, sys.maxsize)
    return tuple(
        Tokens(whole.ids[begin : begin + data.max_length], whole.learn[begin : begin + data.max_length])
        for begin in range(0, len(whole.ids), data.max_length)
    )


def _rows(texts: Sequence[Tokens], capacity: int, batch_size: int, packing: bool) -> Rows:
    lengths = [len(text.ids) for text in texts]
    if packing:
        return Rows([row_of([texts[place] for place in places]) for places in pack(lengths, capacity)])
    return Rows([row_of([text]) for text in texts], length_groups(lengths, batch_size))


def _pairs(encoded: Sequence[tuple[Tokens, Tokens]]) -> list[Pair]:
    return [Pair(row_of([chosen]), row_of([rejected])) for chosen, rejected in encoded]


def _counted(texts: Sequence[Tokens], rows: Rows, held_out: Sequence[Tokens], packing: bool) -> str:
    tokens = sum(len(text.ids) for text in texts)
    learned = sum(rows.weights)
    how = f"packed into {len(rows):,} rows" if packing else "in batches of like lengths"
    return (
        f"{len(texts):,} texts of {tokens:,} tokens, {learned:,.0f} of them learned, {how}; "
        f"{len(held_out):,} held out"
    )


def _prompt_of(example: Any) -> str:
    """What a person would ask to get this example's answer; empty where there is no such thing."""
    prompt = getattr(example, "prompt", None)
    if isinstance(prompt, str):
        return prompt
    messages = prompt if prompt is not None else getattr(example, "messages", ())
    return next((str(each["content"]) for each in messages if each["role"] == "user"), "")


def _length(pair: Pair) -> int:
    return max(len(pair.chosen.ids), len(pair.rejected.ids))
