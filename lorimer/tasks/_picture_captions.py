"""What becomes of a caption before it is learned: the trigger word, shuffled tags, dropped tags.

Pure functions of the caption, the options and a generator, so that variants can be encoded beforehand and
a resumed run draws the same ones.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CaptionOptions:
    """How a caption is varied.

    Attributes:
        trigger: put before captions that lack it.
        shuffle: tags come in another order each time.
        keep: so many tags at the beginning stay where they are and are never dropped.
        separator: what stands between tags.
        dropout: probability of leaving out each of the other tags.
    """

    trigger: str | None = None
    shuffle: bool = False
    keep: int = 0
    separator: str = ","
    dropout: float = 0.0

    @property
    def vary(self) -> bool:
        """Whether a caption may come out in more than one form."""
        return self.shuffle or self.dropout > 0


def with_trigger(text: str, trigger: str | None) -> str:
    """`text`, led by the trigger unless it holds it already as a word: "pink" holds no "ink". Scripts without
    spaces between words may run on: "水墨画" holds "水墨"."""
    if not trigger:
        return text
    word = rf"(?<!\w){re.escape(trigger.lower())}(?!\w)"
    return text if re.search(word, text.lower(), re.ASCII) else f"{trigger} {text}"


def vary(text: str, options: CaptionOptions, generator: torch.Generator) -> str:
    """One form of a caption, the trigger in front.

    Tags are shuffled and dropped behind the kept ones. At least one tag stays: to learn without a caption is
    what caption dropout is for.
    """
    tags = [tag.strip() for tag in text.split(options.separator) if tag.strip()]
    if not options.vary or not tags:
        return with_trigger(text, options.trigger)
    kept, others = tags[: options.keep], tags[options.keep :]
    if options.shuffle:
        others = [others[place] for place in torch.randperm(len(others), generator=generator).tolist()]
    drawn = torch.rand(len(others), generator=generator).tolist()
    left = [tag for tag, number in zip(others, drawn, strict=True) if number >= options.dropout]
    joint = f"{options.separator.strip()} "
    return with_trigger(joint.join(kept + left or others[:1]), options.trigger)


def caption_variants(text: str, options: CaptionOptions, seed: int, count: int) -> list[str]:
    """`count` forms of a caption, drawn independently, so that equal ones may be among them; one form where
    the options vary nothing. They depend on the arguments alone."""
    if not options.vary:
        return [with_trigger(text, options.trigger)]
    digest = hashlib.blake2b(f"{seed} {text}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "little"))
    return [vary(text, options, generator) for _ in range(count)]
