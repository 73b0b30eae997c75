"""Conversations and texts as tokens, each known to be learned or not.

What the assistant says is found by rendering: where the template of a conversation up to an answer, asked to
begin one, is how the whole begins, what follows up to the end of the answer is what a model has to say, its
end-of-turn token included. Some templates write earlier answers otherwise than the last one: there the answer
is what changes in the whole when another stands in its place. Characters become tokens by the tokenizer's own
offsets; what stands before an answer is cut into tokens as it will be when the answer is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from lorimer.errors import DataError

# For tokenizers without a template of their own: "User: ...", "Assistant: ..." and the end token. An answer's
# space is its own, as it is part of the answer's first token.
PLAIN_TEMPLATE = (
    "{{ begin }}{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)
_ELSE = "\u2603 another answer \u2603"

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
        tokens = _completed(example, tokenizer)
    else:
        text = render(tokenizer, example.messages, tools=example.tools)
        if loss_on == "all":
            ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
            return Tokens(ids, (True,) * len(ids)).first(max_length)
        tokens = _by_offsets(text, _spoken(text, example, tokenizer), tokenizer)
    if loss_on == "all":
        tokens = Tokens(tokens.ids, (True,) * len(tokens.ids))
    return tokens.first(max_length)


def prompt_tokens(prompt: str, tokenizer: Any) -> tuple[int, ...]:
    """The tokens of a text that is to be gone on with: as the tokenizer begins texts, and without an end."""
    ids = tuple(tokenizer(prompt)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def _completed(example: Completion, tokenizer: Any) -> Tokens:
    """A prompt as it will be asked, what follows, and the end."""
    before = prompt_tokens(example.prompt, tokenizer)
    whole = prompt_tokens(example.prompt + example.completion, tokenizer)
    after = whole[len(before) :]
    if whole[: len(before)] != before or not after:
        after = tuple(tokenizer(example.completion, add_special_tokens=False)["input_ids"])
    ids = _ended((*before, *after), tokenizer)
    return Tokens(ids, tuple(place >= len(before) for place in range(len(ids))))


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
            tokenize=False,
            add_generation_prompt=begin_answer,
            **(
                {}
                if tokenizer.chat_template
                else {"chat_template": PLAIN_TEMPLATE, "begin": _begin(tokenizer)}
            ),
        )
    except (TemplateError, TypeError, KeyError, ValueError) as error:
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


def _begin(tokenizer: Any) -> str:
    """The token with which the tokenizer begins every text, where it does."""
    begin = tokenizer.bos_token
    return begin if begin and tokenizer("a")["input_ids"][:1] == [tokenizer.bos_token_id] else ""


def _spoken(text: str, example: Chat, tokenizer: Any) -> list[tuple[int, int]]:
    """Where in `text` the assistant speaks, as (begin, end) of characters."""
    spans = []
    for place, message in enumerate(example.messages):
        if message["role"] != "assistant":
            continue
        through = render(tokenizer, example.messages[: place + 1], tools=example.tools)
        before = (
            render(tokenizer, example.messages[:place], tools=example.tools, begin_answer=True)
            if place
            else None  # templates begin with somebody else
        )
        if before is not None and through.startswith(before) and text.startswith(through):
            spans.append((len(before), _end_of_turn(through, tokenizer)))
        else:
            spans.append(_where_it_changes(text, example, place, tokenizer))
    return spans


def _where_it_changes(text: str, example: Chat, place: int, tokenizer: Any) -> tuple[int, int]:
    """Where in `text` an answer stands, with the end token behind it: what changes with the answer.

    Raises:
        DataError: more changes than the answer, or it calls tools.
    """
    message = {**example.messages[place], "content": _ELSE}
    others = (*example.messages[:place], message, *example.messages[place + 1 :])
    changed = render(tokenizer, others, tools=example.tools)
    begin = len(_common(text, changed))
    after = len(_common(text[begin:][::-1], changed[begin:][::-1]))
    if changed[begin : len(changed) - after] != _ELSE or message.get("tool_calls"):
        raise _not_by_turns()
    end = len(text) - after
    rest = text[end:].lstrip()
    ending = next((token for token in _specials(tokenizer) if rest.startswith(token)), None)
    return begin, end if ending is None else len(text) - len(rest) + len(ending)


def _end_of_turn(text: str, tokenizer: Any) -> int:
    """Where an answer ends: what stands between its end token and the next turn nobody has to say."""
    bare = text.rstrip()
    return len(bare) if bare.endswith(_specials(tokenizer)) else len(text)


def _specials(tokenizer: Any) -> tuple[str, ...]:
    """Tokens that stand for no text, the longest first; some tokenizers list the end of a turn apart."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(sorted({*tokenizer.all_special_tokens, *added}, key=len, reverse=True))


def _common(one: str, other: str) -> str:
    """How both begin."""
    place = next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), None)
    return one[: min(len(one), len(other)) if place is None else place]


def _not_by_turns() -> DataError:
    return DataError(
        "the model's chat template does not write a conversation turn by turn, so what the assistant says "
        "cannot be told from the rest: set data.loss_on to all"
    )


def _by_offsets(text: str, spans: Sequence[tuple[int, int]], tokenizer: Any) -> Tokens:
    """The tokens of `text`; those that begin within a span are learned.

    Where a token would reach from what stands before an answer into it, the text is cut there, as it is when
    the answer is asked for.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__} does not tell where its tokens stand; set data.loss_on to all"
        )
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, offsets = list(found["input_ids"]), list(found["offset_mapping"])
    seams = [begin for begin, _ in spans if not _stands_alone(text[:begin], ids, tokenizer)]
    if seams:
        ids, offsets = [], []
        for begin, end in pairwise([0, *seams, len(text)]):
            piece = tokenizer(text[begin:end], add_special_tokens=False, return_offsets_mapping=True)
            ids += piece["input_ids"]
            offsets += [(begin + start, begin + stop) for start, stop in piece["offset_mapping"]]
    learn = tuple(
        any(begin <= start < end for begin, end in spans) and stop > start for start, stop in offsets
    )
    return Tokens(tuple(ids), learn)


def _stands_alone(before: str, ids: Sequence[int], tokenizer: Any) -> bool:
    """Whether the tokens of `before` are the first of `ids`."""
    alone = tokenizer(before, add_special_tokens=False)["input_ids"]
    return list(ids[: len(alone)]) == alone


def _ended(ids: Sequence[int], tokenizer: Any) -> tuple[int, ...]:
    """With the end token, where there is one and it is not there."""
    end = tokenizer.eos_token_id
    return tuple(ids) if end is None or (ids and ids[-1] == end) else (*ids, end)
