"""The denoiser and the text encoder, trained together on latents.

    python -m training.embedded_base.unet --work WORK --minutes 60
    python -m training.embedded_base.unet --work WORK --minutes 9 --variants

needs the autoencoder's encoder to be final (its decoder may still be in training). Run again after an
interruption, it goes on where it was; with a longer ``--minutes`` it goes on from a finished run. Every few
minutes it draws ``WORK/samples.png`` with the averaged weights. The second command widens the model's
repertoire by the variants of ``variants.py``, at half the learning rate, half of every batch being as before.
"""

from __future__ import annotations

import argparse
import copy
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from training.embedded_base import checkpoint, concepts, data, text, vae, variants
from training.embedded_base.optimiser import MuonWithAdam

BASE_STYLES = tuple(concepts.STYLE_WORDS)
LATENT_SIZE = data.PIXELS // 8

# Of the captions in training, how many are empty (for classifier-free guidance), how many leave out the
# style's word, and how many have other tokens in its place. The last two teach that the rest of a caption
# means the same without a known style: an adapter will come with a word of its own.
EMPTY, NO_STYLE, OTHER_STYLE = 0.10, 0.07, 0.08

MIN_SNR_GAMMA = 5.0


def build() -> UNet2DConditionModel:
    """Two levels, 8 x 8 and 4 x 4, each with residual convolutions and a transformer block."""
    widths = (96, 128)
    return UNet2DConditionModel(
        sample_size=LATENT_SIZE,
        in_channels=vae.LATENT_CHANNELS,
        out_channels=vae.LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D",) * len(widths),
        up_block_types=("CrossAttnUpBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=1,
        attention_head_dim=4,  # by a slip of the library that cannot be mended any more: how many heads
        cross_attention_dim=text.WIDTH,
        norm_num_groups=16,
        resnet_time_scale_shift="scale_shift",
        addition_embed_type="text",
        addition_embed_type_num_heads=4,
        time_embedding_dim=192,
        use_linear_projection=True,
    )


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise, rescaled so that the last step is pure noise (arXiv 2305.08891)."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=True,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        steps_offset=1,  # means nothing with this spacing, but the stock pipeline insists on it
    )


@dataclass
class Examples:
    """Everything that a step needs, made once. ``n`` pictures: every concept in every base style.

    ``mean``, ``deviation``: the autoencoder's posterior, in units of the latents' own mean and standard
    deviation per channel (n, 16, 8, 8). ``captions``, ``plain_captions``: token ids (n, CONTEXT), with the
    style's word and without. ``empty``: (CONTEXT,).
    """

    mean: Tensor
    deviation: Tensor
    captions: Tensor
    plain_captions: Tensor
    empty: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def and_others(self, others: list[Examples]) -> Examples:
        """These first, then the others."""
        every = [self, *others]
        return Examples(
            mean=torch.cat([one.mean for one in every]),
            deviation=torch.cat([one.deviation for one in every]),
            captions=torch.cat([one.captions for one in every]),
            plain_captions=torch.cat([one.plain_captions for one in every]),
            empty=self.empty,
        )


@dataclass(frozen=True)
class Scale:
    """Mean and standard deviation of each latent channel over the base pictures, (16,) each."""

    mean: Tensor
    deviation: Tensor


def prepare(work: Path, tokenizer: CLIPTokenizer, variant: str | None = None) -> Examples:
    """The base pictures, or one variant of them all."""
    pictures, chosen = data.load(work), concepts.load()
    rows = concepts.rows(pictures, chosen)
    pixels = torch.cat([pictures.style(style)[rows] for style in BASE_STYLES])
    scale = latent_scale(work, pictures)
    captions = [text.caption(style, concept) for style in BASE_STYLES for concept in chosen]
    plain = [concept.caption for _ in BASE_STYLES for concept in chosen]
    if variant:
        pixels = variants.draw(pixels, variant)
        captions = [f"{variant} {caption}" for caption in captions]
        plain = [f"{variant} {caption}" for caption in plain]
    posterior = encode(work, pixels)
    return Examples(
        mean=(posterior.mean - scale.mean.view(1, -1, 1, 1)) / scale.deviation.view(1, -1, 1, 1),
        deviation=posterior.std / scale.deviation.view(1, -1, 1, 1),
        captions=text.tokens(tokenizer, captions),
        plain_captions=text.tokens(tokenizer, plain),
        empty=text.tokens(tokenizer, [""])[0],
    )


@torch.no_grad()
def encode(work: Path, pixels: Tensor):  # type: ignore[no-untyped-def]  # diffusers' own distribution
    """The posterior of uint8 pictures under the averaged encoder."""
    model = vae.build()
    model.load_state_dict(vae.averaged_weights(work / "vae.safetensors"))
    return model.encode(vae.normalise(pixels)).latent_dist


def latent_scale(work: Path, pictures: data.Pictures) -> Scale:
    """Measured once, on all concepts in the base styles, so that a new list of concepts changes nothing."""
    place = work / "latent-scale.safetensors"
    if not place.exists():
        pixels = torch.cat([pictures.style(style)[::4] for style in BASE_STYLES])
        mean = encode(work, pixels).mean
        found = {"mean": mean.mean(dim=(0, 2, 3)), "deviation": mean.std(dim=(0, 2, 3))}
        checkpoint.save(place, found, {"pictures": len(pixels)})
    tensors, _ = checkpoint.load(place)
    return Scale(**tensors)


def tokenizer_of(work: Path) -> CLIPTokenizer:
    """Learned once from all names, in the list of concepts or not."""
    place = work / "tokenizer"
    if not place.exists():
        captions = [concept.caption for concept in concepts.load()]
        text.train_tokenizer([*data.load(work).names, *captions * 3]).save_pretrained(place)
    return CLIPTokenizer.from_pretrained(place)


class Denoiser(nn.Module):
    """The two networks that are trained, as one module with one state dict."""

    def __init__(self, unet: UNet2DConditionModel, encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet = unet
        self.encoder = encoder

    def forward(self, noisy: Tensor, timesteps: Tensor, token_ids: Tensor) -> Tensor:
        states = self.encoder(token_ids).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


@dataclass(frozen=True)
class Batch:
    """One step's inputs and what should come out, with a weight for each picture."""

    noisy: Tensor
    timesteps: Tensor
    token_ids: Tensor
    velocity: Tensor
    weight: Tensor

    def part(self, index: int, count: int) -> Batch:
        """Every ``count``-th picture from ``index`` on."""
        return Batch(*(tensor[index::count] for tensor in vars(self).values()))


def train(
    work: Path, minutes: float, batch: int, peak: float, decay: float, with_variants: bool = False
) -> None:
    """Train for so many minutes, the time before an interruption included."""
    torch.manual_seed(1 if with_variants else 0)
    tokenizer = tokenizer_of(work)
    examples = prepare(work, tokenizer)
    originals = len(examples)
    model = Denoiser(build(), text.build_encoder(tokenizer))
    place = work / "unet.safetensors"
    if with_variants:
        examples = examples.and_others([prepare(work, tokenizer, word) for word in variants.WORDS])
        model.load_state_dict(checkpoint.under_prefix("average", checkpoint.load(place)[0]))
        place, peak = work / "unet-variants.safetensors", peak / 2
    optimiser = MuonWithAdam(model.named_parameters(), embeddings=("embedding", "conv_in", "conv_out"))
    average = checkpoint.Average(model, decay)
    seconds, passes = resume(place, model, optimiser, average)
    print(f"{len(examples)} pictures, {sum(p.numel() for p in model.parameters())} parameters", flush=True)

    alphas = build_scheduler().alphas_cumprod
    workers = Workers(model, torch.get_num_threads())
    saved = reported = time.monotonic()
    losses: list[float] = []
    # Original pictures and variants are shuffled apart, so that each has its share of every batch.
    groups = [range(originals)] + [range(originals, len(examples))] * with_variants
    orders = [torch.empty(0, dtype=torch.long) for _ in groups]
    with asked_to_stop() as stop:
        while seconds < minutes * 60 and not stop:
            started = time.monotonic()
            share = batch // len(groups)
            for place_in, group in enumerate(groups):
                while len(orders[place_in]) < share:
                    order = torch.randperm(len(group)) + group.start
                    orders[place_in] = torch.cat([orders[place_in], order])
            chosen = torch.cat([order[:share] for order in orders])
            orders = [order[share:] for order in orders]
            losses.append(workers.backward(make_batch(examples, chosen, alphas, originals)))
            rate = checkpoint.learning_rate(peak, seconds / (minutes * 60), flat=0.2)
            optimiser.step(rate, over=workers.pool.map)
            average.update(model, optimiser.step_count)
            passes += batch / len(examples)
            seconds += time.monotonic() - started
            if time.monotonic() - reported > 60:
                reported = time.monotonic()
                progress = f"step {optimiser.step_count} {seconds:.0f} s {passes:.1f} passes"
                print(f"{progress} loss {sum(losses) / len(losses):.4f}", flush=True)
                losses = []
            if time.monotonic() - saved > 240:
                saved = time.monotonic()
                save(place, model, optimiser, average, seconds, passes)
                draw_samples(work, average, tokenizer)
    save(place, model, optimiser, average, seconds, passes)
    draw_samples(work, average, tokenizer)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that is filled on Ctrl-C or SIGTERM, so that the loop ends after a whole step and saves."""
    asked: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda number, _: asked.append(number)) for number in signals]
    yield asked
    for number, handler in zip(signals, before, strict=True):
        signal.signal(number, handler)


class Workers:
    """One thread a core, each with its part of the batch and gradients of its own.

    The network is small: with two threads inside each operation a step took 0.6 s, and on a machine with
    other work far longer, since each waits for the other at every operation. With a part of the batch each
    they meet once a step.
    """

    def __init__(self, model: Denoiser, count: int) -> None:
        torch.set_num_threads(1)
        self.models = [model] + [copy.deepcopy(model) for _ in range(count - 1)]
        for other in self.models[1:]:
            for theirs, ours in zip(other.parameters(), model.parameters(), strict=True):
                theirs.data = ours.data  # the same memory: the optimiser moves all copies at once
        self.pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))

    def backward(self, batch: Batch) -> float:
        """Gradients of the mean loss, gathered in the first model; returns that loss."""
        count = len(self.models)
        parts = [batch.part(index, count) for index in range(count)]
        wholes = [len(batch.noisy)] * count
        losses = list(self.pool.map(self._part, self.models, parts, wholes))
        first, *others = (list(model.parameters()) for model in self.models)
        for other in others:
            for ours, theirs in zip(first, other, strict=True):
                if ours.grad is not None and theirs.grad is not None:
                    ours.grad += theirs.grad
                theirs.grad = None
        return sum(losses)

    @staticmethod
    def _part(model: Denoiser, part: Batch, whole: int) -> float:
        predicted = model(part.noisy, part.timesteps, part.token_ids)
        error = (predicted - part.velocity).square().mean(dim=(1, 2, 3))
        loss = (error * part.weight).sum() / whole
        loss.backward()
        return loss.item()


def make_batch(examples: Examples, chosen: Tensor, alphas: Tensor, originals: int) -> Batch:
    """Noise for the chosen pictures; wanted is the velocity, sqrt(a) noise - sqrt(1 - a) clean."""
    mean, deviation = examples.mean[chosen], examples.deviation[chosen]
    clean = mean + deviation * torch.randn_like(mean)
    noise = torch.randn_like(clean)
    timesteps = spread_timesteps(len(chosen), len(alphas))
    alpha = alphas[timesteps].view(-1, 1, 1, 1)
    return Batch(
        noisy=alpha.sqrt() * clean + (1 - alpha).sqrt() * noise,
        timesteps=timesteps,
        token_ids=captions_for(examples, chosen, originals),
        velocity=alpha.sqrt() * noise - (1 - alpha).sqrt() * clean,
        weight=min_snr_weight(alphas[timesteps]),
    )


def spread_timesteps(count: int, total: int) -> Tensor:
    """One from each of ``count`` equal stretches, in random order: far less noise in the loss."""
    return ((torch.randperm(count) + torch.rand(count)) * total / count).long().clamp(max=total - 1)


def min_snr_weight(alpha: Tensor) -> Tensor:
    """Min-SNR (arXiv 2303.09556) for velocities, with one added on both sides so that pure noise counts."""
    ratio = alpha / (1 - alpha)
    return (ratio + 1).clamp(max=MIN_SNR_GAMMA + 1) / (ratio + 1)


def captions_for(examples: Examples, chosen: Tensor, originals: int) -> Tensor:
    """Token ids (batch, CONTEXT); some captions empty, without style, or with another style's word.

    A variant, which comes after the originals, is always asked for by its word.
    """
    full, plain = examples.captions[chosen], examples.plain_captions[chosen]
    # The plain caption, moved right by one or two places behind random tokens.
    other = plain
    for _ in range(int(torch.randint(1, 3, ()))):
        other = torch.cat([other[:, :1], torch.randint(0, 1022, (len(chosen), 1)), other[:, 1:-1]], dim=1)
    ids = full.clone()
    kind = torch.rand(len(chosen)) + (chosen >= originals)
    ids[kind < EMPTY + NO_STYLE + OTHER_STYLE] = other[kind < EMPTY + NO_STYLE + OTHER_STYLE]
    ids[kind < EMPTY + NO_STYLE] = plain[kind < EMPTY + NO_STYLE]
    ids[kind < EMPTY] = examples.empty
    return ids


def draw_samples(work: Path, average: checkpoint.Average, tokenizer: CLIPTokenizer) -> None:
    """Every n-th concept in both styles with the averaged weights, as ``samples.png``."""
    model = Denoiser(build(), text.build_encoder(tokenizer)).eval()
    model.load_state_dict(average.tensors)
    known = concepts.load()
    shown = known[:: max(1, len(known) // 32)][:32]
    captions = [text.caption(style, concept) for style in BASE_STYLES for concept in shown]
    captions += [f"{word} {caption}" for word in variants.WORDS for caption in captions[::2]]
    latents = sample_latents(model, text.tokens(tokenizer, captions), text.tokens(tokenizer, [""]), steps=20)
    scale = latent_scale(work, data.load(work))
    latents = latents * scale.deviation.view(1, -1, 1, 1) + scale.mean.view(1, -1, 1, 1)
    decoder = vae.build()
    decoder.load_state_dict(vae.averaged_weights(best_autoencoder(work)))
    with torch.no_grad():
        data.grid(decoder.decode(latents).sample / 2 + 0.5, 16).save(work / "samples.png")


def best_denoiser(work: Path) -> Path:
    """The one that has seen the variants, if there is one."""
    further = work / "unet-variants.safetensors"
    return further if further.exists() else work / "unet.safetensors"


def best_autoencoder(work: Path) -> Path:
    """The one whose decoder was trained further, if there is one; the encoder is the same."""
    further = work / "vae-decoder.safetensors"
    return further if further.exists() else work / "vae.safetensors"


@torch.no_grad()
def sample_latents(
    model: Denoiser, captions: Tensor, empty: Tensor, steps: int, guidance: float = 3.0, seed: int = 0
) -> Tensor:
    """What the stock pipeline does, on latents of unit scale."""
    scheduler = build_scheduler()
    scheduler.set_timesteps(steps)
    shape = (len(captions), vae.LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    both = torch.cat([captions, empty.expand(len(captions), -1)])
    for timestep in scheduler.timesteps:
        guided, free = model(latents.repeat(2, 1, 1, 1), timestep.expand(len(both)), both).chunk(2)
        latents = scheduler.step(free + guidance * (guided - free), timestep, latents).prev_sample
    return latents


def save(
    place: Path,
    model: nn.Module,
    optimiser: MuonWithAdam,
    average: checkpoint.Average,
    seconds: float,
    passes: float,
) -> None:
    tensors = {
        **checkpoint.with_prefix("model", model.state_dict()),
        **checkpoint.with_prefix("average", average.tensors),
        **checkpoint.with_prefix("optimiser", optimiser.state),
        "random_state": torch.get_rng_state(),
    }
    checkpoint.save(place, tensors, {"steps": optimiser.step_count, "seconds": seconds, "passes": passes})


def resume(
    place: Path, model: nn.Module, optimiser: MuonWithAdam, average: checkpoint.Average
) -> tuple[float, float]:
    """Seconds and passes so far; zero where there is nothing to go on from."""
    if not place.exists():
        return 0.0, 0.0
    tensors, facts = checkpoint.load(place)
    model.load_state_dict(checkpoint.under_prefix("model", tensors))
    for name, tensor in checkpoint.under_prefix("average", tensors).items():
        average.tensors[name].copy_(tensor)
    for name, tensor in checkpoint.under_prefix("optimiser", tensors).items():
        optimiser.state[name].copy_(tensor)
    torch.set_rng_state(tensors["random_state"])
    optimiser.step_count = int(facts["steps"])
    return float(facts["seconds"]), float(facts["passes"])


def main() -> None:
    parser = argparse.ArgumentParser(description="Train the denoiser and the text encoder.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--average-decay", type=float, default=0.999)
    parser.add_argument("--variants", action="store_true", help="go on with variants of the pictures as well")
    chosen = parser.parse_args()
    settings = (chosen.batch, chosen.learning_rate, chosen.average_decay)
    train(chosen.work, chosen.minutes, *settings, with_variants=chosen.variants)


if __name__ == "__main__":
    main()
