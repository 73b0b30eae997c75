"""From pictures and captions to the tensors that training steps take."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from lorimer.tasks._diffusion import DiffusionModel
from lorimer.tasks._encoding_cache import EncodingCache
from lorimer.tasks._picture_data import Picture

Example = dict[str, Tensor]


class PictureEncoder:
    """Pictures with captions into examples; through the caches where the encoder is frozen."""

    def __init__(
        self, model: DiffusionModel, latent_cache: EncodingCache, text_cache: EncodingCache | None
    ) -> None:
        self.model = model
        self.latent_cache = latent_cache
        self.text_cache = text_cache

    def __call__(self, pictures: Sequence[Picture], mirrored: bool = False) -> list[Example]:
        """One example each: latent mean and std (channels, height, width), and its text."""
        pixels = [picture.pixels.flip(2) if mirrored else picture.pixels for picture in pictures]
        latents = self.latent_cache.encode(pixels, self._encode_pixels)
        texts = self.texts([picture.caption for picture in pictures])
        return [latent | text for latent, text in zip(latents, texts, strict=True)]

    def texts(self, captions: Sequence[str]) -> list[Example]:
        """`embedding` (tokens, width) of each caption; `input_ids` (tokens,) if the text encoder learns."""
        ids = list(self.model.tokenize(captions)) if captions else []
        if self.text_cache is None:
            return [{"input_ids": each} for each in ids]
        return self.text_cache.encode(ids, lambda batch: (self.model.encode_texts(batch),))

    def cut_captions(self, captions: Sequence[str]) -> int:
        """How many captions have more tokens than the text encoder takes."""
        tokenizer = self.model.tokenizer
        return sum(
            len(tokenizer(caption).input_ids) > tokenizer.model_max_length for caption in set(captions)
        )

    def _encode_pixels(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_pictures(pixels.float() / 127.5 - 1)
