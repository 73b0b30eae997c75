"""What some methods do in training beside following the gradient."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor


class Controller(ABC):
    """A method's part in the training loop; a method gives one by `Method.controller`.

    All that it decides follows from the parameters, their gradients and `tensors`, so that processes that
    have the same gradients decide alike, and a run that is resumed from these tensors goes on as it was.

        loss = task_loss + controller.penalty()        in every micro-batch, weighed as its share of the step
        optimizer.step()
        controller.after_step(step, finite)            gradients still in place
        optimizer.zero_grad()
    """

    def penalty(self) -> Tensor | None:
        """What is added to the loss of a whole step, a scalar; None for nothing."""
        return None

    @abstractmethod
    def after_step(self, step: int, finite: Tensor) -> None:
        """Act after optimiser step `step` (from 0). `finite` is a scalar on the device: where it is false,
        the gradients are not finite and the step has changed nothing."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """What must be kept to go on: name -> tensor. To restore, copy into them."""
