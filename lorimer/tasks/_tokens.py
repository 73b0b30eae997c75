"""New tokens: words of a model's own for a subject, whose embeddings are learned beside the adapter.

A token starts as the words that a recipe gives for it, one row of the text encoder's embedding for each of
theirs. A second row is called `<me>_1`, as diffusers calls it, and captions say `<me>` alone. Tokenizers
that learn no row for it, such as T5's, read the words that it started as.

Adapters of other programs and of other runs say which rows are whose (see `formats/_bundle.py`); a model
makes room for them, wherever its own rows end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lorimer.adapters._state import AdapterState, ParameterState
from lorimer.errors import FileFormatError, RecipeError, UsageError
from lorimer.formats._bundle import TOKENS, Tokens, read_tokens

if TYPE_CHECKING:
    from lorimer.tasks._diffusion import DiffusionModel

TOKEN_WORDS = "token_words"  # the fact: {"<me>": "the words that it started as"}


def add_tokens(model: DiffusionModel, words: Mapping[str, str]) -> None:
    """Give the model's CLIP text encoders new tokens (name -> the words that it starts as); what they are
    is `model.tokens` afterwards.

    Raises:
        RecipeError: the model has no such encoder, knows such a token already, or no words are given.
    """
    learning = [name for name in model.text_encoders if "CLIP" in model.family.parts[name].cls]
    if words and not learning:
        raise RecipeError(f"data.tokens: a model of the family {model.family.name} has no CLIP to learn them")
    for token, start in words.items():
        ids = {name: _ids(_tokenizer(model, name), start) for name in learning}
        if not all(ids.values()):
            raise RecipeError(f"data.tokens.{token}: say in words what the token starts as")
        if any(token in _tokenizer(model, name).get_vocab() for name in learning):
            raise RecipeError(f"data.tokens.{token}: the model knows this word already; choose another")
        _add(model, token, {name: len(own) for name, own in ids.items()}, start)


def make_room(model: DiffusionModel, state: AdapterState) -> AdapterState:
    """`state` with the rows of its tokens where this model has them, which is given those that it lacks.

    Raises:
        FileFormatError: what the state says of its tokens is broken.
        UsageError: the model has such a token with more or fewer rows.
    """
    told = read_tokens(state.metadata, "the adapter")
    words = _read_words(state.metadata)
    for token, rows in told.items():
        counts = {name: len(own) for name, own in rows.items() if name in model.text_encoders}
        if token not in model.tokens:
            _add(model, token, counts, words.get(token, ""))
        elif counts != {name: len(own) for name, own in model.tokens[token].items()}:
            raise UsageError(f"the model has another token called {token!r}; load this adapter without that")
    if not told:
        return state
    tokens = {token: model.tokens[token] for token in told}
    full = {name: _moved(name, each, told, tokens) for name, each in state.full.items()}
    return replace(state, full=full, metadata={**state.metadata, TOKENS: json.dumps(tokens)})


def facts(model: DiffusionModel) -> dict[str, str]:
    """What files say of the model's tokens."""
    if not model.tokens:
        return {}
    as_text = {TOKENS: model.tokens, TOKEN_WORDS: model.token_words}
    return {fact: json.dumps(value, ensure_ascii=False) for fact, value in as_text.items()}


def rows_to_train(model: DiffusionModel) -> dict[str, tuple[int, ...]]:
    """The path of each embedding that has new tokens -> their rows."""
    found: dict[str, tuple[int, ...]] = {}
    for rows in model.tokens.values():
        for name, own in rows.items():
            encoder = model.text_encoders[name]
            inner = next(path for path, each in encoder.named_modules() if each is _embedding(encoder))
            path = f"{name}.{inner}"
            found[path] = (*found.get(path, ()), *own)
    return found


def spelled(text: str, phrases: Mapping[str, str]) -> str:
    """`text` with each token as its phrase says; what is spelled already stays."""
    for token, phrase in phrases.items():
        name = re.escape(token)
        text = phrase.join(re.split(rf"{name}(?!_\d)(?:\s*{name}_\d+)*", text))
    return text


def _add(model: DiffusionModel, token: str, counts: Mapping[str, int], words: str) -> None:
    """A token of `counts` rows in each text encoder, which start as `words` where those are as many."""
    model.tokens[token] = {}
    model.token_words[token] = words
    for name, encoder in model.text_encoders.items():
        tokenizer = _tokenizer(model, name)
        if name not in counts:
            _spell(tokenizer, token, words or token)
            continue
        names = [token, *(f"{token}_{number}" for number in range(1, counts[name]))]
        start = _ids(tokenizer, words)
        ids = _new_ids(tokenizer, names)
        _grow(_embedding(encoder), ids, start if len(start) == len(ids) else None)
        encoder.config.vocab_size = _embedding(encoder).num_embeddings
        _pool_at_the_end(encoder, tokenizer)
        _spell(tokenizer, token, " ".join(names))
        model.tokens[token][name] = ids


def _new_ids(tokenizer: Any, names: Sequence[str]) -> list[int]:
    """The tokenizer's number of each name, which it learns where it does not know it."""
    from transformers import AddedToken

    known = tokenizer.get_vocab()
    tokenizer.add_tokens([AddedToken(name, normalized=False) for name in names if name not in known])
    return [tokenizer.convert_tokens_to_ids(name) for name in names]


@torch.no_grad()
def _grow(embedding: Any, ids: Sequence[int], start: Sequence[int] | None) -> None:
    """Rows for `ids`, as those of `start` are; without a start, the mean of all."""
    old: Tensor = embedding.weight
    more = max(ids) + 1 - len(old)
    if more <= 0:
        return
    weight = torch.cat([old, old.float().mean(0).to(old).expand(more, -1)])
    if start is not None:
        weight[list(ids)] = old[list(start)]
    embedding.weight = nn.Parameter(weight, requires_grad=False)
    embedding.num_embeddings = len(weight)


def _pool_at_the_end(encoder: nn.Module, tokenizer: Any) -> None:
    """Old configs have CLIP look for the end of a text where the highest number stands, which a new token
    would be."""
    for module in encoder.modules():
        if getattr(module, "eos_token_id", None) == 2:
            module.eos_token_id = tokenizer.eos_token_id
    config: Any = encoder.config
    if config.eos_token_id == 2:
        config.eos_token_id = tokenizer.eos_token_id


def _spell(tokenizer: Any, token: str, phrase: str) -> None:
    """Have the tokenizer read `phrase` wherever a text says `token`. It keeps its class's name, by which
    pipelines are saved and loaded."""
    if not hasattr(tokenizer, "phrases"):
        cls = type(tokenizer)

        def read(self: Any, text: Any = None, *others: Any, **options: Any) -> Any:
            if isinstance(text, str):
                text = spelled(text, self.phrases)
            elif isinstance(text, list | tuple) and all(isinstance(each, str) for each in text):
                text = [spelled(each, self.phrases) for each in text]
            return cls.__call__(self, text, *others, **options)

        tokenizer.__class__ = type(cls.__name__, (cls,), {"__call__": read, "__module__": cls.__module__})
        tokenizer.phrases = {}
    tokenizer.phrases[token] = phrase


def _moved(name: str, parameter: ParameterState, told: Tokens, here: Tokens) -> ParameterState:
    component = name.partition(".")[0]
    where = {
        old: new
        for token, rows in told.items()
        if component in rows and component in here[token]
        for old, new in zip(rows[component], here[token][component], strict=True)
    }
    if parameter.rows is None:
        return parameter
    return replace(parameter, rows=tuple(where.get(row, row) for row in parameter.rows))


def _read_words(metadata: Mapping[str, str]) -> dict[str, str]:
    try:
        words = json.loads(metadata.get(TOKEN_WORDS, "{}"))
    except ValueError:
        words = None
    if not isinstance(words, dict) or not all(isinstance(each, str) for each in words.values()):
        raise FileFormatError(f'the adapter: {TOKEN_WORDS} must be {{"<token>": "words"}}')
    return words


def _tokenizer(model: DiffusionModel, encoder: str) -> Any:
    return getattr(model, encoder.replace("text_encoder", "tokenizer"))


def _ids(tokenizer: Any, words: str) -> list[int]:
    ids: list[int] = tokenizer(words, add_special_tokens=False).input_ids
    return ids


def _embedding(encoder: Any) -> Any:
    return encoder.get_input_embeddings()
