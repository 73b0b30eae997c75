"""Parts of a model that take no part in training steps, out of the way until they are needed.

Once pictures and captions are encoded, the encoders only cost memory. From a GPU they go to main memory;
where the model is in main memory already, their weights are given up and read again from their files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lorimer.errors import LorimerError


class Parking:
    """The parts of one model that are parked.

    Args:
        names: children of the model; nothing of them trains.
        reload: gives a part as it was loaded; asked of a model in main memory alone.

    Attributes:
        parked: the parts that are not there just now. Their tensors are not those of the model.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        device: torch.device,
        reload: Callable[[str], nn.Module],
    ) -> None:
        self.model, self.names, self.device, self.reload = model, tuple(names), device, reload
        self.parked: tuple[str, ...] = ()

    def park(self) -> None:
        """Take the parts away."""
        place = torch.device("cpu" if self.device.type != "cpu" else "meta")
        for name in self.names:
            part = self.model.get_submodule(name)
            _put(part, {key: tensor.to(place) for key, tensor in _tensors(part).items()})
        self.parked = self.names

    def unpark(self) -> None:
        """Bring the parts back.

        Raises:
            LorimerError: a part's files give other tensors than before.
        """
        for name in self.parked:
            part = self.model.get_submodule(name)
            fresh = _tensors(self.reload(name) if self.device.type == "cpu" else part)
            if _shapes(fresh) != _shapes(_tensors(part)):
                raise LorimerError(f"{name}: its files are not what they were when training began")
            _put(part, {key: tensor.to(self.device) for key, tensor in fresh.items()})
        self.parked = ()

    @contextmanager
    def all_there(self) -> Iterator[None]:
        """Within this context no part is missing."""
        was_parked = bool(self.parked)
        self.unpark()
        try:
            yield
        finally:
            if was_parked:
                self.park()


def _tensors(part: nn.Module) -> dict[str, Tensor]:
    """Every parameter and buffer by name, those that are not saved too."""
    return {**dict(part.named_parameters()), **dict(part.named_buffers())}


def _shapes(tensors: dict[str, Tensor]) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (each.shape, each.dtype) for name, each in tensors.items()}


def _put(part: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Give a part these tensors in place of its own; what layers share they go on sharing."""
    own = _tensors(part)
    new: dict[int, Tensor] = {
        id(old): nn.Parameter(tensors[name].detach(), requires_grad=old.requires_grad)
        if isinstance(old, nn.Parameter)
        else tensors[name]
        for name, old in own.items()
    }
    for module in part.modules():
        for held in (module._parameters, module._buffers):
            for name, old in held.items():
                if old is not None:
                    held[name] = new[id(old)]  # type: ignore[assignment]
