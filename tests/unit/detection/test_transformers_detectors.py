"""Detectors of transformers: every family learns new classes, keeps old ones, and finds what its own program
finds."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from lorimer.errors import FileFormatError, UsageError
from lorimer.tasks._detector import Truth
from lorimer.tasks._detector_head import new_classes
from lorimer.tasks._detectors import load_detector
from lorimer.tasks._transformers_detector import TransformersDetector, load_transformers_detector
from tests.tiny_detectors import KINDS, SIDE, save_tiny_detector

KNOWN = ("red", "green")


@cache
def saved(kind: str) -> str:
    return str(save_tiny_detector(Path(mkdtemp()), kind, KNOWN))


def load(
    kind: str, *names: str, keep: bool = False, size: tuple[int, int] = (SIDE, SIDE)
) -> TransformersDetector:
    detector = load_transformers_detector(saved(kind), names or KNOWN, keep)
    detector.fit_to([size])
    return detector


def picture(seed: int = 0, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    return Image.fromarray(
        torch.randint(0, 256, (size[1], size[0], 3), generator=generator, dtype=torch.uint8).numpy()
    )


def truth(*labels: int) -> Truth:
    boxes = torch.tensor([[4.0 * each + 2, 8, 4.0 * each + 20, 40] for each in range(len(labels))])
    return Truth(boxes.reshape(-1, 4), torch.tensor(labels, dtype=torch.long))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_for_the_same_classes_changes_nothing(kind: str) -> None:
    from transformers import AutoModelForObjectDetection

    detector = load(kind)
    base = AutoModelForObjectDetection.from_pretrained(saved(kind)).eval()
    pixels = detector.prepare(picture()).pixels[None]
    with torch.no_grad():
        ours: Any = detector.network(pixels)
        theirs = base(pixels)
    assert ours.logits.equal(theirs.logits) and ours.pred_boxes.equal(theirs.pred_boxes)


@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_its_own_program_finds(kind: str) -> None:
    detector = load(kind)
    one = picture(size=(60, 45))
    prepared = detector.prepare(one)
    pixels, windows = prepared.pixels[None], prepared.window[None]
    (found,) = detector.find(detector.network, pixels, 0.0, windows=windows)
    mask = detector._mask(pixels, windows)
    with torch.no_grad():
        told = detector.network(pixels, **({} if mask is None else {"pixel_mask": mask}))
    # Shares are of the picture where positions are masked, else of the whole canvas.
    sides = (45, 60) if mask is not None or detector.stretches else (64 * 45 / 48, 60)
    (theirs,) = detector.processor.post_process_object_detection(told, -1.0, torch.tensor([sides]))
    scores, order = theirs["scores"].sort(descending=True, stable=True)
    count = len(scores)  # of RT-DETR as many as there are queries, of other pairs of query and class none
    assert count <= len(found.scores)
    torch.testing.assert_close(found.scores[:count], scores)
    boxes, wanted = prepared.back(found.boxes[:count]), theirs["boxes"][order]
    inside = ((wanted >= 0) & (wanted <= torch.tensor([60.0, 45, 60, 45]))).all(1)  # ours are cut
    torch.testing.assert_close(boxes[inside], wanted[inside], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_kept_classes_are_found_as_before(kind: str) -> None:
    """But for rounding, and for a softmax, which shares scores out among more classes."""
    base, kept = load(kind), load(kind, "blue", keep=True)
    assert kept.names == (*KNOWN, "blue") and set(map(tuple, kept.new.values())) == {(2,)}  # type: ignore[arg-type]
    pixels = base.prepare(picture()).pixels[None]
    with torch.no_grad():
        before: Any = base.network(pixels)
        after: Any = kept.network(pixels)
    if "rt-detr" not in kind:  # which takes its queries from whatever class is likeliest
        logits = after.logits[..., [0, 1, 3] if kept.softmax else [0, 1]]
        torch.testing.assert_close(logits, before.logits, atol=1e-5, rtol=1e-5)
        assert after.pred_boxes.equal(before.pred_boxes)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keep", [False, True])
def test_losses_reach_the_head_and_pictures_may_show_nothing(kind: str, keep: bool) -> None:
    detector = load(kind, "blue", keep=keep)
    network = detector.network
    network.train()
    pixels = torch.stack([detector.prepare(picture(seed)).pixels for seed in range(2)])
    label = detector.names.index("blue")
    torch.manual_seed(0)
    loss = detector.loss(network, pixels, [truth(label, label), truth()])
    loss.backward()
    assert loss.isfinite()
    for path in detector.new:
        gradient = network.get_submodule(path).weight.grad
        assert isinstance(gradient, torch.Tensor) and gradient[label].abs().max() > 0, path
    if keep and "rt-detr" not in kind:  # whose noisy labels are of any class
        head = network.get_submodule(next(iter(detector.new))).weight.grad
        assert isinstance(head, torch.Tensor) and head[: len(KNOWN)].abs().max() == 0
    empty = detector.loss(network, pixels, [truth(), truth()])
    assert empty.isfinite()


def test_classes_that_the_data_do_not_tell_of_take_no_part_in_the_loss() -> None:
    """A detector that keeps others has the loss of one that has none."""
    alone, beside = load("conditional-detr", "blue"), load("conditional-detr", "blue", keep=True)
    pixels = alone.prepare(picture()).pixels[None]
    losses = [
        each.loss(each.network, pixels, [truth(each.names.index("blue"))]).item() for each in (alone, beside)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


def test_classes_of_the_same_name_begin_as_the_base_has_them() -> None:
    assert new_classes(("a", "b"), ("b", "c"), keep=False).sources == (1, None)
    kept = new_classes(("a", "b"), ("c", "b"), keep=True)
    assert kept.names == ("a", "b", "c") and kept.learned == (2, 1) and kept.new == (2,)
    base, other = load("detr"), load("detr", "green", "blue")
    old, new = (each.network.get_submodule("class_labels_classifier").weight for each in (base, other))
    assert isinstance(old, torch.Tensor) and isinstance(new, torch.Tensor)
    assert new[0].equal(old[1]) and new[-1].equal(old[-1])  # and "no object" stays the last
    torch.testing.assert_close(new[1], old[:2].mean(0))


@pytest.mark.parametrize("kind", ["detr", "yolos", "rt-detr"])
@pytest.mark.parametrize("size", [(64, 40), (40, 64), (200, 100)])
def test_boxes_go_onto_the_prepared_picture_and_back(kind: str, size: tuple[int, int]) -> None:
    detector = load(kind, size=(64, 40))
    one = Image.new("RGB", size, (10, 10, 10))
    box = torch.tensor([[size[0] * 0.25, size[1] * 0.5, size[0] * 0.75, size[1] * 0.75]])
    one.paste((255, 255, 255), tuple(round(each) for each in box[0].tolist()))
    prepared = detector.prepare(one)
    assert detector.canvas is not None and prepared.pixels.shape == (3, *detector.canvas)
    bright = prepared.pixels[0] > prepared.pixels[0].max() * 0.5
    ys, xs = bright.nonzero(as_tuple=True)
    seen = torch.tensor([[xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]]).float()
    torch.testing.assert_close(prepared.onto(box), seen, atol=2.0, rtol=0)
    torch.testing.assert_close(prepared.back(prepared.onto(box)), box)


def test_padding_is_masked_and_black_pictures_are_not_padding() -> None:
    detector = load("detr", size=(64, 64))
    detector.processor.do_normalize = False  # black is then 0, as padding is
    for colour in ((0, 0, 0), (124, 116, 104)):
        prepared = detector.prepare(Image.new("RGB", (64, 32), colour))
        assert prepared.window.tolist() == [0, 0, 64, 32]
        mask = detector._mask(prepared.pixels[None], prepared.window[None])
        assert mask is not None and mask[0, :32].all() and not mask[0, 32:].any()


@pytest.mark.parametrize("kind", ["detr", "conditional-detr", "deformable-detr"])
def test_boxes_are_shares_of_the_picture_and_not_of_its_canvas(kind: str) -> None:
    """Whatever the pixels are: behind a stored prefix they are unknown."""
    detector = load(kind, size=(64, 64))
    prepared = detector.prepare(picture(size=(64, 32)))
    given: dict[str, Any] = {}

    def told(**values: Any) -> Any:
        given.update(values)
        return SimpleNamespace(loss=torch.zeros(()))

    told.config = detector.network.config  # type: ignore[attr-defined]
    whole = Truth(prepared.window[None], torch.tensor([0]))
    nothing = torch.full_like(prepared.pixels, torch.nan)[None]
    detector.loss(told, nothing, [whole], prepared.window[None])  # type: ignore[arg-type]
    assert given["labels"][0]["boxes"].tolist() == [[0.5, 0.5, 1, 1]]
    assert given["pixel_mask"].sum() == 64 * 32


@pytest.mark.parametrize("kind", ["yolos", "deformable-detr", "rt-detr"])
def test_a_saved_detector_finds_the_same(kind: str, tmp_path: Path) -> None:
    detector = load(kind, "blue", "green")
    detector.network.save_pretrained(tmp_path)  # type: ignore[operator]
    detector.processor.save_pretrained(tmp_path)
    again = load_detector(str(tmp_path), ("blue", "green"), keep=False)
    again.fit_to([(SIDE, SIDE)])
    pixels = detector.prepare(picture()).pixels[None]
    (one,), (other,) = (each.find(each.network, pixels, 0.0) for each in (detector, again))
    assert one.boxes.equal(other.boxes) and one.scores.equal(other.scores) and one.labels.equal(other.labels)


@pytest.mark.parametrize("kind", ["rt-detr", "rt-detr-v2"])
def test_a_size_that_scales_cannot_be_joined_in_is_refused(kind: str) -> None:
    detector = load(kind)
    detector.fit_to([(64, 64)], 96)
    assert detector.canvas == (96, 96)
    with pytest.raises(UsageError, match="multiples of 32 pixels, not in 100"):
        detector.fit_to([(64, 64)], 100)


def test_models_that_are_none_are_told(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(FileFormatError, match="transformers cannot load its model"):
        load_detector(str(tmp_path), ("blue",), keep=False)
    with pytest.raises(UsageError, match=r"no folder nanodet; scripts/nanodet_weights\.py"):
        load_detector("nanodet", ("blue",), keep=False)


def test_a_model_that_detects_nothing_is_refused(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    ViTForImageClassification(
        ViTConfig(
            hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8, image_size=32
        )
    ).save_pretrained(tmp_path)
    with pytest.raises(FileFormatError, match="transformers cannot load its model"):
        load_detector(str(tmp_path), ("blue",), keep=False)
