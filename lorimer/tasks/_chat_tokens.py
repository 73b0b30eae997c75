"""Conversations and texts as tokens, each known to be learned or not.

What the assistant says is found by rendering: the template of a conversation up to an answer, asked to begin
one, must be how the whole begins; what follows up to the end of the answer is what a model has to say, its
end-of-turn token included. Characters become tokens by the tokenizer's own offsets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lorimer.errors import DataError

# For tokenizers without a template of their own: "User: ...", "Assistant: ..." and the end token.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant: {% endif %}"
)

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Chat:
    """A conversation: messages of `role` and `content`, and the tools that the assistant may call."""

    messages: tuple[Message, ...]
    tools: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Completion:
    """A text and what follows it."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Plain:
    """A text."""

    text: str


@dataclass(frozen=True)
class Preference:
    """Two answers to one prompt, of which the first is preferred."""

    prompt: tuple[Message, ...]
    chosen: tuple[Message, ...]
    rejected: tuple[Message, ...]


Example = Chat | Completion | Plain | Preference


@dataclass(frozen=True)
class Tokens:
    """ids: the tokens of a text; learn: of each, whether it is to be predicted."""

    ids: tuple[int, ...]
    learn: tuple[bool, ...]

    def first(self, count: int) -> Tokens:
        """Its first tokens."""
        return self if len(self.ids) <= count else Tokens(self.ids[:count], self.learn[:count])


def encode(example: Chat | Completion | Plain, tokenizer: Any, loss_on: str, max_length: int) -> Tokens:
    """The first `max_length` tokens of an example.

    Args:
        loss_on: "assistant" (or a completion), or "all". Plain text is learned whole.

    Raises:
        DataError: the chat template refuses the conversation, or does not render it turn by turn.
    """
    if isinstance(example, Plain):
        ids = _ended(tokenizer(example.text)["input_ids"], tokenizer)
        return Tokens(ids, (True,) * len(ids)).first(max_length)
    if isinstance(example, Completion):
        text = example.prompt + example.completion
        tokens = _by_offsets(text, [(len(example.prompt), len(text))], tokenizer, special=True)
        ids = _ended(tokens.ids, tokenizer)
        tokens = Tokens(ids, (*tokens.learn, *[True] * (len(ids) - len(tokens.ids))))
    else:
        text = render(tokenizer, example.messages, tools=example.tools)
        spoken = [] if loss_on == "all" else _spoken(text, example, tokenizer)
        tokens = _by_offsets(text, spoken, tokenizer)
    if loss_on == "all":
        tokens = Tokens(tokens.ids, (True,) * len(tokens.ids))
    return tokens.first(max_length)


def encode_preference(example: Preference, tokenizer: Any, max_length: int) -> tuple[Tokens, Tokens]:
    """The preferred text and the other; of each the answer alone is learned.

    Raises: as `encode`.
    """
    chosen, rejected = (
        encode(Chat((*example.prompt, *answer)), tokenizer, "assistant", max_length)
        for answer in (example.chosen, example.rejected)
    )
    return chosen, rejected


def render(
    tokenizer: Any, messages: Sequence[Message], *, tools: Sequence[Any] = (), begin_answer: bool = False
) -> str:
    """A conversation as text, by the tokenizer's chat template or else `PLAIN_TEMPLATE`.

    Raises:
        DataError: the template refuses it, as some do a system message or two turns of one side.
    """
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tools=list(tools) or None,
            chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=begin_answer,
        )
    except (TemplateError, TypeError, KeyError) as error:
        roles = ", ".join(str(message.get("role")) for message in messages)
        raise DataError(f"the model's chat template refuses a conversation of {roles}: {error}") from error
    return text


def show_tokens(tokens: Tokens, tokenizer: Any) -> str:
    """The text with every learned stretch between ⟦ and ⟧, and a bar between its tokens."""
    parts: list[str] = []
    learning = False
    for token, learn in zip(tokens.ids, tokens.learn, strict=True):
        if learn != learning:
            parts.append("⟦" if learn else "⟧")
        elif learn:
            parts.append("|")
        parts.append(tokenizer.decode([token]))
        learning = learn
    return "".join([*parts, "⟧" if learning else ""])


def _spoken(text: str, example: Chat, tokenizer: Any) -> list[tuple[int, int]]:
    """Where in `text` the assistant speaks, as (begin, end) of characters."""
    spans = []
    for place, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        before = render(tokenizer, example.messages[:place], tools=example.tools, begin_answer=True)
        through = render(tokenizer, example.messages[: place + 1], tools=example.tools)
        if not (text.startswith(before) and through.startswith(before)):
            before = _common(before, through)
            if not text.startswith(before) or not before:
                raise _not_by_turns()
        if not text.startswith(through):
            through = _common(through, text)
            if len(through) <= len(before):
                raise _not_by_turns()
        spans.append((len(before), _end_of_turn(through, tokenizer)))
    return spans


def _end_of_turn(text: str, tokenizer: Any) -> int:
    """Where an answer ends: what stands between its end token and the next turn nobody has to say."""
    bare = text.rstrip()
    return len(bare) if bare.endswith(tuple(tokenizer.all_special_tokens)) else len(text)


def _common(one: str, other: str) -> str:
    """How both begin."""
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: min(len(one), len(other)) if place is None else place]


def _not_by_turns() -> DataError:
    return DataError(
        "the model's chat template does not write a conversation turn by turn, so what the assistant says "
        "cannot be told from the rest: set data.loss_on to all"
    )


def _by_offsets(text: str, spans: Sequence[tuple[int, int]], tokenizer: Any, special: bool = False) -> Tokens:
    """The tokens of `text`; those that begin within a span are learned."""
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand; set data.loss_on to all"
        )
    found = tokenizer(text, add_special_tokens=special, return_offsets_mapping=True)
    learn = tuple(
        any(begin <= start < end for begin, end in spans) and stop > start
        for start, stop in found["offset_mapping"]
    )
    return Tokens(tuple(found["input_ids"]), learn)


def _ended(ids: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """With the end token, where there is one and it is not there."""
    end = tokenizer.eos_token_id
    return tuple(ids) if end is None or (ids and ids[-1] == end) else (*ids, end)
