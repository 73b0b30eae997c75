"""Runs that are killed: a small server that imports everything once and forks a child for each run.

    python -m tests.faults.forks      reads a plan as JSON from each line, prints the outcome as JSON

A fork starts in milliseconds where a fresh process would import torch for seconds, and dies as truly.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lorimer.errors import LorimerError
from lorimer.formats.safe_io import writing
from lorimer.train.checkpoint import newest_checkpoint, step_of
from lorimer.train.engine import train
from lorimer.train.recipe import load_recipe
from tests.unit.train.small import recipe

OVERRIDES = ("train.steps=3", "train.checkpoint_every=2", "train.keep_checkpoints=1", "train.log_every=2")


def begin(folder: Path, *overrides: str) -> None:
    """Train from the start."""
    train(recipe(folder, *OVERRIDES, *overrides, adapter={"rank": 1, "targets": "3"}))


def go_on(folder: Path) -> None:
    """What a person does after a crash: resume where there is a run, else begin."""
    if (folder / "recipe.yaml").exists():
        train(load_recipe(folder / "recipe.yaml", (), {}), resume=folder)
    else:
        begin(folder)


def in_child(action: Callable[[], None]) -> int:
    """Fork, run `action` in the child, without waiting; returns its process id."""
    child = os.fork()
    if child:
        return child
    code = 70
    try:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 2)
        action()
        code = 0
    except LorimerError as error:
        code = error.exit_code
    finally:
        os._exit(code)


def wait(child: int) -> int:
    """The child's exit code; -9 where it was killed."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(number: int, folder: Path, count: Callable[[str], None] | None = None) -> None:
    """Arrange that this process kills itself just before its n-th change to a file under `folder`.

    Files that are opened for writing, renamed and removed, folders made and removed, are seen by Python's
    audit hook; data written and synced, by standing in for the two functions that do it. A write is cut in
    the middle. With `count` nothing dies, and each point is told to it.
    """
    seen = 0

    def point(what: str, before_death: Callable[[], None] = lambda: None) -> None:
        nonlocal seen
        seen += 1
        if count is not None:
            count(what)
        elif seen == number:
            before_death()
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.rename", "os.remove", "os.mkdir", "os.rmdir") or (
            event == "open" and _writes(arguments)
        ):
            path = Path(arguments[0]) if isinstance(arguments[0], str | os.PathLike) else Path("/")
            inside = path.is_relative_to(folder) and path.exists() != (event == "os.mkdir")
            removed_by_name = not path.is_absolute() and event in ("os.remove", "os.rmdir")  # shutil.rmtree
            if inside or removed_by_name or (event == "open" and path.is_relative_to(folder)):
                point(event)

    def write(file: Any, data: Any) -> None:
        def half() -> None:
            real_write(file, bytes(data)[: len(data) // 2])
            file.flush()

        point("write", half)
        real_write(file, data)

    def sync(descriptor: int) -> None:
        point("fsync")
        real_sync(descriptor)

    real_write, real_sync = writing._write, writing._fsync
    writing._write, writing._fsync = write, sync
    sys.addaudithook(audit)


def _writes(arguments: tuple[Any, ...]) -> bool:
    _, mode, flags = arguments
    return any(letter in (mode or "") for letter in "wax+") or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))


def outcome(folder: Path) -> dict[str, str]:
    """What must be equal in the end, as hex text."""
    place = newest_checkpoint(folder / "checkpoints")
    assert place is not None
    files = [place / "adapter.safetensors", place / "optimizer.safetensors", place / "optimizer.json"]
    files.append(folder / "adapter" / "adapter.safetensors")
    return {f"{file.parent.name}/{file.name}": file.read_bytes().hex() for file in files}


def published(folder: Path) -> int:
    """The newest step whose checkpoint the run said was written, 0 where none."""
    if not (folder / "events.jsonl").exists():
        return 0
    lines = (folder / "events.jsonl").read_text().splitlines()
    steps = [
        json.loads(line)["step"] for line in lines if '"event": "checkpoint"' in line and line.endswith("}")
    ]
    return max(steps, default=0)


def kept(folder: Path) -> bool:
    """Whether the newest checkpoint that was announced, or a newer one, can be read."""
    place = newest_checkpoint(folder / "checkpoints")
    return (0 if place is None else step_of(place)) >= published(folder)


def kill_at_every_point(root: Path, part: int, parts: int) -> dict[str, Any]:
    """Kill a run at each of its points whose number is `part` modulo `parts`, resume it, compare."""
    whole = root / "whole" / "style"
    wait(in_child(lambda: begin(whole)))
    expected = outcome(whole)
    points = _count_points(root)
    failures = []
    for number in range(1 + part, len(points) + 1, parts):
        folder = root / str(number) / "style"

        def killed(number: int = number, folder: Path = folder) -> None:
            die_at(number, folder)
            begin(folder)

        death = wait(in_child(killed))
        safe = not folder.exists() or kept(folder)
        code = wait(in_child(lambda folder=folder: go_on(folder)))  # type: ignore[misc]
        left = [str(each) for each in folder.rglob("*.tmp")] + [
            str(each) for each in folder.rglob(".unfinished*")
        ]
        if death != -9 or not safe or code != 0 or outcome(folder) != expected or left:
            failures.append(
                {
                    "point": f"{number}: {points[number - 1]}",
                    "death": death,
                    "code": code,
                    "kept": safe,
                    "left": left,
                }
            )
    return {"points": points, "failures": failures}


def _count_points(root: Path) -> list[str]:
    folder, found = root / "counted" / "style", root / "points"

    def counted() -> None:
        with found.open("w") as file:
            die_at(0, folder, lambda what: print(what, file=file))
            begin(folder)

    assert wait(in_child(counted)) == 0
    return found.read_text().split()


def kill_at_random_times(root: Path, seeds: list[int]) -> dict[str, Any]:
    """Kill a longer run after a random time, again and again until it is through; compare."""
    longer = ("train.steps=60", "train.checkpoint_every=7", "train.keep_checkpoints=2", "train.log_every=5")
    whole = root / "whole" / "style"
    wait(in_child(lambda: begin(whole, *longer)))
    expected, failures, deaths = outcome(whole), [], 0
    for seed in seeds:
        chance = random.Random(seed)
        folder = root / f"random{seed}" / "style"
        workers = f"train.workers={seed % 2 * 2}"
        child = in_child(lambda folder=folder, workers=workers: begin(folder, *longer, workers))  # type: ignore[misc]
        for _ in range(3):
            while not (folder / "recipe.yaml").exists():
                time.sleep(0.002)
            time.sleep(chance.uniform(0, 0.2))
            os.kill(child, signal.SIGKILL)
            deaths += wait(child) == -9
            if not kept(folder):
                failures.append({"seed": seed, "lost": published(folder)})
            child = in_child(lambda folder=folder: go_on(folder))  # type: ignore[misc]
        if wait(child) != 0 or outcome(folder) != expected:
            failures.append({"seed": seed})
    return {"deaths": deaths, "failures": failures}


def stop_by_signal(root: Path, number: int, workers: int) -> dict[str, Any]:
    """Send a signal to a run in its own process group, as a terminal does; resume it; compare."""
    steps = ("train.steps=300", "train.checkpoint_every=0", "train.log_every=10", f"train.workers={workers}")
    whole, folder = root / "whole" / "style", root / "run" / "style"
    wait(in_child(lambda: begin(whole, *steps)))

    def own_group() -> None:
        os.setpgid(0, 0)
        begin(folder, *steps)

    child = in_child(own_group)
    events = folder / "events.jsonl"
    while not (events.exists() and '"step": 20,' in events.read_text()):
        time.sleep(0.005)
    os.killpg(child, number)
    code = wait(child)
    place = newest_checkpoint(folder / "checkpoints")
    stopped_at = 0 if place is None else step_of(place)
    state = json.loads((folder / "status.json").read_text())["state"]
    again = wait(in_child(lambda: go_on(folder)))
    return {
        "code": code, "state": state, "stopped_at": stopped_at, "again": again,
        "equal": outcome(folder) == outcome(whole),
    }  # fmt: skip


def two_in_one_folder(root: Path) -> dict[str, Any]:
    """Begin a run in a folder, and another that resumes in it while the first goes on."""
    folder = root / "run" / "style"
    first = in_child(lambda: begin(folder, "train.steps=100000"))
    while not (folder / "recipe.yaml").exists():
        time.sleep(0.005)
    second = wait(in_child(lambda: go_on(folder)))
    alive = os.waitpid(first, os.WNOHANG) == (0, 0)
    os.kill(first, signal.SIGKILL)
    wait(first)
    third = wait(in_child(lambda: go_on_shorter(folder)))
    return {"second": second, "first_alive": alive, "third": third}


def go_on_shorter(folder: Path) -> None:
    """Stop the resumed run at once; that it starts is what counts."""
    os.kill(os.getpid(), 0)
    signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    signal.setitimer(signal.ITIMER_REAL, 0.5)
    go_on(folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        begin(Path(name) / "warm" / "style")  # imports what is imported late, so that no child has to
    for line in sys.stdin:
        plan = json.loads(line)
        action: Callable[..., dict[str, Any]] = globals()[plan.pop("action")]
        print(json.dumps(action(Path(plan.pop("root")), **plan)), flush=True)


if __name__ == "__main__":
    main()
