"""New tokens in one file with the adapter, as A1111, Forge and OneTrainer read them.

    "bundle_emb.<token>.clip_l"      (rows, width): what the token stands for to that text encoder

In memory they are rows of the encoder's embedding, trained in full; the fact `tokens` says which are whose:
{"<token>": {"text_encoder": [49408, 49409]}}.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from lorimer.adapters._state import AdapterState, ParameterState
from lorimer.errors import FileFormatError
from lorimer.families._names import FileNames, TokenRows
from lorimer.formats._checks import shown
from lorimer.formats.safe_io import parse_json

TOKENS = "tokens"  # the fact
PREFIX = "bundle_emb."
# How A1111's own embeddings call the only text encoder.
_ONLY = ("string_to_param.*", "emb_params")

Tokens = dict[str, dict[str, list[int]]]


def bundled(state: AdapterState, names: FileNames, format: str) -> dict[str, Tensor]:
    """The keys and tensors of everything in the state that was trained in full.

    Raises:
        FileFormatError: something else than rows of tokens was, or rows that belong to no token or to two.
    """
    tokens = read_tokens(state.metadata, f"the {format} format")
    tensors: dict[str, Tensor] = {}
    for name, parameter in state.full.items():
        module = name.rpartition(".")[0]
        embedding, rows = names.token_rows(module), parameter.rows
        if embedding is None or rows is None:
            raise FileFormatError(
                f"the {format} format cannot hold parameters that were trained in full ({name!r}), "
                "new tokens apart. Use format 'lorimer', which holds any adapter"
            )
        component = module.partition(".")[0]
        own = {token: its[component] for token, its in tokens.items() if component in its}
        if sorted(row for its in own.values() for row in its) != sorted(rows):
            raise FileFormatError(
                f"the {format} format needs to know which rows of {name!r} are whose: give the fact "
                f'"{TOKENS}", e.g. {{"<token>": {{"{component}": {list(rows)}}}}}. Or use format \'lorimer\''
            )
        for token, its in own.items():
            if not token or "." in token:
                raise FileFormatError(
                    f"the {format} format cannot hold a token called {token!r}: it separates names by "
                    "points. Rename it, or use format 'lorimer'"
                )
            place = torch.tensor([rows.index(row) for row in its], dtype=torch.long)
            tensors[f"{PREFIX}{token}.{embedding.key}"] = parameter.value[place]
    return tensors


def in_order_of_tokens(state: AdapterState) -> dict[str, ParameterState]:
    """The parameters trained in full with the rows of each token together, as they are read back."""
    tokens = read_tokens(state.metadata, "the adapter")
    ordered = {}
    for name, parameter in state.full.items():
        component, rows = name.partition(".")[0], parameter.rows
        wanted = [row for its in tokens.values() for row in its.get(component, ())]
        if rows is not None and sorted(wanted) == sorted(rows):
            place = torch.tensor([rows.index(row) for row in wanted], dtype=torch.long)
            parameter = ParameterState(parameter.value[place], tuple(wanted))
        ordered[name] = parameter
    return ordered


def unbundled(
    tensors: Mapping[str, Tensor],
    names: FileNames,
    metadata: Mapping[str, str],
    expected: Collection[str],
    where: str,
) -> tuple[dict[str, ParameterState], str]:
    """(parameters trained in full, the fact `tokens`) from a file's `bundle_emb.*` keys. Where the file does
    not say which rows the tokens are, they come behind those that the embedding has.

    Args:
        expected: the parameters that the file says it holds.

    Raises:
        FileFormatError: a key that the family's text encoders do not have, or a token that is missing or
            has another number of rows.
    """
    embeddings = {component: own.tokens for component, own in names.components.items() if own.tokens}
    told, values = read_tokens(metadata, where), _values(tensors, embeddings, where)
    parameters = {component: f"{component}.{own.module}.weight" for component, own in embeddings.items()}
    missing = set(expected) - {parameters[component] for component, _ in values}
    missing |= {
        f"{token} of {component}"
        for token, its in told.items()
        for component in its
        if parameters.get(component) in expected and (component, token) not in values
    }
    if missing:
        raise FileFormatError(f"{where}: incomplete, it lacks {shown(missing)}")
    order = list(dict.fromkeys([*told, *(token for _, token in values)]))
    tokens: Tokens = {}
    full: dict[str, ParameterState] = {}
    for component, embedding in embeddings.items():
        own = {token: values[component, token] for token in order if (component, token) in values}
        rows = _rows(own, {token: its.get(component) for token, its in told.items()}, embedding.count, where)
        if own:
            every = tuple(row for its in rows.values() for row in its)
            full[parameters[component]] = ParameterState(torch.cat(list(own.values())), every)
        for token, its in rows.items():
            tokens.setdefault(token, {})[component] = its
    return full, json.dumps({token: tokens[token] for token in order if token in tokens}, ensure_ascii=False)


def _values(
    tensors: Mapping[str, Tensor], embeddings: Mapping[str, TokenRows], where: str
) -> dict[tuple[str, str], Tensor]:
    """(component, token) -> its rows."""
    by_key = {embedding.key: component for component, embedding in embeddings.items()}
    if len(embeddings) == 1:
        by_key.update(dict.fromkeys(_ONLY, next(iter(embeddings))))
    values: dict[tuple[str, str], Tensor] = {}
    unknown = []
    for key, tensor in tensors.items():
        token, _, kind = key.removeprefix(PREFIX).partition(".")
        if kind in by_key and token and tensor.ndim in (1, 2) and (by_key[kind], token) not in values:
            values[by_key[kind], token] = torch.atleast_2d(tensor)
        else:
            unknown.append(key)
    if unknown:
        raise FileFormatError(f"{where}: bundled embeddings that lorimer cannot hold: {shown(unknown)}")
    return values


def _rows(
    values: Mapping[str, Tensor], told: Mapping[str, list[int] | None], free: int, where: str
) -> dict[str, list[int]]:
    """Token -> which rows of one embedding it is; `free` is the first that is not taken."""
    rows: dict[str, list[int]] = {}
    for token, value in values.items():
        rows[token] = told.get(token) or list(range(free, free + len(value)))
        if len(rows[token]) != len(value):
            raise FileFormatError(
                f"{where}: the token {token!r} has {len(value)} rows, not {len(rows[token])}"
            )
        free = max(free, *(row + 1 for row in rows[token]))
    return rows


def read_tokens(metadata: Mapping[str, str], where: str) -> Tokens:
    """The fact `tokens`, checked."""
    found: Any = parse_json(metadata[TOKENS], f"{where}: {TOKENS}") if TOKENS in metadata else {}
    sound = isinstance(found, dict) and all(
        isinstance(its, dict)
        and all(isinstance(rows, list) and rows and all(type(row) is int and row >= 0 for row in rows)
                for rows in its.values())
        for its in found.values()
    )  # fmt: skip
    if not sound:
        raise FileFormatError(
            f'{where}: {TOKENS} must be {{"<token>": {{"text_encoder": [rows]}}}}, not {str(found)[:60]!r}'
        )
    return found
