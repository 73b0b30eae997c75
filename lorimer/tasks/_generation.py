"""Answers of a causal language model, piece by piece, as they come."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from lorimer.tasks._chat_tokens import prompt_tokens, render

Message = dict[str, Any]
PLAIN_KINDS = (
    "prompt-completion",
    "text",
)  # kinds of data that are learned as they stand, without a chat template


def prompt_ids(
    tokenizer: Any, prompt: str | Sequence[Message], system: str | None = None, *, plain: bool = False
) -> list[int]:
    """The tokens before an answer, see `render`; or, `plain`, of the last message, to be gone on with."""
    if plain:
        text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        return list(prompt_tokens(text, tokenizer))
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
    if system is not None and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    text = render(tokenizer, messages, begin_answer=True)
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def answer(model: Any, tokenizer: Any, ids: Sequence[int], **options: Any) -> str:
    """The whole answer; options as of `stream`."""
    return "".join(stream(model, tokenizer, ids, **options))


def stream(
    model: Any,
    tokenizer: Any,
    ids: Sequence[int],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> Iterator[str]:
    """The answer in pieces of whole characters, until the model ends it or `max_tokens` are said.

    Args:
        temperature: 0 takes the likeliest token each time.
        top_p: draw among the likeliest tokens that together have this probability.
        seed: of the draws.
    """
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    ends = _ends(model, tokenizer)
    said: list[int] = []
    shown, past = "", None
    step = torch.tensor([list(ids)], device=device)
    for _ in range(max_tokens):
        with torch.no_grad():
            out = model(input_ids=step, past_key_values=past, use_cache=True, logits_to_keep=1)
        past = out.past_key_values
        token = _draw(out.logits[0, -1].float().cpu(), temperature, top_p, generator)
        if token in ends:
            break
        said.append(token)
        text = tokenizer.decode(said, skip_special_tokens=True)
        if not text.endswith("\ufffd"):  # half a character: wait for its other bytes
            yield text[len(shown) :]
            shown = text
        step = torch.tensor([[token]], device=device)
    rest = tokenizer.decode(said, skip_special_tokens=True)[len(shown) :]
    if rest:
        yield rest


def _draw(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    if temperature <= 0.0:
        return int(logits.argmax())
    probabilities, order = (logits / temperature).softmax(0).sort(descending=True)
    probabilities[probabilities.cumsum(0) - probabilities > top_p] = 0.0  # the likeliest always stays
    return int(order[torch.multinomial(probabilities, 1, generator=generator)])


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer."""
    found = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    several = found if isinstance(found, list) else [found]
    return {each for each in (*several, tokenizer.eos_token_id) if each is not None}
