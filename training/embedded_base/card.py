"""The measured part of the model card: what the exported folder draws, and how well it restores pictures.

    python -m training.embedded_base.card --work WORK --into lorimer/models/embedded

writes ``samples.png`` beside the weights, a sheet of random concepts to count by eye into WORK, and prints
the figures. It uses the stock pipeline on the exported files, half precision and all.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image, ImageDraw
from torch import Tensor

from training.embedded_base import checkpoint, concepts, data, text, vae

STEPS, GUIDANCE = 20, 3.0


def draw(pipeline: StableDiffusionPipeline, captions: list[str], seed: int = 0) -> Tensor:
    """uint8 (caption, 3, 64, 64)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = pipeline(
        captions,
        num_inference_steps=STEPS,
        guidance_scale=GUIDANCE,
        generator=generator,
        output_type="pt",
        height=data.PIXELS,
        width=data.PIXELS,
    ).images
    return (drawn * 255).round().to(torch.uint8)


def labelled(pixels: Tensor, labels: list[str], columns: int) -> Image.Image:
    """Pictures in a grid, each with its number and caption below."""
    cell_width, cell_height = 96, data.PIXELS + 14
    sheet = Image.new("RGB", (columns * cell_width, -(-len(labels) // columns) * cell_height), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, label) in enumerate(zip(pixels, labels, strict=True)):
        left, top = index % columns * cell_width, index // columns * cell_height
        sheet.paste(data.to_picture(picture), (left + 16, top))
        pen.text((left + 2, top + data.PIXELS), label, fill="black")
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the exported model.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    chosen = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(chosen.into)
    pipeline.set_progress_bar_config(disable=True)
    listed = concepts.load()

    shown = listed[:: len(listed) // 48][:48]
    captions = [text.caption(style, concept) for style in concepts.STYLE_WORDS for concept in shown]
    sheet = data.grid(draw(pipeline, captions), 16)
    sheet.quantize(128, dither=Image.Dither.NONE).save(chosen.into / "samples.png", optimize=True)

    asked = random.Random(0).sample(listed, 100)
    styles = [random.Random(index).choice(list(concepts.STYLE_WORDS)) for index in range(100)]
    drawn = draw(
        pipeline, [text.caption(style, entry) for style, entry in zip(styles, asked, strict=True)], seed=1
    )
    labelled(drawn, [str(index) for index in range(100)], 10).save(chosen.work / "count-unlabelled.png")
    labelled(drawn, [entry.caption for entry in asked], 10).save(chosen.work / "count.png")

    _, held_out = vae.split(data.load(chosen.work).pixels)
    for style, pixels in zip(data.STYLES, held_out, strict=True):
        decibels = vae.peak_signal_to_noise(vae.round_trip(pipeline.vae, pixels), pixels)
        print(f"{style}: {decibels:.1f} dB on {len(pixels)} held-out pictures")
    for run in ("vae", "vae-decoder", "unet"):
        place = chosen.work / f"{run}.safetensors"
        if place.exists():
            print(run, json.dumps(checkpoint.load(place)[1]))


if __name__ == "__main__":
    main()
