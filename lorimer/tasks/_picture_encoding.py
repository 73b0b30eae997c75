"""From pictures and captions to the tensors that training steps take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lorimer.families._base import Conditioning
from lorimer.tasks._diffusion import DiffusionModel
from lorimer.tasks._diffusion_loss import pooled_mask
from lorimer.tasks._encoding_cache import Encoding, EncodingCache
from lorimer.tasks._picture_data import Picture

Example = dict[str, Any]


class LatentEncoder:
    """Pictures into the VAE's latents: `mean` and `std` (channels, height, width), kept in the cache."""

    def __init__(self, model: DiffusionModel, folder: Path) -> None:
        self.model = model
        self.cache = EncodingCache(folder, [model.vae], model.family.name)

    def ensure(self, pictures: Sequence[Picture]) -> list[str]:
        """The cache's key of each picture's latents."""

        def encode(picture: Picture) -> Encoding:
            mean, std = self.model.encode_pictures(picture.pixels[None].float() / 127.5 - 1)
            return {"mean": mean[0], "std": std[0]}

        return self.cache.ensure(pictures, lambda picture: picture.content, encode)


class CaptionEncoder:
    """Captions into conditioning, kept in the cache; for text encoders that stay frozen."""

    def __init__(self, model: DiffusionModel, folder: Path) -> None:
        self.model = model
        tokenizers = [part for name, part in model.parts.items() if name.startswith("tokenizer") and part]
        more = f"{model.family.name} {model.clip_skip}"
        self.cache = EncodingCache(folder, [*model.text_encoders.values(), *tokenizers], more)

    def ensure(self, captions: Sequence[str]) -> list[str]:
        """The cache's key of each caption's conditioning."""

        def encode(caption: str) -> Encoding:
            conditioning = self.model.encode_texts([caption])
            return {name: tensor[0] for name, tensor in conditioning.items()}

        return self.cache.ensure(captions, str.encode, encode)

    def of(self, caption: str) -> Encoding:
        """The conditioning of one caption."""
        return self.cache[self.ensure([caption])[0]]


@dataclass(frozen=True)
class _Entry:
    captions: tuple[str, ...]  # forms of one caption
    latents: str  # keys of the caches
    texts: tuple[str, ...]
    facts: dict[str, Tensor]  # what needs no encoder


class Examples(Dataset[Example]):
    """Encoded pictures, as keys of the caches; what they stand for is read when a step asks for it.

    An example holds `mean` and `std` (channels, height, width) of its latents, `sizes` (6,) as in
    `Family.predict`, `caption`, and `text`, the caption's conditioning, unless text encoders learn. Where the
    pictures do not all count alike, it holds `weight` (), and where any has a mask, `mask` (1, height, width)
    at the resolution of latents.

    Args:
        pictures: what there is; each caption is shown in one of `variants` forms, drawn at each visit.
        draws: which picture each example shows; None for each once.
        groups: of each example; those of one group can be a batch.
    """

    def __init__(
        self,
        latents: LatentEncoder,
        texts: CaptionEncoder | None,
        pictures: Sequence[Picture],
        *,
        draws: Sequence[int] | None = None,
        groups: tuple[int, ...] = (),
        variants: int = 1,
        seed: int = 0,
    ) -> None:
        self.latents, self.texts = latents, texts
        self.draws = range(len(pictures)) if draws is None else draws
        self.groups = groups
        keys = latents.ensure(pictures)
        masked = any(picture.masked for picture in pictures)
        weighted = any(picture.loss_weight != 1 for picture in pictures)
        self.entries = [
            self._entry(picture, key, variants, seed, masked, weighted)
            for picture, key in zip(pictures, keys, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> Example:
        entry = self.entries[self.draws[index]]
        several = len(entry.captions) > 1
        form = int(torch.randint(len(entry.captions), ())) if several else 0
        example = {**self.latents.cache[entry.latents], **entry.facts, "caption": entry.captions[form]}
        if self.texts:
            example["text"] = self.texts.cache[entry.texts[form]]
        return example

    def _entry(
        self, picture: Picture, key: str, variants: int, seed: int, masked: bool, weighted: bool
    ) -> _Entry:
        captions = picture.variants(seed, variants) if variants > 1 else [picture.caption]
        texts = self.texts.ensure(captions) if self.texts else []
        facts = {"sizes": torch.tensor(picture.sizes)}
        if weighted:
            facts["weight"] = torch.tensor(picture.loss_weight)
        if masked:
            mask = picture.mask
            whole = torch.ones(picture.size) if mask is None else mask
            facts["mask"] = pooled_mask(whole[None, None], self.latents.cache[key]["mean"].shape[-2:])[0]
        return _Entry(tuple(captions), key, tuple(texts), facts)

    def told(self) -> str:
        """What was encoded, for a person."""
        latents, texts = self.latents.cache, self.texts.cache if self.texts else None
        misses, hits = (texts.misses, texts.hits) if texts else (0, 0)
        return (
            f"encoded {latents.misses} pictures and {misses} captions anew, found {latents.hits} and "
            f"{hits} in the cache"
        )


def collate(examples: Sequence[Example]) -> dict[str, Any]:
    """A batch of examples: tensors stacked, `text` by name, `caption` as a list."""
    first = examples[0]
    names = [name for name, value in first.items() if isinstance(value, Tensor)]
    batch: dict[str, Any] = {name: torch.stack([each[name] for each in examples]) for name in names}
    batch["caption"] = [each["caption"] for each in examples]
    if "text" in first:
        batch["text"] = stacked([each["text"] for each in examples])
    return batch


def cut_captions(model: DiffusionModel, captions: Sequence[str]) -> tuple[int, int]:
    """How many captions have more tokens than a text encoder takes, and how many it takes."""
    tokenizer = model.tokenizer
    limit: int = tokenizer.model_max_length
    lengths = [len(tokenizer(caption).input_ids) for caption in set(captions)]
    return sum(length > limit for length in lengths), limit


def stacked(conditionings: Sequence[Mapping[str, Tensor]]) -> Conditioning:
    """Conditioning of single captions as one batch; shorter entries are padded with zeros along axis 0."""
    return {name: torch.stack(_padded([each[name] for each in conditionings])) for name in conditionings[0]}


def with_empty(conditioning: Conditioning, empty: Mapping[str, Tensor], where: Tensor) -> Conditioning:
    """`conditioning` with that of the empty caption in the rows that `where` (batch,) marks."""
    replaced: Conditioning = {}
    for name, rows in conditioning.items():
        other = empty[name].to(rows)
        if rows.dim() > 1 and other.shape != rows.shape[1:]:
            other, *padded = _padded([other, *rows])
            rows = torch.stack(padded)
        mask = where.to(rows.device).view(-1, *[1] * (rows.dim() - 1))
        replaced[name] = torch.where(mask, other, rows)
    return replaced


def _padded(tensors: Sequence[Tensor]) -> list[Tensor]:
    longest = max((len(tensor) for tensor in tensors if tensor.dim()), default=0)
    return [
        torch.cat([tensor, tensor.new_zeros(longest - len(tensor), *tensor.shape[1:])])
        if tensor.dim() and len(tensor) < longest
        else tensor
        for tensor in tensors
    ]
