"""From the training runs to a folder that diffusers' StableDiffusionPipeline loads.

    python -m training.embedded_base.export --work WORK --into lorimer/models/embedded
    python -m training.embedded_base.export --untrained --work WORK --into FOLDER

The latents' mean and standard deviation go into the autoencoder's own 1 x 1 convolutions, since the
pipeline knows no shift; weights are rounded to half precision. The folder's README.md and pictures stay.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from training.embedded_base import checkpoint, data, text, unet, vae

PARTS = ("model_index.json", "unet", "vae", "text_encoder", "tokenizer", "scheduler")


def export(work: Path, into: Path, untrained: bool) -> None:
    """Write the pipeline beside its place, check that it loads and draws, then swap it in."""
    pipeline = assemble(work, untrained)
    beside = into.with_name(into.name + ".new")
    shutil.rmtree(beside, ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(beside, safe_serialization=True)
    write_classic_tokenizer(pipeline.tokenizer, beside / "tokenizer")
    declare_single_precision(beside)
    check(beside)
    for file in beside.rglob("*"):
        file.chmod(0o755 if file.is_dir() else 0o644)  # safetensors writes for its owner alone
    into.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        target, old = into / part, into / f".{part}.old"
        if target.exists():
            target.rename(old)
        (beside / part).rename(target)
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    shutil.rmtree(beside)
    print(f"{into}: {sum(file.stat().st_size for file in into.rglob('*') if file.is_file())} bytes")


def assemble(work: Path, untrained: bool) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    tokenizer = unet.tokenizer_of(work)
    model = unet.Denoiser(unet.build(), text.build_encoder(tokenizer))
    autoencoder = vae.build()
    if not untrained:
        tensors, facts = checkpoint.load(unet.best_denoiser(work))
        model.load_state_dict(checkpoint.under_prefix("average", tensors))
        autoencoder.load_state_dict(vae.averaged_weights(unet.best_autoencoder(work)))
        fold_scale(autoencoder, unet.latent_scale(work, data.load(work)))
        print(json.dumps(facts))
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=model.encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=unet.build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


@torch.no_grad()
def fold_scale(autoencoder: AutoencoderKL, scale: unet.Scale) -> None:
    """Make the latents zero on average and one in deviation, and the decoder expect that."""
    mean, deviation = scale.mean, scale.deviation
    before, after = autoencoder.quant_conv, autoencoder.post_quant_conv
    count = len(mean)
    before.weight[:count] /= deviation.view(-1, 1, 1, 1)
    before.bias[:count] = (before.bias[:count] - mean) / deviation
    before.bias[count:] -= 2 * deviation.log()  # the log of the variance
    after.bias += (after.weight[:, :, 0, 0] * mean).sum(dim=1)
    after.weight *= deviation.view(1, -1, 1, 1)


def write_classic_tokenizer(tokenizer: CLIPTokenizer, folder: Path) -> None:
    """The two files that Stable Diffusion always had, for programs that do not read tokenizer.json."""
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / "vocab.json").write_text(json.dumps(model["vocab"], ensure_ascii=False))
    lines = ["#version: 0.2", *(" ".join(merge) for merge in model["merges"])]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n")


def declare_single_precision(folder: Path) -> None:
    """Half precision is for the file alone: a CPU computes better in single, so loading gives that."""
    place = folder / "text_encoder" / "config.json"
    config = json.loads(place.read_text())
    config["dtype"] = "float32"
    place.write_text(json.dumps(config, indent=2) + "\n")


def check(folder: Path) -> None:
    """Load it as a stranger would, and draw."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("3d red apple", num_inference_steps=2, height=64, width=64).images[0]
    if picture.size != (data.PIXELS, data.PIXELS):
        raise ValueError(f"{folder}: drew a picture of {picture.size}")
    for name, part in pipeline.components.items():
        if isinstance(part, torch.nn.Module) and part.dtype != torch.float32:
            raise ValueError(f"{folder}: {name} loads as {part.dtype}")


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the pipeline folder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    parser.add_argument("--untrained", action="store_true", help="the same files, before any training")
    chosen = parser.parse_args()
    export(chosen.work, chosen.into, chosen.untrained)


if __name__ == "__main__":
    main()
