"""Judging an adapter by its pictures, on the model in the package and the demo's pictures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import lorimer
from lorimer.cli.demo import DEMO_DATA
from lorimer.tasks import _judging
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._judging import Judge, Known, encoded, evenly
from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.tasks._picture_features import PictureFeatures, apart_within, middle_block, pooled
from lorimer.tasks._preview_section import Judging
from lorimer.tasks._processes import noise_process
from lorimer.tasks.text_to_image import TextToImage

Draw = Callable[[Sequence[str], Sequence[int]], list[Image.Image]]


@pytest.fixture(scope="module")
def embedded() -> DiffusionModel:
    return load_diffusion("embedded")


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    found = []
    for file in sorted((DEMO_DATA / "openmoji").glob("*.png"))[:12]:
        with Image.open(file) as picture:
            whole = Image.new("RGBA", picture.size, "white")
            whole.alpha_composite(picture.convert("RGBA"))
            found.append(whole.convert("RGB").resize((64, 64), Image.Resampling.LANCZOS))
    return found


def attach(model: DiffusionModel) -> lorimer.AttachedAdapter:
    return lorimer.attach(model, lorimer.LoRA(rank=1), targets="attention", exclude="re:text_encoder.*|vae.*")


def shifted(picture: Image.Image) -> Image.Image:
    """A copy as a memorising model draws it: not to the pixel."""
    moved = Image.new("RGB", picture.size, "white")
    moved.paste(picture.resize((60, 60), Image.Resampling.BICUBIC), (3, 2))
    return moved


def make_judge(model: DiffusionModel, training: list[Image.Image], held_out: list[Image.Image]) -> Judge:
    def known(picture: Image.Image) -> Tensor:
        return encoded(model, picture)

    return Judge(
        Judging(captions=2, seeds=2, prompts=("x", "y")),
        noise_process(model, DiffusionObjective()),
        ["first", "second"],
        [Known(f"{number}", partial(known, picture)) for number, picture in enumerate(training)],
        [Known(f"held out {number}", partial(known, picture)) for number, picture in enumerate(held_out)],
    )


def judged(
    judge: Judge, model: DiffusionModel, monkeypatch: pytest.MonkeyPatch, *draws: Draw
) -> dict[str, float]:
    """What the judge says where base and adapter draw these, one after the other."""
    remaining = iter(draws)

    def sample(
        model: Any, prompts: Sequence[str], seeds: Sequence[int], **settings: Any
    ) -> list[Image.Image]:
        return next(remaining)(prompts, seeds)

    monkeypatch.setattr(_judging, "sample", sample)
    found = judge(model)
    assert next(remaining, None) is None
    return found


def chosen(*pictures: Image.Image) -> Draw:
    return lambda prompts, seeds: list(pictures)


@pytest.mark.parametrize("held_out", [True, False])
def test_copies_of_training_pictures_are_memorised_and_new_pictures_are_not(
    embedded: DiffusionModel,
    pictures: list[Image.Image],
    monkeypatch: pytest.MonkeyPatch,
    held_out: bool,
) -> None:
    attach(embedded)
    training, unseen, base = pictures[:4], pictures[4:8], pictures[8:12]
    unrelated = [pictures[10], pictures[11]]
    try:
        copies, fresh = (
            judged(
                make_judge(embedded, training, unseen if held_out else []),
                embedded,
                monkeypatch,
                chosen(*base, *unrelated),
                chosen(*drawn, *unrelated),
            )
            for drawn in ([shifted(each) for each in training], unseen)
        )
    finally:
        lorimer.detach(embedded)
    assert copies["memorising"] > 0.95
    assert fresh["memorising"] < 0.75
    assert copies["drift"] == fresh["drift"] == 0.0  # unrelated pictures were the base model's


def test_one_picture_for_all_seeds_has_no_diversity_and_other_pictures_drift(
    embedded: DiffusionModel, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    attach(embedded)
    base = chosen(*pictures[4:8], pictures[10], pictures[11])
    same = chosen(*[pictures[4]] * 2, *[pictures[6]] * 2, pictures[0], pictures[1])
    slightly = chosen(*pictures[4:8], shifted(pictures[10]), shifted(pictures[11]))
    try:
        collapsed = judged(make_judge(embedded, pictures[:4], []), embedded, monkeypatch, base, same)
        kept = judged(make_judge(embedded, pictures[:4], []), embedded, monkeypatch, base, slightly)
    finally:
        lorimer.detach(embedded)
    assert collapsed["diversity"] == pytest.approx(0.0, abs=1e-3) and kept["diversity"] == pytest.approx(1.0)
    assert 0.0 < kept["drift"] < 0.8 * collapsed["drift"]


def test_numbers_without_anything_to_compare_with_are_left_out(
    embedded: DiffusionModel, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = make_judge(embedded, pictures[:1], [])  # one picture has no neighbour
    judge.wanted = Judging(captions=2, seeds=2, prompts=("x",))
    draw = chosen(*pictures[4:8], pictures[10])
    assert judged(judge, embedded, monkeypatch, draw, draw).keys() == {"diversity"}


def test_features_are_the_base_models_and_leave_no_hook(
    embedded: DiffusionModel, pictures: list[Image.Image]
) -> None:
    features = PictureFeatures(embedded, noise_process(embedded, DiffusionObjective()))
    latents = [encoded(embedded, pictures[0])]
    before = features(latents)
    adapter = lorimer.attach(
        embedded, lorimer.LoRA(rank=1), targets="attention", exclude="re:text_encoder.*|vae.*"
    )
    try:
        for parameter in adapter.parameters():
            nn.init.normal_(parameter)
        torch.testing.assert_close(features(latents), before, rtol=0, atol=0)
    finally:
        lorimer.detach(embedded)
    assert not features.block._forward_hooks


def test_the_middle_block_and_its_output_are_found_in_u_nets_and_transformers() -> None:
    transformer = nn.Module()
    transformer.register_module("few", nn.ModuleList([nn.Identity()]))
    transformer.register_module("many", blocks := nn.ModuleList([nn.Identity() for _ in range(5)]))
    assert middle_block(transformer) is blocks[2]
    with pytest.raises(lorimer.errors.LorimerError, match="no blocks"):
        middle_block(nn.Linear(1, 1))
    grid = torch.arange(12.0).view(1, 1, 2, 6)
    tokens = grid.flatten(2).transpose(1, 2)
    torch.testing.assert_close(pooled((torch.zeros(1, 3, 1), tokens), 2 / 6), pooled(grid, 2 / 6))
    mixed = torch.cat([torch.zeros(1, 1, 1), tokens], dim=1)  # the caption's among them: 13 fill no rectangle
    torch.testing.assert_close(pooled(mixed, 2 / 6), mixed.mean(1).flatten())


def test_pure_parts() -> None:
    assert evenly(range(10), 3) == [0, 3, 6] and evenly([1, 2], 3) == [1, 2]
    assert apart_within(torch.tensor([[0.0], [2.0], [10.0], [14.0]]), 2) == 3.0


def test_a_run_measures_what_its_recipe_asks_for(make_task: Callable[..., TextToImage]) -> None:
    task = make_task("preview.judge={captions: 1, seeds: 2, steps: 1, prompts: [a, b]}")
    model = task.model()
    attach(model)
    task.data(model)
    assert task.judges
    found = task.judge(model)
    assert found["diversity"] == pytest.approx(1.0) and found["drift"] == pytest.approx(0.0, abs=1e-5)
    assert 0.0 <= found["memorising"] <= 1.0
    quiet = make_task()
    quiet.data(quiet.model())
    assert not quiet.judges
