"""Reading what a run measured, choosing the best step, and drawing it."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from lorimer.errors import DataError, UsageError
from lorimer.train.plot import nice_ticks, progress_svg
from lorimer.train.progress import Progress, read_progress, smoothed
from lorimer.train.run_folder import RunFolder


def make_run(path: Path, *events: dict[str, Any]) -> RunFolder:
    path.mkdir(exist_ok=True)
    (path / "recipe.yaml").write_text("task: text-to-image\n", encoding="utf-8")
    lines = "".join(json.dumps({"time": 0, **event}) + "\n" for event in events)
    (path / "events.jsonl").write_text(lines, encoding="utf-8")
    return RunFolder(path)


def evaluation(step: int, **metrics: float | None) -> dict[str, Any]:
    return {"event": "evaluation", "step": step, "metrics": metrics}


def test_the_best_step_has_the_lowest_validation_loss_and_is_not_the_start(tmp_path: Path) -> None:
    run = make_run(
        tmp_path,
        evaluation(0, validation_loss=0.1),
        {"event": "step", "step": 10, "loss": 0.9},
        evaluation(10, validation_loss=0.4),
        evaluation(20, validation_loss=0.3),
        {"event": "step", "step": 20, "loss": None},
        evaluation(30, validation_loss=0.35),
    )
    progress = read_progress(run)
    assert progress.best_step == 20
    assert progress.series["loss"] == [(10, 0.9)]  # what was not finite is left out
    lines = progress.verdict()
    assert len(lines) == 1 and "step 20" in lines[0] and "0.3000" in lines[0]


def test_what_speaks_against_the_best_step_is_said() -> None:
    series = {"validation_loss": [(0, 1.0), (5, 0.5)]}
    bad = {"diversity": [(5, 0.2)], "memorising": [(5, 0.97)], "drift": [(5, 1.4)]}
    lines = Progress(series | bad).verdict()
    assert ["last step" in line for line in lines] == [False, True, False, False, False]
    assert [line.count("against it") for line in lines] == [0, 0, 1, 1, 1]
    good = {"diversity": [(5, 0.9)], "memorising": [(5, 0.5)], "drift": [(5, 0.3)]}
    assert not any("against" in line for line in Progress(series | good).verdict())


def test_without_validation_no_step_is_called_the_best(tmp_path: Path) -> None:
    progress = read_progress(make_run(tmp_path, {"event": "step", "step": 1, "loss": 1.0}))
    assert progress.best_step is None and "data.validation" in progress.verdict()[0]


def test_a_line_that_is_being_written_is_left_out_and_a_broken_one_is_an_error(tmp_path: Path) -> None:
    run = make_run(tmp_path, evaluation(1, validation_loss=0.5))
    with run.events.open("a", encoding="utf-8") as file:
        file.write('{"event": "eval')
    assert read_progress(run).series["validation_loss"] == [(1, 0.5)]
    with run.events.open("a", encoding="utf-8") as file:
        file.write("\n{}\n")
    with pytest.raises(DataError, match="line 2"):
        read_progress(run)
    with pytest.raises(UsageError, match="no run"):
        read_progress(RunFolder(tmp_path / "elsewhere"))


def test_every_metric_is_drawn_with_its_points_and_the_best_step() -> None:
    series = {"validation_loss": [(0, 1.0), (5, 0.5), (9, 0.7)], "<odd> & name": [(0, 3.0), (9, 3.0)]}
    drawn = ElementTree.fromstring(progress_svg(Progress(series)))
    name = "{http://www.w3.org/2000/svg}"
    assert len(drawn.findall(f".//{name}circle")) == 5
    assert [each.text for each in drawn.findall(f".//{name}text[@class='mark']")] == ["5", "5"]
    assert "<odd> & name" in [each.text for each in drawn.iter(f"{name}text")]
    first = drawn.find(f"{name}g")
    assert first is not None
    heights = [float(each.get("cy", "")) for each in first.iter(f"{name}circle")]
    assert heights[1] > heights[2] > heights[0]  # lower values stand lower, which is further from the top


def test_nothing_measured_draws_nothing() -> None:
    assert progress_svg(Progress({})) == ""


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.31, 0.33), (-5.0, 120.0), (2.0, 2.0), (1e-7, 3e-7)])
def test_ticks_are_few_evenly_apart_and_span_the_values(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert 3 <= len(ticks) <= 7 and ticks[0] <= low and ticks[-1] >= high
    gaps = [b - a for a, b in pairwise(ticks)]
    assert max(gaps) == pytest.approx(min(gaps))


def test_smoothing_halves_what_was_before_within_a_half_life() -> None:
    assert smoothed([(0, 0.0), (10, 1.0)], half_life=10) == [(0, 0.0), (10, 0.5)]
    assert smoothed([], half_life=10) == []
