"""The task: what it reads, what it caches, and its loss against a slow reference written from the papers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import lorimer
from lorimer import LoRA
from lorimer.errors import DataError, RecipeError, UsageError
from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod
from lorimer.tasks._noise import diffusion_process
from lorimer.tasks._picture_reading import read_pictures
from lorimer.tasks.text_to_image import TextToImage
from lorimer.train.recipe import load_recipe
from tests.tolerances import SAME_OUTPUT, relative_difference
from tests.unit.pictures.conftest import COLOURS, draw_ball, read

MakeTask = Callable[..., TextToImage]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many pictures and texts the frozen encoders were given."""
    counts = {"pictures": 0, "texts": 0}
    pictures, texts = DiffusionModel.encode_pictures, DiffusionModel.encode_texts

    def count_pictures(self: DiffusionModel, pixels: torch.Tensor) -> Any:
        counts["pictures"] += len(pixels)
        return pictures(self, pixels)

    def count_texts(self: DiffusionModel, captions: list[str]) -> Any:
        counts["texts"] += len(captions)
        return texts(self, captions)

    monkeypatch.setattr(DiffusionModel, "encode_pictures", count_pictures)
    monkeypatch.setattr(DiffusionModel, "encode_texts", count_texts)
    return counts


def _ready(task: TextToImage) -> tuple[DiffusionModel, Any]:
    model = task.model()
    return model, task.data(model)


def _batch(task: TextToImage, dataset: Any) -> Any:
    return task.collate([dataset[index] for index in range(len(dataset))])


def test_examples_are_what_the_encoders_give(make_task: MakeTask, balls: Path) -> None:
    model, dataset = _ready(make_task())
    assert len(dataset) == len(COLOURS)
    first = dataset[0]
    assert first["mean"].shape == first["std"].shape == (4, 8, 8)
    pixels = read(balls, 32)[0].pixels
    mean, std = model.encode_pictures(pixels[None].float() / 127.5 - 1)
    assert relative_difference(first["mean"], mean[0]) < SAME_OUTPUT[torch.float32]
    assert relative_difference(first["std"], std[0]) < SAME_OUTPUT[torch.float32]
    hidden = model.encode_texts(["a black ball"])["hidden"][0]
    assert relative_difference(first["text"]["hidden"], hidden) < SAME_OUTPUT[torch.float32]


def test_a_second_run_encodes_nothing(make_task: MakeTask, counted: dict[str, int]) -> None:
    _, before = _ready(make_task())
    assert counted == {"pictures": 6, "texts": 7}  # six captions and the empty one
    task = make_task()
    _, after = _ready(task)
    assert counted == {"pictures": 6, "texts": 7}
    assert all(torch.equal(before[i]["mean"], after[i]["mean"]) for i in range(6))
    assert all(torch.equal(before[i]["text"]["hidden"], after[i]["text"]["hidden"]) for i in range(6))
    assert any("found 6 and 7 in the cache" in line for line in task.describe(torch.nn.Identity(), after))


def test_only_what_changed_is_encoded_anew(
    make_task: MakeTask, counted: dict[str, int], balls: Path, velocity_model: Path
) -> None:
    _ready(make_task())
    draw_ball(balls / "red.png", "darkred")
    (balls / "blue.txt").write_text("a navy ball")
    _ready(make_task())
    assert counted == {"pictures": 7, "texts": 8}
    _ready(make_task("data.resolution=16"))
    assert counted == {"pictures": 13, "texts": 8}
    _ready(make_task("data.flip=true"))
    assert counted["pictures"] == 19
    _ready(make_task("data.trigger=sks"))
    assert counted == {"pictures": 19, "texts": 14}
    _ready(make_task("model=" + json.dumps(str(velocity_model))))  # same weights, another schedule
    assert counted == {"pictures": 19, "texts": 14}


def test_steps_touch_neither_the_vae_nor_the_text_encoder(
    make_task: MakeTask, counted: dict[str, int]
) -> None:
    task = make_task()
    model, dataset = _ready(task)
    model.vae = model.text_encoder = None  # type: ignore[assignment]
    assert torch.isfinite(task.loss(model, _batch(task, dataset)))


def test_mirrored_pictures_are_further_examples(make_task: MakeTask) -> None:
    _, dataset = _ready(make_task("data.flip=true"))
    assert len(dataset) == 12
    assert not torch.equal(dataset[0]["mean"], dataset[1]["mean"])
    assert torch.equal(dataset[0]["text"]["hidden"], dataset[1]["text"]["hidden"])


@pytest.mark.parametrize("kind", ["noise", "velocity"])
@pytest.mark.parametrize("gamma", [None, 5.0])
@pytest.mark.parametrize("offset", [0.0, 0.1])
def test_the_loss_is_that_of_a_slow_reference(
    make_task: MakeTask, request: pytest.FixtureRequest, kind: str, gamma: float | None, offset: float
) -> None:
    folder = request.getfixturevalue(f"{kind}_model")
    task = make_task(
        f"model={json.dumps(str(folder))}",
        f"objective.min_snr_gamma={json.dumps(gamma)}",
        f"objective.noise_offset={offset}",
        "objective.caption_dropout=0.4",
    )
    model, dataset = _ready(task)
    batch = _batch(task, dataset)
    empty = model.encode_texts([""])["hidden"][0]

    torch.manual_seed(3)
    loss = task.loss(model, batch)

    torch.manual_seed(3)
    jitter, noise = torch.randn(6, 4, 8, 8), torch.randn(6, 4, 8, 8)
    if offset:
        noise = noise + offset * torch.randn(6, 4, 1, 1)
    start = torch.rand(()).item()
    dropped = torch.rand(6) < 0.4
    assert 0 < dropped.sum() < 6
    schedule = alphas_cumprod(model.scheduler)
    total = 0.0
    for row in range(6):
        timestep = int((start + row / 6) % 1 * 1000)
        alpha = schedule[timestep].item()
        clean = batch["mean"][row] + batch["std"][row] * jitter[row]
        noisy = math.sqrt(alpha) * clean + math.sqrt(1 - alpha) * noise[row]
        text = empty if dropped[row] else batch["text"]["hidden"][row]
        prediction = model.unet(
            noisy[None], torch.tensor([timestep]), encoder_hidden_states=text[None]
        ).sample[0]
        velocity = math.sqrt(alpha) * noise[row] - math.sqrt(1 - alpha) * clean
        error = (prediction - (noise[row] if kind == "noise" else velocity)).square().mean().item()
        snr = alpha / (1 - alpha)
        if gamma is not None:
            error *= min(snr, gamma) / (snr if kind == "noise" else snr + 1)
        total += error / 6
    assert loss.item() == pytest.approx(total, rel=1e-4)


def test_zero_terminal_snr_gives_finite_losses_and_gradients(
    make_task: MakeTask, velocity_model: Path
) -> None:
    for gamma in ("null", "5"):
        task = make_task(f"model={json.dumps(str(velocity_model))}", f"objective.min_snr_gamma={gamma}")
        model, dataset = _ready(task)
        adapter = lorimer.attach(model, LoRA(rank=2), targets="re:unet.*to_q")
        batch = _batch(task, dataset)
        last = alphas_cumprod(model.scheduler)[-1:]  # the last timestep alone
        task._process = diffusion_process(last, "v_prediction", task.recipe.objective)
        loss = task.loss(model, batch)
        loss.backward()
        assert torch.isfinite(loss)
        assert all(torch.isfinite(parameter.grad).all() for parameter in adapter.parameters())


def test_timesteps_are_uniform_and_spread_over_each_batch(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = make_task()
    model, dataset = _ready(task)
    batch, seen = _batch(task, dataset), []

    def forward(latents: torch.Tensor, timesteps: torch.Tensor, *conditioning: Any) -> torch.Tensor:
        seen.append(timesteps)
        return latents

    monkeypatch.setattr(model, "forward", forward)
    for seed in range(300):
        torch.manual_seed(seed)
        task.loss(model, batch)
    drawn = torch.stack(seen)
    assert drawn.min() >= 0 and drawn.max() <= 999
    shares = torch.histc(drawn.float(), bins=10, min=0, max=1000) / drawn.numel()
    assert (shares - 0.1).abs().max() < 0.02
    first = torch.histc(drawn[:, 0].float(), bins=4, min=0, max=1000) / len(drawn)
    assert (first - 0.25).abs().max() < 0.1  # each example sees all timesteps, not its own share of them
    assert (drawn.sort(1).values.diff(dim=1) - 1000 / 6).abs().max() <= 1


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
def test_captions_are_dropped_at_the_rate_asked_for(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch, rate: float
) -> None:
    task = make_task(f"objective.caption_dropout={rate}")
    model, dataset = _ready(task)
    batch, dropped = _batch(task, dataset), []
    empty = task._empty["hidden"]

    def forward(latents: torch.Tensor, timesteps: torch.Tensor, text: Any, captions: None) -> torch.Tensor:
        dropped.extend(torch.equal(each, empty) for each in text["hidden"])
        return latents

    monkeypatch.setattr(model, "forward", forward)
    torch.manual_seed(0)
    for _ in range(100):
        task.loss(model, batch)
    assert np.mean(dropped) == pytest.approx(rate, abs=0.06 if 0 < rate < 1 else 0)


def test_an_adapted_text_encoder_is_run_in_every_step_and_learns(
    make_task: MakeTask, counted: dict[str, int]
) -> None:
    task = make_task("adapter.components=[unet, text_encoder]", "objective.caption_dropout=0.5")
    model, dataset = _ready(task)
    assert counted["texts"] == 0
    assert set(dataset[0]) == {"mean", "std", "sizes", "caption"}
    adapter = lorimer.attach(model, LoRA(rank=2), targets=["re:unet.*to_q", "re:text_encoder.*q_proj"])
    task.loss(model, _batch(task, dataset)).backward()
    learning = {
        name.split(".")[0] for name, value in adapter.named_parameters() if value.grad.abs().sum() > 0
    }
    assert learning == {"unet", "text_encoder"}


def test_mixed_precision_gives_a_float32_loss_close_to_the_full_one(make_task: MakeTask) -> None:
    task = make_task()
    model, dataset = _ready(task)
    batch = _batch(task, dataset)
    torch.manual_seed(0)
    full = task.loss(model, batch)
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        half = task.loss(model, batch)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(full.item(), rel=0.02)


def test_validation_is_deterministic_and_leaves_random_numbers_alone(make_task: MakeTask) -> None:
    task = make_task("data.validation.fraction=0.34")
    model, dataset = _ready(task)
    assert len(dataset) == 4
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = task.evaluate(model)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert task.evaluate(model) == first and math.isfinite(first["validation_loss"])
    again = make_task(
        "data.validation.fraction=0.34", "objective.min_snr_gamma=5", "objective.caption_dropout=1"
    )
    assert again.evaluate(_ready(again)[0]) == first  # comparable between runs with other losses


def test_validation_falls_when_the_model_learns(make_task: MakeTask) -> None:
    task = make_task("data.validation.fraction=0.2")
    model, dataset = _ready(task)
    adapter = lorimer.attach(model, LoRA(rank=4), targets="re:unet.*(to_[qkv]|to_out.0|conv[12])")
    optimizer = torch.optim.AdamW(adapter.parameters(), 1e-2)
    before = task.evaluate(model)["validation_loss"]
    torch.manual_seed(0)
    for _ in range(40):
        optimizer.zero_grad()
        task.loss(model, _batch(task, dataset)).backward()
        optimizer.step()
    assert task.evaluate(model)["validation_loss"] < 0.97 * before


def test_what_is_held_out_does_not_change_when_pictures_are_added(make_task: MakeTask, balls: Path) -> None:
    names = []
    for _ in range(2):
        data = make_task("data.validation.fraction=0.3").recipe.data
        names.append({picture.name for picture in read_pictures(data, 32).validation})
        draw_ball(balls / "white.png", "white")
        (balls / "white.txt").write_text("a white ball")
    assert names[0] - {"white.png"} <= names[1] | {"white.png"} and len(names[0]) == len(names[1]) == 2


def test_validation_from_a_folder_of_its_own(make_task: MakeTask, tmp_path: Path) -> None:
    (tmp_path / "held").mkdir()
    draw_ball(tmp_path / "held" / "pink.png", "pink")
    (tmp_path / "held" / "pink.txt").write_text("a pink ball")
    task = make_task(f"data.validation.path={json.dumps(str(tmp_path / 'held'))}")
    model, dataset = _ready(task)
    assert len(dataset) == 6 and task.evaluate(model)["validation_loss"] > 0
    without = make_task()
    assert without.evaluate(_ready(without)[0]) == {}


def test_impossible_wishes_are_refused(make_task: MakeTask, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"resolution must be a multiple of 8 .* such as 32 or 40, not 36"):
        make_task("data.resolution=36").model()
    with pytest.raises(RecipeError, match="a path or a fraction"):
        _ready(make_task("data.validation={path: x, fraction: 0.5}"))
    with pytest.raises(DataError, match="none is left"):
        _ready(make_task("data.validation.fraction=0.95"))
    for wrong in (
        "data.flop=true",
        "objective.caption_dropout=2",
        "objective.min_snr_gamma=0",
        "preview.steps=0",
    ):
        with pytest.raises(RecipeError, match=wrong.split("=")[0].split(".")[1]):
            make_task(wrong)


def test_names_of_other_tools_are_understood(tmp_path: Path) -> None:
    recipe = load_recipe(
        {
            "task": "text-to-image",
            "data": {"train_data_dir": str(tmp_path), "caption_extension": ".txt", "trigger_word": "sks"},
            "objective": {"snr_gamma": 5},
            "preview": {"cfg_scale": 3, "sample_prompts": ["a cat"]},
            "output": str(tmp_path / "run"),
        },
        environment={},
    )
    assert (recipe.data.path, recipe.data.caption_suffix, recipe.data.trigger) == (tmp_path, ".txt", "sks")
    assert (recipe.objective.min_snr_gamma, recipe.preview.guidance) == (5, 3)


def test_previews_show_the_base_beside_the_adapter(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("preview.strengths=[0, 0.5, 1]", "preview.seeds=[1, 2]", "data.trigger=sks")
    model, _ = _ready(task)
    adapter = lorimer.attach(model, LoRA(rank=2), targets="re:unet.*to_q")
    (start,) = task.preview(model, tmp_path / "samples", 0)
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    (later,) = task.preview(model, tmp_path / "samples", 20)
    assert (start.name, later.name) == ("step-000000.png", "step-000020.png")
    before, after = (np.asarray(Image.open(path), dtype=int) for path in (start, later))
    assert before.shape == after.shape
    assert (
        before.shape[0] > 8 * 192 and before.shape[1] > 3 * 192
    )  # four captions, two seeds, three strengths
    changed = np.abs(after - before)[100:].sum((0, 2))  # below the title, by column of pixels
    right = before.shape[1] - 24
    base, half, full = (changed[right - (n + 1) * 204 + 12 : right - n * 204].sum() for n in (2, 1, 0))
    assert base == 0 and half > 0 and full > 0


def test_no_prompts_no_preview(make_task: MakeTask, tmp_path: Path) -> None:
    task = make_task("preview.prompts=[]")
    assert task.preview(_ready(task)[0], tmp_path / "samples", 0) == []


def test_the_file_says_how_it_was_made_but_not_where(
    make_task: MakeTask, noise_model: Path, balls: Path
) -> None:
    (balls / "red.txt").write_text("a ball, red, 球")
    task = make_task("data.trigger=sks")
    _ready(task)
    facts = task.metadata()
    assert facts["base_model"] == noise_model.name
    assert (facts["trigger"], facts["resolution"], facts["pictures"]) == ("sks", "32", "6")
    assert json.loads(facts["tag_frequency"])["run"]["球"] == 1
    assert not any(str(folder) in value for value in facts.values() for folder in (noise_model, balls))


def test_long_captions_and_enlarged_pictures_are_mentioned(make_task: MakeTask, balls: Path) -> None:
    (balls / "red.txt").write_text("a very long caption about a red ball")
    draw_ball(balls / "small.png", "red", size=(24, 24))
    (balls / "small.txt").write_text("a ball")
    for number in range(5):
        draw_ball(balls / f"{number}.GIF", "red")
    task = make_task("data.shapes=square")
    notes = "\n".join(task.describe(*_ready(task)))
    assert "7 pictures in" in notes and "cropped to 32 px" in notes
    assert "enlarged because they are smaller: 1" in notes
    assert "captions are longer than 16 tokens" in notes
    assert "to use: 0.GIF, 1.GIF, 2.GIF and 2 more" in notes
