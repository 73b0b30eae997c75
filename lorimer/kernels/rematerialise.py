"""Inputs that need not be kept: what autograd keeps of their making is enough to have them again.

A layer that trains A needs its input in the backward pass. In the networks of the day that input is often a
product whose operands autograd keeps anyway, for the sake of the product's own gradient:

    down_proj(silu(gate) · up)         keeps silu(gate) and up
    q_proj(weight · (h · rsqrt))       keeps h, rsqrt and weight          (RMSNorm)

Then we keep the same operands, which costs no memory as the storages are the same ones, and multiply again.
An operand per token or per feature is not even multiplied with: such scales commute with the product of the
backward pass, where they meet the rank-sized side.

Torch guards the operands as it guards its own: one that was changed in place since makes the backward pass
raise. Inputs are kept as they are under `saved_tensors_hooks` (gradient checkpointing, offloading), which
have their own idea of what to keep, unless the hook says by an attribute `transparent = True` that it only
looks on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

_DEPTH = 3  # products of products that are looked through
_unknown = object()  # the hook of a slot that does not tell, in other versions of torch
_MOST_FULL = 2  # operands of the input's size: one product of that size in the backward pass


@dataclass(frozen=True)
class Input:
    """An input as the product full[0] · full[1] · rows · columns.

    full: tensors of the input's shape, at least one. rows: (..., 1), a scale per token. columns: (in,).
    """

    full: tuple[Tensor, ...]
    rows: Tensor | None = None
    columns: Tensor | None = None

    def core(self) -> Tensor:
        """The product of the full operands."""
        core = self.full[0]
        for operand in self.full[1:]:
            core = core * operand
        return core

    def whole(self) -> Tensor:
        """The input itself."""
        x = self.core()
        for scale in (self.rows, self.columns):
            x = x if scale is None else x * scale
        return x

    def tensors(self) -> tuple[Tensor | None, ...]:
        """What to give `save_for_backward`."""
        return (self.rows, self.columns, *self.full)

    @staticmethod
    def of(saved: tuple[Tensor | None, ...]) -> Input:
        """The inverse of `tensors`."""
        rows, columns, *full = saved
        return Input(tuple(tensor for tensor in full if tensor is not None), rows, columns)


def kept_form(x: Tensor, scales: bool) -> Input:
    """The cheapest form in which `x` can be kept for the backward pass; x itself where nothing better is
    known.

    `scales` allows forms with a scale per row or column, for layers whose product they commute with.
    """
    if x.grad_fn is None or x._version != 0 or saved_tensor_hooks() == "real":
        return Input((x,))
    operands = _operands(x.grad_fn, _DEPTH)
    return _sorted(x, operands, scales) if operands else Input((x,))


def saved_tensor_hooks() -> Literal["none", "transparent", "real"]:
    """What saved tensors pass through just now: nothing, mere onlookers, or hooks that replace them."""
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    if hooks is None:
        return "none"
    return "transparent" if is_transparent(hooks[0]) else "real"


def is_transparent(hook: object) -> bool:
    """Whether a hook has declared that it gives back what it was given."""
    return getattr(hook, "transparent", False) is True


def _operands(node: Any, depth: int) -> list[Tensor] | None:
    """The tensors whose product is the output of `node`, as autograd keeps them; None where it does not."""
    if node is None or depth == 0 or node.name() != "MulBackward0":
        return None
    found: list[Tensor] = []
    sides = (node._raw_saved_self, node._raw_saved_other)
    for (producer, _), saved in zip(node.next_functions, sides, strict=True):
        kept = _kept(saved)
        inner = [kept] if kept is not None else _operands(producer, depth - 1)
        if inner is None:
            return None
        found += inner
    return found


def _kept(saved: Any) -> Tensor | None:
    """The tensor that autograd keeps in a slot; None where it is empty, behind a hook, or changed since."""
    hook = getattr(saved, "unpack_hook", _unknown)
    if hook is not None and not is_transparent(hook):
        return None
    try:
        tensor = saved.unpack()
    except (
        RuntimeError
    ):  # torch refuses an operand that was changed in place; the input itself is still right
        return None
    return None if tensor is None else tensor.detach()


def _sorted(x: Tensor, operands: list[Tensor], scales: bool) -> Input:
    """The operands by their shapes; x itself where they do not fit."""
    full, rows, columns = [], None, None
    for operand in operands:
        if operand.dtype != x.dtype or operand.device != x.device:
            return Input((x,))
        if operand.shape == x.shape:
            full.append(operand)
        elif scales and rows is None and operand.shape == (*x.shape[:-1], 1):
            rows = operand
        elif scales and columns is None and operand.shape == x.shape[-1:]:
            columns = operand
        else:
            return Input((x,))
    fits = 1 <= len(full) <= _MOST_FULL
    return Input(tuple(full), rows, columns) if fits else Input((x,))
