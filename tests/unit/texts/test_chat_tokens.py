"""Which tokens are learned: all that the assistant has to say, and nothing else, in any template."""

from __future__ import annotations

from typing import Any

import pytest

from lorimer.errors import DataError
from lorimer.tasks._chat_tokens import (
    Chat,
    Completion,
    Plain,
    Preference,
    Tokens,
    encode,
    encode_preference,
    show_tokens,
)
from tests.tiny_texts import CHATML, tiny_tokenizer

LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|{{ m['role'] }}|>\n\n{{ m['content'] | trim }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% else %}"
    "{{ raise_exception('no system message') }}{% endif %}{% endfor %}"
)
DEFAULT_SYSTEM = (
    "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind<|im_end|>\n{% endif %}" + CHATML
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama": (LLAMA, "</s>"),
    "mistral": (MISTRAL, "</s>"),
    "default system": (DEFAULT_SYSTEM, "<|im_end|>"),
    "none": (None, "<|im_end|>"),
}
SAID = ("yes: 你好", "no\n\nnever")
TALK = Chat(
    (
        {"role": "user", "content": "is it so?"},
        {"role": "assistant", "content": SAID[0]},
        {"role": "user", "content": "yes: 你好"},  # what the assistant said, by another
        {"role": "assistant", "content": SAID[1]},
    )
)


def learned(tokens: Tokens, tokenizer: Any) -> str:
    return str(
        tokenizer.decode([token for token, learn in zip(tokens.ids, tokens.learn, strict=True) if learn])
    )


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_assistants_words_and_its_end_are_learned_alone(name: str) -> None:
    template, end = TEMPLATES[name]
    tokenizer = tiny_tokenizer(template)
    tokens = encode(TALK, tokenizer, "assistant", 1000)
    assert [part.strip(" ") for part in learned(tokens, tokenizer).split(end)] == [*SAID, ""]
    whole = encode(TALK, tokenizer, "all", 1000)
    assert whole.ids == tokens.ids and all(whole.learn)


def test_texts_and_completions_end() -> None:
    tokenizer = tiny_tokenizer()
    tokens = encode(Plain("abc"), tokenizer, "assistant", 100)
    assert learned(tokens, tokenizer) == "abc<|im_end|>"
    tokens = encode(Completion("1+1=", "2"), tokenizer, "assistant", 100)
    assert learned(tokens, tokenizer) == "2<|im_end|>" and len(tokens.ids) == 6


def test_preferences_differ_in_what_is_learned() -> None:
    tokenizer = tiny_tokenizer()
    asked = ({"role": "user", "content": "so?"},)
    answers = [({"role": "assistant", "content": text},) for text in ("yes", "never")]
    both = encode_preference(Preference(asked, *answers), tokenizer, 100)
    assert [learned(tokens, tokenizer) for tokens in both] == ["yes<|im_end|>", "never<|im_end|>"]


def test_long_texts_keep_their_beginning() -> None:
    tokenizer = tiny_tokenizer()
    whole = encode(TALK, tokenizer, "assistant", 1000)
    cut = encode(TALK, tokenizer, "assistant", 20)
    assert (cut.ids, cut.learn) == (whole.ids[:20], whole.learn[:20])


def test_a_template_that_refuses_is_named() -> None:
    with pytest.raises(DataError, match=r"refuses a conversation of system, user.*no system message"):
        messages = ({"role": "system", "content": "a"}, {"role": "user", "content": "b"})
        encode(Chat(messages), tiny_tokenizer(MISTRAL), "all", 100)


def test_a_template_that_rewrites_what_was_said_is_refused() -> None:
    template = "{% for m in messages %}{{ messages | length }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match=r"turn by turn.*loss_on to all"):
        encode(TALK, tiny_tokenizer(template), "assistant", 100)


def test_what_is_learned_can_be_seen() -> None:
    tokenizer = tiny_tokenizer()
    shown = show_tokens(encode(TALK, tokenizer, "assistant", 1000), tokenizer)
    assert shown.count("⟦") == shown.count("⟧") == 2
    assert shown.endswith("⟦n|o|\n|\n|n|e|v|e|r|<|im_end|>⟧\n")
