"""What every task on a picture model answers alike: what is adapted, and what may leave the device."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence

from torch import nn

from lorimer.tasks._base import Task
from lorimer.tasks._diffusion import DiffusionModel


class PictureTask(Task, ABC):
    """A task whose model is a `DiffusionModel`."""

    def components(self, model: nn.Module) -> tuple[str, ...]:
        assert isinstance(model, DiffusionModel)
        return (model.family.denoiser,)

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        assert isinstance(model, DiffusionModel)
        return model.family.targets

    def idle_parts(self, model: nn.Module) -> Sequence[str]:
        """The encoders, where the model can be asked for them again."""
        assert isinstance(model, DiffusionModel)
        self._reload = model.reload
        return () if self._reload is None else ("vae", *model.text_encoders)

    def reload_part(self, name: str) -> nn.Module:
        assert self._reload is not None
        return self._reload(name)
