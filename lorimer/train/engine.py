"""The engine: trains any task's adapter as its recipe says, and leaves a run folder behind.

Everything random in a step follows from (seed, step), and which examples it reads as well; so a run that
is resumed from a checkpoint is the run that was not interrupted, to the bit.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, parse_flag_from_env
from rich.console import Console

from lorimer.errors import Interrupted, LorimerError
from lorimer.train.average import shown
from lorimer.train.base import fingerprint, require_base_unchanged
from lorimer.train.checkpoint import list_checkpoints, prune, write_checkpoint
from lorimer.train.control import Control
from lorimer.train.events import Display, Journal
from lorimer.train.export import export
from lorimer.train.meter import Clock, Meter, memory
from lorimer.train.optimizer import KINDS, learning_rate_now
from lorimer.train.order import first_epoch, read_batches
from lorimer.train.preflight import Preflight, inspect, require_moved, snapshot
from lorimer.train.recipe import Recipe
from lorimer.train.resume import capture, had_prefix, restore
from lorimer.train.run_folder import RunFolder
from lorimer.train.seeding import random_state_kept, seed_all
from lorimer.train.setup import Setup, build
from lorimer.train.step import take_step

STEPS_TO_MOVE = 3  # LoRA's A gets its first gradient in the second step, since B starts at zero
STEPS_TO_MOVE_SLOWLY = 50  # Prodigy begins at a millionth; bfloat16 moves by chance
SKIPPED_IN_A_ROW = 10  # a loss scaler may need a few to settle


@dataclass(frozen=True)
class TrainResult:
    """What came of a run.

    Attributes:
        folder: the run folder.
        adapter: the trained adapter, a file that any lorimer call loads.
        steps, skipped: steps taken, and those among them that were not finite and changed nothing.
        metrics: of the last evaluation, and "loss" of the last line of the log.
        best_step: the step of lowest validation loss, whose checkpoint is kept; None without evaluation.
        seconds: what training took, in this process.
    """

    folder: Path
    adapter: Path
    steps: int
    skipped: int
    metrics: dict[str, float]
    best_step: int | None
    seconds: float


def check(recipe: Recipe) -> Preflight:
    """Everything up to the first step; no run folder is written.

    Raises: as `train`.
    """
    RunFolder(recipe.output).require_new()
    with random_state_kept():
        setup = build(recipe)
        setup.park()
        return inspect(setup)


def train(recipe: Recipe, *, resume: Path | None = None, console: Console | None = None) -> TrainResult:
    """Train an adapter.

    Args:
        recipe: see `load_recipe`.
        resume: go on with the run in this folder, from its newest complete checkpoint. The recipe may differ
            from the run's only where that changes no result.
        console: where to show progress; standard error by default.

    Raises:
        UsageError: the recipe asks for what cannot be, the output folder is not empty, or the recipe differs
            from that of the run to resume.
        DataError: data or a checkpoint is missing or broken.
        Interrupted: a person stopped the run; it was saved first.
        LorimerError: training cannot go on; the message says why. Checkpoints are kept.
    """
    begin = time.perf_counter()
    folder = RunFolder(resume or recipe.output)
    (folder.require_run if resume else folder.require_new)()
    asked_for_cpu = parse_flag_from_env("ACCELERATE_USE_CPU")  # as Accelerator itself reads it
    owned = folder.lock() if PartialState(cpu=asked_for_cpu).is_main_process else contextlib.nullcontext()
    with random_state_kept(), owned:
        setup = build(recipe, logs=folder.path)
        setup.base = fingerprint(setup.model)
        setup.park()
        preflight = inspect(setup, had_prefix(folder))
        if not setup.accelerator.is_main_process:
            console = Console(quiet=True)
        run = Run(setup, folder, Display(recipe.train.steps, console))
        run.train(preflight)
        return TrainResult(
            folder=folder.path,
            adapter=folder.adapter / "adapter.safetensors",
            steps=run.step,
            skipped=run.meter.read().skipped,
            metrics=run.metrics,
            best_step=run.best_step,
            seconds=time.perf_counter() - begin,
        )


class Run:
    """One run, from where it stands to its last step."""

    def __init__(self, setup: Setup, folder: RunFolder, display: Display) -> None:
        self.setup, self.folder, self.display = setup, folder, display
        self.options = setup.recipe.train
        self.main = setup.accelerator.is_main_process
        self.control = Control(folder.control)
        self.clock = Clock()
        self.meter = Meter(setup.accelerator.device)
        self.metrics: dict[str, float] = {}
        self.step = 0  # optimiser steps done
        self.best_step: int | None = None
        self.best_loss = math.inf
        self.saved_step: int | None = None
        self.start_tensors: dict[str, torch.Tensor] | None = None

    def train(self, preflight: Preflight) -> None:
        """Take all steps that are left, then export the adapter."""
        self._prepare_folder()
        self.journal = Journal(self.folder, self.options.steps, active=self.main)
        try:
            self._announce(preflight)
            if self.setup.prefix is not None:
                self.setup.prefix.fill(self.display.say)
            with self.control.signals():
                self._take_all_steps()
            self._finish()
        except BaseException as error:
            self._record_failure(error)
            raise
        finally:
            self.journal.close()
            self.display.close()
            self.setup.accelerator.end_training()

    def _take_all_steps(self) -> None:
        batches = read_batches(self.setup, self.step, self.options.steps)
        if self.step == 0:
            self._begin()
            self.start_tensors = snapshot(self.setup)
            self._show_state(evaluate=self.options.evaluate_every > 0, preview=self.options.preview_every > 0)
        self.clock.restart(self.step)
        while self.step < self.options.steps:
            loss, finite = take_step(self.setup, self.step, batches)
            self.meter.add(loss, self.setup.order.examples_in(self.step), finite)
            self.step += 1
            self._require_health()
            asked = self._requests()
            if self._due(self.options.log_every):
                self._log()
            with self.clock.aside():
                better = self._show_state(
                    evaluate=self._due(self.options.evaluate_every),
                    preview=self._due(self.options.preview_every) or "preview" in asked,
                )
                last = self.step == self.options.steps
                if (
                    last
                    or better
                    or asked & {"stop", "checkpoint"}
                    or self._due(self.options.checkpoint_every)
                ):
                    self._save()
            if "stop" in asked and not last:
                raise Interrupted(
                    f"stopped by {self.control.reason} after step {self.step} of {self.options.steps};"
                    f" saved. To go on: lorimer train --resume {self.folder.path}"
                )
            self.display.advance(self.step)

    def _begin(self) -> None:
        """Let the task begin what of the adapter starts in its own way, alike in all processes."""
        setup = self.setup
        setup.model.eval()
        seed_all(self.options.seed, "begin")
        with setup.accelerator.autocast():
            done = setup.task.begin(setup.adapter, first_epoch(setup))
        if done:
            for parameter in setup.parameters:
                broadcast(parameter.data)
            if setup.average is not None:
                setup.average.restart()
            self.display.say(done)
        setup.set_training()

    def _finish(self) -> None:
        """Check the frozen base, and write the adapter in the formats that other programs read."""
        require_base_unchanged(self.setup.model, self.setup.base, self.setup.parked)
        with shown(self.setup):
            files = export(self.setup, self.folder, self.step) if self.main else []
        self.setup.accelerator.wait_for_everyone()
        names = [str(path.relative_to(self.folder.path)) for path in files]
        self.journal.end("finished", self.step, files=names, base_tensors_unchanged=len(self.setup.base))
        self.display.say(f"all {len(self.setup.base)} tensors of the base model are bit for bit as before")

    def _prepare_folder(self) -> None:
        """Make the run folder, or restore the run that is in it."""
        self.setup.accelerator.wait_for_everyone()  # nobody looks into the folder any more
        trainer = restore(self.setup, self.folder)
        if trainer is not None:
            self.step = self.saved_step = trainer["step"]
            self.meter = Meter(self.setup.accelerator.device, trainer["meter"])
            if trainer["best"] is not None:
                self.best_step, self.best_loss = trainer["best"]
        if self.main:
            self.folder.prepare(self.setup.recipe, self.saved_step)
            self.control.clear()
        self.setup.accelerator.wait_for_everyone()

    def _announce(self, preflight: Preflight) -> None:
        lines = preflight.lines()
        self.journal.write("resumed" if self.saved_step else "started", self.step, preflight=lines)
        if self.main:
            again = [f"going on after step {self.step}"] if self.saved_step else []
            self.display.start([*lines, *again], self.step)
        if self.options.trackers:
            self.setup.accelerator.init_trackers(self.setup.recipe.name, config=self.setup.recipe.flat())

    def _log(self) -> None:
        """A line of the log: the mean loss since the last, rate, speed, time left, memory."""
        reading = self.meter.read()
        self.meter.restart()
        seconds = self.clock.lap(self.step)
        values = {
            "loss": reading.loss,
            "learning_rate": learning_rate_now(self.setup.optimizer),
            "epoch": round(self.step / self.setup.order.steps_per_epoch, 4),
            "steps_per_second": 1 / seconds,
            "seconds_left": self.clock.smooth_seconds * (self.options.steps - self.step),
            "skipped": reading.skipped,
            **memory(self.setup.accelerator.device),
        }
        if reading.loss is not None:
            self.metrics["loss"] = reading.loss
        self.journal.write("step", self.step, **values)
        self.display.measured(self.step, values)
        self._track({key: value for key, value in values.items() if isinstance(value, float)})

    def _show_state(self, evaluate: bool, preview: bool) -> bool:
        """Evaluate and preview, where asked to; returns whether the validation loss is the lowest so far."""
        better = False
        if evaluate:
            with self._observing("evaluate"):
                metrics = self.setup.task.evaluate(self.setup.model)
            if self.setup.task.judges:
                with self._observing("judge"), self.setup.all_parts():
                    metrics |= self.setup.task.judge(self.setup.model)
            better = self._note_metrics(metrics)
        if preview and self.main:
            with self._observing("preview"), self.setup.all_parts():
                files = self.setup.task.preview(self.setup.model, self.folder.samples, self.step)
            names = [str(path.relative_to(self.folder.path)) for path in files]
            self.journal.write("preview", self.step, files=names)
        return better

    def _note_metrics(self, metrics: dict[str, float]) -> bool:
        self.metrics |= metrics
        loss = metrics.get("validation_loss", math.nan)
        better = self.step > 0 and loss < self.best_loss  # never where it is NaN
        if better:
            self.best_step, self.best_loss = self.step, loss
        if metrics:
            finite = {key: value if math.isfinite(value) else None for key, value in metrics.items()}
            self.journal.write("evaluation", self.step, metrics=finite, best_step=self.best_step)
            self.display.say(
                "  ".join([f"step {self.step}", *(f"{key} {value:.4f}" for key, value in metrics.items())])
            )
            self._track(metrics)
        return better

    @contextlib.contextmanager
    def _observing(self, what: str) -> Iterator[None]:
        """Evaluation mode, no gradients, the same random numbers each time."""
        self.setup.model.eval()
        seed_all(self.options.seed, what)
        with shown(self.setup), torch.no_grad(), self.setup.accelerator.autocast():
            yield
        self.setup.set_training()

    def _save(self) -> None:
        """Write a checkpoint of this step, unless there is one."""
        if self.saved_step == self.step:
            return
        if self.main:
            best = None if self.best_step is None else [self.best_step, self.best_loss]
            place = write_checkpoint(
                self.folder.checkpoints,
                capture(self.setup, self.step, {"meter": self.meter.state(), "best": best}),
            )
            self.journal.write("checkpoint", self.step, path=str(place.relative_to(self.folder.path)))
        self.setup.accelerator.wait_for_everyone()
        if self.main:
            prune(self.folder.checkpoints, self.options.keep_checkpoints, self.best_step)
        self.saved_step = self.step

    def _due(self, every: int) -> bool:
        return every > 0 and (self.step % every == 0 or self.step == self.options.steps)

    def _requests(self) -> set[str]:
        """What was asked, the same in all processes."""
        asked: set[str] = set(self.control.requests()) if self.main else set()
        if self.setup.accelerator.num_processes > 1:
            asked = self.setup.share(asked)
        return asked

    def _require_health(self) -> None:
        """Raise `LorimerError` where training has no effect, or none that is finite."""
        if self.start_tensors is not None:
            good = self.step - self.meter.read().skipped
            slow = KINDS[self.options.optimizer].one_rate or self.setup.wide is not None
            slow = slow or self.setup.task.rests
            if good >= (STEPS_TO_MOVE_SLOWLY if slow else STEPS_TO_MOVE):
                require_moved(self.setup, self.start_tensors, good)
                self.start_tensors = None
        if self.step % SKIPPED_IN_A_ROW == 0 or self.step == self.options.steps:
            in_a_row = self.meter.read().in_a_row
            if in_a_row >= min(SKIPPED_IN_A_ROW, self.options.steps):
                places = list_checkpoints(self.folder.checkpoints)
                raise LorimerError(
                    f"the loss or its gradient was not finite in the last {in_a_row} steps, up to "
                    f"step {self.step}; they changed nothing. Lower train.learning_rate, look for NaN in "
                    "the data, or set train.mixed_precision to bf16 or no. Newest checkpoint: "
                    f"{places[-1] if places else 'none'}"
                )

    def _track(self, values: dict[str, float]) -> None:
        if self.options.trackers:
            self.setup.accelerator.log(values, step=self.step)

    def _record_failure(self, error: BaseException) -> None:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        with contextlib.suppress(LorimerError):  # the disk may be what failed; the first error counts
            self.journal.end(
                "interrupted" if stopped else "failed", self.step, error=str(error) or repr(error)
            )
