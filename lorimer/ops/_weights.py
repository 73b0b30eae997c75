"""A model's weights by name, from memory or from files, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lorimer.attachment.attached import live_sites
from lorimer.attachment.survey import survey
from lorimer.errors import FileFormatError, UsageError
from lorimer.formats.safe_io import open_safetensors
from lorimer.ops.stored import StoredModel

Source = nn.Module | StoredModel | Mapping[str, Tensor] | str | Path


@dataclass(frozen=True)
class Weights:
    """Tensors by their names in the model's state dict.

    Attributes:
        label: what messages call their source.
        get: name -> how to get it.
    """

    label: str
    get: Mapping[str, Callable[[], Tensor]]

    def read(self, name: str) -> Tensor:
        """A tensor in at least single precision.

        Raises:
            UsageError: it is kept as whole numbers (a quantised model).
        """
        tensor = self.get[name]()
        if not tensor.is_floating_point():
            raise UsageError(f"{self.label}: {name!r} is kept as {tensor.dtype}; give unquantised weights")
        return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


@contextmanager
def opened(source: Source, label: str) -> Iterator[Weights]:
    """The weights of a module, of a model in its files, of a mapping, of a safetensors file, or of all such
    files in a folder.

    Raises:
        FileFormatError: there is no such file, it is broken, or a name stands in two files of a folder.
        StateError: adapters are merged into the module.
    """
    if isinstance(source, nn.Module):
        yield Weights(label, _of_module(source))
    elif isinstance(source, StoredModel):
        with source.opened() as get:
            yield Weights(source.label, get)
    elif isinstance(source, Mapping):
        yield Weights(label, {name: partial(_itself, tensor) for name, tensor in source.items()})
    else:
        with ExitStack() as stack:
            yield Weights(str(source), _of_files(Path(source), stack))


def _of_module(model: nn.Module) -> dict[str, Callable[[], Tensor]]:
    """Parameters without those that lorimer added, and buffers."""
    live_sites(model)
    found = survey(model)
    tensors: dict[str, Tensor] = {**found.parameters}
    for path, module in found.modules.items():
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                tensors[f"{path}.{name}".lstrip(".")] = buffer
    return {name: partial(_itself, tensor) for name, tensor in tensors.items()}


def _of_files(path: Path, stack: ExitStack) -> dict[str, Callable[[], Tensor]]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise FileFormatError(f"{path}: holds no .safetensors file")
    found: dict[str, Callable[[], Tensor]] = {}
    for file in files:
        weights = stack.enter_context(open_safetensors(file))
        twice = found.keys() & weights.header.tensors.keys()
        if twice:
            raise FileFormatError(
                f"{path}: {min(twice)!r} stands in more than one of its files; name the file that is meant"
            )
        found.update({name: partial(weights.read, name) for name in weights.header.tensors})
    return found


def _itself(tensor: Tensor) -> Tensor:
    return tensor
