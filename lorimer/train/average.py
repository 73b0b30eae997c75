"""A moving average of the adapter's weights, and which weights are shown."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lorimer.train.setup import Setup


def decay_at(step: int, decay: float) -> float:
    """The share of itself that the average keeps in `step` (from 0): min(decay, (1 + t) / (10 + t)), so that
    the start is soon forgotten ("exponential moving average" in TensorFlow's documentation)."""
    return min(decay, (1 + step) / (10 + step))


class Average:
    """An exponential moving average of parameters, in float32 or wider."""

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = dict(parameters), decay
        self.restart()

    def restart(self) -> None:
        """Begin at the parameters as they are."""
        self.values = {
            name: each.detach().to(torch.promote_types(each.dtype, torch.float32), copy=True)
            for name, each in self.parameters.items()
        }

    @torch.no_grad()
    def update(self, step: int, finite: Tensor) -> None:
        """Follow the parameters after `step`; not where `finite`, a scalar on the device, is false."""
        share = (1.0 - decay_at(step, self.decay)) * finite
        values = list(self.values.values())
        changes = torch._foreach_sub(list(self.parameters.values()), values)
        torch._foreach_mul_(changes, share)
        torch._foreach_add_(values, changes)


@contextmanager
def shown(setup: Setup) -> Iterator[bool]:
    """Within this context the adapter holds the weights that are evaluated, previewed and saved: the moving
    average where there is one, the average of an optimiser that keeps its own, else those that train.
    Afterwards it holds those that train, to the bit. Yields whether they differ."""
    if setup.average is None and not hasattr(setup.optimizer, "eval"):
        yield False
        return
    before = {name: each.data for name, each in setup.adapter.named_parameters()}
    try:
        for name, value in _averages(setup).items():
            setup.named[name].data = value
        yield True
    finally:
        for name, each in setup.named.items():
            each.data = before[name]


def _averages(setup: Setup) -> dict[str, Tensor]:
    if setup.average is not None:
        return setup.average.values
    wide = setup.wide
    if wide is None:
        return _optimizers_average(setup, list(setup.named.values()))
    with wide.open() as parameters:
        return _optimizers_average(setup, parameters)


def _optimizers_average(setup: Setup, parameters: list[nn.Parameter]) -> dict[str, Tensor]:
    """The weights that the optimiser's `eval()` puts into `parameters`, which are given in the adapter's
    order. Its own switch back would not restore every bit, so the parameters themselves stay unswitched."""
    training = [each.data for each in parameters]
    for each in parameters:
        each.data = each.data.clone()
    setup.optimizer.eval()  # type: ignore[attr-defined]
    found = {name: each.data for name, each in zip(setup.named, parameters, strict=True)}
    for each, data in zip(parameters, training, strict=True):
        each.data = data
    for group in setup.optimizer.param_groups:
        group["train_mode"] = True
    return found
