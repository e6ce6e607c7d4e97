from __future__ import annotations

import random
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from lit_distill.data import (
    ClipTransform,
    FrameSampling,
    Limits,
    Sample,
    SampleKey,
    VideoDataset,
    VideoError,
    read_frames,
    read_list,
    write_video,
)
from lit_distill.data.sources import FrameFolders, VideoFiles

from .conftest import grey, moving_bars, write_images

TRANSFORM = ClipTransform(size=28, scale=32)


def make(videos: Path, **arguments: Any) -> Any:
    samples = read_list(videos / "train.txt", root=videos, num_classes=3)
    return VideoDataset(samples, **{"sampling": FrameSampling(num_frames=4), "transform": TRANSFORM, **arguments})


def test_items(videos: Path) -> None:
    dataset = make(videos)
    assert len(dataset) == 12
    for index in (0, 5, 11):
        clip, label, position = dataset[index]
        assert (clip.shape, clip.dtype) == ((4, 3, 28, 28), torch.uint8)
        assert (label, position) == (index // 4, index)


def test_center_is_the_published_valid_pipeline(videos: Path) -> None:
    dataset = make(videos, views="center", resize="exact")
    frames = read_frames(videos / "jump/3.mp4", [3, 11, 19, 27])
    expected = TRANSFORM.center(frames).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(dataset[3][0], expected)
    assert torch.equal(dataset[SampleKey(9, 3)][0], dataset[3][0])


def test_a_key_gives_the_same_clip_whatever_came_before(videos: Path) -> None:
    key = SampleKey(2, 7)
    first = make(videos)[key][0]
    other = make(videos)
    for index in range(12):
        random.seed(index)
        torch.manual_seed(index)
        other[SampleKey(index, index)]
    assert torch.equal(other[key][0], first)


def test_epoch_index_and_seed_change_the_clip(videos: Path) -> None:
    clips = [make(videos, seed=seed)[SampleKey(epoch, 3)][0] for seed in range(2) for epoch in range(3)]
    assert all(not torch.equal(a, b) for i, a in enumerate(clips) for b in clips[:i])


def test_an_index_is_a_key_of_epoch_0(videos: Path) -> None:
    dataset = make(videos)
    assert torch.equal(dataset[3][0], dataset[SampleKey(0, 3)][0])


def test_the_global_generators_are_left_alone(videos: Path) -> None:
    def numpy_state() -> str:
        return repr(np.random.get_state())  # noqa: NPY002

    states = random.getstate(), torch.get_rng_state(), numpy_state()
    make(videos)[3]
    assert random.getstate() == states[0]
    assert torch.equal(torch.get_rng_state(), states[1])
    assert numpy_state() == states[2]


def test_dense_views_are_ten_clips_by_three_crops(videos: Path, tmp_path: Path) -> None:
    write_video(tmp_path / "long.mp4", moving_bars(90))
    dataset = VideoDataset(
        [Sample(str(tmp_path / "long.mp4"), 0)],
        sampling=FrameSampling(num_frames=4),
        transform=TRANSFORM,
        views="dense",
        resize="exact",
    )
    views: Any = dataset[0][0]
    assert views.shape == (30, 4, 3, 28, 28)
    plan = FrameSampling(num_frames=4, mode="dense").evaluation(90, clips=10)
    for clip in (0, 4, 9):
        crops = TRANSFORM.three_crops(read_frames(tmp_path / "long.mp4", plan[clip]))
        for crop in range(3):
            np.testing.assert_array_equal(views[3 * clip + crop], crops[crop].transpose(0, 3, 1, 2))


@pytest.mark.parametrize("mode", ["plain", "linspace", "dense", "select_left", "interval"])
@pytest.mark.parametrize("views", ["train", "center", "dense"])
def test_short_videos_repeat(videos: Path, mode: Any, views: Any) -> None:
    dataset = make(videos, sampling=FrameSampling(num_frames=16, mode=mode), views=views)
    assert dataset[1][0].shape[-4:] == (16, 3, 28, 28)


def test_frame_folders_give_what_videos_give(tmp_path: Path) -> None:
    """Frames numbered from 1, each of its own grey level: the clip's levels tell which were read."""
    write_images(tmp_path, grey(30, 8))

    def levels(clip: Tensor) -> list[int]:
        return (clip[:, 0, 14, 14].float() / 8).round().int().tolist()

    def dataset(**arguments: Any) -> Any:
        return VideoDataset([Sample(str(tmp_path), 1, 30)], transform=TRANSFORM, source=FrameFolders(), **arguments)

    sampling = FrameSampling(num_frames=8)
    assert levels(dataset(sampling=sampling, views="center")[0][0]) == sampling.evaluation(30, 1)[0]
    numbers = levels(dataset(sampling=sampling)[0][0])
    assert all(3 * i < number <= 3 * i + 3 for i, number in enumerate(numbers))
    assert len({tuple(levels(dataset(sampling=sampling)[SampleKey(epoch, 0)][0])) for epoch in range(8)}) > 4
    long = levels(dataset(sampling=FrameSampling(num_frames=40), views="center")[0][0])
    assert long == [*range(1, 31), *range(1, 11)]


def test_a_missing_frame_is_named(tmp_path: Path) -> None:
    write_images(tmp_path, grey(1, 8))
    dataset = VideoDataset(
        [Sample(str(tmp_path), 0, 8)],
        source=FrameFolders(),
        sampling=FrameSampling(num_frames=8),
        transform=TRANSFORM,
    )
    with pytest.raises(VideoError, match=r"img_00002\.jpg: No such file"):
        dataset[0]


@pytest.mark.parametrize("views", ["center", "dense"])
def test_the_decoder_resizes_nearly_as_published(videos: Path, views: Any) -> None:
    """Smooth frames, on which two bilinear filters agree; the decoder's frames have the published size."""
    exact, cheap = (make(videos, views=views, resize=resize)[3][0].float() for resize in ("exact", "decoder"))
    assert exact.shape == cheap.shape
    assert 0 < (exact - cheap).abs().mean() < 4


def test_videos_of_the_wanted_size_are_not_resized(videos: Path) -> None:
    transform = ClipTransform(size=28, scale=48, multi_scale=False)
    for views in ("train", "center", "dense"):
        for epoch in range(6):  # of some the clip is mirrored
            key = SampleKey(epoch, 3)
            given: dict[str, Any] = {"views": views, "transform": transform}
            exact, cheap = (make(videos, **given, resize=resize)[key][0] for resize in ("exact", "decoder"))
            assert torch.equal(exact, cheap)


def spot(clip: Tensor) -> Tensor:
    """Where the bright spot is, (x, y) in pixels."""
    bright = (clip[0, 1].float() - 150).clamp(min=0)
    rows, columns = (torch.arange(side, dtype=torch.float32) for side in bright.shape)
    return torch.stack([bright.sum(0) @ columns, bright.sum(1) @ rows]) / bright.sum()


@pytest.mark.parametrize(("width", "height"), [(340, 256), (240, 320), (480, 270)])
def test_a_training_view_in_one_pass_shows_what_the_published_one_shows(
    tmp_path: Path, width: int, height: int
) -> None:
    """The same place under the same draws: the centre of a spot is less than a pixel off, on average nowhere."""
    y, x = np.mgrid[:height, :width]
    grey = 50 + 190 * np.exp(-((x - width / 2) ** 2 + (y - height / 2) ** 2) / 2 / (width / 14) ** 2)
    frame = np.repeat(grey[..., None], 3, -1).astype(np.uint8)
    write_video(tmp_path / "spot.mp4", np.repeat(frame[None], 3, 0), codec="libx264", options={"crf": "8"})
    transform = ClipTransform(size=112, scale=128)
    given: dict[str, Any] = {"sampling": FrameSampling(num_frames=1), "transform": transform}
    samples = [Sample(str(tmp_path / "spot.mp4"), 0)]
    exact: Any = VideoDataset(samples, resize="exact", **given)
    cheap: Any = VideoDataset(samples, resize="decoder", **given)
    offsets = []
    for epoch in range(60):
        one, other = (cast("Tensor", dataset[SampleKey(epoch, 0)][0]) for dataset in (exact, cheap))
        inside = one[0, 1, 2:-2, 2:-2].max() > 200
        edges = [one[0, 1, [0, 1, -2, -1]].max(), one[0, 1, :, [0, 1, -2, -1]].max()]
        if inside and max(edges) < 150:
            offsets.append(spot(other) - spot(one))
    assert len(offsets) > 20
    assert torch.stack(offsets).abs().max() < 1.0
    assert torch.stack(offsets).mean(0).abs().max() < 0.3


def test_limits_are_the_readers(videos: Path) -> None:
    dataset = make(videos, source=VideoFiles(limits=Limits(frames=19)))
    with pytest.raises(VideoError, match=r"0\.mp4: .*frames"):
        dataset[0]
    assert dataset[1][1] == 0


def test_an_unreadable_video_is_an_error(videos: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.mp4"
    bad.write_bytes(b"\0" * 1000)
    good = Sample(str(videos / "run/0.mp4"), 0)
    dataset = VideoDataset([good, Sample(str(bad), 1)], sampling=FrameSampling(num_frames=4), transform=TRANSFORM)
    assert dataset[0][1] == 0
    with pytest.raises(VideoError, match=r"bad\.mp4: "):
        dataset[1]


def test_arguments_are_checked(videos: Path) -> None:
    with pytest.raises(ValueError, match="views is 'train', 'center' or 'dense', got 'all'"):
        make(videos, views="all")
    with pytest.raises(ValueError, match="at least one sample"):
        VideoDataset([], sampling=FrameSampling(num_frames=4), transform=TRANSFORM)
