"""What a trained classifier says of pictures. Imported when it is asked, since it imports torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lorimer.cli._answers import Answer, Asked
from lorimer.cli._runs import adapter_file
from lorimer.cli._texts import base_of, run_recipe
from lorimer.errors import DataError, UsageError
from lorimer.tasks._image_classifier import ImageClassifier
from lorimer.tasks._labelled_pictures import pictures_in
from lorimer.tasks._picture_decoding import Stored, decode, on_white

if TYPE_CHECKING:
    from PIL.Image import Image


def answers(asked: Asked) -> Iterator[Answer]:
    """Of the pictures that were given, and of all in folders, in their order.

    Raises:
        DataError: some are broken; they are named once the others are answered.
    """
    if not asked.inputs or asked.file is not None:
        raise UsageError("say what to classify: pictures, and folders of such")
    files = [file for given in asked.inputs for file in picture_files(Path(given).expanduser())]
    recipe = run_recipe(asked.source, "image-classification")
    base = base_of(asked.source, recipe, asked.model)
    classifier = ImageClassifier.load(adapter_file(asked.source), base, asked.strength)
    broken: list[str] = []
    for begin in range(0, len(files), asked.batch_size):
        opened = opened_pictures(files[begin : begin + asked.batch_size], broken)
        if opened:
            told_of_each = classifier.predict([picture for _, picture in opened])
            for (file, _), told in zip(opened, told_of_each, strict=True):
                yield Answer(str(file), {"picture": str(file), **told})
    if broken:
        raise DataError(
            f"{len(broken)} of {len(files)} pictures cannot be answered\n  " + "\n  ".join(broken)
        )


def opened_pictures(files: Sequence[Path], broken: list[str]) -> list[tuple[Path, Image]]:
    """Files and their pictures; what is wrong with others goes to `broken`."""
    found = []
    for file in files:
        try:
            found.append((file, on_white(decode(Stored(file).read(str(file)), str(file)))))
        except DataError as error:
            broken.append(str(error))
    return found


def picture_files(path: Path) -> list[Path]:
    """The picture at a path, or all in the folder that it is."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: there is no such picture or folder")
    found = list(pictures_in(path))
    if not found:
        raise UsageError(f"{path}: holds no pictures")
    return found
