"""A part of a frame, converted alone, is that part of the whole frame converted."""

from __future__ import annotations

import random
from pathlib import Path

import av
import av.video.reformatter
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lit_distill.data import VideoError, read_frames, write_video
from lit_distill.data.decoding.cropping import Cropper, pixels, unturned

from ..conftest import moving_bars, write_images
from ..video_files import Spec, encode

FORMATS = [
    *("yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuv444p", "gbrp", "rgb24", "gray"),
    *("nv12", "yuv420p10le", "yuv411p", "yuv410p", "rgba"),
]
SIZES = [(90, 66), (64, 48), (67, 49), (66, 51), (67, 50), (340, 256)]


def picture(width: int, height: int, seed: int) -> NDArray[np.uint8]:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 11, 3), dtype=np.uint8))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BILINEAR)).astype(int)
    return (smooth + rng.integers(-9, 9, smooth.shape)).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("form", FORMATS)
def test_a_part_is_that_part_of_the_whole(form: str) -> None:
    chance = random.Random(form)
    for trial in range(36):
        width, height = SIZES[trial % len(SIZES)]
        frame = av.VideoFrame.from_ndarray(picture(width, height, trial), format="rgb24").reformat(format=form)
        turns, flip = chance.randrange(4), chance.random() < 0.5
        whole = av.video.reformatter.VideoReformatter().reformat(frame, format="rgb24", threads=1)
        shown = np.rot90(pixels(whole), turns)
        across, down = chance.randint(1, shown.shape[1]), chance.randint(1, shown.shape[0])
        left, top = chance.randint(0, shown.shape[1] - across), chance.randint(0, shown.shape[0] - down)
        cropper = Cropper(av.video.reformatter.VideoReformatter(), (left, top, across, down), None, flip=flip)
        wanted = shown[top : top + down, left : left + across]
        np.testing.assert_array_equal(cropper(frame, turns), wanted[:, ::-1] if flip else wanted)


def test_a_turned_part_is_found_where_it_is_stored() -> None:
    stored = np.arange(7 * 9).reshape(7, 9)
    for turns in range(4):
        shown = np.rot90(stored, turns)
        part = (2, 1, 3, 4)
        left, top, width, height = map(int, unturned(part, shown.shape[::-1], turns))
        again = np.rot90(stored[top : top + height, left : left + width], turns)
        np.testing.assert_array_equal(again, shown[1:5, 2:5])


@pytest.mark.parametrize("rotation", [0, 90, 180, -90])
def test_reads_of_a_part(tmp_path: Path, rotation: int) -> None:
    encode(tmp_path / "a.mp4", Spec("libx264", {"g": "5"}, 12, rotation=rotation))
    whole = read_frames(tmp_path / "a.mp4", [7, 2, 7])
    part = read_frames(tmp_path / "a.mp4", [7, 2, 7], crop=(5, 3, 31, 40), flip=True)
    np.testing.assert_array_equal(part, whole[:, 3:43, 5:36][:, :, ::-1])
    np.testing.assert_array_equal(
        read_frames(tmp_path / "a.mp4", [3], flip=True), read_frames(tmp_path / "a.mp4", [3])[:, :, ::-1]
    )
    small = read_frames(tmp_path / "a.mp4", [7], crop=(4.5, 3.25, 31.5, 40), size=(20, 16))
    assert small.shape == (1, 20, 16, 3)
    middle = np.asarray(Image.fromarray(whole[0]).resize((16, 20), Image.Resampling.BILINEAR, (4.5, 3.25, 36, 43.25)))
    assert np.abs(small[0].astype(int) - middle).mean() < 14
    assert np.abs(small[0, :, ::-1].astype(int) - middle).mean() > 20


def test_folders_of_images_are_cropped_alike(tmp_path: Path) -> None:
    write_images(tmp_path, list(moving_bars(3)))
    whole = read_frames(tmp_path, [2, 0], suffix="img_{:05}.jpg")
    part = read_frames(tmp_path, [2, 0], suffix="img_{:05}.jpg", crop=(1, 2, 33, 41), flip=True)
    np.testing.assert_array_equal(part, whole[:, 2:43, 1:34][:, :, ::-1])


def test_frames_of_another_size_show_the_same_share(tmp_path: Path) -> None:
    for number, (height, width) in enumerate(((48, 64), (96, 128))):
        encode(tmp_path / f"{number}.ts", Spec("libx264", {"g": "5"}, 10, height=height, width=width))
    joined = b"".join((tmp_path / f"{number}.ts").read_bytes() for number in range(2))
    clip = read_frames(joined, [3, 13], crop=(8, 4, 32, 40), size=(40, 32))
    large = read_frames(tmp_path / "1.ts", [3], crop=(16, 8, 64, 80), size=(40, 32))
    np.testing.assert_array_equal(clip[1], large[0])
    with pytest.raises(VideoError, match="differ in size"):
        read_frames(joined, [3, 13], crop=(8, 4, 32, 40))


@pytest.mark.parametrize("crop", [(-1, 0, 5, 5), (0, 0, 0, 5), (0, 0, 5, float("nan")), (0.5, 0, 5, 5)])
def test_a_crop_that_no_frame_has(tmp_path: Path, crop: tuple[float, float, float, float]) -> None:
    write_video(tmp_path / "a.mp4", moving_bars(3))
    with pytest.raises(ValueError, match="crop"):
        read_frames(tmp_path / "a.mp4", [0], crop=crop)


def test_a_crop_beyond_the_frame(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", moving_bars(3))
    assert read_frames(tmp_path / "a.mp4", [0], crop=(60, 40, 4, 8)).shape == (1, 8, 4, 3)
    for crop in ((60, 40, 5, 8), (60, 40, 4, 9)):
        with pytest.raises(VideoError, match=r"a\.mp4: the crop .* does not lie inside frames of 64 x 48"):
            read_frames(tmp_path / "a.mp4", [0], crop=crop)
