from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from lit_distill.data import ClipTransform, normalize
from lit_distill.data.transforms import (
    Box,
    center_box,
    crop,
    multi_scale_box,
    multi_scale_offsets,
    multi_scale_sizes,
    random_box,
    resize,
    scaled_size,
    three_boxes,
)

NOISE = np.random.default_rng(0).integers(0, 256, (3, 60, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize(("width", "height"), [(341, 256), (45, 30), (90, 30), (33, 60)])
def test_resize_is_pillows(width: int, height: int) -> None:
    ours = resize(NOISE, width, height)
    assert ours.shape == (3, height, width, 3)
    for frame, expected in zip(ours, NOISE, strict=True):
        image = Image.fromarray(expected).resize((width, height), Image.Resampling.BILINEAR)
        np.testing.assert_array_equal(frame, np.asarray(image))


def test_resize_to_the_same_size_is_the_same() -> None:
    assert resize(NOISE, 90, 60) is NOISE


@pytest.mark.parametrize("aspect", ["fixed", "keep", "square"])
def test_scaled_size_never_falls_below_the_short_side(aspect: Any) -> None:
    for width in range(20, 400, 7):
        for height in range(20, 400, 11):
            assert min(scaled_size(width, height, 64, aspect=aspect)) == 64


def test_crops_of_a_frame_of_exactly_that_size() -> None:
    assert random_box(32, 32, 32, random.Random(0)) == center_box(32, 32, 32) == Box(0, 0, 32, 32)
    assert three_boxes(32, 32, 32) == [Box(0, 0, 32, 32)] * 3


def test_center_box_rounds_half_to_even() -> None:
    assert [center_box(size, 10, 10).left for size in (11, 13, 15)] == [0, 2, 2]
    assert [center_box(size, 10, 10, rounded=False).left for size in (11, 13, 15)] == [0, 1, 2]


def test_random_box_reaches_every_place_and_no_other() -> None:
    rng = random.Random(0)
    boxes = {random_box(13, 11, 10, rng)[:2] for _ in range(300)}
    assert boxes == {(left, top) for left in range(4) for top in range(2)}


def test_multi_scale_box_stays_inside() -> None:
    rng = random.Random(0)
    for width, height in ((341, 256), (256, 341), (256, 256), (455, 256)):
        for _ in range(200):
            box = multi_scale_box(width, height, 256, rng)
            assert 0 <= box.left <= box.left + box.width <= width
            assert 0 <= box.top <= box.top + box.height <= height
            assert (box.width, box.height) in multi_scale_sizes(width, height, 256)


def test_multi_scale_offsets_are_of_a_grid_of_quarters() -> None:
    offsets = multi_scale_offsets(340, 256, (224, 192))
    assert len(set(offsets)) == 13
    assert all(left % 29 == 0 and top % 16 == 0 for left, top in offsets)


def test_crop_takes_rows_by_top_and_columns_by_left() -> None:
    np.testing.assert_array_equal(crop(NOISE, Box(5, 7, 11, 13)), NOISE[:, 7:20, 5:16])


@pytest.mark.parametrize("box", [center_box, three_boxes, lambda w, h, s: random_box(w, h, s, random.Random(0))])
def test_crops_need_room(box: Any) -> None:
    with pytest.raises(ValueError, match="crop of 32x32 needs frames of at least that size, got 40x31"):
        box(40, 31, 32)


def test_normalize() -> None:
    clips = torch.randint(0, 256, (2, 4, 3, 5, 6), dtype=torch.uint8)
    floats = normalize(clips, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))
    assert floats.dtype == torch.float32
    for channel, (mean, std) in enumerate(((0.4, 0.1), (0.5, 0.2), (0.6, 0.3))):
        torch.testing.assert_close(floats[:, :, channel], (clips[:, :, channel].float() / 255 - mean) / std)


def test_training_flips_as_often_as_told() -> None:
    frames = np.zeros((1, 8, 8, 3), np.uint8)
    frames[:, :, 0] = 255
    transform = ClipTransform(size=8, scale=8, multi_scale=False)
    flipped = [transform.training(frames, random.Random(seed))[0, 0, 0, 0] == 0 for seed in range(200)]
    assert 70 < sum(flipped) < 130
    never = ClipTransform(size=8, scale=8, multi_scale=False, flip=0.0)
    assert all(never.training(frames, random.Random(seed))[0, 0, 0, 0] == 255 for seed in range(50))


def test_training_gives_all_frames_the_same_view() -> None:
    frames = np.repeat(NOISE[:1], 4, 0)
    view = ClipTransform(size=28, scale=32).training(frames, random.Random(3))
    assert view.shape == (4, 28, 28, 3)
    assert all((frame == view[0]).all() for frame in view)


def test_three_crops() -> None:
    left, right, middle = ClipTransform(size=32, scale=32).three_crops(NOISE)
    scaled = resize(NOISE, 42, 32)
    for view, start in ((left, 0), (right, 8), (middle, 4)):
        np.testing.assert_array_equal(view, scaled[:, :, start : start + 32])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"size": 33, "scale": 32}, "size must be from 1 to scale=32, got 33"),
        ({"size": 0, "scale": 32}, "size must be from 1"),
        ({"size": 28, "scale": 32, "flip": 1.5}, "flip is a probability from 0 to 1, got 1.5"),
        ({"size": 28, "scale": 32, "aspect": "wide"}, "aspect is 'fixed', 'keep' or 'square', got 'wide'"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipTransform(**arguments)
