"""What a causal language model says of tokens: their losses, without ever holding all logits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lorimer.kernels.vocabulary_loss import token_losses, weighted_loss

_PROBE = 12  # tokens of the texts by which a model's ways are found out


@dataclass(frozen=True)
class CausalHead:
    """How a model gets from hidden states to logits, and whether it can read packed texts.

    Attributes:
        scale: logits are multiplied by it (Cohere, Granite).
        softcap: c of c·tanh(logits / c), where the model bounds them so (Gemma 2).
        in_chunks: whether that is all there is to the model's logits, so that they can be made in chunks.
        packs: whether attention stays within each of several texts in one row.
    """

    scale: float = 1.0
    softcap: float | None = None
    in_chunks: bool = True
    packs: bool = True


def head_of(model: Any) -> CausalHead:
    """How `model` makes logits: read from its config, then held against what it does."""
    config = model.config.get_text_config()
    divisor = getattr(config, "logits_scaling", None)
    scale = getattr(config, "logit_scale", None) or (1.0 / divisor if divisor else 1.0)
    head = CausalHead(float(scale), getattr(config, "final_logit_softcapping", None))
    tokens = torch.arange(2 * _PROBE).remainder(config.vocab_size)[None]
    device = model.get_output_embeddings().weight.device
    tokens, positions = tokens.to(device), torch.arange(2 * _PROBE, device=device)[None]
    with torch.no_grad():
        wanted = model(input_ids=tokens, position_ids=positions, use_cache=False).logits
        ours = _logits(model, hidden_states(model, tokens, positions), head)
        second = model(input_ids=tokens[:, _PROBE:], use_cache=False).logits
        packed = model(input_ids=tokens, position_ids=positions % _PROBE, use_cache=False).logits
    return CausalHead(head.scale, head.softcap, _agree(ours, wanted), _agree(packed[:, _PROBE:], second))


def hidden_states(model: Any, ids: Tensor, positions: Tensor) -> Tensor:
    """(rows, length, width): what goes into the head of `model`."""
    states: Tensor = model.get_decoder()(
        input_ids=ids, position_ids=positions, use_cache=False
    ).last_hidden_state
    return states


def mean_loss(model: Any, head: CausalHead, batch: dict[str, Tensor]) -> Tensor:
    """The mean negative log-likelihood of a batch's learned tokens, a scalar."""
    states, targets = _learned(model, head, batch)
    if not head.in_chunks:
        return nn.functional.cross_entropy(states.float(), targets)
    weights = torch.full_like(targets, 1.0 / len(targets), dtype=torch.float32)
    return weighted_loss(states, *_weights(model), targets, weights, **_options(model, head))


def losses(model: Any, head: CausalHead, batch: dict[str, Tensor]) -> Tensor:
    """(N,) The negative log-likelihood of each learned token, row by row."""
    states, targets = _learned(model, head, batch)
    if not head.in_chunks:
        return nn.functional.cross_entropy(states.float(), targets, reduction="none")
    return token_losses(states, *_weights(model), targets, **_options(model, head))


def log_likelihoods(model: Any, head: CausalHead, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """((rows,), (rows,)): of each row the summed log-likelihood of its learned tokens, and their number."""
    learn = batch["learn"][:, 1:]
    row = torch.arange(len(learn), device=learn.device)[:, None].expand_as(learn)[learn]
    sums = torch.zeros(len(learn), device=learn.device)
    return sums.index_add(0, row, -losses(model, head, batch).float()), learn.sum(1)


def _learned(model: Any, head: CausalHead, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """((N, width), (N,)): for each learned token the hidden state before it, and the token. Where the head
    cannot be taken apart, its logits stand for hidden states."""
    if head.in_chunks:
        states = hidden_states(model, batch["ids"], batch["positions"])
    else:
        states = model(input_ids=batch["ids"], position_ids=batch["positions"], use_cache=False).logits
    learn = batch["learn"][:, 1:]
    return states[:, :-1][learn], batch["ids"][:, 1:][learn]


def _weights(model: Any) -> tuple[Tensor, Tensor | None]:
    head = model.get_output_embeddings()
    return head.weight, getattr(head, "bias", None)


def _options(model: Any, head: CausalHead) -> dict[str, Any]:
    """Options of the losses. A head that is more than a product, such as an adapted one, is called."""
    layer = model.get_output_embeddings()
    called: Callable[[Tensor], Tensor] | None = None if type(layer) is nn.Linear else layer
    return {"scale": head.scale, "softcap": head.softcap, "head": called}


def _logits(model: Any, states: Tensor, head: CausalHead) -> Tensor:
    logits = model.get_output_embeddings()(states) * head.scale
    return logits if head.softcap is None else head.softcap * torch.tanh(logits / head.softcap)


def _agree(ours: Tensor, wanted: Tensor) -> bool:
    """Whether rounding explains the difference; where texts see each other it is about a half of the norm."""
    rounding = max(1e-3, 16 * torch.finfo(wanted.dtype).eps)
    return bool((ours - wanted).float().norm() <= rounding * wanted.float().norm())
