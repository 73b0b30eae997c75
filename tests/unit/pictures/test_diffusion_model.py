"""Loading and sampling: every part there or one clear error, and pictures that depend on nothing else."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import lorimer
from lorimer import LoRA
from lorimer.errors import FileFormatError, LorimerError, MissingDependencyError, UsageError
from lorimer.tasks import _diffusers_folder, _model_files
from lorimer.tasks._diffusion import DiffusionModel, alphas_cumprod, load_diffusion, sample, save_diffusion
from tests.tiny_models import tiny_pipeline
from tests.tolerances import SAME_OUTPUT, relative_difference

PROMPTS, SEEDS = ["a cat", "a dog", "a red apple"], [1, 2, 3]


@pytest.fixture
def copy(noise_model: Path, tmp_path: Path) -> Path:
    """The tiny model's folder, to be damaged."""
    return Path(shutil.copytree(noise_model, tmp_path / "copy"))


def _adapt(model: DiffusionModel) -> lorimer.AttachedAdapter:
    adapter = lorimer.attach(model, LoRA(rank=2), targets="attention", exclude=["re:(vae|text_encoder).*"])
    for parameter in adapter.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return adapter


def _arrays(model: DiffusionModel, **options: object) -> np.ndarray:
    pictures = sample(model, PROMPTS, SEEDS, steps=3, **options)  # type: ignore[arg-type]
    return np.stack([np.asarray(picture, dtype=int) for picture in pictures])


def test_a_folder_gives_the_weights_in_it_frozen_and_in_evaluation_mode(noise_model: Path) -> None:
    model = load_diffusion(str(noise_model))
    for part, file in (
        ("unet", "diffusion_pytorch_model"),
        ("text_encoder", "model"),
        ("vae", "diffusion_pytorch_model"),
    ):
        stored = load_file(noise_model / part / f"{file}.safetensors")
        own = getattr(model, part).state_dict()
        assert own.keys() == stored.keys()
        assert all(torch.equal(own[key], stored[key]) for key in stored)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module.training for module in model.modules())
    assert (model.prediction_type, model.resolution, model.pixel_unit) == ("epsilon", 32, 4)


def test_weights_are_held_in_the_precision_asked_for_but_the_schedule_in_float32(noise_model: Path) -> None:
    model = load_diffusion(str(noise_model), torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert alphas_cumprod(model.to(torch.float16).scheduler).dtype == torch.float32


def test_the_schedule_is_that_of_the_model_zero_terminal_snr_included(
    noise_model: Path, velocity_model: Path
) -> None:
    pipeline = tiny_pipeline()
    assert torch.equal(
        alphas_cumprod(load_diffusion(str(noise_model)).scheduler), pipeline.scheduler.alphas_cumprod
    )
    velocity = load_diffusion(str(velocity_model))
    assert velocity.prediction_type == "v_prediction"
    assert alphas_cumprod(velocity.scheduler)[-1] == 0.0


def test_the_schedule_does_not_depend_on_the_sampler(copy: Path) -> None:
    expected = alphas_cumprod(load_diffusion(str(copy)).scheduler)
    config = copy / "scheduler" / "scheduler_config.json"
    for sampler in ("PNDMScheduler", "EulerDiscreteScheduler", "DPMSolverMultistepScheduler"):
        config.write_text(json.dumps(json.loads(config.read_text()) | {"_class_name": sampler}))
        assert torch.equal(alphas_cumprod(load_diffusion(str(copy)).scheduler), expected)


def test_every_missing_part_is_named_at_once(copy: Path) -> None:
    shutil.rmtree(copy / "vae")
    (copy / "tokenizer" / "tokenizer_config.json").unlink()
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(FileFormatError) as caught:
        load_diffusion(str(copy))
    message = str(caught.value)
    for expected in (
        str(copy),
        "vae/config.json is missing",
        "tokenizer/tokenizer_config.json",
        "only .bin files",
    ):
        assert expected in message
    assert "text_encoder" not in message


def test_weights_under_the_half_precision_name_are_found(copy: Path) -> None:
    for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model")):
        weights = copy / part / f"{stem}.safetensors"
        weights.rename(weights.with_name(f"{stem}.fp16.safetensors"))
    load_diffusion(str(copy))


@pytest.mark.parametrize(("part", "stem"), [("unet", "diffusion_pytorch_model"), ("text_encoder", "model")])
def test_incomplete_misshapen_and_foreign_weights_are_refused(copy: Path, part: str, stem: str) -> None:
    weights = copy / part / f"{stem}.safetensors"
    tensors = load_file(weights)
    key = sorted(tensors)[3]
    wrong = {
        "is missing": {name: value for name, value in tensors.items() if name != key},
        "is not known": tensors | {"something.else": torch.zeros(1)},
        "shape|size": tensors | {key: torch.zeros(1, 2, 3)},
        "NaN": tensors | {key: tensors[key] * float("nan")},
    }
    for complaint, broken in wrong.items():
        save_file(broken, weights, {"format": "pt"})
        with pytest.raises(FileFormatError, match=complaint) as caught:
            load_diffusion(str(copy))
        assert part in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"nonsense" * 9, b"\xff" * 64])
def test_broken_weight_files_are_refused(copy: Path, content: bytes) -> None:
    (copy / "vae" / "diffusion_pytorch_model.safetensors").write_bytes(content)
    with pytest.raises(FileFormatError, match="vae"):
        load_diffusion(str(copy))


@pytest.mark.parametrize(
    "part",
    [
        "unet/config.json",
        "text_encoder/config.json",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
    ],
)
def test_broken_configs_are_refused(copy: Path, part: str) -> None:
    (copy / part).write_text("{broken")
    with pytest.raises(FileFormatError, match=part.split("/")[0]):
        load_diffusion(str(copy))


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"_class_name": "StableDiffusionPipeline"}, "no scheduler called"),
        ({"_class_name": "os"}, "no scheduler called"),
        ({"prediction_type": "sample"}, "noise or velocity"),
    ],
)
def test_a_scheduler_that_is_none_is_refused(copy: Path, change: dict[str, str], complaint: str) -> None:
    config = copy / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | change))
    with pytest.raises(FileFormatError, match=complaint):
        load_diffusion(str(copy))


def test_what_is_no_model_at_all_is_a_usage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        load_diffusion(str(tmp_path / "nowhere"))
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(FileFormatError, match="not a safetensors file"):
        load_diffusion(str(tmp_path / "model.safetensors"))
    import huggingface_hub

    def offline(*arguments: object, **options: object) -> str:
        raise huggingface_hub.errors.LocalEntryNotFoundError("cannot reach the hub\nmore lines")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(UsageError, match=r"the hub did not give it \(cannot reach the hub\)"):
        load_diffusion("somebody/some-model")


def test_a_hub_name_takes_the_same_way_as_a_folder(
    noise_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    asked: list[tuple[str, list[str]]] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(noise_model)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_diffusion("somebody/some-model").source == "somebody/some-model"
    assert asked[0][0] == "somebody/some-model"
    assert not any(".bin" in pattern or pattern in ("*", "**") for pattern in asked[0][1])


def test_missing_packages_are_named_with_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(MissingDependencyError, match=r'diffusers: pip install "lorimer\[pictures\]"'):
        _diffusers_folder.require_picture_packages()


def test_loading_leaves_other_libraries_settings_alone(noise_model: Path) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    load_diffusion(str(noise_model))
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_pictures_are_those_of_the_stock_pipeline(model: DiffusionModel) -> None:
    stock = tiny_pipeline()
    stock.set_progress_bar_config(disable=True)
    (expected,) = stock("a cat", num_inference_steps=3, generator=torch.Generator().manual_seed(1)).images
    (picture,) = sample(model, ["a cat"], [1], steps=3)
    assert picture.tobytes() == expected.tobytes()


def test_pictures_depend_on_prompt_and_seed_alone(model: DiffusionModel) -> None:
    torch.manual_seed(0)
    together = _arrays(model)
    state = torch.get_rng_state()
    alone = np.concatenate(
        [
            np.asarray(sample(model, [p], [s], steps=3)[0], int)[None]
            for p, s in zip(PROMPTS, SEEDS, strict=True)
        ]
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(_arrays(model), together)
    assert (
        np.abs(_arrays(model, batch_size=2) - together).max() <= 1
    )  # sums of another batch size round otherwise
    assert np.abs(alone - together).max() <= 1
    assert np.abs(together[0] - together[1]).mean() > 1


def test_at_strength_zero_and_after_detach_pictures_are_the_base_models(model: DiffusionModel) -> None:
    base = _arrays(model)
    adapter = _adapt(model)
    assert np.abs(_arrays(model) - base).mean() > 1
    with lorimer.strength(model, 0.0):
        assert np.array_equal(_arrays(model), base)
    with lorimer.disabled(model):
        assert np.array_equal(_arrays(model), base)
    lorimer.detach(model)
    assert np.array_equal(_arrays(model), base)
    with pytest.raises(LorimerError):
        adapter.report()


def test_guidance_negative_prompt_and_resolution_matter(model: DiffusionModel) -> None:
    base = _arrays(model)
    assert np.abs(_arrays(model, guidance=1.0) - base).max() > 1
    assert np.abs(_arrays(model, negative_prompt="a tree") - base).max() > 1
    assert _arrays(model, resolution=40).shape == (3, 40, 40, 3)
    with pytest.raises(UsageError, match="multiple of 8"):
        _arrays(model, resolution=36)


def test_sampling_gives_the_training_mode_back(model: DiffusionModel) -> None:
    _adapt(model)
    model.train()
    _arrays(model)
    assert model.training


def test_a_broken_model_is_an_error_not_a_black_picture(model: DiffusionModel) -> None:
    with torch.no_grad():
        next(model.unet.parameters()).fill_(float("nan"))
    with pytest.raises(LorimerError, match="NaN or infinity"):
        _arrays(model)
    with pytest.raises(UsageError, match="3 prompts but 1 seeds"):
        sample(model, PROMPTS, [0])


def test_training_mode_reaches_adapters_alone(model: DiffusionModel) -> None:
    adapter = _adapt(model)
    model.train()
    assert all(module.training for module in adapter.layers.values())
    assert not any(module.training for module in model.vae.modules())
    assert not any(
        module.training for module in (model.unet.conv_in, model.unet.mid_block, model.text_encoder)
    )
    assert not any(module.training for module in model.eval().modules())


@pytest.mark.parametrize("component", ["unet", "text_encoder"])
def test_gradient_checkpointing_gives_the_same_gradients(noise_model: Path, component: str) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_diffusion(str(noise_model))
        torch.manual_seed(0)
        adapter = lorimer.attach(model, LoRA(rank=2), targets=f"re:{component}.*attn.*(q|q_proj|v|v_proj)")
        for parameter in adapter.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
        if checkpointing:
            model.enable_gradient_checkpointing()
        model.train()
        kept: list[int] = []

        def keep(tensor: torch.Tensor, kept: list[int] = kept) -> torch.Tensor:
            kept.append(tensor.nbytes)
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            prediction = model(torch.randn(2, 4, 8, 8), torch.tensor([10, 500]), captions=["a cat", "a dog"])
        prediction.square().mean().backward()
        gradients.append(([parameter.grad for parameter in adapter.parameters()], sum(kept)))
    (plain, plain_kept), (recomputed, recomputed_kept) = gradients
    assert plain and all(gradient is not None for gradient in [*plain, *recomputed])
    for left, right in zip(plain, recomputed, strict=True):
        assert relative_difference(left, right) < SAME_OUTPUT[torch.float32]
    assert recomputed_kept < 0.8 * plain_kept  # or it did not checkpoint at all


def test_a_saved_model_is_loaded_as_the_same(model: DiffusionModel, tmp_path: Path) -> None:
    save_diffusion(model, tmp_path / "new" / "model")
    again = load_diffusion(str(tmp_path / "new" / "model"))
    assert np.array_equal(_arrays(again), _arrays(model))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["model"]
    files = [path for path in (tmp_path / "new").rglob("*") if path.is_file()]
    (tmp_path / "plain").touch()
    assert {path.stat().st_mode for path in files} == {(tmp_path / "plain").stat().st_mode}


def test_a_model_laid_out_as_stable_diffusion_1_is_loaded_and_draws_512_pixels(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel

    stock = tiny_pipeline()
    torch.manual_seed(0)
    stock.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=512,
    ).eval()
    stock.register_modules(
        unet=UNet2DConditionModel.from_config({**stock.unet.config, "sample_size": 64}).eval(),
        vae=stock.vae,
        scheduler=PNDMScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            skip_prk_steps=True,
            steps_offset=1,
        ),
    )
    stock.save_pretrained(tmp_path)
    model = load_diffusion(str(tmp_path))
    assert (model.prediction_type, model.resolution, model.pixel_unit) == ("epsilon", 512, 8)
    assert model.encode_pictures(torch.zeros(1, 3, 512, 512))[0].shape == (1, 4, 64, 64)
    stock = type(stock).from_pretrained(tmp_path, safety_checker=None)
    stock.set_progress_bar_config(disable=True)
    (expected,) = stock("a cat", num_inference_steps=2, generator=torch.Generator().manual_seed(1)).images
    (picture,) = sample(model, ["a cat"], [1], steps=2)
    assert picture.size == (512, 512) and picture.tobytes() == expected.tobytes()


def test_the_embedded_model_is_loaded_by_the_same_code(
    noise_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_model_files, "EMBEDDED", noise_model)
    assert load_diffusion("embedded").source == "embedded"
