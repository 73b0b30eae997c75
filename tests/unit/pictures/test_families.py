"""What single families do beside what all of them promise."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from lorimer import registry
from lorimer.errors import UsageError
from lorimer.tasks._diffusion import DiffusionModel, load_diffusion, sample
from tests.tiny_families import save_tiny_family
from tests.tolerances import SAME_NETWORK_OUTPUT, relative_difference


def tiny(name: str, folder: Path) -> DiffusionModel:
    return load_diffusion(str(save_tiny_family(name, folder / name)))


def set_in(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_sdxl_is_told_of_an_empty_caption_what_sampling_guides_away_from(tmp_path: Path) -> None:
    model = tiny("sdxl", tmp_path)
    _, negative, _, pooled = model.pipeline().encode_prompt("a", device="cpu")
    mixed = model.encode_texts(["", "a"])
    assert torch.equal(mixed["hidden"][:1], negative) and torch.equal(mixed["pooled"][:1], pooled)
    assert mixed["hidden"][1].any() and not mixed["hidden"][0].any()


def test_sdxl_without_forced_zeros_reads_the_empty_caption(tmp_path: Path) -> None:
    folder = save_tiny_family("sdxl", tmp_path / "sdxl")
    set_in(folder / "model_index.json", force_zeros_for_empty_prompt=False)
    model = load_diffusion(str(folder))
    _, negative, _, _ = model.pipeline().encode_prompt("a", device="cpu")
    assert negative.any() and torch.equal(model.encode_texts([""])["hidden"], negative)


def test_sdxl_minds_the_picture_s_size_and_crop(tmp_path: Path) -> None:
    model = tiny("sdxl", tmp_path)
    latents, times, text = torch.randn(1, 4, 4, 4), torch.tensor([500]), model.encode_texts(["a"])
    with torch.no_grad():
        plain, told, cropped = (
            model(latents, times, {**text, **sizes})
            for sizes in (
                {},
                {"sizes": torch.tensor([[32, 32, 0, 0, 32, 32]])},
                {"sizes": torch.tensor([[64, 48, 8, 0, 32, 32]])},
            )
        )
    assert torch.equal(plain, told)
    assert relative_difference(plain, cropped) > SAME_NETWORK_OUTPUT


def test_sd3_does_without_t5(tmp_path: Path) -> None:
    folder = save_tiny_family("sd3", tmp_path / "sd3")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    model = load_diffusion(str(folder))
    assert model.components == ("transformer", "text_encoder", "text_encoder_2")
    hidden = model.encode_texts(["a"])["hidden"]
    assert hidden[:, :16].any() and not hidden[:, 16:].any()  # what CLIP reads, and then nothing
    assert len(sample(model, ["a"], [0], steps=1, resolution=32)) == 1


def test_schnell_takes_no_guidance(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    folder = save_tiny_family("flux", tmp_path / "flux")
    config = FluxTransformer2DModel.load_config(folder / "transformer")
    schnell = FluxTransformer2DModel.from_config({**config, "guidance_embeds": False})
    schnell.save_pretrained(folder / "transformer")
    model = load_diffusion(str(folder))
    latents, times = torch.randn(1, 4, 4, 4), torch.tensor([0.5])
    with torch.no_grad():
        assert model(latents, times, model.encode_texts(["a"])).isfinite().all()


def test_flux_turns_from_a_negative_prompt_by_two_predictions(tmp_path: Path) -> None:
    model = tiny("flux", tmp_path)
    options = {"steps": 2, "resolution": 32, "guidance": 4.0}
    plain, turned = (
        sample(model, ["a"], [0], negative_prompt=negative, **options)[0].tobytes()  # type: ignore[arg-type]
        for negative in ("", "blue")
    )
    assert plain != turned


def test_lumina_drops_the_system_prompt_with_the_caption(tmp_path: Path) -> None:
    model = tiny("lumina2", tmp_path)
    _, _, negative, mask = model.pipeline().encode_prompt("a", device="cpu")
    length = int(mask.sum())
    empty = model.encode_texts([""])
    assert empty["mask"].sum() == length
    assert relative_difference(empty["hidden"], negative[:, :length]) < SAME_NETWORK_OUTPUT


def test_klein_knows_whether_it_is_distilled_and_takes_no_negative_prompt(tmp_path: Path) -> None:
    folder = save_tiny_family("flux2-klein", tmp_path / "klein")
    assert not load_diffusion(str(folder)).pipeline().config.is_distilled
    set_in(folder / "model_index.json", is_distilled=True)
    model = load_diffusion(str(folder))
    assert model.pipeline().config.is_distilled
    with pytest.raises(UsageError, match="no negative prompt"):
        sample(model, ["a"], [0], steps=1, resolution=32, negative_prompt="blue")


def test_z_image_s_pipeline_counts_guidance_from_nought() -> None:
    family = registry.get("family", "z-image")
    assert family.sampling(1.0, [""])["guidance_scale"] == 0.0
