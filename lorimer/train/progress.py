"""What a run measured, step by step, read from its events; and which checkpoint that speaks for."""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import pairwise

from lorimer.errors import DataError
from lorimer.train.run_folder import RunFolder

Series = list[tuple[int, float]]

# Beyond these a number speaks against a checkpoint; `lorimer.tasks._judging` says what the numbers are.
LEAST_DIVERSITY = 0.6
MOST_MEMORISING = 0.9
MOST_DRIFT = 1.0


@dataclass(frozen=True)
class Progress:
    """What was measured.

    Attributes:
        series: metric -> (step, value) in order of steps; "loss" is the training loss, the others are of
            evaluations.
    """

    series: dict[str, Series]

    @property
    def best_step(self) -> int | None:
        """The step of lowest validation loss, the start left out; None where none was measured."""
        measured = [(value, step) for step, value in self.series.get("validation_loss", []) if step > 0]
        return min(measured)[1] if measured else None

    def at(self, metric: str, step: int) -> float | None:
        """The value of a metric at a step."""
        return dict(self.series.get(metric, [])).get(step)

    def verdict(self) -> list[str]:
        """Which step is best and how that was found, and what speaks against it; lines for a person."""
        step = self.best_step
        if step is None:
            return [
                "no step is called the best, as no validation loss was measured: hold out pictures with "
                "data.validation and set train.evaluate_every"
            ]
        loss = self.at("validation_loss", step)
        lines = [f"best by validation loss: step {step} ({loss:.4f}, the lowest after the start)"]
        if step == max(at for at, _ in self.series["validation_loss"]):
            lines.append("it is the last step measured, so more steps may be better still")
        found = {name: self.at(name, step) for name in ("diversity", "memorising", "drift")}
        diversity, memorising, drift = found.values()
        if diversity is not None and diversity < LEAST_DIVERSITY:
            lines.append(
                f"against it: pictures of one caption differ {diversity:.2f} times as much as the base "
                "model's; fewer steps, a lower rate or more pictures keep more variety"
            )
        if memorising is not None and memorising > MOST_MEMORISING:
            lines.append(
                f"against it: memorising {memorising:.2f}: what it draws lies nearer to training pictures "
                "than pictures that were never trained on (0.5 would be as near); look for copies"
            )
        if drift is not None and drift > MOST_DRIFT:
            lines.append(
                f"against it: drift {drift:.2f}: pictures of unrelated prompts change as much as between one "
                "prompt and another; a lower strength, fewer steps or regularisation pictures hold them"
            )
        return lines


def read_progress(folder: RunFolder) -> Progress:
    """The progress of a run, which may still go on.

    Raises:
        UsageError: there is no run.
        DataError: its events are no JSON.
    """
    folder.require_run()
    series: dict[str, dict[int, float]] = {}
    text = folder.events.read_text(encoding="utf-8", errors="replace") if folder.events.is_file() else ""
    lines = text.splitlines(keepends=True)
    for number, line in enumerate(lines, 1):
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):  # being written just now
                break
            raise DataError(f"{folder.events}: line {number} is no JSON: {error}") from error
        measured = {"step": {"loss": entry.get("loss")}, "evaluation": entry.get("metrics", {})}
        for name, value in measured.get(entry["event"], {}).items():
            if value is not None:
                series.setdefault(name, {})[entry["step"]] = value
    return Progress({name: sorted(values.items()) for name, values in series.items()})


def smoothed(series: Series, half_life: float) -> Series:
    """An exponential average over steps, in which a value counts half after `half_life` steps: for a loss
    that is mostly noise."""
    if not series:
        return []
    kept = [series[0]]
    for (before, _), (step, value) in pairwise(series):
        share = 0.5 ** ((step - before) / half_life)
        kept.append((step, share * kept[-1][1] + (1 - share) * value))
    return kept
