"""Pictures as the examples of training steps: shapes, masks, weights, forms of captions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from lorimer.tasks.text_to_image import TextToImage
from lorimer.train.order import Order, SeededExamples
from lorimer.train.seeding import seed_all
from tests.unit.pictures.conftest import draw_ball

MakeTask = Callable[..., TextToImage]


def test_pictures_of_several_shapes_train_in_batches_of_one(make_task: MakeTask, balls: Path) -> None:
    for number, colour in enumerate(("pink", "cyan", "brown")):
        draw_ball(balls / f"wide{number}.png", colour, size=(96, 40))
        (balls / f"wide{number}.txt").write_text(f"a {colour} ball")
    task = make_task("train.batch_size=2")
    model = task.model()
    data = task.data(model)
    order = Order(len(data), 2, 1, 0, groups=data.groups)  # type: ignore[arg-type, attr-defined]
    examples, shapes = SeededExamples(data, 0), set()
    pixels = 2 ** (len(model.vae.config.block_out_channels) - 1)  # along a side of a latent
    for places in order.batches(0, order.steps_per_epoch):
        batch = task.collate([examples[place] for place in places])
        height, width = batch["mean"].shape[-2:]
        assert (batch["sizes"][:, 4:] == torch.tensor([height, width]) * pixels).all()
        assert torch.isfinite(task.loss(model, batch))
        shapes.add((height, width))
    assert len(shapes) == 2 and order.steps_per_epoch == 3 + 2
    table = [note for note in task.describe(model, data) if "lost to the crop" in note]
    assert table


def test_masks_and_weights_reach_the_batch_only_where_there_are_some(
    make_task: MakeTask, balls: Path, tmp_path: Path
) -> None:
    plain = make_task()
    assert not {"mask", "weight"} & set(plain.data(plain.model())[0])
    sources = f"data.sources=[{{path: {balls}}}, {{path: {balls}, regularisation: true, masks: alpha}}]"
    task = make_task("data.path=null", sources, "objective.prior_weight=0.5")
    model = task.model()
    data = task.data(model)
    batch = task.collate([data[0], data[11]])
    assert batch["weight"].tolist() == [1.0, 0.5] and "mask" not in batch
    assert torch.isfinite(task.loss(model, batch))
    whole = task.collate([data[0], data[1]])
    assert torch.equal(whole["weight"], torch.ones(2))


def test_a_mask_has_the_shape_of_latents(make_task: MakeTask, balls: Path, tmp_path: Path) -> None:
    from PIL import Image

    for path in balls.glob("*.png"):
        picture = Image.open(path).convert("RGB")
        if path.stem == "red":
            picture.putalpha(0)
        picture.save(path)
    task = make_task("data.masks=alpha", "data.mask_background=0.25")
    model = task.model()
    data = task.data(model)
    batch = task.collate([data[index] for index in range(len(data))])  # type: ignore[arg-type]
    assert batch["mask"].shape == (6, 1, *batch["mean"].shape[-2:])
    assert sorted(batch["mask"].mean((1, 2, 3)).tolist()) == [0.25, 1, 1, 1, 1, 1]
    assert torch.isfinite(task.loss(model, batch))


def test_each_visit_draws_a_form_of_the_caption_that_follows_from_its_place(
    make_task: MakeTask, balls: Path
) -> None:
    for path in balls.glob("*.txt"):
        path.write_text("one, two, three, four")
    task = make_task("data.shuffle_tags=true", "data.keep_tags=1", "data.caption_variants=5")
    data = task.data(task.model())
    examples = SeededExamples(data, 0)
    seen = {examples[epoch, 0]["caption"] for epoch in range(20)}
    assert 1 < len(seen) <= 5 and all(caption.startswith("one, ") for caption in seen)
    first = examples[3, 0]
    seed_all(9, "elsewhere")
    again = examples[3, 0]
    assert first["caption"] == again["caption"]
    assert all(torch.equal(first["text"][name], again["text"][name]) for name in first["text"])


def test_caption_forms_have_texts_of_their_own(make_task: MakeTask, balls: Path) -> None:
    (balls / "red.txt").write_text("red, ball, sky, grass")
    task = make_task("data.shuffle_tags=true")
    data = task.data(task.model())
    texts: dict[str, torch.Tensor] = {}
    for index in range(len(data)):  # type: ignore[arg-type]
        for epoch in range(12):
            example = SeededExamples(data, 0)[epoch, index]
            kept = texts.setdefault(example["caption"], example["text"]["hidden"])
            assert torch.equal(kept, example["text"]["hidden"])
    forms = [text for caption, text in texts.items() if "grass" in caption]
    assert len(forms) > 1 and not torch.equal(forms[0], forms[1])
