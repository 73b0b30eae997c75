"""A layer's output, kept for its own backward pass without a second copy.

DoRA's magnitude needs the output. The next operation often keeps that very tensor too, so keeping it costs
little; but the program may also change it in place (`ReLU(inplace=True)`), and there `save_for_backward`
would make the backward pass fail. So we keep it beside autograd and look at its version ourselves: who
finds it changed computes it again.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from lorimer.kernels.rematerialise import saved_tensor_hooks


def keep_output(ctx: Any, y: Tensor) -> Tensor | None:
    """Keep `y` in `ctx`; returns what `save_for_backward` must be given besides.

    Hooks on saved tensors, such as gradient checkpointing's, decide themselves what is held: under them the
    tensor goes their way only. A hook that merely looks on gets to see it.
    """
    if y.is_inference():  # no backward pass, and no count of changes
        return None
    hooks = saved_tensor_hooks()
    shared = y.detach()  # the same memory, and the same count of changes
    ctx.output_version = y._version
    ctx.output = None if hooks == "real" else shared
    return None if hooks == "none" else shared


def output_if_unchanged(ctx: Any, saved: Tensor | None) -> Tensor | None:
    """The kept output, or None where it was changed since or already used. It is let go at once, as `ctx` may
    outlive the backward pass for as long as somebody holds the loss."""
    output = saved if ctx.output is None else ctx.output
    ctx.output = None
    return output if output is not None and output._version == ctx.output_version else None
