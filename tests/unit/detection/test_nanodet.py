"""The native NanoDet as a detector: seeing, finding, learning new classes, keeping old ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import lorimer
from lorimer import LoRA
from lorimer.errors import FileFormatError, UsageError
from lorimer.formats.safe_io import read_safetensors, write_safetensors
from lorimer.tasks._box_maths import iou
from lorimer.tasks._detector import Truth
from lorimer.tasks._nanodet import NanoDetDetector, load_nanodet
from tests.unit.detection.tiny_nanodet import CONFIG, tiny_nanodet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_nanodet(tmp_path_factory.mktemp("nanodet"))


def _picture() -> tuple[Image.Image, Tensor]:
    """A wide picture with one thing, and the thing's box."""
    picture = Image.new("RGB", (128, 96), (30, 90, 160))
    ImageDraw.Draw(picture).rectangle((40, 20, 95, 79), fill=(230, 210, 40))
    return picture, torch.tensor([[40.0, 20, 96, 80]])


def _convolutions(network: nn.Module) -> list[str]:
    """What LoRA adapts: not the scores, whose rows are new or frozen."""
    return [
        path
        for path, layer in network.named_modules()
        if isinstance(layer, nn.Conv2d) and "scores" not in path
    ]


def _taught(detector: NanoDetDetector, label: int, steps: int) -> list[float]:
    """Train on one picture; the losses."""
    picture, box = _picture()
    prepared = detector.prepare(picture)
    truth = Truth(prepared.onto(box), torch.tensor([label]))
    torch.manual_seed(0)
    network = detector.network
    adapter = lorimer.attach(network, LoRA(rank=4), targets=_convolutions(network), full=detector.new)
    optimizer = torch.optim.AdamW(adapter.parameters(), lr=1e-2)
    losses = []
    for _ in range(steps):
        loss = detector.loss(network, prepared.pixels[None], [truth])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_a_picture_keeps_its_ratio_in_the_middle_of_black(folder: Path) -> None:
    detector = load_nanodet(folder, (), keep_old=False)
    picture, box = _picture()
    prepared = detector.prepare(picture)
    assert prepared.pixels.shape == (3, 64, 64)
    assert prepared.scale == (0.5, 0.5) and prepared.offset == (0, 8)
    torch.testing.assert_close(prepared.back(prepared.onto(box)), box)
    mean, std = torch.tensor(CONFIG.mean), torch.tensor(CONFIG.std)
    torch.testing.assert_close(prepared.pixels[:, 0, 0], -mean / std)
    blue_first = torch.tensor([160.0, 90, 30])
    torch.testing.assert_close(prepared.pixels[:, 12, 4], (blue_first - mean) / std)


def test_what_it_learns_it_finds_where_it_is(folder: Path) -> None:
    detector = load_nanodet(folder, ["kite"], keep_old=False)
    assert detector.names == ("kite",)
    losses = _taught(detector, 0, steps=45)
    assert losses[-1] < 0.4 * losses[0]
    picture, box = _picture()
    prepared = detector.prepare(picture)
    (found,) = detector.find(detector.network, prepared.pixels[None])
    assert found.scores.tolist() == sorted(found.scores.tolist(), reverse=True)
    assert iou(prepared.back(found.boxes[:1]), box).item() > 0.7


def test_kept_classes_are_as_they_were_and_strength_0_is_the_base(folder: Path) -> None:
    pixels = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    base = load_nanodet(folder, (), keep_old=False)
    with torch.no_grad():
        before, boxes_before = base.network(pixels)
    detector = load_nanodet(folder, ["kite", "dog"], keep_old=True)
    assert detector.names == ("cat", "dog", "cup", "kite") and detector.learned == (3, 1)
    old_rows = base.network.head.scores[0].weight  # type: ignore[union-attr]
    _taught(detector, 3, steps=5)
    assert torch.equal(detector.network.head.scores[0].weight[:3], old_rows)  # type: ignore[index]
    state = lorimer.attached(detector.network)["default"].state()
    assert state.full["head.scores.0.weight"].rows == (3,)
    with lorimer.disabled(detector.network), torch.no_grad():
        after, boxes_after = detector.network(pixels)
    assert torch.equal(boxes_after, boxes_before)
    torch.testing.assert_close(after[..., :3], before, rtol=0, atol=1e-6)


def test_pictures_say_nothing_of_classes_that_their_data_do_not_have(folder: Path) -> None:
    """A cat that nobody drew a box around must not teach that there is none."""
    detector = load_nanodet(folder, ["kite"], keep_old=True)
    logits = torch.randn(1, 84, 4, requires_grad=True)
    distances = torch.randn(1, 84, 4, CONFIG.bins)

    class Said(nn.Module):
        def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
            return logits, distances

    truth = Truth(torch.tensor([[8.0, 8, 40, 40]]), torch.tensor([3]))
    detector.loss(Said(), torch.zeros(1, 3, 64, 64), [truth]).backward()
    assert logits.grad is not None
    assert not logits.grad[..., :3].any() and logits.grad[..., 3].any()


def test_kept_classes_are_what_the_base_says_while_others_are_learned(folder: Path) -> None:
    """What training does to old scores is less by far than where only new ones are looked at."""
    picture, _ = _picture()
    moved = []
    for learned in ((3,), range(4)):
        detector = load_nanodet(folder, ["kite"], keep_old=True)
        pixels = detector.prepare(picture).pixels[None]
        before = detector.network(pixels)[0][..., :3].sigmoid()
        detector.learned = tuple(learned)  # all of them: a picture's boxes would tell of every class
        _taught(detector, 3, steps=25)
        with torch.no_grad():
            moved.append((detector.network(pixels)[0][..., :3].sigmoid() - before).abs().mean().item())
    assert moved[0] < 0.5 * moved[1]


def test_a_head_of_known_classes_begins_as_they_were(folder: Path) -> None:
    base = load_nanodet(folder, (), keep_old=False)
    detector = load_nanodet(folder, ["cup", "cat"], keep_old=False)
    for mine, old in zip(detector.network.head.scores, base.network.head.scores, strict=True):  # type: ignore[arg-type, union-attr]
        assert torch.equal(mine.weight, old.weight[[2, 0]]) and torch.equal(mine.bias, old.bias[[2, 0]])
    assert load_nanodet(folder, ["cup"], keep_old=True).new == {}


def test_pictures_may_be_seen_larger_and_the_file_says_so(folder: Path) -> None:
    detector = load_nanodet(folder, (), keep_old=False)
    detector.fit_to([(128, 96)], 96)
    picture, box = _picture()
    prepared = detector.prepare(picture)
    assert prepared.pixels.shape == (3, 96, 96)
    torch.testing.assert_close(prepared.back(prepared.onto(box)), box)
    other = load_nanodet(folder, (), keep_old=False).restored(detector.metadata())
    assert torch.equal(other.prepare(picture).pixels, prepared.pixels)
    assert other.preparation() == detector.preparation()
    with pytest.raises(UsageError, match="multiples of 32 pixels, not in 100"):
        detector.fit_to([(128, 96)], 100)
    for wrong in ({}, {"picture_size": "100"}, {"picture_size": "640x640"}):
        with pytest.raises(FileFormatError, match="picture_size must be a multiple of 32"):
            detector.restored(wrong)


def test_nothing_less_sure_and_no_more_than_asked_for(folder: Path) -> None:
    detector = load_nanodet(folder, (), keep_old=False)
    pixels = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    for found in detector.find(detector.network, pixels, least=0.4, most=7):
        assert len(found.boxes) == len(found.scores) == len(found.labels) <= 7
        assert (found.scores >= 0.4).all()
        assert (found.boxes >= 0).all() and (found.boxes <= 64).all()
    assert not len(detector.find(detector.network, pixels, least=1.0)[0].boxes)


def test_wrong_files_are_named(folder: Path, tmp_path: Path) -> None:
    told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    weights = read_safetensors(folder / "model.safetensors")[0]

    def refused(config: object, tensors: dict[str, Tensor] = weights) -> str:
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        write_safetensors(tensors, tmp_path / "model.safetensors")
        with pytest.raises(FileFormatError) as caught:
            load_nanodet(tmp_path, (), keep_old=False)
        return str(caught.value)

    assert 'lacks "model_type"' in refused({**told, "model_type": "bert"})
    assert "class_names: 'cat' is there twice" in refused({**told, "class_names": ["cat", "cat", "dog"]})
    assert "input_size" in refused({**told, "input_size": 65})
    assert "stem_channels" in refused({**told, "stem_channels": 10**12})
    assert "sizes" in refused({**told, "sizes": 3})
    assert "has the shape (3, 8, 1, 1) rather than (2, 8, 1, 1)" in refused(
        {**told, "class_names": ["a", "b"]}
    )
    some = {name: value for name, value in weights.items() if name != "neck.lateral_convs.1.bias"}
    assert "lacks neck.lateral_convs.1.bias" in refused(told, some)
    assert "extra is of no NanoDet" in refused(told, {**weights, "extra": torch.zeros(1)})
