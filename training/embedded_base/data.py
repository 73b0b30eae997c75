"""Pictures: four emoji styles of the same concepts, from npm packages to one array of 64 x 64 pixels.

    python -m training.embedded_base.data --work WORK

downloads the packages with ``npm pack`` (no install scripts run), draws every concept that all styles
have on white, and keeps the result in ``WORK/pictures.safetensors`` with the names in ``WORK/pictures.json``.
"""

from __future__ import annotations

import argparse
import io
import json
import re
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import resvg_py
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

PIXELS = 64

PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",  # MIT
    "noto": "emoji-datasource-google@16.0.0",  # Apache-2.0
    "twemoji": "emoji-datasource-twitter@16.0.0",  # CC-BY 4.0
    "openmoji": "openmoji@17.0.0",  # CC-BY-SA 4.0
}

#: The last is OpenMoji's second drawing of everything: black outlines without fill.
STYLES = ("fluent", "noto", "twemoji", "openmoji", "openmoji-black")

# OpenMoji leaves a wide margin inside its 72 x 72 drawing; the other styles fill theirs. This window
# gives the same size to the same thing.
OPENMOJI_WINDOW = 'viewBox="4 4 64 64"'


@dataclass(frozen=True)
class Pictures:
    """Every concept in every style.

    ``pixels``: uint8, (style, concept, 3, 64, 64), styles in the order of ``STYLES``.
    ``codes``: the emoji's code points ("1f34e"), ``names``: its Unicode name, in lower case.
    """

    pixels: Tensor
    codes: list[str]
    names: list[str]

    def style(self, name: str) -> Tensor:
        """The pictures of one style, uint8 (concept, 3, 64, 64)."""
        return self.pixels[STYLES.index(name)]


def load(work: Path) -> Pictures:
    """Every picture, from the file made earlier or else from the packages."""
    tensors, names = work / "pictures.safetensors", work / "pictures.json"
    if not names.exists():
        made = draw_all(download(work / "packages"))
        save_file({"pixels": made.pixels}, tensors)
        names.write_text(json.dumps({"codes": made.codes, "names": made.names}))
    listed = json.loads(names.read_text())
    return Pictures(load_file(tensors)["pixels"], listed["codes"], listed["names"])


def download(folder: Path) -> dict[str, Path]:
    """The npm archives, fetched by ``npm pack`` where they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    archives = {}
    for style, package in PACKAGES.items():
        name, _, version = package.rpartition("@")
        archive = folder / f"{name.lstrip('@').replace('/', '-')}-{version}.tgz"
        if not archive.exists():
            subprocess.run(["npm", "pack", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        archives[style] = archive
    return archives


def draw_all(archives: dict[str, Path]) -> Pictures:
    """Draw the concepts that all styles have."""
    fluent = read_archive(archives["fluent"], r"package/assets/(.+)\.webp")
    noto = read_archive(archives["noto"], r"package/img/google/64/(.+)\.png")
    twemoji = read_archive(archives["twemoji"], r"package/img/twitter/64/(.+)\.png")
    openmoji = read_archive(archives["openmoji"], r"package/color/svg/(.+)\.svg")
    outlines = read_archive(archives["openmoji"], r"package/black/svg/(.+)\.svg")
    entries = read_archive(archives["noto"], r"package/(emoji)\.json")["emoji"]

    codes, names, rows = [], [], []
    for entry in json.loads(entries):
        code = plain_code(entry["unified"])
        everywhere = all(code in style for style in (fluent, noto, twemoji, openmoji, outlines))
        if entry["category"] in ("Flags", "Component") or not everywhere:
            continue
        pictures = [draw_bitmap(style[code]) for style in (fluent, noto, twemoji)]
        pictures += [draw_openmoji(style[code]) for style in (openmoji, outlines)]
        rows.append(torch.stack(pictures))
        codes.append(code)
        names.append(entry["name"].lower())
    return Pictures(torch.stack(rows, dim=1).contiguous(), codes, names)


def read_archive(archive: Path, pattern: str) -> dict[str, bytes]:
    """The files whose path matches, by the code that the pattern's group finds in it."""
    found = {}
    with tarfile.open(archive) as members:
        for member in members:
            match = re.fullmatch(pattern, member.name)
            content = members.extractfile(member) if match else None
            if match and content:
                found[plain_code(match[1])] = content.read()
    return found


def plain_code(code: str) -> str:
    """One spelling for all packages, which differ in case and in the "draw in colour" mark fe0f."""
    return code.lower().replace("-fe0f", "")


def draw_bitmap(content: bytes) -> Tensor:
    """A picture file on white, as uint8 (3, 64, 64)."""
    picture = Image.open(io.BytesIO(content)).convert("RGBA")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    if flat.size != (PIXELS, PIXELS):
        flat = flat.resize((PIXELS, PIXELS), Image.Resampling.BOX)
    return to_tensor(flat)


def draw_openmoji(content: bytes) -> Tensor:
    """An OpenMoji drawing on white, at twice the size and then halved: its thin lines come out smoother."""
    text = re.sub(r'viewBox="[^"]*"', OPENMOJI_WINDOW, content.decode(), count=1)
    png = resvg_py.svg_to_bytes(svg_string=text, width=2 * PIXELS, height=2 * PIXELS)
    return draw_bitmap(bytes(png))


def to_tensor(picture: Image.Image) -> Tensor:
    """An RGB picture as uint8 (3, height, width)."""
    flat = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8)
    return flat.view(picture.height, picture.width, 3).permute(2, 0, 1).contiguous()


def to_picture(pixels: Tensor) -> Image.Image:
    """(3, height, width), uint8 or float in 0..1, as an RGB picture."""
    if pixels.is_floating_point():
        pixels = (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def grid(pixels: Tensor, columns: int) -> Image.Image:
    """Many pictures (n, 3, height, width) as one, row by row."""
    count, _, height, width = pixels.shape
    rows = -(-count // columns)
    sheet = Image.new("RGB", (columns * width, rows * height), "white")
    for index, picture in enumerate(pixels):
        sheet.paste(to_picture(picture), (index % columns * width, index // columns * height))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw every picture that the base model is trained on.")
    parser.add_argument("--work", type=Path, required=True, help="folder for downloads and results")
    pictures = load(parser.parse_args().work)
    print(f"{len(pictures.names)} concepts in {len(STYLES)} styles")


if __name__ == "__main__":
    main()
