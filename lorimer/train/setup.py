"""From a recipe to everything that a training step needs."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import broadcast_object_list, send_to_device
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.data import Dataset

from lorimer import registry
from lorimer.adapters._controller import Controller
from lorimer.attachment.attach import attach
from lorimer.attachment.attached import AttachedAdapter
from lorimer.errors import DataError, LorimerError, MissingDependencyError, RecipeError, UsageError, suggest
from lorimer.layers.int8_base import set_base_precision
from lorimer.layers.slots import LayerSlots
from lorimer.ops.initialise import initialise
from lorimer.tasks._base import Task
from lorimer.train.average import Average
from lorimer.train.optimizer import KINDS, build_optimizer, require_optimizer
from lorimer.train.order import Order, SeededExamples
from lorimer.train.recipe import Recipe
from lorimer.train.rounding import WideWeights
from lorimer.train.seeding import seed_all

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")

_NOT_REENTRANT = {"use_reentrant": False}
# How libraries call it -> with what options.
_CHECKPOINTING: dict[str, dict[str, Any]] = {
    "enable_gradient_checkpointing": {},  # diffusers, never reentrant
    "activation_checkpointing_enable": {"activation_checkpointing_kwargs": _NOT_REENTRANT},  # transformers
    "gradient_checkpointing_enable": {"gradient_checkpointing_kwargs": _NOT_REENTRANT},  # and its older name
}


@dataclass
class Setup:
    """What a training step needs."""

    recipe: Recipe
    accelerator: Accelerator
    task: Task
    model: nn.Module
    data: Dataset[Any]
    adapter: AttachedAdapter
    parameters: list[nn.Parameter]
    optimizer: torch.optim.Optimizer
    order: Order
    controller: Controller | None = None  # the method's own part in training
    wide: WideWeights | None = None  # where the adapter is kept in fewer bits than the optimiser sees
    average: Average | None = None  # the adapter that is shown, where it is not the one that trains
    base: dict[str, int] = field(default_factory=dict)  # fingerprint of the base before training

    @cached_property
    def named(self) -> dict[str, nn.Parameter]:
        """The adapter's parameters by name, in the order of `parameters`."""
        return dict(self.adapter.named_parameters())

    def set_training(self) -> None:
        """Training mode, but for layers that gather statistics: those belong to the frozen base."""
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, _NormBase) and module.track_running_stats:
                module.eval()

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def share(self, asked: set[str]) -> set[str]:
        """What the first process was asked, in every process."""
        return set(broadcast_object_list([sorted(asked)])[0])


def build(recipe: Recipe, logs: Path | None = None) -> Setup:
    """Load the model and the data, attach the adapter and make the optimiser.

    All of it happens under the recipe's seed, so that building twice gives the same.

    Args:
        logs: where trackers that keep files put them; None leaves trackers out.

    Raises:
        RecipeError, TargetError, DataError, MissingDependencyError: the recipe asks for what cannot be.
    """
    require_optimizer(recipe.train, several_rates=bool(recipe.adapter.learning_rate_pattern))
    accelerator = _accelerator(recipe, logs)
    seed = recipe.train.seed
    task: Task = registry.get("task", recipe.task)(recipe)
    seed_all(seed, "model")
    model = task.model().to(accelerator.device)
    seed_all(seed, "data")
    data = task.data(model)
    if not len(data):  # type: ignore[arg-type]
        raise DataError("data: there is not one example to learn from")
    seed_all(seed, "adapter")
    adapter = _attach(recipe, task, model)
    _look_at_data(recipe, task, data, adapter, accelerator)
    set_base_precision(model, recipe.train.base_precision)
    if recipe.train.gradient_checkpointing:
        _enable_gradient_checkpointing(model)
    order = Order(
        len(data),  # type: ignore[arg-type]
        recipe.train.batch_size,
        recipe.train.gradient_accumulation_steps,
        seed,
        accelerator.process_index,
        accelerator.num_processes,
    )
    parameters = list(adapter.parameters())
    wide = WideWeights(parameters) if recipe.train.adapter_precision == "bf16" else None
    optimizer = build_optimizer(_groups(adapter, recipe, wide), recipe.train)
    accelerator.prepare(optimizer)  # so that clipping finds what to unscale; its wrapper's step is slow
    decay = recipe.train.ema
    return Setup(
        recipe,
        accelerator,
        task,
        model,
        data,
        adapter,
        parameters,
        optimizer,
        order,
        _controller(adapter, recipe),
        wide,
        None if decay is None else Average(dict(adapter.named_parameters()), decay),
    )


def fingerprint(model: nn.Module) -> dict[str, int]:
    """Name -> checksum of the bytes of every tensor that the base model would save."""
    slots = tuple(path + "." for path, module in model.named_modules() if isinstance(module, LayerSlots))
    return {
        name: zlib.crc32(_bytes(tensor))
        for name, tensor in model.state_dict().items()
        if isinstance(tensor, Tensor) and not name.startswith(slots)
    }


def require_base_unchanged(setup: Setup) -> None:
    """Raise `LorimerError` where training changed a tensor of the frozen base."""
    now = fingerprint(setup.model)
    changed = [name for name in now.keys() | setup.base.keys() if now.get(name) != setup.base.get(name)]
    if changed:
        raise LorimerError(
            f"training changed the frozen base model: {', '.join(sorted(changed)[:5])} ({len(changed)} of "
            f"{len(setup.base)} tensors). The adapter would not fit the base as it was, so it is not "
            "exported; the model's forward or the task's loss must not write to them"
        )


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return memoryview(flat.numpy())  # type: ignore[arg-type]


def _accelerator(recipe: Recipe, logs: Path | None) -> Accelerator:
    for name in recipe.train.trackers:
        if name not in TRACKERS:
            raise RecipeError(
                f"train.trackers: no tracker is called {name!r}.{suggest(name, TRACKERS)} "
                f"Known: {', '.join(TRACKERS)}"
            )
        if find_spec(name) is None:
            raise MissingDependencyError(
                f'train.trackers: {name} is not installed: pip install "lorimer[{name}]"'
            )
    trackers = recipe.train.trackers if logs else []
    # Accelerate keeps its settings for the life of the process; a second run may ask for others.
    AcceleratorState._reset_state()
    GradientState._reset_state()
    try:
        return Accelerator(
            mixed_precision=recipe.train.mixed_precision,
            log_with=trackers or None,
            project_dir=str(logs) if trackers else None,
        )
    except ValueError as error:
        raise RecipeError(f"train.mixed_precision: {error}") from error


def _attach(recipe: Recipe, task: Task, model: nn.Module) -> AttachedAdapter:
    section = recipe.adapter
    if section.full and recipe.train.adapter_precision == "bf16":
        raise RecipeError(
            "train.adapter_precision: what adapter.full trains begins as the base has it, in fp32"
        )
    parts: tuple[str, ...] = tuple(getattr(model, "components", ()))
    wanted = section.components if section.components is not None else task.components(model)
    for name in wanted:
        if name not in parts:
            raise RecipeError(
                f"adapter.components: the model has no part called {name!r}.{suggest(name, parts)} "
                f"Known: {', '.join(parts) or 'none, since it is one piece'}"
            )
    children = [name for name, _ in model.named_children()]  # parts that never are adapted among them
    others = [f"re:{re.escape(name)}" for name in children if wanted and name not in wanted]
    return attach(
        model,
        section.method_config(),
        section.targets,
        exclude=[*section.exclude, *others],
        rank_pattern=dict(section.rank_pattern.items()),
        alpha_pattern=dict(section.alpha_pattern.items()),
        full=section.full,
        dtype=torch.bfloat16 if recipe.train.adapter_precision == "bf16" else None,
    )


def _look_at_data(
    recipe: Recipe, task: Task, data: Dataset[Any], adapter: AttachedAdapter, accelerator: Accelerator
) -> None:
    """Begin the adapter as the first batches tell, where the recipe asks for such a start. Every process
    looks at the same ones, so that all begin alike."""
    start, train = recipe.adapter.data_start, recipe.train
    if start is None:
        return
    order = Order(len(data), train.batch_size, 1, train.seed)  # type: ignore[arg-type]
    examples = SeededExamples(data, train.seed)

    def batches() -> Iterator[Any]:
        for number, places in enumerate(order.batches(0, recipe.adapter.start_batches)):
            batch = task.collate([examples[place] for place in places])
            seed_all(train.seed, "start", number)
            yield send_to_device(batch, accelerator.device)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        with accelerator.autocast():
            return task.loss(model, batch)

    try:
        initialise(adapter, start, batches(), forward=loss)
    except UsageError as error:
        raise RecipeError(f"adapter.start: {error}") from error


def _groups(adapter: AttachedAdapter, recipe: Recipe, wide: WideWeights | None) -> list[dict[str, Any]]:
    """The optimiser's groups, over the wide copies of the parameters where there are such."""
    train, pattern = recipe.train, recipe.adapter.learning_rate_pattern
    groups = adapter.parameter_groups(train.learning_rate, train.fast_ratio, pattern)
    if wide is None:
        return groups
    copies = {id(narrow): copy for narrow, copy in zip(wide.narrow, wide.wide, strict=True)}
    return [{**group, "params": [copies[id(each)] for each in group["params"]]} for group in groups]


def _controller(adapter: AttachedAdapter, recipe: Recipe) -> Controller | None:
    """What the method does in training beside following the gradient."""
    layers = {path: each for path, each in adapter.layers.items() if not each.method.replaces}
    method, train = recipe.adapter.method_config(), recipe.train
    controller = method.controller(layers, train.steps)
    if controller is not None and train.adapter_precision == "bf16":
        raise RecipeError(f"train.adapter_precision: {method.name} measures its tensors in fp32")
    if controller is not None and KINDS[train.optimizer].averages:
        raise RecipeError(f"train.optimizer: {train.optimizer} leaves {method.name} no gradient to look at")
    return controller


def _enable_gradient_checkpointing(model: nn.Module) -> None:
    """Turn it on in every part that can.

    Never the reentrant kind: where the inputs of a block need no gradient, as before frozen layers, that
    gives its adapters none either, silently.
    """
    parts: list[Any] = [model.get_submodule(name) for name in getattr(model, "components", ())] or [model]
    able = [_enable_checkpointing_in(part) for part in parts]
    if not any(able):
        raise RecipeError(
            f"train.gradient_checkpointing: {type(model).__name__} has no such thing: none of "
            f"{', '.join(_CHECKPOINTING)} works on it; set it to false"
        )


def _enable_checkpointing_in(part: Any) -> bool:
    for method, options in _CHECKPOINTING.items():
        if hasattr(part, method):
            try:
                getattr(part, method)(**options)
            except ValueError:  # the class has the method, but says that it cannot
                return False
            return True
    return False
