"""Cut-out things pasted on photographs, with exact boxes, as COCO JSON: pictures to learn new classes from.

The cut-outs are photographs of Debian's tuxpaint-stamps-default (GPL-2) in eight classes that COCO lacks; the
photographs are of its opencv-doc, mate-backgrounds and lomiri-wallpapers-16.04. Training and test share
neither a cut-out nor a photograph.
"""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance

_STAMPS = "usr/share/tuxpaint/stamps"
CLASSES = {
    "coin": "symbols/money/*/coins/*",
    "fish": "animals/fish/ bluegroper butterflyfish clownfish coraltrout dolphinfish lionfish moonwrasse "
    "stripedfish",
    "flower": "plants/flowers/*",
    "gravestone": "seasonal/halloween/grave-*",
    "hat": "clothes/hats/*",
    "insect": "animals/insects/ bee fly grasshopper hornet hoverfly mantis xanthia",
    "string instrument": "hobbies/music/string/*",
    "tool": "household/tools/ hammer mallet_metal plyers saw spade wrench*",
}
_PHOTOGRAPHS = (
    "usr/share/doc/opencv-doc/examples/data/ aero1 aero3 aloeL baboon basketball1 board building chicky_512 "
    "fruits home leuvenA leuvenB licenseplate_motion messi5 rubberwhale1 squirrel_cls",
    "usr/share/doc/opencv-doc/examples/text/ scenetext01 scenetext02 scenetext03 scenetext04 scenetext05 "
    "scenetext06",
    "usr/share/doc/opencv-doc/examples/alphamat/input_images/ plant",
    "usr/share/backgrounds/mate/nature/ Aqua Dune GreenMeadow RainDrops Storm Wood",
    "usr/share/backgrounds/ Bridge_* Picture_* Wine_* aitzgorri_* free_* friends_* greentock_* life_* pico* "
    "sunset_*",
)
_STREETS = (
    "usr/share/doc/opencv-doc/opencv4/html/ pexels_double_decker_bus VideoDemo_RGB_PETS2006 "
    "Background_Subtraction_Tutorial_frame motion_original julia_facedetect_sample",
)
_SUFFIXES = {".png", ".jpg", ".jpeg"}
_LONGEST = 640  # pixels of a picture's longer side
_TRIES = 20  # to find a place
_MOST_COVERED = 0.15  # of a thing by a later one
_OPAQUE = 128


def photographs(root: Path, testing: bool) -> list[Path]:
    """Half of the photographs for each."""
    return _half(_files(root, _PHOTOGRAPHS), testing, share=0.5)


def plain_photographs(root: Path) -> list[Path]:
    """Photographs that nothing is pasted on in training, with more of COCO's things."""
    return photographs(root, testing=True) + _files(root, _STREETS)


def make(folder: Path, root: Path, count: int, testing: bool, seed: int) -> Path:
    """Write `count` pictures with one to four things each, and annotations.json, whose path is returned.

    Args:
        root: where the Debian packages are installed or unpacked.
    """
    draw = random.Random(seed)
    backgrounds = photographs(root, testing)
    cutouts = {
        name: [_trimmed(path) for path in _half(_files(root / _STAMPS, (told,)), testing, share=1 / 3)]
        for name, told in CLASSES.items()
    }
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in range(count):
        picture = _background(backgrounds[number % len(backgrounds)], draw)
        boxes = _paste(picture, cutouts, draw)
        name = f"pictures/{number:04d}.jpg"
        picture.save(folder / name, quality=92)
        images.append({"id": number, "file_name": name, "width": picture.width, "height": picture.height})
        for label, (x0, y0, x1, y1) in boxes:
            sides = (x1 - x0, y1 - y0)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": list(CLASSES).index(label) + 1,
                    "bbox": [x0, y0, *sides],
                    "area": sides[0] * sides[1],
                    "iscrowd": 0,
                }
            )
    told = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": place + 1, "name": name} for place, name in enumerate(CLASSES)],
    }
    path = folder / "annotations.json"
    path.write_text(json.dumps(told), encoding="utf-8")
    return path


def _files(root: Path, told: Sequence[str]) -> list[Path]:
    """The pictures that each text names: a folder and stems, or one pattern."""
    found: list[Path] = []
    for text in told:
        first, *stems = text.split()
        for pattern in [first + stem for stem in stems] or [first]:
            matches = [path for path in root.glob(pattern + ".*") if path.suffix.lower() in _SUFFIXES]
            if not matches:
                raise SystemExit(f"{root / pattern}.*: no such picture; unpack the packages there")
            found += matches
    return sorted(set(found))


def _half(files: list[Path], testing: bool, share: float) -> list[Path]:
    """`share` of the files to test with, or the others."""
    shuffled = random.Random(0).sample(files, len(files))
    cut = round(len(files) * share)
    return shuffled[:cut] if testing else shuffled[cut:]


def _trimmed(path: Path) -> Image.Image:
    picture = Image.open(path).convert("RGBA")
    return picture.crop(picture.getchannel("A").point(lambda value: 255 * (value >= _OPAQUE)).getbbox())


def _background(path: Path, draw: random.Random) -> Image.Image:
    """Most of a photograph, perhaps mirrored."""
    picture = Image.open(path).convert("RGB")
    share = draw.uniform(0.6, 1.0)
    width, height = (round(length * share) for length in picture.size)
    left, top = draw.randint(0, picture.width - width), draw.randint(0, picture.height - height)
    picture = picture.crop((left, top, left + width, top + height))
    factor = _LONGEST / max(picture.size)
    picture = picture.resize((round(picture.width * factor), round(picture.height * factor)))
    return picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if draw.random() < 0.5 else picture


def _paste(
    picture: Image.Image, cutouts: dict[str, list[Image.Image]], draw: random.Random
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """Paste things onto a picture; what each is and its box."""
    pasted: list[tuple[str, tuple[int, int, int, int]]] = []
    for _ in range(draw.randint(1, 4)):
        label = draw.choice(list(cutouts))
        thing = _varied(draw.choice(cutouts[label]), min(picture.size), draw)
        for _ in range(_TRIES):
            x = draw.randint(0, picture.width - thing.width)
            y = draw.randint(0, picture.height - thing.height)
            box = (x, y, x + thing.width, y + thing.height)
            if all(_covered(former, box) <= _MOST_COVERED for _, former in pasted):
                picture.paste(thing, (x, y), thing)
                pasted.append((label, box))
                break
    return pasted


def _varied(thing: Image.Image, side: int, draw: random.Random) -> Image.Image:
    """A cut-out in some size, turned a little, perhaps mirrored, lighter or darker."""
    longest = side * draw.uniform(0.15, 0.5)
    if draw.random() < 0.5:
        thing = thing.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    alpha = thing.getchannel("A")
    thing = ImageEnhance.Brightness(thing.convert("RGB")).enhance(draw.uniform(0.8, 1.2))
    thing.putalpha(alpha)
    thing = thing.rotate(draw.uniform(-20.0, 20.0), Image.Resampling.BICUBIC, expand=True)
    factor = longest / max(thing.size)
    thing = thing.resize((max(2, round(thing.width * factor)), max(2, round(thing.height * factor))))
    seen = np.argwhere(np.asarray(thing.getchannel("A")) >= _OPAQUE)
    (top, left), (bottom, right) = seen.min(0), seen.max(0) + 1
    return thing.crop((int(left), int(top), int(right), int(bottom)))


def _covered(box: Sequence[int], by: Sequence[int]) -> float:
    """The share of a box that another covers."""
    width = min(box[2], by[2]) - max(box[0], by[0])
    height = min(box[3], by[3]) - max(box[1], by[1])
    area = (box[2] - box[0]) * (box[3] - box[1])
    return max(width, 0) * max(height, 0) / area
