"""Pictures of the class: drawn once, in the same bytes however often the drawing was interrupted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from lorimer.errors import RecipeError
from lorimer.tasks import _prior
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._diffusion_loss import weighted_loss
from lorimer.tasks._picture_sections import Prior
from lorimer.tasks._prior import draw_prior
from lorimer.tasks._processes import noise_process
from lorimer.tasks.text_to_image import TextToImage

MakeTask = Callable[..., TextToImage]
PRIOR = Prior(prompt="a ball", pictures=6, steps=2)
SETTING = 'data.prior={"prompt": "a ball", "pictures": 3, "steps": 2}'


def _bytes(folder: Path) -> list[bytes]:
    return [file.read_bytes() for file in sorted(folder.iterdir())]


def _size(file: Path) -> tuple[int, int]:
    with Image.open(file) as picture:
        return picture.size


def test_pictures_are_drawn_once_and_are_different(
    model: DiffusionModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, drawn = draw_prior(model, PRIOR, 32, tmp_path)
    first = _bytes(folder)
    assert drawn == len(set(first)) == 6
    assert _size(next(folder.iterdir())) == (32, 32)
    monkeypatch.setattr(_prior, "sample", None)
    assert draw_prior(model, PRIOR, 32, tmp_path) == (folder, 0)


def test_an_interrupted_drawing_gives_the_same_bytes(model: DiffusionModel, tmp_path: Path) -> None:
    folder, _ = draw_prior(model, PRIOR, 32, tmp_path)
    whole = _bytes(folder)
    for number in (1, 4, 5):
        (folder / f"{number:05d}.png").unlink()
    assert draw_prior(model, PRIOR, 32, tmp_path) == (folder, 3)
    assert _bytes(folder) == whole


def test_fewer_pictures_are_the_first_of_more(model: DiffusionModel, tmp_path: Path) -> None:
    few, _ = draw_prior(model, PRIOR.model_copy(update={"pictures": 2}), 32, tmp_path)
    begin = _bytes(few)
    more, drawn = draw_prior(model, PRIOR, 32, tmp_path)
    assert (more, drawn) == (few, 4) and _bytes(more)[:2] == begin


def test_other_settings_or_another_model_are_drawn_anew(
    model: DiffusionModel, tmp_path: Path, velocity_model: Path
) -> None:
    folders = [
        draw_prior(each, prior, 32, tmp_path)[0]
        for each, prior in (
            (model, PRIOR),
            (model, PRIOR.model_copy(update={"prompt": "a cube"})),
            (model, PRIOR.model_copy(update={"steps": 3})),
            (model, PRIOR.model_copy(update={"seed": 9})),
            (load_diffusion(str(velocity_model)), PRIOR),
        )
    ]
    assert len(set(folders)) == len(folders)


def test_they_are_learned_with_their_prompt_and_weight(make_task: MakeTask) -> None:
    task = make_task(SETTING, "objective.prior_weight=0.25", "data.trigger=sks", "data.flip=true")
    model = task.model()
    data: Any = task.data(model)
    weights = [data[place]["weight"].item() for place in range(len(data))]
    captions = [data[place]["caption"] for place in range(len(data))]
    assert {caption for caption, weight in zip(captions, weights, strict=True) if weight == 0.25} == {
        "a ball"
    }
    assert all(caption.startswith("sks") == (w == 1) for caption, w in zip(captions, weights, strict=True))
    assert weights.count(0.25) == weights.count(1.0) == 12
    assert any(line.startswith("drew 3 pictures of 'a ball'") for line in task.describe(model, data))
    assert task.metadata()["pictures"] == "6"


def test_their_weight_is_on_their_loss() -> None:
    prediction, wanted = torch.zeros(2, 1, 1, 1), torch.tensor([1.0, 2.0]).view(2, 1, 1, 1)
    assert weighted_loss(prediction, wanted, torch.tensor([1.0, 0.25])).item() == pytest.approx(1.0)


def test_sampling_and_metadata_follow_the_objective(make_task: MakeTask) -> None:
    changed = ("objective.prediction=v_prediction", "objective.zero_terminal_snr=true")
    task = make_task(*changed)
    model = task.model()
    task.data(model)
    assert task.metadata()["prediction_type"] == model.prediction_type == "v_prediction"
    sampler = model.pipeline().scheduler
    sampler.set_timesteps(4)
    assert sampler.timesteps[0] == 999 and sampler.alphas_cumprod[-1] == 0
    process = noise_process(model, task.recipe.objective)
    assert torch.equal(process.alphas_cumprod, task._process.alphas_cumprod)  # type: ignore[attr-defined]


def test_a_sampler_that_cannot_is_replaced(noise_model: Path) -> None:
    from diffusers import DDIMScheduler, PNDMScheduler

    from lorimer.tasks._objective_section import DiffusionObjective
    from lorimer.tasks._processes import follow

    model = load_diffusion(str(noise_model))
    model.scheduler = PNDMScheduler(beta_start=0.001, prediction_type="v_prediction")
    follow(model, DiffusionObjective(zero_terminal_snr=True))
    assert isinstance(model.scheduler, DDIMScheduler) and model.scheduler.config.beta_start == 0.001
    assert model.prediction_type == "v_prediction"


def test_clip_skip_is_followed_in_training_and_sampling(make_task: MakeTask, noise_model: Path) -> None:
    task = make_task("data.clip_skip=1")
    model = task.model()
    data = task.data(model)
    plain = load_diffusion(str(noise_model))
    caption = data[0]["caption"]
    given = data[0]["text"]["hidden"]
    assert not torch.equal(given, plain.encode_texts([caption])["hidden"][0])
    plain.clip_skip = 1
    pipeline = plain.pipeline()
    wanted, _ = pipeline.encode_prompt([caption], "cpu", 1, False, clip_skip=1)
    assert torch.equal(given, wanted[0])


def test_clip_skip_is_refused_where_there_is_no_clip(
    make_task: MakeTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lorimer.families.sd1 import StableDiffusion1

    monkeypatch.setattr(StableDiffusion1, "clip_skip", False)
    with pytest.raises(RecipeError, match="read all of CLIP's layers"):
        make_task(f"data.clip_skip={json.dumps(1)}").model()
