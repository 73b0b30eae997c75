"""Running statistics of a frozen base: they stay as they are while adapters train beside it.

In training a BatchNorm rewrites its running mean and variance, so a base that is otherwise frozen would
drift, and with it every other adapter on it. While anything is attached, such norms therefore do in
training what they do in evaluation, also where their scale and shift are trained in full: an adapter is used
with the statistics that it was trained with, and files need carry none. As in `host.py` it is done by a
class made on the fly, in which `training` is always False.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def held_training() -> property:
    """What stands for `training` on a norm whose statistics are held."""

    def write(norm: Any, mode: bool) -> None:
        norm.__dict__["training"] = mode  # holds again when the norm is let go

    return property(lambda norm: False, write)


def keeps_statistics(cls: type[nn.Module]) -> bool:
    """Whether layers of this class may rewrite statistics of their own in training."""
    return issubclass(cls, _NormBase)


def own_class(layer: nn.Module) -> type[nn.Module]:
    """The class of a layer, were its statistics not held."""
    cls: type[nn.Module] = getattr(type(layer), "held_class", type(layer))
    return cls


def hold_statistics(model: nn.Module) -> None:
    """Keep the running statistics of every norm in the model as they are."""
    for norm in model.modules():
        held = isinstance(getattr(type(norm), "training", None), property)  # adapted ones included
        if keeps_statistics(type(norm)) and not held:
            norm.__class__ = _held_class(type(norm))


def release_statistics(model: nn.Module) -> None:
    """The inverse of `hold_statistics`, for norms that are not adapted."""
    for norm in model.modules():
        norm.__class__ = own_class(norm)


_held_classes: dict[type[nn.Module], Any] = {}


def _held_class(cls: type[nn.Module]) -> Any:
    """The class that holds the statistics of `cls`, always the same one, so that equal norms stay of equal
    type."""
    if cls not in _held_classes:

        def reduce(norm: Any, protocol: Any) -> Any:
            """Copies and pickles name the norm's own class, as ours has no place to be imported from."""
            reduced: Any = cls.__reduce_ex__(norm, protocol)
            return (_bare_norm, (cls,), *reduced[2:])

        members = {
            "held_class": cls,
            "training": held_training(),
            "__reduce_ex__": reduce,
            "__module__": __name__,
        }
        _held_classes[cls] = type(f"Held{cls.__name__}", (cls,), members)
    return _held_classes[cls]


def _bare_norm(cls: type[nn.Module]) -> nn.Module:
    """A held norm without its state, to be filled by whoever copies or unpickles."""
    held = _held_class(cls)
    bare: nn.Module = held.__new__(held)
    return bare
