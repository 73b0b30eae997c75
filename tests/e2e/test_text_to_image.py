"""From a folder of pictures to an adapter that changes what a model draws, by the real engine."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

import lorimer
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample
from lorimer.train.engine import TrainResult, check, train
from lorimer.train.recipe import Recipe, load_recipe
from tests.tiny_models import save_tiny_pipeline

PROMPTS, SEEDS = ["a red ball", "a violet box"], [0, 1]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model and a folder of pictures."""
    place = tmp_path_factory.mktemp("workplace")
    save_tiny_pipeline(place / "model", prediction_type="v_prediction", zero_terminal_snr=True)
    (place / "balls").mkdir()
    for colour in ("red", "green", "blue", "yellow", "black", "orange"):
        picture = Image.new("RGB", (40, 40), "white")
        ImageDraw.Draw(picture).ellipse((5, 5, 35, 35), fill=colour)
        picture.save(place / "balls" / f"{colour}.png")
        (place / "balls" / f"{colour}.txt").write_text(f"a {colour} ball")
    return place


def _recipe(place: Path, name: str, *overrides: str) -> Recipe:
    return load_recipe(
        {
            "task": "text-to-image",
            "model": str(place / "model"),
            "data": {
                "path": str(place / "balls"),
                "trigger": "sks",
                "cache": str(place / "cache"),
                "validation": {"fraction": 0.2},
            },
            "objective": {"min_snr_gamma": 5, "noise_offset": 0.05},
            "adapter": {"rank": 4, "targets": "all-linear-conv"},
            "train": {
                "steps": 20,
                "learning_rate": 1e-2,
                "evaluate_every": 10,
                "preview_every": 10,
                "checkpoint_every": 10,
            },
            "preview": {"prompts": PROMPTS, "steps": 3, "guidance": 2},
            "output": str(place / "runs" / name),
        },
        overrides,
        environment={},
    )


@pytest.fixture(scope="module")
def trained(workplace: Path) -> TrainResult:
    return train(_recipe(workplace, "balls"))


def _pictures(model: DiffusionModel) -> list[bytes]:
    return [picture.tobytes() for picture in sample(model, PROMPTS, SEEDS, steps=3)]


def test_training_changes_what_the_model_draws_and_strength_zero_does_not(
    workplace: Path, trained: TrainResult
) -> None:
    model = load_diffusion(str(workplace / "model"))
    base = _pictures(model)
    adapter = lorimer.load(model, trained.adapter)
    assert {path.split(".")[0] for path in adapter.layers} == {"unet"}
    adapted = _pictures(model)
    assert all(before != after for before, after in zip(base, adapted, strict=True))
    with lorimer.strength(model, 0.0):
        assert _pictures(model) == base
    with lorimer.disabled(model):
        assert _pictures(model) == base
    lorimer.detach(model)
    assert _pictures(model) == base


def test_the_run_shows_its_progress(trained: TrainResult) -> None:
    grids = sorted((trained.folder / "samples").glob("*.png"))
    assert [grid.name for grid in grids] == [f"step-{step:06d}.png" for step in (0, 10, 20)]
    first, last = (np.asarray(Image.open(grid), dtype=int) for grid in (grids[0], grids[-1]))
    assert first.shape == last.shape and np.abs(first - last).max() > 0
    events = [json.loads(line) for line in (trained.folder / "events.jsonl").read_text().splitlines()]
    losses = [event["metrics"]["validation_loss"] for event in events if event["event"] == "evaluation"]
    assert len(losses) == 3 and losses[-1] < losses[0]


def test_diffusers_draws_the_same_from_the_file_for_other_programs(
    workplace: Path, trained: TrainResult
) -> None:
    from diffusers import StableDiffusionPipeline

    model = load_diffusion(str(workplace / "model"))
    lorimer.load(model, trained.adapter)
    (ours,) = sample(model, ["sks ball"], [0], steps=3)
    pipeline = StableDiffusionPipeline.from_pretrained(workplace / "model", safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.load_lora_weights(trained.folder / "adapter", weight_name=f"{trained.folder.name}.safetensors")
    generator = torch.Generator().manual_seed(0)
    (theirs,) = pipeline("sks ball", num_inference_steps=3, generator=generator).images
    assert np.abs(np.asarray(ours, int) - np.asarray(theirs, int)).max() <= 2
    (base,) = sample(load_diffusion(str(workplace / "model")), ["sks ball"], [0], steps=3)
    assert np.abs(np.asarray(ours, int) - np.asarray(base, int)).max() > 10


@pytest.mark.parametrize("option", ["train.mixed_precision=bf16", "train.gradient_checkpointing=true"])
def test_cheaper_ways_to_train_learn_as_well(workplace: Path, trained: TrainResult, option: str) -> None:
    name = option.split(".")[1].split("=")[0]
    result = train(_recipe(workplace, name, option, "train.preview_every=0"))
    expected = trained.metrics["validation_loss"]
    assert result.metrics["validation_loss"] == pytest.approx(expected, rel=0.02)


def test_the_text_encoder_learns_too_where_asked(workplace: Path) -> None:
    overrides = [
        "adapter.components=[unet, text_encoder]",
        "train.preview_every=0",
        "train.gradient_checkpointing=true",
    ]
    result = train(_recipe(workplace, "with-text", *overrides))
    model = load_diffusion(str(workplace / "model"))
    before = model.encode_texts(["sks ball"])["hidden"]
    adapter = lorimer.load(model, result.adapter)
    assert {path.split(".")[0] for path in adapter.layers} == {"unet", "text_encoder"}
    assert not torch.equal(model.encode_texts(["sks ball"])["hidden"], before)


def test_the_check_before_a_run_says_what_was_read(workplace: Path) -> None:
    lines = "\n".join(check(_recipe(workplace, "checked")).lines())
    assert "6 pictures in" in lines and "1 pictures held out" in lines
    assert not (workplace / "runs" / "checked").exists()


def test_the_embedded_model_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load_diffusion("embedded")
    (picture,) = sample(model, ["3d red apple"], [0], steps=4, guidance=3)
    assert picture.size == (model.resolution, model.resolution) == (64, 64)
    assert np.asarray(picture).std() > 5
