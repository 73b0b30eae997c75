"""The shapes that pictures are cut to, whatever sizes they come in."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lorimer.tasks._picture_buckets import Size, assign, buckets, place

sides = st.integers(64, 4000)
sizes = st.builds(Size, sides, sides)
grids = st.tuples(st.sampled_from([512, 768, 1000, 1024]), st.sampled_from([8, 32, 64])).map(
    lambda pair: (pair[0], pair[1], buckets(pair[0], pair[1], pair[0] // 2, 2 * pair[0]))
)


@given(
    resolution=st.integers(32, 1536),
    step=st.sampled_from([8, 16, 32]),
    smallest=st.integers(1, 1024),
    largest=st.integers(1, 3072),
)
def test_buckets_keep_within_area_step_and_sides(
    resolution: int, step: int, smallest: int, largest: int
) -> None:
    shapes = buckets(resolution, step, smallest, largest)
    square = Size(resolution // step * step, resolution // step * step)
    assert square in shapes and len(set(shapes)) == len(shapes)
    for shape in shapes:
        assert shape.area <= resolution**2
        assert shape.height % step == shape.width % step == 0
        assert Size(shape.width, shape.height) in shapes
        assert shape == square or all(smallest <= side <= largest for side in shape)


def test_the_usual_buckets_are_those_of_kohya() -> None:
    """Independent of ours: the loop of `make_bucket_resolutions` of sd-scripts, for 512 px."""
    wanted = {(512, 512)}
    for width in range(256, 1024 + 1, 64):
        height = min(1024, int((512 * 512 // width) // 64) * 64)
        if height >= 256:
            wanted |= {(width, height), (height, width)}
    assert set(buckets(512, 64, 256, 1024)) == wanted


@given(sizes, grids)
def test_no_picture_is_enlarged_and_its_shape_fits_a_batch(size: Size, grid: tuple) -> None:
    resolution, step, shapes = grid
    shape = assign(size, shapes, step)
    assert shape.height <= size.height and shape.width <= size.width
    assert shape.height % step == shape.width % step == 0
    assert shape.area <= resolution**2 and max(shape) <= 2 * resolution


@given(sizes, grids)
def test_of_the_shapes_that_fit_the_nearest_is_taken_and_turning_turns_it(size: Size, grid: tuple) -> None:
    _, step, shapes = grid
    shape, turned = assign(size, shapes, step), assign(Size(size.width, size.height), shapes, step)

    def error(other: Size) -> float:
        ratios = size.width / size.height, other.width / other.height
        return max(ratios) / min(ratios)

    nearest = min(shapes, key=error)
    if nearest.height <= size.height and nearest.width <= size.width:
        assert error(shape) <= error(nearest) * (1 + 1e-9)
    assert sorted(turned) == sorted(shape) or size.height == size.width


@given(sizes, grids, st.booleans())
def test_pictures_that_are_large_enough_lose_little(size: Size, grid: tuple, chance: bool) -> None:
    resolution, step, shapes = grid
    if min(size) < resolution or not 0.5 < size.width / size.height < 2:
        return
    generator = torch.Generator().manual_seed(0) if chance else None
    assert place(size, assign(size, shapes, step), generator).lost < (0.05 if step == 8 else 0.2)


@given(sizes, sizes, st.integers(0, 9))
def test_a_crop_lies_within_the_resized_picture_and_fills_its_target(
    original: Size, target: Size, seed: int
) -> None:
    for generator in (None, torch.Generator().manual_seed(seed)):
        placed = place(original, target, generator)
        assert 0 <= placed.top <= placed.resized.height - target.height
        assert 0 <= placed.left <= placed.resized.width - target.width
        assert target.height == placed.resized.height or target.width == placed.resized.width
        assert placed.mirrored().mirrored() == placed
        free = placed.resized.width - target.width
        assert placed.left + placed.mirrored().left == free


def test_small_pictures_get_a_smaller_shape_and_squares_enlarge_them() -> None:
    shapes = buckets(512, 64, 256, 1024)
    assert assign(Size(400, 500), shapes, 64) == Size(384, 448)
    assert assign(Size(512, 511), shapes, 64) == Size(512, 448)
    assert assign(Size(400, 500), (Size(512, 512),), 64, upscale=True) == Size(512, 512)
