"""Real pictures with labels, out of Debian packages that carry them, to train on and to judge by.

    python examples/images/data.py WORK

writes WORK/stamps/{animals,clothes,...}/*.png (Tux Paint's photographs: package tuxpaint-stamps-default,
GPL 2) and WORK/fashion/*.gz (Fashion-MNIST: package dataset-fashion-mnist, MIT). Packages are taken from
/usr/share where they are installed, else fetched with `apt-get download`; nothing is installed.

A stamp is taken for a photograph where it is no cartoon, toy or plastic thing, no mirror image of another,
and has more than 256 colours. Labels are the outermost folders of things: 268 photographs of 7 labels.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

STAMPS, FASHION = "tuxpaint-stamps-default", "dataset-fashion-mnist"
LABELS = ("animals", "clothes", "food", "hobbies", "household", "plants", "vehicles")
DRAWN = {"cartoon", "toys", "plastic"}
COLOURS = 256


def main(work: Path) -> None:
    with tempfile.TemporaryDirectory() as place:
        stamps = shared(STAMPS, "tuxpaint/stamps", Path(place))
        for label in LABELS:
            count = 0
            for file in sorted((stamps / label).rglob("*.png")):
                inside = file.relative_to(stamps / label)
                if not DRAWN & set(inside.parts) and "_mirror" not in file.stem and is_photograph(file):
                    copied(file, work / "stamps" / label / "-".join(inside.parts))
                    count += 1
            print(f"{work / 'stamps' / label}: {count} pictures")
        for file in sorted(shared(FASHION, "datasets/fashion-mnist", Path(place)).glob("*-ubyte.gz")):
            print(copied(file, work / "fashion" / file.name))


def is_photograph(file: Path) -> bool:
    """Whether a picture has more colours than drawings have."""
    with Image.open(file) as picture:
        return picture.convert("RGB").getcolors(COLOURS) is None


def shared(package: str, inside: str, place: Path) -> Path:
    """A folder in /usr/share of an installed package, or of one fetched into `place`."""
    if (Path("/usr/share") / inside).is_dir():
        return Path("/usr/share") / inside
    subprocess.run(["apt-get", "download", "--quiet", package], cwd=place, check=True)
    subprocess.run(["dpkg", "-x", *place.glob(f"{package}_*.deb"), place / package], check=True)
    return place / package / "usr/share" / inside


def copied(file: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    return Path(shutil.copyfile(file, target))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
