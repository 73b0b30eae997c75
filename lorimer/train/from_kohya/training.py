"""The optimiser, its schedule, precision, and what happens every so many steps."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lorimer.errors import RecipeError
from lorimer.train.from_kohya.draft import Draft, pairs
from lorimer.train.recipe_text import parse_yaml

# kohya's optimiser in small letters -> (ours, weight decay that it has by itself).
_OPTIMIZERS: Mapping[str, tuple[str, float]] = {
    "adamw": ("adamw", 0.01),
    "adamw8bit": ("adamw-8bit", 0.01),
    "pagedadamw8bit": ("adamw-8bit", 0.01),
    "pagedadamw": ("adamw", 0.01),
    "pagedadamw32bit": ("adamw", 0.01),
    "lion": ("lion", 0.0),
    "prodigy": ("prodigy", 0.0),
    "adafactor": ("adafactor", 0.0),
    "adamwschedulefree": ("schedule-free", 0.0),
    "came": ("came", 0.0),
}
_SCHEDULES = {
    "constant": "constant", "constant_with_warmup": "constant", "linear": "linear", "polynomial": "linear",
    "cosine": "cosine", "cosine_with_restarts": "cosine",
}  # fmt: skip
_DEFAULT_STEPS = 1600  # kohya's


def put_training(draft: Draft, steps_per_epoch: int | None, uncounted: str) -> None:
    """Set what is computed under `train:`.

    Args:
        steps_per_epoch: what kohya counts, or None where the pictures are not there.
        uncounted: why they could not be counted.
    """
    steps = _steps(draft, steps_per_epoch, uncounted)
    draft.put("train.batch_size", draft.whole("train_batch_size", 1), "train_batch_size")
    draft.put("train.seed", draft.whole("seed", 0), "seed" if "seed" in draft.given else "kohya draws one")
    _put_optimizer(draft)
    _put_schedule(draft, steps)
    _put_precision(draft)
    _put_every(draft, steps, steps_per_epoch, uncounted)


def _steps(draft: Draft, steps_per_epoch: int | None, uncounted: str) -> int:
    """The optimiser steps; 1 where they are not to be known, which was refused."""
    if "max_train_epochs" not in draft.given:
        steps = draft.whole("max_train_steps", _DEFAULT_STEPS)
        draft.put("train.steps", steps, "max_train_steps")
        return steps
    epochs = draft.whole("max_train_epochs")
    if steps_per_epoch is None:
        draft.refused.append(
            f"max_train_epochs = {epochs}: steps follow from the number of pictures, and {uncounted}; "
            "run this where they are, or give max_train_steps instead"
        )
        return 1
    comment = f"max_train_epochs = {epochs}, of {steps_per_epoch} steps each"
    draft.put("train.steps", epochs * steps_per_epoch, comment)
    return epochs * steps_per_epoch


def _put_optimizer(draft: Draft) -> None:
    given = draft.given
    short = "AdamW8bit" if "use_8bit_adam" in given else "Lion" if "use_lion_optimizer" in given else "AdamW"
    named = str(given.get("optimizer_type", short))
    name = named.rpartition(".")[2].lower()
    if name not in _OPTIMIZERS:
        known = "AdamW, AdamW8bit, Adafactor, CAME, Lion, Prodigy, AdamWScheduleFree"
        draft.refused.append(f"optimizer_type = {named!r}: is not there; these are: {known}")
        return
    ours, decay = _OPTIMIZERS[name]
    if name.startswith("paged"):
        draft.changed.append(f"optimizer_type = {named!r}: {ours}, whose state stays on the device")
    options = {
        key: parse_yaml(_plain(text), f"optimizer_args {key}") for key, text in _arguments(draft).items()
    }
    if ours == "adafactor":
        if options.pop("relative_step", True) is not False:
            draft.refused.append(
                "optimizer_type = 'Adafactor' with relative_step: the rate is the recipe's; "
                "add relative_step=False to optimizer_args and set learning_rate"
            )
        options = {
            key: value for key, value in options.items() if key not in ("scale_parameter", "warmup_init")
        }
    decay = float(options.pop("weight_decay", decay))
    draft.put("train.optimizer", ours, "optimizer_type" if "optimizer_type" in given else "kohya's default")
    draft.put("train.weight_decay", decay, "optimizer_args, or the optimiser's own")
    if options:
        draft.put("train.optimizer_options", options, "optimizer_args")


def _arguments(draft: Draft) -> dict[str, str]:
    return pairs(draft.given.get("optimizer_args"), "optimizer_args")


def _plain(text: str) -> str:
    """Python's `True`, `None` and `(0.9, 0.99)` as YAML's."""
    words = {"True": "true", "False": "false", "None": "null"}
    bare = text.strip()
    return words.get(bare, f"[{bare.strip('()')}]" if "," in bare and not bare.startswith("[") else bare)


def _put_schedule(draft: Draft, steps: int) -> None:
    name = str(draft.given.get("lr_scheduler", "constant"))
    usual = {"cosine_with_restarts": ("lr_scheduler_num_cycles", 1), "polynomial": ("lr_scheduler_power", 1)}
    option, value = usual.get(name, ("", 0))
    if name not in _SCHEDULES or (option and draft.number(option, value) != value):
        more = f" with {option} = {draft.given[option]}" if option in draft.given else ""
        draft.refused.append(f"lr_scheduler = {name!r}{more}: schedules are constant, linear and cosine")
        return
    draft.put("train.schedule", _SCHEDULES[name], "lr_scheduler")
    warmup = draft.number("lr_warmup_steps", 0)
    if warmup and name == "constant":
        draft.changed.append(
            "lr_warmup_steps: kohya refuses it with a constant schedule; here the rate warms up"
        )
    if warmup:
        share = isinstance(warmup, float) or "." in str(draft.given["lr_warmup_steps"])
        draft.put("train.warmup_steps", int(warmup * steps) if share else int(warmup), "lr_warmup_steps")
    if "max_grad_norm" in draft.given:
        draft.put("train.max_grad_norm", draft.number("max_grad_norm") or None, "max_grad_norm")


def _put_precision(draft: Draft) -> None:
    given = draft.given
    if "save_precision" in given:
        names = {"float": "fp32"}
        draft.put(
            "train.save_precision",
            names.get(given["save_precision"], given["save_precision"]),
            "save_precision",
        )
    if "full_bf16" in given:
        draft.put("train.adapter_precision", "bf16", "full_bf16")
        draft.changed.append(
            "full_bf16: the adapter's updates are rounded at random, so that small ones count"
        )
    if eight := {"fp8_base", "fp8_base_unet"} & set(given):
        draft.put("train.base_precision", "8bit", " ".join(sorted(eight)))
        draft.changed.append("fp8_base: the frozen weights are kept in 8-bit integers instead of float8")
    if "blocks_to_swap" in given:
        draft.put("train.offload", "blocks", "blocks_to_swap")
        draft.changed.append(
            "blocks_to_swap: all blocks visit the device; raise train.offload_resident as it fits"
        )
    if "max_data_loader_n_workers" in given:
        draft.put("train.workers", draft.whole("max_data_loader_n_workers"), "max_data_loader_n_workers")
    if tracker := given.get("log_with"):
        draft.put("train.trackers", ["tensorboard", "wandb"] if tracker == "all" else [tracker], "log_with")


def _put_every(draft: Draft, steps: int, steps_per_epoch: int | None, uncounted: str) -> None:
    """Checkpoints, previews and evaluations, in steps."""
    given = dict(draft.given)
    if "save_n_epoch_ratio" in given and "max_train_epochs" in given:
        given["save_every_n_epochs"] = max(
            1, draft.whole("max_train_epochs") // draft.whole("save_n_epoch_ratio")
        )
    for place, option in (
        ("train.checkpoint_every", "save_every_n"), ("train.preview_every", "sample_every_n"),
        ("train.evaluate_every", "validate_every_n"),
    ):  # fmt: skip
        every, name = given.get(f"{option}_steps"), f"{option}_steps"
        if every is None and (epochs := given.get(f"{option}_epochs")) is not None:
            name = f"{option}_epochs"
            if steps_per_epoch is None:
                draft.left_out.append(
                    f"{name} = {epochs}: {uncounted}, so that steps cannot be counted; set {place}"
                )
                continue
            every = int(float(epochs)) * steps_per_epoch
        if every is not None:
            draft.put(place, int(float(every)), name)
    draft.fields.setdefault("train.checkpoint_every", 0)  # kohya writes at the end alone unless asked
    _put_kept(draft, steps, steps_per_epoch)


def _put_kept(draft: Draft, steps: int, steps_per_epoch: int | None) -> None:
    """How many checkpoints kohya would keep: all, or those of the last so many steps or epochs."""
    every = draft.fields["train.checkpoint_every"]
    if not every:
        return
    last, name = steps, "kohya keeps all"
    if "save_last_n_steps" in draft.given:
        last, name = draft.whole("save_last_n_steps"), "save_last_n_steps"
    elif "save_last_n_epochs" in draft.given and steps_per_epoch:
        last, name = draft.whole("save_last_n_epochs") * steps_per_epoch, "save_last_n_epochs"
    draft.put("train.keep_checkpoints", max(1, math.ceil(last / every)), name)


def put_preview(draft: Draft, folder: Path) -> None:
    """Set `preview:` from kohya's file of prompts, one a line with options behind ` --`."""
    if "sample_prompts" not in draft.given:
        return
    path = folder / str(draft.given["sample_prompts"])
    if path.suffix.lower() != ".txt" or not path.is_file():
        why = "is not there" if path.suffix.lower() == ".txt" else "is no .txt file"
        draft.left_out.append(f"sample_prompts = {path}: {why}; write preview.prompts yourself")
        return
    try:
        written = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"sample_prompts: {path} cannot be read: {error}") from error
    lines = [line.strip() for line in written if line.strip() and not line.startswith("#")]
    parsed = [line.split(" --") for line in lines]
    if not parsed:
        return
    draft.put("preview.prompts", [prompt.strip() for prompt, *_ in parsed], "sample_prompts")
    options = dict(text.strip().split(" ", 1) for text in parsed[0][1:] if " " in text.strip())
    readers: dict[str, tuple[str, Any]] = {
        "n": ("negative_prompt", str), "s": ("steps", int), "l": ("guidance", float),
        "d": ("seeds", _as_list),
    }  # fmt: skip
    for letter, value in options.items():
        if letter in readers:
            field, read = readers[letter]
            draft.put(
                f"preview.{field}", read(value.strip()), f"sample_prompts, --{letter} of the first line"
            )
    if any(set(line[1:]) - set(parsed[0][1:]) for line in parsed):
        draft.changed.append("sample_prompts: all prompts are drawn with the options of the first")


def _as_list(text: str) -> list[int]:
    return [int(text)]
