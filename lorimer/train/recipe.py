"""The recipe: one YAML file that says everything about a training run, checked before anything starts.

    task: text-to-image
    model: embedded
    data: {path: photos/}
    adapter: {method: lora, rank: 8, targets: attention}
    train: {steps: 400, learning_rate: 1e-3}
    output: runs/my-style

What counts, first to last: `train.steps=10` on the command line, LORIMER_TRAIN__STEPS=10 in the
environment, the file, the default. Relative paths mean the current directory.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
import typing
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    create_model,
)

from lorimer import registry
from lorimer.adapters._base import Method, asked_for
from lorimer.errors import RecipeError, UsageError, suggest
from lorimer.ops.data_starts import DataStart, data_start
from lorimer.tasks._base import Section, Task
from lorimer.train.recipe_text import describe_errors, parse_override, parse_yaml, rename_aliases

ENVIRONMENT_PREFIX = "LORIMER_"
_TASK_SECTIONS = ("data", "objective", "preview")  # whose classes belong to the task
_DATA_STARTS = ("eva", "corda", "lora-ga")


def _as_list(value: Any) -> Any:
    """One name as a list of one; `2`, as parts of an `nn.Sequential` are called, is a name too."""
    names = [value] if isinstance(value, str | int) else value
    return [_as_name(name) for name in names] if isinstance(names, list | tuple) else names


def _as_name(value: Any) -> Any:
    return str(value) if type(value) is int else value


def _with_names(value: Any) -> Any:
    return {_as_name(name): each for name, each in value.items()} if isinstance(value, Mapping) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
_Rows = Annotated[dict[str, tuple[NonNegativeInt, ...]], BeforeValidator(_with_names)]
NamesOrRows = Annotated[
    Annotated[Names, Tag("names")] | Annotated[_Rows, Tag("rows")],
    Discriminator(lambda value: "rows" if isinstance(value, Mapping) else "names"),
]


class AdapterSection(Section):
    """What is attached, and where. Further fields are those of the method."""

    aliases: ClassVar[Mapping[str, str]] = {
        "r": "rank",
        "lora_r": "rank",
        "lora_rank": "rank",
        "network_dim": "rank",
        "lora_alpha": "alpha",
        "network_alpha": "alpha",
        "target_modules": "targets",
        "exclude_modules": "exclude",
        "modules_to_save": "full",
        "lora_dropout": "dropout",
        "network_dropout": "dropout",
        "use_rslora": "rslora",
    }

    method: str = "lora"
    """The adapter method."""
    rank: PositiveInt = 8
    """Rank of the update; more rank, more it can learn, and a larger file."""
    alpha: PositiveFloat | None = None
    """The update is scaled by alpha / rank; null means alpha = rank."""
    targets: Names = ("all-linear",)
    """Layers to adapt: names, endings, `re:` patterns, `type:` names, or `attention`, `all-linear`,
    `all-linear-conv`."""
    exclude: Names = ()
    """Layers to leave alone, named in the same ways."""
    rank_pattern: Annotated[dict[str, PositiveInt], BeforeValidator(_with_names)] = Field({})
    """Another rank for some layers: target -> rank; the first match counts."""
    alpha_pattern: Annotated[dict[str, PositiveFloat], BeforeValidator(_with_names)] = Field({})
    """Another alpha for some layers: target -> alpha; the first match counts."""
    components: Names | None = None
    """Which parts of a model of several parts are adapted; null leaves it to the task."""
    full: NamesOrRows = ()
    """What is trained in full beside it and saved with it: names of modules or parameters, `norms`, `biases`;
    or name -> rows, for the embeddings of new tokens."""
    start_batches: PositiveInt = 8
    """How many batches a start that looks at data (`eva`, `corda`, `lora-ga`) is shown."""
    start_options: dict[str, Any] = Field({})
    """Options of such a start, such as `{rho: 2}` or `{mode: knowledge-preserved}`."""

    def method_config(self) -> Method:
        """The method that this section describes; where the start looks at data, as it is before.

        Raises:
            UsageError: a value is impossible.
        """
        method = registry.get("method", self.method)
        values = {name: getattr(self, name) for name in _own_fields(method)}
        if method.ranked:
            values |= {"rank": self.rank, "alpha": self.alpha}
        if self.data_start is not None:
            del values["start"]
        made: Method = method(**values)
        return made

    @property
    def data_start(self) -> DataStart | None:
        """The start that looks at data, where one is asked for.

        Raises:
            UsageError: it has no such options.
        """
        name = getattr(self, "start", None)
        if name in _DATA_STARTS:
            return data_start(str(name), self.start_options)
        if self.start_options:
            raise UsageError(f"start_options are for the starts {', '.join(_DATA_STARTS)}")
        return None


def _precision(value: Any) -> Any:
    return "no" if value is False else value  # YAML 1.1 reads a bare `no` as false


class TrainSection(Section):
    """How training goes."""

    aliases: ClassVar[Mapping[str, str]] = {
        "lr": "learning_rate",
        "max_train_steps": "steps",
        "max_steps": "steps",
        "train_batch_size": "batch_size",
        "per_device_train_batch_size": "batch_size",
        "lr_scheduler": "schedule",
        "lr_scheduler_type": "schedule",
        "lr_warmup_steps": "warmup_steps",
        "loraplus_lr_ratio": "fast_ratio",
        "optimizer_type": "optimizer",
        "optim": "optimizer",
        "dataloader_num_workers": "workers",
        "max_data_loader_n_workers": "workers",
        "logging_steps": "log_every",
        "eval_steps": "evaluate_every",
        "save_steps": "checkpoint_every",
        "checkpointing_steps": "checkpoint_every",
        "save_every_n_steps": "checkpoint_every",
        "save_total_limit": "keep_checkpoints",
        "checkpoints_total_limit": "keep_checkpoints",
        "report_to": "trackers",
        "log_with": "trackers",
    }

    steps: PositiveInt = 400
    """Optimiser steps."""
    batch_size: PositiveInt = 4
    """Examples that go through the model at once, on each device."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches per optimiser step; the result is that of one batch as many times as large."""
    learning_rate: PositiveFloat = 1e-3
    """The rate after warm-up."""
    fast_ratio: PositiveFloat = 1.0
    """LoRA+: the tensors that a method calls fast (LoRA's B) learn at this many times the rate."""
    optimizer: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or plain gradient descent."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the adapter's tensors."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes after warm-up: stays, or falls towards zero at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises to `learning_rate`."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to at most this norm; null leaves them as they are."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_precision)] = "no"
    """Precision of the forward pass; the adapter itself is kept in float32."""
    base_precision: Literal["exact", "int8"] = "exact"
    """How the frozen base multiplies: as it is, or in 8-bit integers (quicker, its weights stay
    as they are)."""
    save_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the files for other programs; `adapter/adapter.safetensors` keeps what was trained."""
    gradient_checkpointing: bool = False
    """Less memory for more time: activations are computed again in the backward pass."""
    seed: NonNegativeInt = 0
    """Fixes the adapter's start, the order of the data and every random draw."""
    workers: NonNegativeInt = 0
    """Processes that read data; 0 reads in the training process. The result is the same for any number."""
    log_every: PositiveInt = 10
    """Steps between two lines of the log."""
    evaluate_every: NonNegativeInt = 0
    """Steps between two evaluations on held-out data (also before the first and at the end); 0: never."""
    preview_every: NonNegativeInt = 0
    """Steps between two previews (also before the first and at the end); 0: never."""
    checkpoint_every: NonNegativeInt = 100
    """Steps between two checkpoints; there is also one at the end and when a run is stopped; 0: only then."""
    keep_checkpoints: PositiveInt = 2
    """How many of the newest checkpoints are kept, beside the best."""
    trackers: Names = ()
    """`tensorboard`, `wandb`, `mlflow`, `trackio`: where the log also goes."""


class Recipe(Section):
    """A checked recipe. `data`, `objective` and `preview` are the task's own sections."""

    aliases: ClassVar[Mapping[str, str]] = {
        "base_model": "model",
        "pretrained_model_name_or_path": "model",
        "output_dir": "output",
    }

    task: str
    """What is trained: a task's name."""
    model: str | None = None
    """The base model: `embedded`, a hub name, a folder; for the task `module` a `package.module:function`."""
    data: Any
    """What it learns from."""
    objective: Any
    """Options of the loss."""
    adapter: AdapterSection
    """What is attached, and where."""
    train: TrainSection
    """How training goes."""
    preview: Any
    """What previews show."""
    output: Path
    """The run's folder; must be new or empty."""

    @property
    def name(self) -> str:
        """The run's name: that of its folder."""
        return Path(self.output).name

    def as_dict(self) -> dict[str, Any]:
        """The recipe as plain data; `load_recipe` makes an equal one of it."""
        return self.model_dump(mode="json")

    def flat(self) -> dict[str, str | int | float]:
        """Dotted place -> value, for programs that show settings in a table."""
        return flatten(self.as_dict())


def flatten(values: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """{"train.steps": 10} for {"train": {"steps": 10}}; lists and null become text."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{place}{key}.")
        else:
            flat[f"{place}{key}"] = value if isinstance(value, bool | int | float | str) else str(value)
    return flat


def load_recipe(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    environment: Mapping[str, str] = os.environ,
) -> Recipe:
    """The recipe in a YAML file or a mapping, with overrides put on top, checked as a whole.

    Args:
        source: a path, or the recipe as plain data.
        overrides: `"train.steps=10"`; the value is read as YAML. They win over everything else.
        environment: variables such as `LORIMER_TRAIN__STEPS=10`, which win over the file.

    Raises:
        RecipeError: lists every mistake: unknown keys with the nearest known one, missing and wrong values.
    """
    where = "recipe" if isinstance(source, Mapping) else str(source)
    layers = [dict(source) if isinstance(source, Mapping) else _read(Path(source))]
    layers += [_nested(place, value) for place, value in _from_environment(environment)]
    layers += [_nested(*parse_override(override)) for override in overrides]
    chosen: dict[str, Any] = {}
    for layer in layers:
        chosen |= {key: layer[key] for key in ("task",) if key in layer}
        if isinstance(adapter := layer.get("adapter"), Mapping) and "method" in adapter:
            chosen["method"] = adapter["method"]
    problems: list[str] = []
    schema = _schema(chosen.get("task"), chosen.get("method", "lora"), problems)
    merged: dict[str, Any] = {name: {} for name in (*_TASK_SECTIONS, "adapter", "train")}
    for layer in layers:
        _merge(merged, rename_aliases(layer, schema, problems))
    try:
        recipe = schema.model_validate(merged)
        if not problems:
            recipe.adapter.method_config()
    except ValidationError as error:
        problems += describe_errors(error, schema)
    except UsageError as error:
        problems.append(f"adapter: {error}")
    if problems:
        count = "1 mistake" if len(problems) == 1 else f"{len(problems)} mistakes"
        raise RecipeError("\n  ".join([f"{where}: {count}", *problems]))
    return recipe


def recipe_class(task: str, method: str = "lora") -> type[Recipe]:
    """The recipe's class with the sections of one task and the fields of one method.

    Raises:
        UsageError: there is no task or method of that name.
    """
    return _class_of(registry.get("task", task), registry.get("method", method))


@cache
def _class_of(task: type[Task], method: type[Method]) -> type[Recipe]:
    types, meanings = typing.get_type_hints(method), _meanings(method)
    own: dict[str, Any] = {
        name: (types[name], Field(**_default(field), description=meanings.get(name)))
        for name, field in _own_fields(method).items()
    }
    adapter = create_model("AdapterSection", __base__=AdapterSection, **own)
    sections = {name: getattr(task, name.capitalize()) for name in _TASK_SECTIONS}
    return _with_sections({"adapter": adapter, **sections})


def _own_fields(method: type[Method]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a method adds to the adapter's section."""
    fields = {field.name: field for field in dataclasses.fields(method) if asked_for(field)}
    return {name: field for name, field in fields.items() if name not in ("rank", "alpha")}


def _default(field: dataclasses.Field[Any]) -> dict[str, Any]:
    if field.default_factory is not dataclasses.MISSING:
        return {"default": field.default_factory()}
    return {} if field.default is dataclasses.MISSING else {"default": field.default}


def _meanings(method: type[Method]) -> dict[str, str]:
    """Field -> what the docstrings of the method and its bases say of it under `Attributes:`."""
    meanings: dict[str, str] = {}
    for cls in reversed(method.__mro__):
        _, _, attributes = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^    (\w+(?:, \w+)*): (.+(?:\n     .+)*)", attributes, re.MULTILINE):
            words = " ".join(text.split()).replace("None", "null")
            meanings |= dict.fromkeys(names.split(", "), words[:1].upper() + words[1:])
    return meanings


def _with_sections(sections: Mapping[str, type[Section]]) -> type[Recipe]:
    """`Recipe` with these classes for its sections."""
    fields: dict[str, Any] = {
        name: (section, Field(description=Recipe.model_fields[name].description))
        for name, section in sections.items()
    }
    return create_model("Recipe", __base__=Recipe, **fields)


class _AnySection(Section):
    """Stands in for a section whose class is not known, so that the rest can still be checked."""

    model_config = ConfigDict(extra="allow")


class _AnyAdapter(AdapterSection):
    model_config = ConfigDict(extra="allow")


def _schema(task: Any, method: Any, problems: list[str]) -> type[Recipe]:
    """The class to check against; where a name is unknown, tells `problems` and checks what it can."""
    try:
        return recipe_class(str(task), str(method))
    except UsageError:
        for kind, place, name in (("task", "task", task), ("method", "adapter.method", method)):
            known = registry.names(kind)
            if name is not None and name not in known:
                problems.append(
                    f"{place}: no {kind} is called {name!r}.{suggest(str(name), known)} "
                    f"Known: {', '.join(known)}"
                )
    return _with_sections({"adapter": _AnyAdapter, **dict.fromkeys(_TASK_SECTIONS, _AnySection)})


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: the recipe cannot be read: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise RecipeError(f"{path}: a recipe is a mapping of `key: value` lines, not {type(value).__name__}")
    return value


def _from_environment(environment: Mapping[str, str]) -> list[tuple[str, Any]]:
    """(dotted place, value) of every variable that names a field; others are left alone."""
    found = []
    for variable, text in sorted(environment.items()):
        place = variable.removeprefix(ENVIRONMENT_PREFIX).lower().replace("__", ".")
        if variable.startswith(ENVIRONMENT_PREFIX) and place.split(".")[0] in Recipe.model_fields:
            found.append((place, parse_yaml(text, variable)))
    return found


def _nested(place: str, value: Any) -> dict[str, Any]:
    """{"train": {"steps": 10}} for ("train.steps", 10)."""
    for key in reversed(place.split(".")):
        value = {key: value}
    return value


def _merge(target: dict[str, Any], layer: Mapping[str, Any]) -> None:
    """Put `layer` over `target`: mappings key by key, anything else as a whole."""
    for key, value in layer.items():
        if isinstance(value, Mapping) and isinstance(target.get(key), dict):
            _merge(target[key], value)
        else:
            target[key] = dict(value) if isinstance(value, Mapping) else value
