"""Cross-entropy over a vocabulary, in chunks of tokens: the logits of a whole batch are never held.

For a token with hidden state h, head weight W and target t, with z = c·tanh(s·Wh / c) (or s·Wh where there is
no softcap c):

    loss = logsumexp(z) - z_t        dloss/dz = softmax(z) - onehot(t)

`weighted_loss` makes the gradient while each chunk's logits are there, so that the product with W is computed
once; `token_losses` makes them again in the backward pass, since only then each token's gradient is known.
Both are what cross-entropy over all logits gives, but for rounding. The idea of the first is that of Liger
(arXiv 2410.10989, section 3.2) and of Cut Cross-Entropy (2411.09009).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

_ELEMENTS = 2**23  # logits that are held at once: 32 MB in float32

Head = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _How:
    """chunk: tokens at once; softcap: c; scale: s."""

    chunk: int
    softcap: float | None
    scale: float

    def slices(self, count: int) -> Iterator[slice]:
        for begin in range(0, count, self.chunk):
            yield slice(begin, begin + self.chunk)


def weighted_loss(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    weights: Tensor,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    head: Head | None = None,
) -> Tensor:
    """The sum over tokens of weights · loss, a float32 scalar.

    Args:
        hidden: (N, H).
        weight, bias: of the head, (V, H) and (V,).
        targets: (N,) the right tokens.
        weights: (N,) float32: how much each counts; without a gradient.
        chunk: tokens whose logits are held at once; None chooses.
        softcap: c, where logits are bounded.
        scale: s.
        head: called instead of the product with `weight`, where a head is more than that.
    """
    how = _how(weight, chunk, softcap, scale)
    if head is not None:
        losses = token_losses(
            hidden, weight, bias, targets, chunk=how.chunk, softcap=softcap, scale=scale, head=head
        )
        return (losses * weights).sum()
    return _WeightedLoss.apply(hidden, weight, bias, targets, weights, how)


def token_losses(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    *,
    chunk: int | None = None,
    softcap: float | None = None,
    scale: float = 1.0,
    head: Head | None = None,
) -> Tensor:
    """(N,) The loss of each token, in float32. Arguments as of `weighted_loss`."""
    how = _how(weight, chunk, softcap, scale)
    if head is None:
        return _TokenLosses.apply(hidden, weight, bias, targets, how)

    def of_chunk(states: Tensor, right: Tensor) -> Tensor:
        logits = _bounded(head(states), how)
        return torch.logsumexp(logits, 1) - logits.gather(1, right[:, None])[:, 0]

    parts: list[Any] = [
        checkpoint(of_chunk, hidden[part], targets[part], use_reentrant=False)
        for part in how.slices(len(targets))
    ]
    return torch.cat(parts) if parts else hidden.new_zeros(0, dtype=torch.float32)


def _how(weight: Tensor, chunk: int | None, softcap: float | None, scale: float) -> _How:
    return _How(chunk or max(1, _ELEMENTS // weight.shape[0]), softcap, scale)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _bounded(logits: Tensor, how: _How) -> Tensor:
    """z, in float32 at least."""
    logits = _wide(logits) * how.scale if how.scale != 1.0 else _wide(logits)
    return logits if how.softcap is None else how.softcap * torch.tanh(logits / how.softcap)


def _product(states: Tensor, weight: Tensor, bias: Tensor | None, how: _How) -> Tensor:
    """z of some tokens, (n, V)."""
    return _bounded(torch.nn.functional.linear(states, weight.to(states.dtype), _as(bias, states)), how)


def _as(bias: Tensor | None, like: Tensor) -> Tensor | None:
    return None if bias is None else bias.to(like.dtype)


class _Gradients:
    """What the chunks give for hidden states, weight and bias, where these are wanted."""

    def __init__(self, hidden: Tensor, weight: Tensor, bias: Tensor | None, needs: tuple[bool, ...]) -> None:
        kind = torch.promote_types(weight.dtype, torch.float32)
        self.hidden = torch.empty_like(hidden) if needs[0] else None
        self.weight = torch.zeros_like(weight, dtype=kind) if needs[1] else None
        self.bias = torch.zeros_like(bias, dtype=kind) if bias is not None and needs[2] else None

    @property
    def wanted(self) -> bool:
        return any(each is not None for each in (self.hidden, self.weight, self.bias))

    def add(
        self, part: slice, states: Tensor, weight: Tensor, z: Tensor, right: Tensor, each: Tensor, how: _How
    ) -> None:
        """The gradients of one chunk, of whose losses `each` is the gradient. Uses up `z`."""
        slope = None if how.softcap is None else 1.0 - (z / how.softcap).square_()
        z = torch.softmax(z, 1)
        z[torch.arange(len(right), device=z.device), right] -= 1.0
        z *= each[:, None] * how.scale
        if slope is not None:
            z *= slope
        narrow = z.to(states.dtype)
        if self.hidden is not None:
            self.hidden[part] = narrow @ weight.to(states.dtype)
        if self.weight is not None:
            self.weight += narrow.T @ states
        if self.bias is not None:
            self.bias += z.sum(0)

    def as_of(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, ...]:
        return (
            self.hidden,
            None if self.weight is None else self.weight.to(weight.dtype),
            None if self.bias is None or bias is None else self.bias.to(bias.dtype),
        )


class _WeightedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        targets: Tensor,
        weights: Tensor,
        how: _How,
    ) -> Tensor:
        found = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        total = torch.zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32), device=hidden.device)
        for part in how.slices(len(targets)):
            states, right, each = hidden[part], targets[part], weights[part].to(total.dtype)
            z = _product(states, weight, bias, how)
            total += ((torch.logsumexp(z, 1) - z.gather(1, right[:, None])[:, 0]) * each).sum()
            if found.wanted:
                found.add(part, states, weight, z, right, each, how)
        ctx.save_for_backward(*found.as_of(weight, bias))
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        found = [None if each is None else each * gradient.to(each.dtype) for each in ctx.saved_tensors]
        return (*found, None, None, None)


class _TokenLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, how: _How
    ) -> Tensor:
        ctx.save_for_backward(hidden, weight, bias, targets)
        ctx.how = how
        kind = torch.promote_types(hidden.dtype, torch.float32)
        losses = torch.empty(len(targets), dtype=kind, device=hidden.device)
        for part in how.slices(len(targets)):
            z = _product(hidden[part], weight, bias, how)
            losses[part] = torch.logsumexp(z, 1) - z.gather(1, targets[part][:, None])[:, 0]
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, targets = ctx.saved_tensors
        found = _Gradients(hidden, weight, bias, ctx.needs_input_grad)
        for part in ctx.how.slices(len(targets)):
            z = _product(hidden[part], weight, bias, ctx.how)
            found.add(part, hidden[part], weight, z, targets[part], gradient[part], ctx.how)
        return (*found.as_of(weight, bias), None, None)
