"""The autoencoder: 64 x 64 pixels to 8 x 8 latents of 16 channels and back.

    python -m training.embedded_base.vae --work WORK --minutes 14
    python -m training.embedded_base.vae --work WORK --minutes 10 --decoder-only

It sees all styles of all concepts, flipped, shifted and with turned hues, for it must be able to draw what
adapters will learn later. The second command leaves the encoder (and so every latent) as it is and goes on
with the decoder alone. Run again after an interruption, each goes on where it was.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn
from torch.nn import functional

from training.embedded_base import checkpoint, data
from training.embedded_base.optimiser import MuonWithAdam

LATENT_CHANNELS = 16
HELD_OUT_EVERY = 25  # every 25th concept is kept from training, to measure on


def build() -> AutoencoderKL:
    """Few channels where pictures are large, since that is where the time goes."""
    widths = (16, 32, 64, 96)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=data.PIXELS,
        scaling_factor=1.0,
    )


def train(work: Path, minutes: float, decoder_only: bool, batch: int, peak: float) -> None:
    """Train for so many minutes, the time before an interruption included."""
    torch.manual_seed(1 if decoder_only else 0)
    pictures = data.load(work)
    training, held_out = split(pictures.pixels)
    model = build()
    place = work / ("vae-decoder.safetensors" if decoder_only else "vae.safetensors")
    if decoder_only:
        model.load_state_dict(averaged_weights(work / "vae.safetensors"))
        model.encoder.requires_grad_(False)
        model.quant_conv.requires_grad_(False)
    model.to(memory_format=torch.channels_last)
    optimiser = MuonWithAdam(model.named_parameters())
    average = checkpoint.Average(model, decay=0.999)
    seconds = resume(place, model, optimiser, average)

    saved = reported = time.monotonic()
    while seconds < minutes * 60:
        started = time.monotonic()
        clean = augment(draw(training, batch))
        restored, mean, log_variance = reconstruct(model, clean, decoder_only)
        loss = reconstruction_loss(restored, clean)
        if not decoder_only:
            loss = loss + 3e-4 * divergence(mean, log_variance)
        loss.backward()
        optimiser.step(checkpoint.learning_rate(peak, seconds / (minutes * 60)))
        average.update(model, optimiser.step_count)
        seconds += time.monotonic() - started
        if time.monotonic() - reported > 60:
            reported = time.monotonic()
            report(average, held_out, optimiser.step_count, seconds, loss.item(), work)
        if time.monotonic() - saved > 120:
            saved = time.monotonic()
            save(place, model, optimiser, average, seconds)
    save(place, model, optimiser, average, seconds)
    report(average, held_out, optimiser.step_count, seconds, loss.item(), work)


def reconstruct(model: AutoencoderKL, clean: Tensor, decoder_only: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Encode, draw from the posterior, decode: pictures, and the posterior's mean and log variance."""
    with torch.set_grad_enabled(not decoder_only):
        mean, log_variance = model.quant_conv(model.encoder(clean)).chunk(2, dim=1)
    log_variance = log_variance.clamp(-30, 20)
    latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    if decoder_only:
        # What a denoiser paints lies a little beside what the encoder gives; so that pictures come out clean
        # all the same, the finished decoder sees latents with up to a third of their own spread as noise.
        level = torch.rand(len(mean), 1, 1, 1) / 3
        latents = latents + level * mean.std(dim=(0, 2, 3), keepdim=True) * torch.randn_like(mean)
    return model.decoder(model.post_quant_conv(latents)), mean, log_variance


def reconstruction_loss(restored: Tensor, clean: Tensor) -> Tensor:
    """Pixels, edges (OpenMoji's black lines are thin), and the colour of areas (hue is lost otherwise)."""
    error = restored - clean
    pixels = error.abs().mean() + 4 * error.square().mean()
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    areas = functional.avg_pool2d(error, 4).abs().mean()
    return pixels + 0.5 * edges + areas


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """From a standard normal distribution, per latent number."""
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()


def split(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """(style, concept, ...) in two, by concept."""
    kept = torch.arange(pixels.shape[1]) % HELD_OUT_EVERY != 0
    return pixels[:, kept], pixels[:, ~kept]


def draw(pixels: Tensor, batch: int) -> Tensor:
    """A random batch from all styles, in -1..1."""
    styles = torch.randint(pixels.shape[0], (batch,))
    concepts = torch.randint(pixels.shape[1], (batch,))
    return normalise(pixels[styles, concepts])


def normalise(pixels: Tensor) -> Tensor:
    """uint8 to -1..1, in the memory format that convolutions on a CPU like best."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def augment(pictures: Tensor) -> Tensor:
    """Flip, shift by a few pixels (borders are white), and turn the hue of one in three."""
    if torch.rand(()) < 0.5:
        pictures = pictures.flip(3)
    down, right = torch.randint(-3, 4, (2,)).tolist()
    pictures = pictures.roll((down, right), dims=(2, 3))
    turned = torch.rand(len(pictures)) < 1 / 3
    if turned.any():
        colours = torch.einsum("nij,njhw->nihw", hue_turns(int(turned.sum())), pictures[turned])
        pictures = pictures.index_put((turned,), colours.clamp(-1, 1))
    return pictures.contiguous(memory_format=torch.channels_last)


def hue_turns(count: int) -> Tensor:
    """Rotations of colour space about its grey axis (Rodrigues' formula): (count, 3, 3)."""
    angle = torch.rand(count, 1, 1) * 2 * math.pi
    axis = 1 / math.sqrt(3)
    cross = axis * torch.tensor([[0.0, -1.0, 1.0], [1.0, 0.0, -1.0], [-1.0, 1.0, 0.0]])
    return torch.eye(3) + angle.sin() * cross + (1 - angle.cos()) * (cross @ cross)


def report(
    average: checkpoint.Average, held_out: Tensor, step: int, seconds: float, loss: float, work: Path
) -> None:
    """Decibels of each style on concepts never seen, and a sheet of originals above what came back."""
    model = build()
    model.load_state_dict(average.tensors)
    decibels, rows = [], []
    for pixels in held_out:
        restored = round_trip(model, pixels)
        decibels.append(peak_signal_to_noise(restored, pixels))
        rows += [pixels[:16].float() / 255, restored[:16]]
    data.grid(torch.cat(rows), 16).save(work / "vae.png")
    each = " ".join(f"{name} {value:.2f}" for name, value in zip(data.STYLES, decibels, strict=True))
    print(f"step {step} {seconds:.0f} s loss {loss:.4f} dB {each}", flush=True)


@torch.no_grad()
def round_trip(model: AutoencoderKL, pixels: Tensor) -> Tensor:
    """uint8 pictures through the posterior's mean and back, in 0..1."""
    restored = model.decode(model.encode(normalise(pixels)).latent_dist.mean).sample
    return (restored / 2 + 0.5).clamp(0, 1)


def peak_signal_to_noise(restored: Tensor, pixels: Tensor) -> float:
    """Decibels, averaged over pictures."""
    error = (restored - pixels.float() / 255).square().mean(dim=(1, 2, 3))
    return (-10 * error.log10()).mean().item()


def save(
    place: Path, model: nn.Module, optimiser: MuonWithAdam, average: checkpoint.Average, seconds: float
) -> None:
    tensors = {
        **checkpoint.with_prefix("model", model.state_dict()),
        **checkpoint.with_prefix("average", average.tensors),
        **checkpoint.with_prefix("optimiser", optimiser.state),
        "random_state": torch.get_rng_state(),
    }
    checkpoint.save(place, tensors, {"steps": optimiser.step_count, "seconds": seconds})


def resume(place: Path, model: nn.Module, optimiser: MuonWithAdam, average: checkpoint.Average) -> float:
    """Seconds trained so far; zero where there is nothing to go on from."""
    if not place.exists():
        return 0.0
    tensors, facts = checkpoint.load(place)
    model.load_state_dict(checkpoint.under_prefix("model", tensors))
    for name, tensor in checkpoint.under_prefix("average", tensors).items():
        average.tensors[name].copy_(tensor)
    for name, tensor in checkpoint.under_prefix("optimiser", tensors).items():
        optimiser.state[name].copy_(tensor)
    torch.set_rng_state(tensors["random_state"])
    optimiser.step_count = int(facts["steps"])
    return float(facts["seconds"])


def averaged_weights(place: Path) -> dict[str, Tensor]:
    return checkpoint.under_prefix("average", checkpoint.load(place)[0])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the autoencoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--decoder-only", action="store_true")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    chosen = parser.parse_args()
    train(chosen.work, chosen.minutes, chosen.decoder_only, chosen.batch, chosen.learning_rate)


if __name__ == "__main__":
    main()
