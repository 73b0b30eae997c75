"""Does an adapter carry its style to what it never saw, and does the thing stay what it was?

    python -m benchmarks.quality.style_transfer RUN --work WORK
    python -m benchmarks.quality.style_transfer RUN --work WORK --strengths 0 0.5 1 --concepts 120

draws concepts of the embedded model's list that were not among the run's pictures, with the run's trigger
word, at each strength, and measures both. The verdict goes to ``benchmarks/results/style_transfer.json``,
a sheet of everything that was judged beside it as PNG. With ``--pictures FOLDER`` it judges pictures that
something else drew: ``FOLDER/STRENGTH/red-apple.png``.

WORK is the folder of ``training.embedded_base.data``, with the real pictures of all styles.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality import concept, style
from training.embedded_base import concepts, data, text

RESULTS = Path(__file__).parents[1] / "results"

#: Draws captions at a strength: uint8 (n, 3, 64, 64).
Draw = Callable[[list[str], float], Tensor]


@dataclass(frozen=True)
class Judges:
    """Both measures, and the real pictures of every listed concept: (style, concept, 3, 64, 64)."""

    style: style.StyleClassifier
    concept: concept.ConceptSpace
    real: Tensor
    captions: list[str]
    new_style: str

    def verdict(self, pixels: Tensor, index: Tensor) -> dict[str, float]:
        """The share in the new style, the share whose concept was kept, and the share with both."""
        new = self.style.is_new(pixels)
        near = self.concept.ranks(pixels, index) < 5
        return {
            "new_style": new.float().mean().item(),
            **self.concept.kept(pixels, index),
            "new_style_and_top_5": (new & near).float().mean().item(),
        }

    def real_pictures(self, style_name: str, index: Tensor) -> Tensor:
        return self.real[data.STYLES.index(style_name)][index]


def make_judges(work: Path, new_style: str) -> Judges:
    """Train both on concepts outside the list; compare with the listed ones in the styles of others."""
    pictures, listed = data.load(work), concepts.load()
    rows = concepts.rows(pictures, listed)
    others = sorted(set(range(len(pictures.names))) - set(rows))
    base = list(concepts.STYLE_WORDS)
    classifier = style.train(
        torch.cat([pictures.style(name)[others] for name in base]),
        pictures.style(new_style)[others],
        torch.cat([pictures.style(name)[rows] for name in base]),
        pictures.style(new_style)[rows],
    )
    colour = [data.STYLES.index(name) for name in ("fluent", "noto", "twemoji", "openmoji")]
    gallery = [data.STYLES.index(name) for name in base]
    space = concept.train(pictures.pixels[colour][:, others], pictures.pixels[gallery][:, rows])
    captions = [entry.caption for entry in listed]
    return Judges(classifier, space, pictures.pixels[:, rows], captions, new_style)


def judge(judges: Judges, index: Tensor, trigger: str, strengths: list[float], draw: Draw) -> dict[str, Any]:
    """Everything measured, with what it has to be compared with."""
    names = [judges.captions[place] for place in index]
    sheets, results = [], {}
    for strength in strengths:
        pixels = draw([f"{trigger} {name}".strip() for name in names], strength)
        results[f"{strength:g}"] = judges.verdict(pixels, index)
        sheets.append(pixels)
    for base in concepts.STYLE_WORDS if trigger else ():
        plain = draw([text.caption(base, concepts.Concept(name, name)) for name in names], 0.0)
        results[f"0, asked for in {base}"] = judges.verdict(plain, index)
    real = judges.real_pictures(judges.new_style, index)
    save_sheet([*sheets, real], RESULTS / "style_transfer.png")
    return {
        "new_style": judges.new_style,
        "held_out_concepts": len(index),
        "concepts_to_choose_from": len(judges.captions),
        "strength": results,
        "real_pictures_in_the_new_style": judges.verdict(real, index),
        "chance": {f"top_{k}": k / len(judges.captions) for k in (1, 5, 10)},
        "style_classifier_accuracy_on_real_pictures": judges.style.accuracy,
    }


def save_sheet(sheets: list[Tensor], place: Path, columns: int = 16) -> None:
    """One row for each strength and one of real pictures, then the next concepts."""
    rows = []
    for start in range(0, len(sheets[0]), columns):
        for pixels in sheets:
            part = pixels[start : start + columns]
            blank = torch.full((columns - len(part), *part.shape[1:]), 255, dtype=torch.uint8)
            rows.append(torch.cat([part, blank]))
    place.parent.mkdir(parents=True, exist_ok=True)
    sheet = data.grid(torch.cat(rows), columns)
    sheet.quantize(256).save(place, optimize=True)  # a third of the size


def drawn_by_run(run: Path) -> tuple[Draw, str, set[str]]:
    """How a finished lorimer run draws, its trigger word, and the captions that it was trained on."""
    from lorimer.cli._pictures import draw, load_adapted
    from lorimer.train.recipe import load_recipe

    adapted = load_adapted(run, None)
    folder = Path(load_recipe(run / "recipe.yaml", environment={}).data.path)
    lines = [path.read_text().strip() for path in folder.glob("*.txt")]
    trained = {line.removeprefix(adapted.trigger).strip() for line in lines}

    def drawn(captions: list[str], strength: float) -> Tensor:
        rows = draw(adapted.model, captions, [0] * len(captions), [strength], **adapted.settings)
        return torch.stack([data.to_tensor(picture.convert("RGB")) for (picture,) in rows])

    return drawn, adapted.trigger, trained


def drawn_before(folder: Path) -> Draw:
    """Pictures that lie in a folder, by strength and by concept."""

    def drawn(captions: list[str], strength: float) -> Tensor:
        paths = [folder / f"{strength:g}" / f"{caption.replace(' ', '-')}.png" for caption in captions]
        return torch.stack([data.to_tensor(Image.open(path).convert("RGB")) for path in paths])

    return drawn


def held_out(judges: Judges, trained: set[str], count: int, seed: int = 0) -> Tensor:
    """A random choice of the listed concepts that were not trained on, in the list's order."""
    unseen = [place for place, caption in enumerate(judges.captions) if caption not in trained]
    return torch.tensor(sorted(random.Random(seed).sample(unseen, min(count, len(unseen)))))


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure style transfer to concepts that were held out.")
    parser.add_argument("run", type=Path, help="a finished lorimer run")
    parser.add_argument("--work", type=Path, required=True, help="folder of the real pictures")
    parser.add_argument("--new-style", choices=data.STYLES, default="openmoji")
    parser.add_argument("--strengths", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--concepts", type=int, default=96)
    parser.add_argument("--pictures", type=Path, help="judge these instead of drawing")
    chosen = parser.parse_args()
    judges = make_judges(chosen.work, chosen.new_style)
    draw, trigger, trained = drawn_by_run(chosen.run)
    index = held_out(judges, trained, chosen.concepts)
    if chosen.pictures:
        draw, trigger = drawn_before(chosen.pictures), ""
    result = judge(judges, index, trigger, chosen.strengths, draw)
    place = RESULTS / "style_transfer.json"
    place.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
