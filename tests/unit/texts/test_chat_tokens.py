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
    render,
    show_tokens,
)
from lorimer.tasks._generation import prompt_ids
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
# Earlier answers stand otherwise than the last: Qwen 3 begins that alone with an empty thought, others trim.
THINKING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m['role'] == 'assistant' %}"
    "<think></think>{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think></think>{% endif %}"
)
TRIMMING = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{{ m['content'] if loop.last else m['content'] | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, "<|im_end|>"),
    "llama": (LLAMA, "</s>"),
    "mistral": (MISTRAL, "</s>"),
    "default system": (DEFAULT_SYSTEM, "<|im_end|>"),
    "thinking": (THINKING, "<|im_end|>"),
    "trimming": (TRIMMING, "<|im_end|>"),
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
    template = "{% for m in messages %}{{ messages | length }}{{ m['content'] * 2 }}{% endfor %}"
    with pytest.raises(DataError, match=r"turn by turn.*loss_on to all"):
        encode(TALK, tiny_tokenizer(template), "assistant", 100)


def test_what_is_learned_can_be_seen() -> None:
    tokenizer = tiny_tokenizer()
    shown = show_tokens(encode(TALK, tokenizer, "assistant", 1000), tokenizer)
    assert shown.count("⟦") == shown.count("⟧") == 2
    assert shown.endswith("⟦n|o|\n|\n|n|e|v|e|r|<|im_end|>⟧\n")


@pytest.mark.parametrize("answer", ["<b>bold</b>", "\u2039so\u203a", "  spaces  "])
@pytest.mark.parametrize("template", [THINKING, TRIMMING])
def test_earlier_answers_are_learned_whole_however_they_begin(template: str, answer: str) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": answer}]
    tokenizer = tiny_tokenizer(template)
    tokens = encode(Chat((*turns, *turns)), tokenizer, "assistant", 1000)
    first = learned(tokens, tokenizer).split("<|im_end|>")[0]
    assert first.strip() == answer.strip()
    assert learned(tokens, tokenizer).count("<|im_end|>") == 2


def test_a_conversation_may_begin_with_the_assistant() -> None:
    turns = ({"role": "assistant", "content": "hello"}, *TALK.messages)
    tokenizer = tiny_tokenizer()
    said = learned(encode(Chat(turns), tokenizer, "assistant", 1000), tokenizer)
    assert said.split("<|im_end|>") == ["hello", *SAID, ""]


def merging_tokenizer(template: str | None = CHATML) -> Any:
    """One whose tokens reach across a space, as those of most models do: " yes" and "a " are one each."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("e", "s"), ("y", "es"), ("\u0120", "yes"), ("\u0120", "w"), (":", "\u0120")]
    names = ["<unk>", "<s>", "<|im_end|>", *letters, *("".join(pair) for pair in merges)]
    vocabulary = {name: place for place, name in enumerate(names)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in names[:3]])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|im_end|>")
    fast.chat_template = template
    return fast


def test_the_first_word_after_a_space_is_learned_as_it_will_be_asked_for() -> None:
    tokenizer = merging_tokenizer()
    tokens = encode(Completion("so ", "yes"), tokenizer, "assistant", 100)
    assert learned(tokens, tokenizer) == "yes<|im_end|>"
    asked = tuple(prompt_ids(tokenizer, "so ", plain=True))
    assert tokens.ids[: len(asked)] == asked
    tokens = encode(Completion("so", " yes"), tokenizer, "assistant", 100)
    assert learned(tokens, tokenizer) == " yes<|im_end|>" and len(tokens.ids) == 4


@pytest.mark.parametrize(
    "template",
    [
        None,
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>"
        "{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    ],
)
def test_what_stands_before_an_answer_is_as_it_will_be_asked_for(template: str | None) -> None:
    tokenizer = merging_tokenizer(template)
    turns = ({"role": "user", "content": "so?"}, {"role": "assistant", "content": "yes"})
    tokens = encode(Chat(turns), tokenizer, "assistant", 100)
    assert learned(tokens, tokenizer).strip() == "yes<|im_end|>"
    asked = tuple(prompt_ids(tokenizer, "so?"))
    assert tokens.ids[: len(asked)] == asked and not any(tokens.learn[: len(asked)])


def test_without_a_template_turns_stand_on_lines_of_their_own() -> None:
    assert render(tiny_tokenizer(None), TALK.messages[:3], begin_answer=True) == (
        "User: is it so?\nAssistant: yes: \u4f60\u597d<|im_end|>\nUser: yes: \u4f60\u597d\nAssistant:"
    )
