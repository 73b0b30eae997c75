"""What rows of data are: conversations, prompts and completions, texts or preferences; found out and said."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lorimer.errors import DataError, suggest
from lorimer.tasks._chat_tokens import Chat, Completion, Example, Message, Plain, Preference
from lorimer.tasks._text_rows import Rows

_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "system": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}

Row = Mapping[str, Any]


class _Unusable(Exception):
    """Why a row is skipped."""


@dataclass(frozen=True)
class Conversations:
    """kind: how rows were read; examples: what they are; told: lines for a person."""

    kind: str
    examples: tuple[Example, ...]
    told: tuple[str, ...]


def as_examples(
    rows: Rows, kind: str | None, columns: Mapping[str, str], system: str | None
) -> Conversations:
    """Rows as what they are meant to be.

    Args:
        kind: how to read them; None finds out by their columns.
        columns: our name -> theirs.
        system: a system message for conversations that have none.

    Raises:
        DataError: nothing fits, or no row can be used; the message says what was there.
    """
    _require_columns(rows, columns)
    renamed = [_renamed(row, columns) for row in rows.rows]
    chosen = kind or _detected(renamed, rows.source)
    examples: list[Example] = []
    skipped: Counter[str] = Counter()
    for row in renamed:
        try:
            examples.append(_with_system(_READERS[chosen](row), system))
        except _Unusable as why:
            skipped[str(why)] += 1
    if not examples:
        reasons = "; ".join(f"{count} because {reason}" for reason, count in skipped.most_common(3))
        raise DataError(f"{rows.source}: no row can be read as {chosen}: {reasons}")
    told = f"{rows.source}: read as {chosen}, {len(examples):,} {_NOUNS.get(chosen, 'conversations')}"
    if skipped:
        reasons = "; ".join(f"{count} because {reason}" for reason, count in skipped.most_common())
        told += f", {sum(skipped.values()):,} skipped: {reasons}"
    return Conversations(chosen, tuple(examples), (told, *rows.skipped))


def _require_columns(rows: Rows, columns: Mapping[str, str]) -> None:
    """Raise where `data.columns` names a column that is not known, or one that is not there."""
    known = {name for needed in _COLUMNS.values() for name in needed} | _OPTIONAL
    for ours, theirs in columns.items():
        if ours not in known:
            raise DataError(
                f"data.columns: nothing is called {ours!r}.{suggest(ours, sorted(known))} "
                f"Known: {', '.join(sorted(known))}"
            )
        if not any(theirs in row for row in rows.rows):
            there = [str(name) for name in rows.rows[0]]
            meant = suggest(theirs, there)
            raise DataError(
                f"data.columns: {rows.source} has no {theirs!r}.{meant} It has {', '.join(there)}"
            )


def _renamed(row: Row, columns: Mapping[str, str]) -> Row:
    return {**row, **{ours: row[theirs] for ours, theirs in columns.items() if theirs in row}}


def _detected(rows: Sequence[Row], source: str) -> str:
    """The kind that most rows' columns fit, the most telling first."""
    for kind, needed in _COLUMNS.items():
        fitting = sum(all(row.get(name) is not None for name in needed) for row in rows)
        if fitting > len(rows) // 2:
            return kind
    known = "; ".join(f"{', '.join(needed)} ({kind})" for kind, needed in _COLUMNS.items())
    raise DataError(
        f"{source}: cannot tell what its rows are; they have {', '.join(map(str, rows[0])) or 'nothing'}. "
        f"Known columns: {known}. Say what yours are called with data.columns, such as "
        "{prompt: question, completion: answer}"
    )


def _with_system(example: Example, system: str | None) -> Example:
    said: Message = {"role": "system", "content": system}
    if system is None:
        return example
    if isinstance(example, Chat) and example.messages[0]["role"] != "system":
        return replace(example, messages=(said, *example.messages))
    if isinstance(example, Preference) and example.prompt[0]["role"] != "system":
        return replace(example, prompt=(said, *example.prompt))
    return example


def _text(row: Row, name: str) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise _Unusable(f"{name} is empty" if value in (None, "") else f"{name} is no text")
    return value


def _message(value: Any, role: str, content: str) -> Message:
    if not isinstance(value, Mapping):
        raise _Unusable("a message is no mapping")
    who, said = value.get(role), _joined(value.get(content))
    if not isinstance(who, str) or who not in _ROLES:
        raise _Unusable(f"a message is by {who!r}")
    others = {key: each for key, each in value.items() if key not in (role, content, "role", "content")}
    if said is None and not others.get("tool_calls"):
        raise _Unusable("a message is empty")
    return {**others, "role": _ROLES[who], "content": said if said is not None else ""}


def _joined(said: Any) -> str | None:
    """What a message says: a text, or the texts of its parts."""
    if said is None or isinstance(said, str):
        return said
    if not _is_list(said):
        raise _Unusable("a message says something other than text")
    return "".join(_text(part if isinstance(part, Mapping) else {"text": part}, "text") for part in said)


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple)


def _tools(row: Row) -> tuple[Any, ...]:
    """The tools of a conversation: a list, or one written as JSON, as tables have it."""
    tools = row.get("tools") or ()
    if isinstance(tools, str):
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise _Unusable("tools is no JSON") from error
    if not _is_list(tools) or not all(isinstance(each, Mapping) for each in tools):
        raise _Unusable("tools is no list of mappings")
    return tuple(tools)


def _messages(row: Row, name: str, role: str = "role", content: str = "content") -> tuple[Message, ...]:
    values = row.get(name)
    if not _is_list(values) or not values:
        raise _Unusable(f"{name} is no list of messages")
    return tuple(_message(value, role, content) for value in values)


def _spoken(messages: tuple[Message, ...]) -> tuple[Message, ...]:
    if not any(message["role"] == "assistant" for message in messages):
        raise _Unusable("the assistant says nothing")
    return messages


def _chat(row: Row) -> Chat:
    return Chat(_spoken(_messages(row, "messages")), _tools(row))


def _sharegpt(row: Row) -> Chat:
    first = row["conversations"][0] if _is_list(row.get("conversations")) and row["conversations"] else None
    names = ("role", "content") if isinstance(first, Mapping) and "role" in first else ("from", "value")
    messages = _spoken(_messages(row, "conversations", *names))
    if row.get("system") and messages[0]["role"] != "system":
        messages = ({"role": "system", "content": row["system"]}, *messages)
    return Chat(messages, _tools(row))


def _alpaca(row: Row) -> Chat:
    asked = _text(row, "instruction")
    more = row.get("input")
    return _asked(f"{asked}\n\n{more}" if more else asked, _text(row, "output"), row.get("system"))


def _pairs(row: Row) -> Chat:
    """Two take turns; the second is the assistant."""
    said = row["conversation"] if isinstance(row.get("conversation"), list | tuple) else ()
    if len(said) < 2 or not all(isinstance(each, str) and each.strip() for each in said):
        raise _Unusable("a conversation is no list of two texts or more")
    turns = [
        {"role": "assistant" if place % 2 else "user", "content": each} for place, each in enumerate(said)
    ]
    return Chat(tuple(turns))


def _completion(row: Row) -> Completion:
    return Completion(_text(row, "prompt"), _text(row, "completion"))


def _plain(row: Row) -> Plain:
    return Plain(_text(row, "text"))


def _preference(row: Row) -> Preference:
    answers = [_turns(row, name, "assistant") for name in ("chosen", "rejected")]
    prompt = _turns(row, "prompt", "user") if row.get("prompt") else ()
    count = next(
        (n for n, (a, b) in enumerate(zip(*answers, strict=False)) if a != b), min(map(len, answers))
    )
    shared, answers = answers[0][:count], [each[count:] for each in answers]
    if shared[: len(prompt)] != prompt:  # what both begin with is part of the prompt, or all of it
        shared = (*prompt, *shared)
    prompt = shared
    if row.get("system") and prompt and prompt[0]["role"] != "system":
        prompt = ({"role": "system", "content": _text(row, "system")}, *prompt)
    if not prompt:
        raise _Unusable("there is no prompt")
    if answers[0] == answers[1] or not all(answers):
        raise _Unusable("chosen and rejected are the same")
    return Preference(prompt, answers[0], answers[1])


def _turns(row: Row, name: str, role: str) -> tuple[Message, ...]:
    """A list of messages, or one text by `role`."""
    if isinstance(row.get(name), str):
        return ({"role": role, "content": _text(row, name)},)
    return _messages(row, name)


def _asked(question: str, reply: str, system: str | None) -> Chat:
    turns = ({"role": "user", "content": question}, {"role": "assistant", "content": reply})
    return Chat(({"role": "system", "content": system}, *turns) if system else turns)


# Kind -> the columns by which it is known, the most telling first.
_COLUMNS = {
    "preference": ("chosen", "rejected"),
    "chat": ("messages",),
    "sharegpt": ("conversations",),
    "alpaca": ("instruction", "output"),
    "prompt-completion": ("prompt", "completion"),
    "pairs": ("conversation",),
    "text": ("text",),
}
_OPTIONAL = {"prompt", "input", "system", "tools"}
_READERS: dict[str, Callable[[Row], Example]] = {
    "preference": _preference,
    "chat": _chat,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "prompt-completion": _completion,
    "pairs": _pairs,
    "text": _plain,
}
_NOUNS = {"preference": "preferences", "prompt-completion": "prompts", "text": "texts"}
