"""What becomes of captions before they are learned."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lorimer.tasks._picture_captions import CaptionOptions, caption_variants, vary, with_trigger


def test_the_trigger_is_not_put_twice() -> None:
    assert with_trigger("an SKS dog", "sks") == "an SKS dog"
    assert with_trigger("a dog", "sks") == "sks a dog"
    assert with_trigger("a dog", None) == "a dog"


@pytest.mark.parametrize(
    ("text", "trigger", "led"),
    [
        ("a pink drink", "ink", True),  # only a part of other words
        ("a cat, ink, Ink-wash", "ink", False),
        ("inky", "ink", True),
        ("一幅水墨画", "水墨", False),  # no spaces between words
        ("a c++ logo", "c++", False),
    ],
)
def test_the_trigger_counts_as_a_word(text: str, trigger: str, led: bool) -> None:
    assert with_trigger(text, trigger) == (f"{trigger} {text}" if led else text)


tags = st.lists(st.text("abcdefg ", min_size=1).map(str.strip).filter(bool), min_size=1, max_size=12)
options = st.builds(
    CaptionOptions,
    trigger=st.sampled_from([None, "sks"]),
    shuffle=st.booleans(),
    keep=st.integers(0, 4),
    separator=st.sampled_from([",", ";", "|||"]),
    dropout=st.sampled_from([0.0, 0.3, 0.9]),
)


def _of(text: str, chosen: CaptionOptions) -> list[str]:
    text = text.removeprefix(f"{chosen.trigger} ") if chosen.trigger else text
    return text.split(f"{chosen.separator} ")


@given(tags, options, st.integers(0, 99))
def test_kept_tags_stay_and_no_tag_is_made_up(words: list[str], chosen: CaptionOptions, seed: int) -> None:
    text = f"{chosen.separator} ".join(words)
    varied = vary(text, chosen, torch.Generator().manual_seed(seed))
    assert varied == vary(text, chosen, torch.Generator().manual_seed(seed))
    left = _of(varied, chosen)
    assert left[: chosen.keep] == words[: chosen.keep]
    assert left and Counter(left) <= Counter(words)
    if not chosen.dropout:
        assert Counter(left) == Counter(words)
    if not chosen.shuffle:
        places = iter(words)
        assert all(tag in places for tag in left)  # in the same order
    if chosen.trigger:
        assert varied.startswith("sks ")


@given(tags, options, st.integers(0, 9), st.integers(1, 5))
def test_variants_follow_from_caption_and_seed(
    words: list[str], chosen: CaptionOptions, seed: int, count: int
) -> None:
    text = ", ".join(words)
    variants = caption_variants(text, chosen, seed, count)
    assert variants == caption_variants(text, chosen, seed, count)
    assert len(variants) == (count if chosen.vary else 1)
    if not chosen.vary:
        assert variants == [with_trigger(text, chosen.trigger)]


def test_shuffling_reaches_every_order_and_dropout_has_its_rate() -> None:
    shuffled = caption_variants("a, b, c", CaptionOptions(shuffle=True), 0, 200)
    assert len(set(shuffled)) == 6
    text = ", ".join(f"tag{number}" for number in range(20))
    dropped = caption_variants(text, CaptionOptions(dropout=0.25, keep=4), 0, 100)
    left = sum(len(variant.split(", ")) - 4 for variant in dropped) / (100 * 16)
    assert left == pytest.approx(0.75, abs=0.05)  # four standard deviations of 1,600 draws


def test_a_trigger_that_was_dropped_comes_back() -> None:
    chosen = CaptionOptions(trigger="sks", dropout=0.9)
    assert all("sks" in variant for variant in caption_variants("sks, dog, grass", chosen, 0, 50))
