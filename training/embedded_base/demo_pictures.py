"""The two dozen pictures in an unseen style that the demo learns from.

    python -m training.embedded_base.demo_pictures --work WORK --into lorimer/demo_data/openmoji

Concepts from the base model's list, of every kind, so that the rest of the list can show whether the style
carries to what was not among them.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from training.embedded_base import concepts, data

WORD = "openmoji"

CONCEPTS = (
    "strawberry",
    "banana",
    "carrot",
    "hamburger",
    "doughnut",
    "coffee",
    "dog face",
    "pig face",
    "penguin",
    "turtle",
    "ladybug",
    "cactus",
    "tulip",
    "star",
    "smiling face",
    "ghost",
    "blue heart",
    "car",
    "rocket",
    "house",
    "gift",
    "t-shirt",
    "light bulb",
    "bell",
)

ATTRIBUTION = """\
The pictures in this folder are OpenMoji emoji, version 17.0.0 (https://openmoji.org), by the OpenMoji project
and its authors at HfG Schwaebisch Gmuend, drawn here on white at 64 x 64 pixels and otherwise unchanged.

Licence: Creative Commons Attribution-ShareAlike 4.0 International (CC BY-SA 4.0),
https://creativecommons.org/licenses/by-sa/4.0/

Whoever passes the pictures on names OpenMoji and keeps this licence. It covers the pictures and the captions
beside them, not the program around them.
"""


def write(work: Path, into: Path) -> None:
    """A PNG and a caption for each concept, and the licence."""
    pictures = data.load(work)
    known = {concept.caption: concept for concept in concepts.load()}
    chosen = [known[caption] for caption in CONCEPTS]
    into.mkdir(parents=True, exist_ok=True)
    drawn = pictures.style("openmoji")[concepts.rows(pictures, chosen)]
    for concept, pixels in zip(chosen, drawn, strict=True):
        stem = into / concept.caption.replace(" ", "-")
        data.to_picture(pixels).save(stem.with_suffix(".png"), optimize=True)
        stem.with_suffix(".txt").write_text(f"{WORD} {concept.caption}\n")
    (into / "LICENSE").write_text(ATTRIBUTION)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the demo's pictures.")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--into", type=Path, required=True)
    chosen = parser.parse_args()
    write(chosen.work, chosen.into)


if __name__ == "__main__":
    main()
