"""`lorimer grid`, `plot` and `control` on a small run, and further options of `lorimer sample`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

import lorimer as library
from lorimer import LoRA
from lorimer.cli._columns import adapters_of
from lorimer.cli._gallery import Heading, Row, gallery
from lorimer.errors import UsageError
from lorimer.tasks._diffusion import load_diffusion
from lorimer.tasks._diffusion import sample as sample_pictures
from tests.tiny_models import save_tiny_pipeline
from tests.unit.cli.running import lorimer

STEPS = (5, 10)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_pipeline(tmp_path_factory.mktemp("base") / "model")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of ten steps with two checkpoints, laid out by hand."""
    folder = tmp_path_factory.mktemp("runs") / "ink"
    folder.mkdir()
    recipe = {
        "task": "text-to-image",
        "model": str(base),
        "data": {"path": "photos", "trigger": "inkstyle"},
        "output": str(folder),
        "preview": {"prompts": ["a cat", "a </script> dog"], "seeds": [3], "steps": 1},
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe), encoding="utf-8")
    (folder / "status.json").write_text('{"state": "finished"}', encoding="utf-8")
    events = [
        {"event": "evaluation", "step": step, "metrics": {"validation_loss": 1 / step}} for step in STEPS
    ]
    (folder / "events.jsonl").write_text(
        "".join(json.dumps(each) + "\n" for each in events), encoding="utf-8"
    )
    model = load_diffusion(str(base))
    adapter = library.attach(model, LoRA(rank=2), targets="attention", exclude="re:text_encoder.*|vae.*")
    torch.manual_seed(0)
    for step in STEPS:
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1 * step)
        place = folder / "checkpoints" / f"step-{step:06d}"
        place.mkdir(parents=True)
        library.save(adapter, place / "adapter.safetensors", format="lorimer")
    (folder / "adapter").mkdir()
    library.save(adapter, folder / "adapter" / "adapter.safetensors", format="lorimer")
    return folder


def test_grid_shows_checkpoints_beside_the_base_at_the_previews_prompts(run: Path, tmp_path: Path) -> None:
    ran = lorimer("grid", run, "--output", tmp_path)
    assert ran.code == 0, ran.err
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    data = json.loads(page.split('id="data">')[1].split("</script>")[0])
    assert data["columns"] == [
        {"name": "base", "detail": ""},
        {"name": "step 5", "detail": "strength 1"},
        {"name": "final", "detail": "strength 1"},
    ]
    assert [(row["prompt"], row["seed"]) for row in data["rows"]] == [
        ("inkstyle a cat", 3),
        ("inkstyle a </script> dog", 3),
    ]
    assert "step 10" in page and "lorimer-plot" in page  # the best step, and the plots
    assert len(list(tmp_path.glob("*.png"))) == 2

    def drawn(column: int) -> bytes:
        with Image.open(tmp_path / data["rows"][0]["pictures"][column]) as picture:
            return picture.tobytes()

    model = load_diffusion(json.loads((run / "recipe.yaml").read_text(encoding="utf-8"))["model"])
    for column, file in enumerate([None, "checkpoints/step-000005", "adapter"]):  # each alone on the base
        if file is not None:
            library.load(model, run / file / "adapter.safetensors")
        expected = sample_pictures(model, ["inkstyle a cat", "inkstyle a </script> dog"], [3, 3], steps=1)[0]
        assert drawn(column) == expected.tobytes()
        if file is not None:
            library.detach(model)


def test_which_checkpoints_of_a_run(run: Path, tmp_path: Path) -> None:
    def names(wanted: str) -> list[str]:
        return [shown.name for shown in adapters_of(run, wanted)]

    assert names("all") == names("last 5") == names("5, 10") == ["step 5", "final"]
    assert names("last 1") == names("final") == names("10") == ["final"]
    with pytest.raises(UsageError, match=r"'step 7'; it has: step 5, final"):
        names("7")
    with pytest.raises(UsageError, match="--checkpoints"):
        names(" ")
    (tmp_path / "recipe.yaml").write_text("task: text-to-image\n", encoding="utf-8")
    with pytest.raises(UsageError, match="no checkpoint yet"):
        adapters_of(tmp_path, "all")


def test_a_run_that_goes_on_has_no_final_adapter(run: Path) -> None:
    status = run / "status.json"
    before = status.read_bytes()
    try:
        status.write_text('{"state": "running"}', encoding="utf-8")
        assert [shown.name for shown in adapters_of(run, "all")] == ["step 5", "step 10"]
    finally:
        status.write_bytes(before)


def test_several_files_side_by_side(run: Path, base: Path, tmp_path: Path) -> None:
    file = run / "checkpoints" / "step-000005" / "adapter.safetensors"
    ran = lorimer(
        *("grid", file, run, "--model", base, "--checkpoints", "final", "--prompt", "cat", "--steps", 1),
        *("--strength", 0.5, "--output", tmp_path),
    )
    assert ran.code == 0, ran.err
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    columns = json.loads(page.split('id="data">')[1].split("</script>")[0])["columns"]
    assert [column["name"] for column in columns] == [
        "adapter",
        "ink, final",
    ]  # and no base, as 0 is not asked


def test_a_file_needs_a_prompt(run: Path, base: Path, tmp_path: Path) -> None:
    file = run / "adapter" / "adapter.safetensors"
    ran = lorimer("grid", file, "--model", base, "--output", tmp_path / "out")
    assert ran.code == 2 and "--prompt" in ran.err and not (tmp_path / "out").exists()


def test_text_on_the_page_is_text() -> None:
    page = gallery("<b>", 'a & "b"', [Heading("<i>")], [Row("</script><img src=x>", 0, ("a.png",))])
    assert "<title>&lt;b&gt;</title>" in page and "a &amp; &quot;b&quot;" in page
    assert page.count("</script>") == 2 and "<img src=x>" not in page and "<i>" not in page
    assert "http:" not in page and "https:" not in page  # nothing is fetched


def test_plot_draws_and_says_which_step_is_best(run: Path, tmp_path: Path) -> None:
    ran = lorimer("plot", run, "--output", tmp_path / "p.svg")
    assert ran.code == 0 and "step 10" in ran.out
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").startswith("<svg")
    (tmp_path / "recipe.yaml").write_text("task: text-to-image\n", encoding="utf-8")
    ran = lorimer("plot", tmp_path)
    assert ran.code == 2 and "nothing has been measured" in ran.err


@pytest.mark.parametrize("wish", ["preview", "checkpoint", "stop"])
def test_control_asks_a_run_that_goes_on(wish: str, tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("task: text-to-image\n", encoding="utf-8")
    (tmp_path / "status.json").write_text('{"state": "running"}', encoding="utf-8")
    assert lorimer("control", tmp_path, wish).code == 0
    assert [file.name for file in (tmp_path / "control").iterdir()] == [wish]


def test_control_says_when_nobody_is_there(run: Path) -> None:
    ran = lorimer("control", run, "stop")
    assert ran.code == 2 and "finished" in ran.err and not (run / "control").exists()
    assert lorimer("control", run, "jump").code == 2


def test_sample_at_another_shape_and_with_a_second_adapter(run: Path, base: Path, tmp_path: Path) -> None:
    second = run / "checkpoints" / "step-000005" / "adapter.safetensors"
    shared = ("sample", run, "--prompt", "cat", "--steps", 1, "--strength", 0, "--strength", 1)
    options = ("--resolution", "48x32", "--batch-size", 1, "--adapter", f"{second}=0.5")
    assert lorimer(*shared, *options, "--output", tmp_path).code == 0
    model = load_diffusion(str(base))
    library.load(model, second, name="second").strength = 0.5
    texts, seeds = ["inkstyle cat"], [0]
    alone = sample_pictures(model, texts, seeds, steps=1, resolution=(48, 32))[0]
    with Image.open(tmp_path / "01-inkstyle-cat-seed0-strength0.png") as drawn:
        assert drawn.size == (48, 32) and drawn.tobytes() == alone.tobytes()
    with Image.open(tmp_path / "01-inkstyle-cat-seed0-strength1.png") as drawn:
        assert drawn.tobytes() != alone.tobytes()


@pytest.mark.parametrize(
    ("option", "value"), [("--resolution", "48x"), ("--resolution", "wide"), ("--adapter", "x=strong")]
)
def test_options_that_say_nothing_are_refused(option: str, value: str, run: Path, tmp_path: Path) -> None:
    ran = lorimer("sample", run, "--prompt", "cat", option, value, "--output", tmp_path / "out")
    assert ran.code == 2 and value in ran.err and not (tmp_path / "out").exists()
