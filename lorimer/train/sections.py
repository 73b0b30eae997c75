"""What a recipe may hold under `adapter:` and `train:`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    model_validator,
)

from lorimer import registry
from lorimer.adapters._base import Method, asked_for
from lorimer.errors import UsageError
from lorimer.ops.data_starts import DataStart, data_start
from lorimer.tasks._base import Section

if TYPE_CHECKING:
    import torch

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


_Rate = Annotated[float, Field(gt=0.0, lt=1.0)]


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
    targets: Names | None = None
    """Layers to adapt: names, endings, `re:` patterns, `type:` names, or `attention`, `all-linear`,
    `all-linear-conv`; null leaves it to the task, which takes what is usual for the model."""
    exclude: Names = ()
    """Layers to leave alone, named in the same ways."""
    rank_pattern: Annotated[dict[str, PositiveInt], BeforeValidator(_with_names)] = Field({})
    """Another rank for some layers: target -> rank; the first match counts."""
    alpha_pattern: Annotated[dict[str, PositiveFloat], BeforeValidator(_with_names)] = Field({})
    """Another alpha for some layers: target -> alpha; the first match counts."""
    learning_rate_pattern: Annotated[dict[str, PositiveFloat], BeforeValidator(_with_names)] = Field({})
    """Another learning rate for some layers: target or component -> rate; the first match counts."""
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
        values = {name: getattr(self, name) for name in own_fields(method)}
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


Optimizer = Literal["adamw", "sgd", "adamw-8bit", "adafactor", "came", "lion", "prodigy", "schedule-free"]
_OTHER_SPELLINGS = {"adamw8bit": "adamw-8bit", "adamwschedulefree": "schedule-free", "adamw-torch": "adamw"}


def _optimizer(value: Any) -> Any:
    """Our name for an optimiser that another tool spells `AdamW8bit`."""
    name = value.lower().replace("_", "-") if isinstance(value, str) else value
    return _OTHER_SPELLINGS.get(name, name)


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
    """The rate after warm-up; with `prodigy`, a factor on the rate that it finds, and 1 unless given."""
    fast_ratio: PositiveFloat = 1.0
    """LoRA+: the tensors that a method calls fast (LoRA's B) learn at this many times the rate."""
    optimizer: Annotated[Optimizer, BeforeValidator(_optimizer)] = "adamw"
    """The optimiser; all but `adamw` and `sgd` come with `pip install "lorimer[optimizers]"`. `prodigy` finds
    the rate by itself; `schedule-free` wants a constant schedule."""
    optimizer_options: dict[str, Any] = Field({})
    """Further options of the optimiser, by its own names, such as `{betas: [0.9, 0.99]}`."""
    weight_decay: NonNegativeFloat = 0.0
    """Decoupled weight decay of the adapter's tensors."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How the rate goes after warm-up: stays, or falls towards zero at the last step."""
    warmup_steps: NonNegativeInt = 0
    """Steps over which the rate rises to `learning_rate`."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to at most this norm; null leaves them as they are."""
    ema: _Rate | None = None
    """Evaluate, preview and export a moving average of the adapter, which keeps this share of itself in each
    step (0.999 is usual; less in the first steps); null uses the adapter as it is."""
    mixed_precision: Annotated[Literal["no", "fp16", "bf16"], BeforeValidator(_precision)] = "no"
    """Precision of the forward pass; the adapter itself is kept as `adapter_precision` says."""
    adapter_precision: Literal["fp32", "bf16"] = "fp32"
    """How the adapter is kept: bf16 takes half the memory, its updates rounded at random so that small ones
    are not lost (arXiv 2010.06192)."""
    base_dtype: Literal["auto", "fp32", "fp16", "bf16"] = "auto"
    """How the frozen weights are kept: `auto` is float32 without mixed precision, else its type; a model of
    your own (task `module`) is left as you made it."""
    base_precision: Literal["exact", "int8", "8bit", "nf4"] = "exact"
    """How the frozen base is kept and multiplies: as it is; `int8`, in 8-bit integers (quicker, its weights
    stay as they are); `8bit`, `nf4`, kept in 8 or 4 bits (less memory, slower, not exactly the base)."""
    offload: Literal["none", "blocks"] = "none"
    """`blocks`: the frozen blocks of the denoiser stay in main memory and visit the GPU when needed."""
    offload_resident: NonNegativeInt = 0
    """With `offload`, how many blocks stay on the GPU all the same: as many as fit is quickest."""
    save_precision: Literal["fp32", "fp16", "bf16"] = "fp32"
    """Precision of the files for other programs; `adapter/adapter.safetensors` keeps what was trained."""
    gradient_checkpointing: bool = False
    """Less memory for more time: activations are computed again in the backward pass."""
    cache_prefix: Literal["auto", "always", "never"] = "auto"
    """Whether what the frozen layers before the first adapted one give is computed once for each example and
    kept on disk, so that steps run the rest alone: `auto`, where the preflight measures that it pays. It
    needs examples that are the same in every epoch and no dropout in those layers; results are the same."""
    cache_prefix_gigabytes: PositiveFloat = 10.0
    """What of it may be kept on disk, for all runs together; what was not used for a day goes first."""
    base_dropout: bool = True
    """Whether the frozen model's own dropout is on in training. Without it steps are quicker, above all on a
    CPU, and `adapter.dropout` is left to hold the adapter back."""
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

    @model_validator(mode="before")
    @classmethod
    def _own_rate(cls, values: Any) -> Any:
        """Prodigy's factor on the rate that it finds is 1 unless a recipe says."""
        if isinstance(values, Mapping) and _optimizer(values.get("optimizer")) == "prodigy":
            return {"learning_rate": 1.0, **values}
        return values

    def weights_dtype(self) -> torch.dtype:
        """The type that frozen weights are kept in."""
        import torch

        types = {"no": torch.float32, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
        return types[self.mixed_precision if self.base_dtype == "auto" else self.base_dtype]


def own_fields(method: type[Method]) -> dict[str, dataclasses.Field[Any]]:
    """The fields that a method adds to the adapter's section."""
    fields = {field.name: field for field in dataclasses.fields(method) if asked_for(field)}
    return {name: field for name, field in fields.items() if name not in ("rank", "alpha")}
