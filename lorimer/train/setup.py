"""From a recipe to everything that a training step needs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
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
from lorimer.errors import DataError, MissingDependencyError, RecipeError, UsageError, suggest
from lorimer.layers.int8_base import set_base_precision
from lorimer.layers.offload import Offload
from lorimer.ops.initialise import initialise
from lorimer.tasks._base import Task
from lorimer.tasks._parking import Parking
from lorimer.train.average import Average
from lorimer.train.base import enable_gradient_checkpointing, load
from lorimer.train.optimizer import KINDS, build_optimizer, require_optimizer
from lorimer.train.order import Order, SeededExamples
from lorimer.train.recipe import Recipe
from lorimer.train.rounding import WideWeights
from lorimer.train.seeding import seed_all

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


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
    offload: Offload | None = None  # the frozen blocks that only visit the device
    parking: Parking | None = None  # the parts that steps do without
    notes: tuple[str, ...] = ()  # what loading did, for the preflight
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
        if not self.recipe.train.base_dropout:
            self._still_the_base()

    def _still_the_base(self) -> None:
        """Leave training mode, but for the adapter, the whole model, by which losses may go, and modules
        that compute anew in the backward pass, which they do in training mode only."""
        for module in self.model.modules():
            if module is not self.model and not getattr(module, "gradient_checkpointing", False):
                module.training = False
        for layer in self.adapter.layers.values():
            layer.train()

    def park(self) -> None:
        """Take the parts that steps do without from the device."""
        if self.parking is not None:
            self.parking.park()

    @property
    def parked(self) -> tuple[str, ...]:
        """The parts that are away just now."""
        return () if self.parking is None else self.parking.parked

    def all_parts(self) -> AbstractContextManager[None]:
        """Within this context no part is away."""
        return nullcontext() if self.parking is None else self.parking.all_there()

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
    model, offload, notes = load(recipe, task, accelerator.device)
    seed_all(seed, "data")
    data = task.data(model)
    if not len(data):  # type: ignore[arg-type]
        raise DataError("data: there is not one example to learn from")
    seed_all(seed, "adapter")
    adapter = _attach(recipe, task, model)
    if offload is not None:
        for layer in adapter.layers.values():  # those beside weights in main memory
            layer.to(accelerator.device)
    _look_at_data(recipe, task, data, adapter, accelerator)
    if recipe.train.base_precision == "int8":
        set_base_precision(model, "int8")
    if recipe.train.gradient_checkpointing:
        enable_gradient_checkpointing(model)
    order = Order(
        len(data),  # type: ignore[arg-type]
        recipe.train.batch_size,
        recipe.train.gradient_accumulation_steps,
        seed,
        accelerator.process_index,
        accelerator.num_processes,
        _of_each_example(data, "groups"),
        _of_each_example(data, "weights"),
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
        offload,
        Parking(model, task.idle_parts(model), accelerator.device, task.reload_part),
        notes,
    )


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
    own = {f"re:{re.escape(path)}": rows for path, rows in task.full(model).items()}
    full: dict[str, Sequence[int] | None] = {**_by_name(section.full), **own}
    if full and recipe.train.adapter_precision == "bf16":
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
    others = [name for name in children if wanted and name not in wanted]
    others += getattr(model, "idle_layers", ())  # what would learn nothing
    others += _left_alone(task, model, section.targets)
    return attach(
        model,
        section.method_config(),
        section.targets if section.targets is not None else task.targets(model),
        exclude=[*section.exclude, *(f"re:{re.escape(path)}" for path in others)],
        rank_pattern=dict(section.rank_pattern.items()),
        alpha_pattern=dict(section.alpha_pattern.items()),
        full=full,
        dtype=torch.bfloat16 if recipe.train.adapter_precision == "bf16" else None,
    )


def _left_alone(task: Task, model: nn.Module, targets: Sequence[str] | None) -> list[str]:
    """Layers that a task adapts only where the recipe names them."""
    named = {target.rpartition(".")[2] for target in targets or ()}
    return [path for path in task.spared(model) if path.rpartition(".")[2] not in named]


def _by_name(full: Sequence[str] | Mapping[str, Sequence[int]]) -> Mapping[str, Sequence[int] | None]:
    """Name -> rows, or None for all."""
    return full if isinstance(full, Mapping) else dict.fromkeys(full)


def _look_at_data(
    recipe: Recipe, task: Task, data: Dataset[Any], adapter: AttachedAdapter, accelerator: Accelerator
) -> None:
    """Begin the adapter as the first batches tell, where the recipe asks for such a start. Every process
    looks at the same ones, so that all begin alike."""
    start, train = recipe.adapter.data_start, recipe.train
    if start is None:
        return
    count = len(data)  # type: ignore[arg-type]
    order = Order(count, train.batch_size, 1, train.seed, groups=_of_each_example(data, "groups"))
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


def _of_each_example(data: Dataset[Any], what: str) -> tuple[Any, ...]:
    """Its `groups`: which examples can be one batch, where not all can; its `weights`: how much each counts
    in the mean that is a batch's loss, where not all count the same."""
    values: tuple[Any, ...] = getattr(data, what, ())
    return values


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
