"""Any PyTorch module, any data: your own functions, named in the recipe as `package.module:function`.

    task: module
    model: mine:build_model               # () -> nn.Module
    data: {dataset: mine:load_points}     # (**arguments) -> a dataset with len() and [index]
    objective: {loss: mse}                # or mse, cross_entropy on (input, target) pairs; or mine:loss

A named loss is called as loss(model, batch) and returns one number; draw random numbers from torch's
global generator. Modules in the current directory can be named. Naming a function runs its code: only
use a recipe for this task when you trust its author.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from accelerate.utils import send_to_device
from pydantic import Field
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, default_collate

from lorimer.errors import DataError, RecipeError, suggest
from lorimer.tasks._base import Section, Task
from lorimer.tasks._named_function import named_function

_ARGUMENTS = {"dataset": "arguments", "validation": "validation_arguments"}
_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "cross_entropy": F.cross_entropy}


class Module(Task):
    """Trains an adapter on a model and data that functions of yours return."""

    name = "module"
    description = "Any PyTorch module, with a model, data and loss from your own functions"

    class Data(Section):
        """What it learns from."""

        dataset: str
        """`package.module:function` that returns a dataset: an object with `len()` and `[index]`."""
        arguments: dict[str, Any] = Field({})
        """Named arguments for it."""
        validation: str | None = None
        """The same for held-out examples, from which `validation_loss` is computed."""
        validation_arguments: dict[str, Any] = Field({})
        """Named arguments for that."""

    class Objective(Section):
        """The loss."""

        loss: str = "mse"
        """`mse` or `cross_entropy` between model(input) and target, or `package.module:function`."""

    def model(self) -> nn.Module:
        if not isinstance(self.recipe.model, str):
            raise RecipeError(
                "model: the task `module` needs a package.module:function that returns the model"
            )
        model = named_function("model", self.recipe.model)()
        if not isinstance(model, nn.Module):
            raise RecipeError(
                f"model: {self.recipe.model} returned a {type(model).__name__}, not an nn.Module"
            )
        self._loss = self._find_loss()
        self._held_out = self._dataset("validation") if self.recipe.data.validation else None
        if self.recipe.train.base_dtype != "auto":
            model.to(self.recipe.train.weights_dtype())
        return model.eval()

    def data(self, model: nn.Module) -> Dataset[Any]:
        return self._dataset("dataset")

    def collate(self, examples: Sequence[Any]) -> Any:
        return default_collate(list(examples))

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        return self._loss(model, batch)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        if self._held_out is None:
            return {}
        device = next(model.parameters()).device
        total = 0.0
        loader = DataLoader(
            self._held_out, self.recipe.train.batch_size, collate_fn=lambda examples: examples
        )
        for examples in loader:
            batch = send_to_device(self.collate(examples), device)
            total += self._loss(model, batch).item() * len(examples)
        return {"validation_loss": total / len(self._held_out)}  # type: ignore[arg-type]

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        lines = [f"data: {len(data):,} examples from {self.recipe.data.dataset}"]  # type: ignore[arg-type]
        if self._held_out is not None:
            lines.append(f"held out: {len(self._held_out):,} from {self.recipe.data.validation}")  # type: ignore[arg-type]
        return lines

    def metadata(self) -> dict[str, str]:
        return {"base_model": str(self.recipe.model)}

    def _dataset(self, field: str) -> Dataset[Any]:
        section = self.recipe.data
        name = getattr(section, field)
        arguments = getattr(section, _ARGUMENTS[field])
        function = named_function(f"data.{field}", name)
        try:
            inspect.signature(function).bind(**arguments)
        except TypeError as error:
            raise RecipeError(f"data.{_ARGUMENTS[field]}: {name} does not take them: {error}") from error
        data = function(**arguments)
        if not (hasattr(data, "__len__") and hasattr(data, "__getitem__")):
            raise DataError(
                f"data.{field}: {name} returned a {type(data).__name__}; a dataset needs len() and [index]"
            )
        if not len(data):
            raise DataError(f"data.{field}: {name} returned no example")
        return data

    def _find_loss(self) -> Callable[[nn.Module, Any], Tensor]:
        name = self.recipe.objective.loss
        if ":" in name:
            return named_function("objective.loss", name)
        if name not in _LOSSES:
            raise RecipeError(
                f"objective.loss: no loss is called {name!r}.{suggest(name, _LOSSES)} "
                f"Known: {', '.join(_LOSSES)}, or your own as package.module:function"
            )

        def loss(model: nn.Module, batch: Any) -> Tensor:
            if not isinstance(batch, list | tuple) or len(batch) != 2:
                raise DataError(
                    f"objective.loss: {name} needs examples that are (input, target) pairs; for others "
                    "write a loss function and name it as package.module:function"
                )
            return _LOSSES[name](model(batch[0]), batch[1])

        return loss
