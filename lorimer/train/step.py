"""One optimiser step, in full: forward, backward, sum over processes, clip, update."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor, nn

from lorimer.errors import LorimerError
from lorimer.train.optimizer import set_learning_rate, step_if_finite
from lorimer.train.seeding import seed_all
from lorimer.train.setup import Setup


def take_step(setup: Setup, step: int, batches: Iterator[Any]) -> tuple[Tensor, Tensor]:
    """Take optimiser step `step`, reading its micro-batches from `batches`.

    Returns two scalars on the device, so that nothing waits: the mean loss over the step's examples, and
    whether it and the gradient were finite. Where they were not, the step changed nothing.
    """
    train, accelerator = setup.recipe.train, setup.accelerator
    loss = torch.zeros((), device=accelerator.device)
    for micro in setup.order.step(step):
        batch = send_to_device(next(batches), accelerator.device, non_blocking=True)
        seed_all(train.seed, "step", step, micro.number)
        share = micro_loss(setup, batch) * micro.share
        penalty = None if setup.controller is None else setup.controller.penalty()
        accelerator.backward(share if penalty is None else share + penalty * micro.share)
        loss += share.detach()
    if accelerator.num_processes > 1:
        loss = _sum_over_processes(setup, loss)
    set_learning_rate(setup.optimizer, train, step)
    if setup.wide is None:
        finite = _update(setup, setup.parameters, loss)
    else:
        with setup.wide.open() as parameters:
            finite = _update(setup, parameters, loss)
            setup.wide.keep(train.seed, "round", step)
    if setup.average is not None:
        setup.average.update(step, finite)
    if setup.controller is not None:
        setup.controller.after_step(step, finite)
    setup.zero_grad()
    return loss, finite


def _update(setup: Setup, parameters: list[nn.Parameter], loss: Tensor) -> Tensor:
    """Clip the gradients of `parameters` and let the optimiser take its step; returns whether it did."""
    limit = setup.recipe.train.max_grad_norm
    norm = setup.accelerator.clip_grad_norm_(parameters, torch.inf if limit is None else limit)
    finite = torch.isfinite(norm) & torch.isfinite(loss)
    step_if_finite(setup.optimizer, finite, setup.accelerator.scaler)
    return finite


def micro_loss(setup: Setup, batch: Any) -> Tensor:
    """The task's loss of one batch that is on the device, under the recipe's precision.

    Raises:
        LorimerError: it is no scalar, or nothing that trains takes part in it.
    """
    spared = contextlib.nullcontext() if setup.offload is None else setup.offload.sparing()
    with setup.accelerator.autocast(), spared:
        loss = setup.task.loss(setup.model, batch)
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise LorimerError(f"the loss must be one number, not {what}; take its mean")
    if not loss.requires_grad:
        raise LorimerError("nothing that trains takes part in the loss: it has no gradient")
    wide = loss if loss.dtype == torch.float64 else loss.float()
    return wide.reshape(())


def _sum_over_processes(setup: Setup, loss: Tensor) -> Tensor:
    """Sum gradients over all processes, in one message, and the loss with them; returns it.

    An adapter's gradients are small, so wrapping the model for this would buy nothing, and a task may
    call any part of its model as it is.
    """
    gradients = [
        torch.zeros_like(parameter, dtype=_wide(parameter)) if parameter.grad is None else parameter.grad
        for parameter in setup.parameters
    ]
    flat = torch.cat([loss.reshape(1), *(gradient.reshape(-1).float() for gradient in gradients)])
    flat = setup.accelerator.reduce(flat, "sum")
    place = 1
    for parameter, gradient in zip(setup.parameters, gradients, strict=True):
        summed = flat[place : place + gradient.numel()]
        parameter.grad = summed.view_as(gradient).to(gradient.dtype)
        place += gradient.numel()
    return flat[0]


def _wide(parameter: Tensor) -> torch.dtype:
    """The type of a parameter's gradient: bfloat16 ones add theirs up in float32 (see `WideWeights`)."""
    return torch.promote_types(parameter.dtype, torch.float32)
