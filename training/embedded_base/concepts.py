"""The list of concepts, and the captions that ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training.embedded_base.data import Pictures

LIST = Path(__file__).with_name("concepts.txt")

#: The base styles and the word that asks for each in a caption: "3d red apple", "noto red apple".
STYLE_WORDS = {"fluent": "3d", "noto": "noto"}


@dataclass(frozen=True)
class Concept:
    """``caption``: what a person writes; ``name``: the emoji's Unicode name in lower case."""

    caption: str
    name: str


def load() -> list[Concept]:
    """The concepts in the order of the list; a caption given twice is an error."""
    concepts = []
    for line in LIST.read_text().splitlines():
        if line and not line.startswith("#"):
            caption, _, name = line.partition(" = ")
            concepts.append(Concept(caption, name or caption))
    captions = [concept.caption for concept in concepts]
    twice = {caption for caption in captions if captions.count(caption) > 1}
    if twice:
        raise ValueError(f"{LIST}: given twice: {sorted(twice)}")
    return concepts


def rows(pictures: Pictures, concepts: list[Concept]) -> list[int]:
    """Where each concept stands among the pictures; a name that no picture has is an error."""
    place = {name: index for index, name in enumerate(pictures.names)}
    unknown = [concept.name for concept in concepts if concept.name not in place]
    if unknown:
        raise ValueError(f"{LIST}: no picture is named {unknown}")
    return [place[concept.name] for concept in concepts]
