"""What every family of picture models promises. A new one joins by existing, with a case in tiny_families.py.

diffusers' own pipeline is the truth: what it asks of the denoiser, and what it makes of the answer, is held
against what the family does in training.
"""

from __future__ import annotations

import functools
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

import lorimer
from lorimer import registry
from lorimer.families._base import Conditioning
from lorimer.tasks._diffusers_folder import family_of_folder, quiet
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion
from lorimer.tasks._picture_encoding import stacked
from lorimer.train.engine import train
from lorimer.train.recipe import Recipe, load_recipe
from tests.tiny_families import CASES, save_tiny_family
from tests.tolerances import BF16_NETWORK, SAME_NETWORK_OUTPUT, SAME_SUM, relative_difference

HEIGHT, WIDTH = 32, 64
CAPTIONS = ["a red ball", "b"]
# diffusers does not read kohya's names for the former two, and for the latter with layers of one size alone.
NOT_FROM_KOHYA = ("sd3", "lumina2", "flux", "chroma")


@functools.cache
def folder_of(name: str) -> Path:
    """Of the tiny model, made once."""
    return save_tiny_family(name, Path(mkdtemp()) / name)


def fresh(name: str, dtype: torch.dtype = torch.float32) -> DiffusionModel:
    return load_diffusion(str(folder_of(name)), dtype)


def prediction(model: DiffusionModel, latents: Tensor, time: float, conditioning: Conditioning) -> Tensor:
    times = torch.full((len(latents),), time if model.family.process == "flow" else int(1000 * time))
    return model(latents, times, conditioning)


def latents_of(model: DiffusionModel, count: int) -> Tensor:
    """Noise in the shape of the latents of pictures that are not square."""
    generator = torch.Generator().manual_seed(1)
    mean, _ = model.encode_pictures(torch.zeros(1, 3, HEIGHT, WIDTH))
    return torch.randn(count, *mean.shape[1:], generator=generator)


# ---- what diffusers' pipeline does


@dataclass
class Record:
    """Of one run of a pipeline: scheduler's steps, and the latents that the VAE decodes."""

    steps: list[tuple[Tensor, Any, Tensor, Tensor]] = field(default_factory=list)
    sigmas: Tensor = field(default_factory=lambda: torch.empty(0))
    decoded: Tensor = field(default_factory=lambda: torch.empty(0))


def recorded(model: DiffusionModel, monkeypatch: pytest.MonkeyPatch) -> Record:
    """What the pipeline does to draw the captions in two steps without guidance."""
    record, pipeline = Record(), model.pipeline()
    step, decode = pipeline.scheduler.step, model.vae.decode

    @functools.wraps(step)
    def stepped(output: Tensor, time: Any, latents: Tensor, **options: Any) -> Any:
        before = latents.clone()
        result = step(output, time, latents, **options)
        record.steps.append((output, time, before, result[0].clone()))
        record.sigmas = getattr(pipeline.scheduler, "sigmas", record.sigmas)
        return result

    def decoding(latents: Tensor, **options: Any) -> Any:
        record.decoded = latents.clone()
        return decode(latents, **options)

    monkeypatch.setattr(pipeline.scheduler, "step", stepped)
    monkeypatch.setattr(model.vae, "decode", decoding)
    with quiet():
        pipeline(
            prompt=list(CAPTIONS),
            num_inference_steps=2,
            height=HEIGHT,
            width=WIDTH,
            generator=torch.Generator().manual_seed(0),
            output_type="pt",
            **model.family.sampling(1.0, [""] * len(CAPTIONS)),
        )
    record.steps = [
        (_unpacked(model, output, pipeline), time, *(_unpacked(model, each, pipeline) for each in latents))
        for output, time, *latents in record.steps
    ]
    return record


def _unpacked(model: DiffusionModel, latents: Tensor, pipeline: Any) -> Tensor:
    """(batch, channels, height, width) of what the pipeline holds, by its own means."""
    if latents.dim() == 4:
        return latents
    if hasattr(pipeline, "_unpack_latents"):
        unpacked: Tensor = pipeline._unpack_latents(latents, HEIGHT, WIDTH, pipeline.vae_scale_factor)
        return unpacked.squeeze(2) if unpacked.dim() == 5 else unpacked
    side = model.family.pixels_per_latent(model)
    grid = torch.empty(len(latents), 1, HEIGHT // side, WIDTH // side)
    found: Tensor = pipeline._unpack_latents_with_ids(latents, pipeline._prepare_latent_ids(grid))
    return found


# ---- checks


def check_its_models_are_known_as_its_own(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    family = registry.get("family", name)
    assert family.name == name and family.description
    assert family_of_folder(folder_of(name)) is family  # which raises where another fits as well


def check_it_predicts_as_the_pipeline_asks(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions, guidance, the scale and the sign of time: an Euler step along the flow is the pipeline's."""
    model = fresh(name)
    record = recorded(model, monkeypatch)
    conditioning = model.encode_texts(CAPTIONS)
    for place, (output, time, latents, after) in enumerate(record.steps):
        flow = model.family.process == "flow"
        times = (record.sigmas[place] if flow else torch.as_tensor(time)).expand(len(latents))
        with torch.no_grad():
            ours = model(latents, times, conditioning)
        assert relative_difference(ours, output) < SAME_NETWORK_OUTPUT
        if flow:
            moved = latents + (record.sigmas[place + 1] - record.sigmas[place]) * ours
            assert relative_difference(moved, after) < SAME_NETWORK_OUTPUT
    assert len(record.steps) == 2


def check_its_latents_are_what_the_pipeline_decodes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fresh(name)
    record = recorded(model, monkeypatch)
    decoded = record.decoded.squeeze(2) if record.decoded.dim() == 5 else record.decoded
    spread = torch.rand_like(decoded)
    mean, std = model.family.scale_latents(model, decoded, spread)
    assert relative_difference(mean, record.steps[-1][3]) < SAME_NETWORK_OUTPUT
    further, _ = model.family.scale_latents(model, decoded + spread, spread)
    assert relative_difference(further - mean, std) < SAME_NETWORK_OUTPUT


def check_pixels_become_such_latents(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The latents of a picture are the mean that the VAE gives for it, scaled, and of the right shape."""
    model = fresh(name)
    pixels = torch.rand(2, 3, HEIGHT, WIDTH) * 2 - 1
    mean, std = model.encode_pictures(pixels)
    assert mean.shape == std.shape == recorded(model, monkeypatch).steps[0][2].shape
    assert (std > 0).all()
    alone, _ = model.encode_pictures(pixels[1:])
    assert relative_difference(alone[0], mean[1]) < SAME_NETWORK_OUTPUT
    side = model.family.pixels_per_latent(model)
    assert mean.shape[-2:] == (HEIGHT // side, WIDTH // side)
    assert HEIGHT % model.pixel_unit == 0 and model.pixel_unit % side == 0


def check_company_in_the_batch_changes_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caption is the same alone, among longer ones from the cache, and encoded together with them."""
    model = fresh(name)
    captions = ["b", "a much longer one", ""]
    each = [model.encode_texts([caption]) for caption in captions]
    latents = latents_of(model, len(captions))
    with torch.no_grad():
        alone = [prediction(model, latents[i : i + 1], 0.5, each[i])[0] for i in range(len(captions))]
        cached = stacked([{key: rows[0] for key, rows in one.items()} for one in each])
        for together in (cached, model.encode_texts(captions)):
            predicted = prediction(model, latents, 0.5, together)
            assert relative_difference(predicted, torch.stack(alone)) < SAME_NETWORK_OUTPUT
    assert relative_difference(alone[0], alone[1]) > SAME_NETWORK_OUTPUT


def check_each_component_learns(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gradients reach adapters on every layer that is not said to be idle, and are the same where activations
    are recomputed."""
    model = fresh(name)
    gradients = _gradients(model)
    assert {path.split(".")[0] for path in gradients} == set(model.components)
    assert all(gradient.abs().max() > 0 for gradient in gradients.values())
    lorimer.detach(model)
    model.enable_gradient_checkpointing()
    for path, gradient in _gradients(model).items():
        assert relative_difference(gradient, gradients[path]) < SAME_SUM, path


def _gradients(model: DiffusionModel) -> dict[str, Tensor]:
    torch.manual_seed(0)
    idle = [f"re:{re.escape(path)}" for path in ("vae", *model.idle_layers)]
    adapter = lorimer.attach(model, lorimer.LoRA(rank=2), targets="all-linear", exclude=idle)
    for parameter in adapter.parameters():
        parameter.data.normal_(std=0.1)  # off the start, where LoRA's A has no gradient
    model.train()
    latents = latents_of(model, len(CAPTIONS))
    times = torch.tensor([0.3, 0.7]) if model.family.process == "flow" else torch.tensor([300, 700])
    model(latents, times, captions=CAPTIONS).square().mean().backward()
    named = [(path, parameter) for path, parameter in model.named_parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for _, parameter in named)
    return {path: parameter.grad for path, parameter in named if parameter.grad is not None}


def check_half_precision_is_near(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted = []
    for dtype in (torch.float32, torch.bfloat16):
        model = fresh(name, dtype)
        latents = latents_of(model, len(CAPTIONS))
        with torch.no_grad():
            predicted.append(prediction(model, latents, 0.5, model.encode_texts(CAPTIONS)).float())
    assert relative_difference(*predicted) < BF16_NETWORK


CHECKS: list[Callable[[str, pytest.MonkeyPatch], None]] = [
    check_its_models_are_known_as_its_own,
    check_it_predicts_as_the_pipeline_asks,
    check_its_latents_are_what_the_pipeline_decodes,
    check_pixels_become_such_latents,
    check_company_in_the_batch_changes_nothing,
    check_each_component_learns,
    check_half_precision_is_near,
]


def test_every_family_has_a_tiny_model() -> None:
    assert set(registry.names("family")) == CASES.keys(), "add a tiny model to tests/tiny_families.py"


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", CASES)
def test_contract(
    name: str, check: Callable[[str, pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check(name, monkeypatch)


# ---- from pictures to files and back


@functools.cache
def pictures() -> Path:
    """A folder of captioned pictures of three shapes."""
    folder = Path(mkdtemp())
    for colour, size in {"red": (40, 40), "green": (72, 36), "blue": (36, 72)}.items():
        Image.new("RGB", size, colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} wall")
    return folder


def recipe(name: str, folder: Path, output: str, components: list[str]) -> Recipe:
    values = {
        "task": "text-to-image",
        "model": str(folder_of(name)),
        "data": {"path": str(pictures()), "cache": str(folder / "cache"), "resolution": 32},
        "adapter": {"rank": 2, "targets": "attention", "components": components},
        "train": {"steps": 20, "batch_size": 2, "learning_rate": 1e-2, "log_every": 10},
        "preview": {"prompts": []},
        "output": str(folder / output / "style"),
    }
    return load_recipe(values, ["train.checkpoint_every=10", "train.keep_checkpoints=2"], {})


def drawn(pipeline: Any, family: Any) -> Tensor:
    """The latents of a picture."""
    with quiet():
        latents: Tensor = pipeline(
            prompt=["a red wall"],
            num_inference_steps=2,
            height=32,
            width=32,
            generator=torch.Generator().manual_seed(0),
            output_type="latent",
            **family.sampling(3.0, [""]),
        ).images
    return latents


@pytest.mark.parametrize("name", CASES)
def test_trained_resumed_written_and_read_by_diffusers(name: str, tmp_path: Path) -> None:
    model = fresh(name)
    family, pipeline = model.family, model.pipeline()
    # Of the text encoders those that diffusers takes adapters for: CLIP.
    taken = [each for each in model.components if each in pipeline._lora_loadable_modules]
    components = [each for each in taken if "T5" not in type(getattr(model, each)).__name__]
    run = recipe(name, tmp_path, "whole", components)
    result = train(run)
    base = drawn(pipeline, family)
    adapter = lorimer.load(model, result.adapter)
    assert {path.split(".")[0] for path in adapter.layers} == set(components)
    ours = drawn(pipeline, family)
    assert relative_difference(ours, base) > 100 * SAME_NETWORK_OUTPUT

    _check_resumed(name, tmp_path, run, components)
    for format in ("lorimer", "kohya", "diffusers"):
        file = lorimer.save(adapter, tmp_path / f"{format}.safetensors", format=format)
        again = fresh(name)
        lorimer.load(again, file)
        assert relative_difference(drawn(again.pipeline(), family), ours) < SAME_NETWORK_OUTPUT, format
        if format == "diffusers" or (format == "kohya" and name not in NOT_FROM_KOHYA):
            theirs = fresh(name).pipeline()
            with quiet():
                theirs.load_lora_weights(file)
            assert relative_difference(drawn(theirs, family), ours) < SAME_NETWORK_OUTPUT, format
    lorimer.merge(model)
    assert relative_difference(drawn(pipeline, family), ours) < SAME_NETWORK_OUTPUT


def _check_resumed(name: str, folder: Path, whole: Recipe, components: list[str]) -> None:
    """A run that goes on from its checkpoint after ten steps ends as the whole one, to the bit."""
    half = folder / "half" / "style"
    shutil.copytree(whole.output, half)
    shutil.rmtree(half / "checkpoints" / "step-000020")
    shutil.rmtree(half / "adapter")
    again = train(recipe(name, folder, "half", components), resume=half)
    assert again.adapter.read_bytes() == (Path(whole.output) / "adapter" / again.adapter.name).read_bytes()
