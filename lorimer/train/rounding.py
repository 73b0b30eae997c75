"""An adapter kept in bfloat16 whose optimiser computes in float32.

With 8 bits of mantissa an update smaller than 1/256 of a weight would round away each time. Rounded up
or down at random, in proportion to what is cut off, it is right on average:

    E[round(x)] = x        "Revisiting BFloat16 Training", Zamirai et al. 2020, arXiv 2010.06192, section 4
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorimer.train.seeding import number_of

_CUT = 0xFFFF  # the bits of a float32 that bfloat16 has no room for


def stochastic_round(x: Tensor, generator: torch.Generator) -> Tensor:
    """float32 `x`, of any shape, in bfloat16: one of the two nearest values, at random so that the mean is x.

    What bfloat16 can hold, infinities and NaN stay as they are. Random bits added to those that are cut off
    carry into the rest with the right probability.
    """
    bits = x.contiguous().view(torch.int32)
    random = torch.randint(0, _CUT + 1, x.shape, generator=generator, device=x.device, dtype=torch.int32)
    rounded = ((bits + random) & ~_CUT).view(torch.float32)
    return torch.where(torch.isfinite(x), rounded, x).to(torch.bfloat16)


class WideWeights:
    """float32 copies of bfloat16 parameters, there only while the optimiser looks at them.

    Attributes:
        narrow: the adapter's parameters; their gradients add up in float32.
        wide: what the optimiser is given in their place; empty outside `open`.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self.narrow = list(parameters)
        self.wide = [nn.Parameter(torch.empty(0, device=each.device)) for each in self.narrow]
        for each in self.narrow:
            each.grad_dtype = torch.float32

    @contextmanager
    def open(self) -> Iterator[list[nn.Parameter]]:
        """The wide copies, with the gradients; what happens to them is forgotten unless it is `kept`."""
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            wide.data = narrow.detach().float()
            wide.grad = narrow.grad
        try:
            yield self.wide
        finally:
            for wide in self.wide:
                wide.data, wide.grad = wide.data.new_empty(0), None

    @torch.no_grad()
    def keep(self, *place: int | str) -> None:
        """Round the wide copies into the parameters, by random numbers that follow from `place` alone."""
        generator = torch.Generator(self.narrow[0].device).manual_seed(number_of(*place))
        for narrow, wide in zip(self.narrow, self.wide, strict=True):
            narrow.copy_(stochastic_round(wide, generator))
