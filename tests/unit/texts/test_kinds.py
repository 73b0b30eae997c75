"""What rows are is found out, said, and nothing is dropped in silence."""

from __future__ import annotations

from typing import Any

import pytest

from lorimer.errors import DataError
from lorimer.tasks._chat_tokens import Chat, Completion, Plain, Preference
from lorimer.tasks._text_kinds import as_examples
from lorimer.tasks._text_rows import Rows

TURNS = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
SHARE = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
CASES: dict[str, tuple[dict[str, Any], object]] = {
    "chat": ({"messages": TURNS}, Chat(tuple(TURNS))),
    "sharegpt": ({"conversations": SHARE}, Chat(tuple(TURNS))),
    "alpaca": ({"instruction": "a", "input": "", "output": "b"}, Chat(tuple(TURNS))),
    "pairs": ({"conversation": ["a", "b"]}, Chat(tuple(TURNS))),
    "prompt-completion": ({"prompt": "a", "completion": "b"}, Completion("a", "b")),
    "text": ({"text": "a"}, Plain("a")),
    "preference": (
        {"prompt": "a", "chosen": "b", "rejected": "c"},
        Preference((TURNS[0],), (TURNS[1],), ({"role": "assistant", "content": "c"},)),
    ),
}


@pytest.mark.parametrize("kind", CASES)
def test_every_kind_is_known_by_its_columns(kind: str) -> None:
    row, example = CASES[kind]
    found = as_examples(Rows([row], "x.jsonl"), None, {}, None)
    assert found.kind == kind and found.examples == (example,)
    assert found.told[0].startswith(f"x.jsonl: read as {kind}, 1 ")


def test_columns_can_be_called_otherwise() -> None:
    rows = Rows([{"question": "a", "answer": "b"}], "x.csv")
    found = as_examples(rows, None, {"prompt": "question", "completion": "answer"}, None)
    assert found.examples == (Completion("a", "b"),)


@pytest.mark.parametrize("prompt", [{}, {"prompt": "a"}, {"prompt": TURNS[:1]}])
def test_preferences_may_hold_their_prompt(prompt: dict[str, Any]) -> None:
    row = {**prompt, "chosen": TURNS, "rejected": [TURNS[0], {"role": "assistant", "content": "c"}]}
    assert as_examples(Rows([row], "x"), None, {}, None).examples == (CASES["preference"][1],)


def test_preferences_get_system_messages_too() -> None:
    row = CASES["preference"][0]
    for rows, system in (([row], "kind"), ([{**row, "system": "kind"}], None)):
        (example,) = as_examples(Rows(rows, "x"), None, {}, system).examples
        assert example.prompt[0] == {"role": "system", "content": "kind"}  # type: ignore[union-attr]


def test_tools_may_be_written_as_json() -> None:
    tools = [{"name": "clock"}]
    for given in (tools, '[{"name": "clock"}]'):
        for row in ({"messages": TURNS}, CASES["sharegpt"][0]):
            (example,) = as_examples(Rows([{**row, "tools": given}], "x"), None, {}, None).examples
            assert example.tools == tuple(tools)  # type: ignore[union-attr]
    told = as_examples(Rows([{"messages": TURNS}, {"messages": TURNS, "tools": 5}], "x"), None, {}, None).told
    assert "1 skipped: 1 because tools is no list of mappings" in told[0]


def test_messages_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "a"}]
    row = {"messages": [{"role": "user", "content": parts}, TURNS[1]]}
    assert as_examples(Rows([row], "x"), None, {}, None).examples == (Chat(tuple(TURNS)),)
    row = {"messages": [{"role": ["user"], "content": "a"}, {"role": "user", "content": 5}]}
    with pytest.raises(DataError, match="by \\['user'\\]"):
        as_examples(Rows([row], "x"), None, {}, None)


def test_a_system_message_is_added_where_there_is_none() -> None:
    own = {"messages": [{"role": "system", "content": "mine"}, *TURNS]}
    found = as_examples(Rows([own, {"messages": TURNS}], "x"), None, {}, "yours")
    assert [example.messages[0]["content"] for example in found.examples] == ["mine", "yours"]  # type: ignore[union-attr]


def test_columns_that_are_not_there_are_named() -> None:
    rows = Rows([{"question": "a", "answer": "b"}], "x.csv")
    with pytest.raises(DataError, match=r"nothing is called 'promt'. Did you mean 'prompt'"):
        as_examples(rows, None, {"promt": "question"}, None)
    with pytest.raises(
        DataError, match=r"x.csv has no 'anser'. Did you mean 'answer'.*It has question, answer"
    ):
        as_examples(rows, None, {"prompt": "question", "completion": "anser"}, None)


def test_skipped_rows_are_counted_by_reason() -> None:
    bad = [{"messages": []}, {"messages": TURNS[:1]}, {"messages": [{"role": "parrot", "content": "a"}]}]
    told = as_examples(Rows([{"messages": TURNS}] * 3 + bad, "x"), None, {}, None).told[0]
    assert told.startswith("x: read as chat, 3 conversations, 3 skipped: 1 because")
    assert "the assistant says nothing" in told and "by 'parrot'" in told


def test_what_nobody_knows_is_refused_with_its_columns() -> None:
    with pytest.raises(DataError, match=r"cannot tell what its rows are; they have review.*data\.columns"):
        as_examples(Rows([{"review": "a"}], "x.csv"), None, {}, None)
    with pytest.raises(DataError, match="no row can be read as text: 1 because text is empty"):
        as_examples(Rows([{"text": ""}], "x.csv"), "text", {}, None)
