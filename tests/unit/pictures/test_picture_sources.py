"""Where pictures come from: kohya's folders and dataset files, shards, sources with repeats and weights."""

from __future__ import annotations

import io
import json
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lorimer.errors import DataError, RecipeError
from lorimer.tasks._picture_draws import Share, epoch_draws
from lorimer.tasks._picture_reading import PictureSet, read_pictures
from lorimer.tasks._picture_sections import PictureData
from lorimer.tasks._picture_shards import shard_names


def _picture(path: Path, colour: object = None, size: tuple[int, int] = (32, 32), text: str = "") -> None:
    """A picture of noise, so that no two are alike, or of one colour."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = torch.randint(256, (size[1], size[0], 3), dtype=torch.uint8)
    picture = Image.fromarray(noise.numpy()) if colour is None else Image.new("RGB", size, colour)
    picture.save(path)
    if text:
        path.with_suffix(".txt").write_text(text)


def _read(resolution: int = 32, **data: object) -> PictureSet:
    return read_pictures(PictureData.model_validate(data), resolution)


def _drawn(found: PictureSet) -> Counter[str]:
    return Counter(found.training[number].name for number in found.draws)


@pytest.fixture
def kohya(tmp_path: Path) -> Path:
    _picture(tmp_path / "set" / "3_black cat" / "a.png")
    _picture(tmp_path / "set" / "3_black cat" / "b.png", text="a cat on a roof")
    _picture(tmp_path / "set" / "10_dog" / "c.png")
    return tmp_path / "set"


def test_kohya_folders_are_the_same_from_the_parent_and_from_the_child(kohya: Path) -> None:
    parent, child = _read(path=kohya), _read(path=kohya / "3_black cat")
    assert _drawn(parent) == {"3_black cat/a.png": 3, "3_black cat/b.png": 3, "10_dog/c.png": 10}
    assert _drawn(child) == {"a.png": 3, "b.png": 3}
    captions = {picture.name: picture.caption for picture in parent.training}
    assert captions == {
        "3_black cat/a.png": "black cat",
        "3_black cat/b.png": "a cat on a roof",
        "10_dog/c.png": "dog",
    }
    assert [picture.caption for picture in child.training] == ["black cat", "a cat on a roof"]
    assert "10_dog: shown 10 times an epoch" in parent.notes


def test_a_child_named_from_within_it_is_still_kohyas(kohya: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(kohya / "10_dog")
    assert _drawn(_read(path=".")) == {"c.png": 10}


def test_other_names_with_numbers_and_repeats_of_the_recipe(tmp_path: Path) -> None:
    _picture(tmp_path / "2019_summer" / "a.png", text="a beach")
    _picture(tmp_path / "0_off" / "b.png", text="a house")
    assert set(_drawn(_read(path=tmp_path)).values()) == {1}
    (tmp_path / "2019_summer" / "a.txt").rename(tmp_path / "a.txt")
    with pytest.raises(DataError, match=r"a\.png: has no caption"):
        _read(path=tmp_path)
    _picture(tmp_path / "new" / "5_cat" / "a.png", text="a cat")
    assert _drawn(_read(path=tmp_path / "new", repeats=2)) == {"5_cat/a.png": 2}


def test_a_project_folder_of_kohyas_page_is_refused_with_the_mend(tmp_path: Path) -> None:
    _picture(tmp_path / "img" / "3_cat" / "a.png")
    _picture(tmp_path / "reg" / "1_cat" / "b.png")
    with pytest.raises(DataError, match="give img as the path and reg as a further source"):
        _read(path=tmp_path)


def test_regularisation_is_shown_as_often_as_the_rest(kohya: Path, tmp_path: Path) -> None:
    for number in range(4):
        _picture(tmp_path / "reg" / f"{number}.png", text="a pet")
    sources = [{"path": kohya}, {"path": tmp_path / "reg", "regularisation": True}]
    found = read_pictures(PictureData.model_validate({"sources": sources}), 32, prior_weight=0.25)
    drawn = _drawn(found)
    assert sum(drawn.values()) == 32 and all(drawn[f"reg/{number}.png"] == 4 for number in range(4))
    assert all(p.loss_weight == (0.25 if p.is_regularisation else 1.0) for p in found.training)
    only = [{"path": tmp_path / "reg", "regularisation": True}]
    with pytest.raises(DataError, match="all are for regularisation"):
        _read(sources=only)


def test_weights_are_shares_of_an_epoch_and_stand_everywhere_or_nowhere(tmp_path: Path) -> None:
    for number in range(12):
        _picture(tmp_path / "many" / f"{number}.png", text="a style")
    for number in range(2):
        _picture(tmp_path / "few" / f"{number}.png", text="a subject")
    sources = [{"path": tmp_path / "many", "weight": 3}, {"path": tmp_path / "few", "weight": 1}]
    assert set(_drawn(_read(sources=sources)).items()) == {
        *((f"many/{number}.png", 1) for number in range(12)),
        *((f"few/{number}.png", 2) for number in range(2)),
    }
    del sources[1]["weight"]
    with pytest.raises(RecipeError, match=r"few has no weight while others have one"):
        _read(sources=sources)


@given(
    st.lists(st.tuples(st.integers(1, 30), st.floats(0.1, 10)), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_weighted_draws_are_exact_to_one_and_leave_nobody_out(
    sources: list[tuple[int, float]], repeats: int
) -> None:
    shares, first = [], 0
    for count, weight in sources:
        shares.append(Share([n for n in range(first, first + count) for _ in range(repeats)], weight))
        first += count
    drawn = Counter(epoch_draws(shares))
    total, whole = sum(drawn.values()), sum(weight for _, weight in sources)
    for share, (count, weight) in zip(shares, sources, strict=True):
        own = [drawn[number] for number in set(share.pictures)]
        assert min(own) >= repeats and max(own) - min(own) <= repeats
        # Each source's count is rounded, so a length of their sum is off by one half for each.
        assert abs(sum(own) - total * weight / whole) <= 0.5 + 0.5 * len(sources)
        assert len(own) == count


@given(st.integers(1, 30), st.integers(0, 30))
def test_regularisation_draws_are_as_many_as_the_others(learned: int, others: int) -> None:
    shares = [Share(range(learned)), Share(range(100, 100 + others), regularisation=True)]
    drawn = Counter(epoch_draws(shares))
    own = [drawn[100 + number] for number in range(others)]
    assert all(drawn[number] == 1 for number in range(learned))
    if others:
        assert sum(own) == learned and max(own) - min(own) <= 1


def test_crops_and_mirror_images_keep_the_shares_of_sources(tmp_path: Path) -> None:
    _picture(tmp_path / "one" / "a.png", size=(32, 64), text="a")
    _picture(tmp_path / "two" / "b.png", size=(32, 64), text="b")
    sources = [{"path": tmp_path / "one", "flip": True, "repeats": 2}, {"path": tmp_path / "two"}]
    found = _read(sources=sources, crops=3, shapes="square")
    assert _drawn(found) == {"one/a.png": 12, "two/b.png": 6}
    assert len({picture.placement.top for picture in found.training if picture.name == "one/a.png"}) > 1
    again = _read(sources=sources, crops=3, shapes="square")
    assert [picture.placement for picture in again.training] == [p.placement for p in found.training]
    plain, mirrored = (
        p for p in found.training if p.name == "one/a.png" and p.placement == again.training[0].placement
    )
    assert torch.equal(plain.pixels.flip(2), mirrored.pixels)


def test_problems_of_all_sources_are_told_at_once(tmp_path: Path) -> None:
    _picture(tmp_path / "one" / "a.png")
    (tmp_path / "empty").mkdir()
    sources = [{"path": tmp_path / name} for name in ("one", "empty", "gone")]
    with pytest.raises(DataError, match="3 problems") as caught:
        _read(sources=sources)
    for expected in (
        "one: a.png: has no caption",
        "empty: holds no pictures",
        "gone: there is no such folder",
    ):
        assert expected in str(caught.value)


TOML = """
[general]
shuffle_caption = true
keep_tokens = 1
enable_bucket = true
[[datasets]]
resolution = [32, 32]
batch_size = 4
keep_tokens = 2
color_aug = true
  [[datasets.subsets]]
  image_dir = "{folder}/one"
  class_tokens = "sks cat"
  num_repeats = 5
  [[datasets.subsets]]
  image_dir = "{folder}/10_two"
  is_reg = true
  flip_aug = true
  keep_tokens = 0
[[datasets]]
resolution = 64
enable_bucket = false
  [[datasets.subsets]]
  image_dir = "{folder}/one"
  caption_extension = ".tags"
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    _picture(tmp_path / "one" / "a.png", size=(80, 80))
    (tmp_path / "one" / "a.tags").write_text("tall, cat")
    _picture(tmp_path / "one" / "deeper" / "not-kohyas.png", size=(80, 80))
    _picture(tmp_path / "10_two" / "b.png", text="a pet")
    (tmp_path / "dataset.toml").write_text(TOML.format(folder=tmp_path.as_posix()))
    return tmp_path / "dataset.toml"


def test_a_dataset_file_of_kohya(dataset: Path) -> None:
    found = _read(path=dataset)
    own = {(p.source, p.mirrored): p for p in found.training}
    first, reg, second = own[0, False], own[1, False], own[2, False]
    assert (first.caption, first.size, first.captions.keep, first.captions.shuffle) == (
        "sks cat",
        (32, 32),
        2,
        True,
    )
    assert (second.caption, second.size, second.captions.keep) == ("tall, cat", (64, 64), 1)
    assert (reg.is_regularisation, reg.captions.keep, (1, True) in own) == (True, 0, True)
    drawn = Counter(found.training[number].source for number in found.draws)
    assert drawn == {0: 10, 2: 2, 1: 12}  # twice kohya's counts, as one of them has mirror images
    notes = "\n".join(found.notes)
    assert "batch_size = 4 is set with train.batch_size" in notes
    assert "color_aug = True is not followed" in notes


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("num_repeats = 5", "num_repeats = 0", r"datasets\[0\].subsets\[0\]: num_repeats: .* greater than 0"),
        ("flip_aug = true", 'flip_aug = "often"', r"datasets\[0\].subsets\[1\]: flip_aug: .*boolean"),
        ("resolution = 64", "resolution = [1, 2, 3]", r"datasets\[1\].subsets\[0\]: resolution: must be"),
        ("num_repeats = 5", "num_repeatz = 5", "num_repeatz: unknown option. Did you mean 'num_repeats'"),
        ("[general]", "[genera]", "genera: no such table"),
        ("[[datasets]]\nresolution = 64", "[[datasets]]\nmetadata_file = 'x'", "metadata_file: captions"),
        ("[general]", "[general", "cannot be read"),
    ],
)  # fmt: skip
def test_wrong_options_of_a_dataset_file_are_named_by_place(
    dataset: Path, old: str, new: str, expected: str
) -> None:
    text = dataset.read_text()
    assert old in text
    dataset.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=expected):
        _read(path=dataset)


def test_a_dataset_file_without_subsets_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text("datasets = 3")
    with pytest.raises(DataError, match=r"datasets: is written \[\[datasets\]\]"):
        _read(path=tmp_path / "x.toml")
    (tmp_path / "x.toml").write_text("[general]")
    with pytest.raises(DataError, match="names no pictures"):
        _read(path=tmp_path / "x.toml")
    with pytest.raises(DataError, match="cannot be read"):
        _read(path=tmp_path / "y.toml")


def _shard(path: Path, members: dict[str, bytes | Image.Image]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            if isinstance(content, Image.Image):
                kept = io.BytesIO()
                content.save(kept, "PNG")
                content = kept.getvalue()
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def test_pictures_in_shards(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    _shard(tmp_path / "x-00.tar", {"./a.png": red, "./a.txt": b"rot,\n Ball", "a.cls": b"1"})
    _shard(
        tmp_path / "x-01.tar",
        {
            "k/b.seg.png": red,
            "/k/b.json": json.dumps({"caption": "blau"}).encode(),
            "/k/b.png": blue,
            "../c.png": red,
            ".d.png": red,
        },
    )
    found = _read(path=tmp_path / "x-{00..01}.tar")
    assert [(p.name, p.caption) for p in found.training] == [("x-00/a", "rot, Ball"), ("x-01/k/b", "blau")]
    for picture, colour in zip(found.training, ((255, 0, 0), (0, 0, 255)), strict=True):
        assert (picture.pixels == torch.tensor(colour).view(3, 1, 1)).all()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x-00.tar", "x-01.tar"]


def test_problems_in_shards_are_told_at_once(tmp_path: Path) -> None:
    red = Image.new("RGB", (32, 32), "red")
    members = {
        "bare.png": red, "empty.png": red, "empty.txt": b" ", "json.png": red, "json.json": b'{"label": "x"}',
        "latin.png": red, "latin.txt": b"\xe4", "broken.png": b"nonsense", "broken.txt": b"x",
        "two.png": red, "two.webp": red, "two.txt": b"x",
    }  # fmt: skip
    _shard(tmp_path / "0.tar", members)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "1.tar").write_bytes(whole[:700])
    (tmp_path / "2.tar").write_bytes(b"no archive at all" * 100)
    with pytest.raises(DataError, match="9 problems") as caught:
        _read(path=tmp_path / "{0..3}.tar")
    for expected in (
        "0/bare: has no caption", "0/empty.txt: the caption is empty", "it stands under caption or text",
        "0/latin.txt: cannot be read", "0/broken: is broken", "0/two: there are two pictures",
        "1.tar: is no whole", "2.tar: is no whole", "3.tar: is no whole",
    ):  # fmt: skip
        assert expected in str(caught.value)


def test_a_link_in_a_shard_is_no_picture(tmp_path: Path) -> None:
    _picture(tmp_path / "secret.png")
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        link = tarfile.TarInfo("a.png")
        link.type, link.linkname = tarfile.SYMTYPE, str(tmp_path / "secret.png")
        archive.addfile(link)
    with pytest.raises(DataError, match="holds no pictures"):
        _read(path=tmp_path / "x.tar", default_caption="x")


def test_names_of_shards() -> None:
    assert shard_names("x.tar") == ["x.tar"]
    assert shard_names("x-{08..10}.tar") == ["x-08.tar", "x-09.tar", "x-10.tar"]
    assert shard_names("{0..1}/{2..3}.tar") == ["0/2.tar", "0/3.tar", "1/2.tar", "1/3.tar"]
    with pytest.raises(DataError, match="the most"):
        shard_names("{0..999999}-{0..999999}.tar")


def test_the_section_names_a_path_or_sources(tmp_path: Path) -> None:
    for data in ({}, {"path": "x", "sources": [{"path": "y"}]}):
        with pytest.raises(ValueError, match="needs a path, or several sources, and not both"):
            PictureData.model_validate(data)


def test_the_models_unit_holds_for_all_sides(tmp_path: Path) -> None:
    _picture(tmp_path / "a.png", text="a")
    for data in ({"resolution": 36}, {"bucket_step": 12}):
        with pytest.raises(RecipeError, match="must be a multiple of 8 for this model"):
            _read(path=tmp_path, **data)
