from __future__ import annotations

import json
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lorimer.errors import DataError
from lorimer.tasks._picture_reading import read_pictures
from lorimer.tasks._picture_sections import PictureData
from tests.unit.pictures.conftest import draw_ball, read


def _write(
    folder: Path, name: str, picture: Image.Image, caption: str | None = "a thing", **options: object
) -> None:
    picture.save(folder / name, **options)  # type: ignore[arg-type]
    if caption is not None:
        (folder / name).with_suffix(".txt").write_text(caption, encoding="utf-8")


def _only(folder: Path, resolution: int = 32) -> torch.Tensor:
    (picture,) = read(folder, resolution)
    return picture.pixels


def test_pictures_come_sorted_with_their_captions(balls: Path) -> None:
    pictures = read(balls, 32)
    assert [picture.name for picture in pictures] == sorted(picture.name for picture in pictures)
    assert pictures[0].caption == "a black ball"
    assert all(
        picture.pixels.shape == (3, 32, 32) and picture.pixels.dtype == torch.uint8 for picture in pictures
    )
    assert not pictures[0].enlarged


def test_folders_within_are_searched_and_hidden_files_are_not(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    _write(tmp_path / "cats", "tom.png", Image.new("RGB", (32, 32)), "猫 \n  tom\r\n")
    (tmp_path / ".thumbnails").mkdir()
    _write(tmp_path / ".thumbnails", "tom.png", Image.new("RGB", (32, 32)), None)
    (picture,) = read(tmp_path, 32)
    assert (picture.name, picture.caption) == ("cats/tom.png", "猫 tom")


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "PNG"])
def test_common_file_types_are_read(tmp_path: Path, ending: str) -> None:
    _write(tmp_path, f"a.{ending}", Image.new("RGB", (40, 32), (250, 5, 5)))
    red, green, blue = _only(tmp_path).float().mean((1, 2))
    assert red > 240 and green < 20 and blue < 20


def test_all_problems_are_named_at_once(tmp_path: Path) -> None:
    fine = Image.new("RGB", (32, 32))
    _write(tmp_path, "uncaptioned.png", fine, None)
    _write(tmp_path, "empty.png", fine, " \n")
    _write(tmp_path, "tiny.png", Image.new("RGB", (15, 200)))
    _write(tmp_path, "latin.png", fine, None)
    (tmp_path / "latin.txt").write_bytes("ein Bär".encode("latin-1"))
    _write(tmp_path, "twin.png", fine)
    _write(tmp_path, "twin.jpg", fine)
    _write(tmp_path, "two.png", fine)
    (tmp_path / "two.caption").write_text("another")
    _write(tmp_path, "moving.webp", fine, save_all=True, append_images=[Image.new("RGB", (32, 32), "red")])
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "broken.txt").write_text("a caption")
    _write(tmp_path, "cut.jpg", Image.effect_noise((64, 64), 90))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "cut.jpg").read_bytes()[:600])
    (tmp_path / "text.png").write_text("not a picture")
    (tmp_path / "text.txt").write_text("a caption")
    (tmp_path / "nothing.png").write_bytes(b"")
    (tmp_path / "nothing.txt").write_text("a caption")
    _write(tmp_path, "both.png", Image.new("RGB", (15, 200)), None)
    with pytest.raises(DataError) as caught:
        read(tmp_path, 32)
    message = str(caught.value)
    for expected in (
        "14 problems",
        "uncaptioned.png: has no caption; write one to uncaptioned.txt",
        "empty.txt: the caption is empty",
        "tiny.png: 15 x 200 px is too small",
        "latin.txt: is not UTF-8 text (byte 5)",
        "twin.jpg: another picture has the same name",
        "twin.png: another picture has the same name",
        "two.png: has captions in two.txt and two.caption",
        "moving.webp: is animated",
        "broken.png: is broken",
        "cut.jpg: is broken",
        "text.png: is broken or no picture\n",
        "nothing.png: is empty",
        "both.png: has no caption",
        "both.png: 15 x 200 px is too small",
    ):
        assert expected in message
    assert caught.value.exit_code == 3


def test_a_phones_picture_is_its_first_one(tmp_path: Path) -> None:
    small = Image.new("RGB", (16, 16), "red")
    _write(
        tmp_path, "phone.jpg", Image.new("RGB", (32, 32)), format="MPO", save_all=True, append_images=[small]
    )
    (picture,) = read(tmp_path, 32)
    assert picture.pixels.max() < 8


def test_a_thousand_problems_are_counted_and_the_first_shown(tmp_path: Path) -> None:
    (tmp_path / "metadata.jsonl").write_text("\n".join(["nonsense"] * 1000))
    with pytest.raises(DataError, match=r"1000 problems(.|\n)*and 950 more") as caught:
        read(tmp_path, 32)
    assert len(str(caught.value)) < 10_000


def test_no_folder_and_no_pictures_are_two_errors(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no such folder"):
        read(tmp_path / "nowhere", 32)
    with pytest.raises(DataError, match="holds no pictures"):
        read(tmp_path, 32)


def test_a_default_caption_and_another_suffix(tmp_path: Path) -> None:
    _write(tmp_path, "a.png", Image.new("RGB", (32, 32)), None)
    _write(tmp_path, "b.png", Image.new("RGB", (32, 32)), None)
    (tmp_path / "b.tags").write_text("one, two")
    pictures = read(tmp_path, 32, caption_suffix="tags", default_caption="a style", trigger="sks")
    assert [picture.caption for picture in pictures] == ["sks a style", "sks one, two"]


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_captions_from_one_file(balls: Path, kind: str) -> None:
    if kind == "jsonl":
        rows = [
            {"file_name": "red.png", "text": "rot,\u2028„Ball“", "more": 1},
            {"file_name": "./blue.png", "text": "blau"},
        ]
        text = "\n\r\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    else:
        text = 'file_name,text\r\nred.png,"rot, „Ball“"\r\n./blue.png,blau\r\n'
    (balls / f"metadata.{kind}").write_text(text, encoding="utf-8-sig")
    (balls / ".thumbnails").mkdir()
    draw_ball(balls / ".thumbnails" / "red.png", "red")  # hidden, and not counted as left out
    pictures = read(balls, 32)
    assert [(picture.name, picture.caption) for picture in pictures] == [
        ("red.png", "rot, „Ball“"),
        ("blue.png", "blau"),
    ]
    draw_ball(balls / "red.gif", "red")
    notes = read_pictures(PictureData(path=balls), 32).notes
    assert "left out, as the metadata file does not name them: 4" in notes
    assert not any("red.gif" in note for note in notes)  # the caption file says what is meant
    (balls / f"metadata.{kind}").unlink()
    notes = read_pictures(PictureData(path=balls), 32).notes
    assert "left out, save as PNG or JPEG to use: red.gif" in notes


def test_problems_of_the_caption_file_are_named_by_line(balls: Path) -> None:
    outside = balls.parent / "secret.png"
    draw_ball(outside, "red")
    rows = [
        '{"file_name": "red.png", "text": "a"}',
        '{"file_name": "red.png", "text": "b"}',
        '{"file_name": "gone.png", "text": "c"}',
        '{"file_name": "../secret.png", "text": "d"}',
        json.dumps({"file_name": str(outside), "text": "e"}),
        '{"file_name": "blue.png"}',
        '{"file_name": "green.png", "text": "  "}',
        "[1]",
        "{",
        "[" * 100_000,
    ]
    (balls / "metadata.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError) as caught:
        read(balls, 32)
    message = str(caught.value)
    for expected in (
        "line 2: 'red.png' is named a second time",
        "line 3: there is no picture 'gone.png'",
        "line 4: '../secret.png' leads out of the data folder",
        "line 5:",
        "line 6: needs the fields file_name and text",
        "line 7: the caption of 'green.png' is empty",
        "line 8: is no JSON object",
        "line 9: is not JSON",
        "line 10: is not JSON",
    ):
        assert expected in message


def test_a_csv_without_its_columns_and_two_caption_files(balls: Path) -> None:
    (balls / "metadata.csv").write_text("name;caption\nred.png;a\n")
    with pytest.raises(DataError, match="needs the fields file_name and text"):
        read(balls, 32)
    (balls / "metadata.jsonl").write_text('{"file_name": "red.png", "text": "a"}')
    with pytest.raises(DataError, match="both metadata"):
        read(balls, 32)


def test_the_crop_is_the_centre(tmp_path: Path) -> None:
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste(Image.new("RGB", (32, 32), "lime"), (32, 0))
    _write(tmp_path, "wide.png", wide)
    (picture,) = read(tmp_path, 32, shapes="square")
    assert (picture.pixels == torch.tensor([0, 255, 0]).view(3, 1, 1)).all()


def test_transparent_pictures_are_laid_on_white(tmp_path: Path) -> None:
    for number, mode in enumerate(("RGBA", "LA", "P")):
        picture = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
        folder = tmp_path / str(number)
        folder.mkdir()
        _write(folder, "a.png", picture.convert(mode), transparency=0) if mode == "P" else _write(
            folder, "a.png", picture.convert(mode)
        )
        assert (_only(folder) == 255).all(), mode


def test_pictures_are_turned_upright(tmp_path: Path) -> None:
    picture = Image.new("RGB", (32, 32), "black")
    picture.paste(Image.new("RGB", (32, 16), "white"), (0, 0))
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    _write(tmp_path, "a.png", picture, exif=exif)
    pixels = _only(tmp_path)
    assert (pixels[:, :16] == 0).all() and (pixels[:, 16:] == 255).all()


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    Image.fromarray(np.full((32, 32), 32768, dtype=np.uint16)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("grey")
    assert (_only(tmp_path).float() - 128).abs().max() <= 1


@pytest.mark.parametrize("mode", ["CMYK", "L", "1", "YCbCr"])
def test_other_colour_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.new("RGB", (32, 32), "white").convert(mode)
    _write(tmp_path, "a.jpg" if mode != "1" else "a.png", picture)
    assert _only(tmp_path).min() >= 250


def test_a_decompression_bomb_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    (tmp_path / "bomb.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")
    )
    (tmp_path / "bomb.txt").write_text("a bomb")
    with pytest.raises(DataError, match=r"bomb\.png: is too large"):
        read(tmp_path, 32)


def test_csv_that_cannot_be_parsed_is_named_by_line(balls: Path) -> None:
    (balls / "metadata.csv").write_text(f'file_name,text\nred.png,"{"x" * 200_000}"\n')  # beyond the limit
    with pytest.raises(DataError, match=r"metadata\.csv, line 2: is not CSV"):
        read(balls, 32)
    (balls / "metadata.csv").write_text("file_name,text\n")
    with pytest.raises(DataError, match=r"metadata\.csv: names no pictures"):
        read(balls, 32)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_an_unreadable_caption_is_named(balls: Path) -> None:
    (balls / "red.txt").chmod(0)
    with pytest.raises(DataError, match=r"red\.txt: cannot be read"):
        read(balls, 32)
