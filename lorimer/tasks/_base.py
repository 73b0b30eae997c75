"""What a task is: everything the engine must ask to train an adapter, and nothing about how."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn
from torch.utils.data import Dataset

if TYPE_CHECKING:
    from lorimer.attachment.attached import AttachedAdapter
    from lorimer.layers.prefix import Prefix
    from lorimer.train.recipe import Recipe


class Section(BaseModel):
    """A section of a recipe: plain data, unknown keys refused; field docstrings make the reference page.

    `aliases` maps names that other tools use for a field to ours; a recipe may use either.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    aliases: ClassVar[Mapping[str, str]] = {}


class Task(ABC):
    """One task, made from a checked recipe.

    The three section classes say what a recipe for this task may hold under `data:`, `objective:` and
    `preview:`. The engine seeds all random state from (seed, step) before each step, so a task draws
    noise, dropout or crops from torch's global generator and needs no state of its own.
    """

    name: ClassVar[str]
    description: ClassVar[str]  # one line for the reference
    Data: ClassVar[type[Section]] = Section
    Objective: ClassVar[type[Section]] = Section
    Preview: ClassVar[type[Section]] = Section
    rests: ClassVar[bool] = False  # whether layers may learn nothing for long, as a detector's of some size
    held_out: Dataset[Any] | None = None  # what `evaluate` reads, once `data` has been called
    prefix: Prefix | None = None  # set where batches may bring the "states" behind it

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    @abstractmethod
    def model(self) -> nn.Module:
        """The base in evaluation mode on the CPU, before any adapter. A model of several components is a
        module with `components` (a tuple of child names), so that adapter paths begin with one."""

    def components(self, model: nn.Module) -> tuple[str, ...]:
        """The parts of a model of several components that are adapted unless the recipe says."""
        return ()

    def targets(self, model: nn.Module) -> tuple[str, ...]:
        """What is adapted in those parts unless the recipe says."""
        return ("all-linear",)

    def spared(self, model: nn.Module) -> Sequence[str]:
        """Layers that no preset of targets means, and that are never quantised: they are adapted only where
        the recipe names them."""
        return ()

    @abstractmethod
    def data(self, model: nn.Module) -> Dataset[Any]:
        """The training examples. May use `model` to compute and cache what never changes. A dataset may say
        of each example its `groups` (one batch holds examples of one group) and its `weights` (what it
        counts in a batch's mean loss).

        Raises:
            DataError: names every missing, broken or unusable file at once.
        """

    def full(self, model: nn.Module) -> Mapping[str, Sequence[int] | None]:
        """What is trained in full beside what the recipe names: a module's path -> rows of its weight; None
        means all of it."""
        return {}

    def idle_parts(self, model: nn.Module) -> Sequence[str]:
        """The children of `model` that steps and evaluations do without, once `data` has been called. They
        leave the device until a preview."""
        return ()

    def reload_part(self, name: str) -> nn.Module:
        """An idle part as `model` loaded it, on the CPU."""
        raise NotImplementedError

    @abstractmethod
    def collate(self, examples: Sequence[Any]) -> Any:
        """A batch of tensors (a dict, tuple or tensor) from examples of `data`."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """The mean loss of one batch, a scalar. Draws random numbers from torch's global generator alone."""

    def ragged(self, batch: Any) -> bool:
        """Whether tensors within the model do not begin with the examples of a batch."""
        return False

    def begin(self, adapter: AttachedAdapter, batches: Iterable[Any]) -> str:
        """Begin what of the adapter should start otherwise than its method has it; called once, before the
        first step, in evaluation mode. Returns what was done, for people; empty for nothing.

        Args:
            batches: the examples of the first epoch, on the device; what is not read is not computed.

        Raises:
            RecipeError: it cannot be, as the recipe has it.
        """
        return ""

    def record(self, model: nn.Module, batch: Any) -> list[tuple[Tensor, ...]]:
        """Of each example of a batch what `prefix` gives for it. A task that can, reads `FixedExamples`, and
        its loss and its evaluation replay the states that these bring."""
        raise NotImplementedError

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Metrics on held-out data, deterministic; empty where the recipe holds nothing out."""
        return {}

    @property
    def judges(self) -> bool:
        """Whether `judge` measures anything, as the recipe has it."""
        return False

    def judge(self, model: nn.Module) -> dict[str, float]:
        """Metrics of what the model makes rather than of its loss, at every evaluation; no part of the model
        is idle meanwhile. In evaluation mode, deterministic."""
        return {}

    def preview(self, model: nn.Module, folder: Path, step: int) -> list[Path]:
        """Write files into `folder` that show a person how training goes; returns their paths."""
        return []

    def describe(self, model: nn.Module, data: Dataset[Any]) -> list[str]:
        """Lines for the preflight: what was read, how many, what was skipped and why."""
        return []

    def example(self) -> str:
        """The first example as the model sees it, for a person to check; empty where there is no text."""
        return ""

    def metadata(self) -> dict[str, str]:
        """What the saved adapter should say of its making: "base_model", "trigger", "resolution", ..."""
        return {}
