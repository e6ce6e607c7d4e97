from __future__ import annotations

import random
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lit_distill.data import FrameSampling
from lit_distill.data.sampling import DENSE_SPAN, Mode, linspace_frames, wrap

modes = st.sampled_from(get_args(Mode))
lengths = st.integers(1, 400)


@given(
    mode=modes, first=st.sampled_from([0, 1]), length=lengths, count=st.integers(1, DENSE_SPAN), seed=st.integers(0, 99)
)
def test_every_plan_is_within_the_video(mode: Mode, first: int, length: int, count: int, seed: int) -> None:
    sampling = FrameSampling(num_frames=count, mode=mode)
    for plan in (sampling.training(length, random.Random(seed), first), *sampling.evaluation(length, first)):
        assert len(plan) == count
        assert all(first <= number < first + length for number in wrap(plan, length, first))
        if mode != "dense" and length >= count:
            assert plan == sorted(plan)
            assert plan == wrap(plan, length, first)


@given(mode=modes, length=lengths, count=st.integers(1, 16), seed=st.integers(0, 99))
def test_folders_count_from_one(mode: Mode, length: int, count: int, seed: int) -> None:
    sampling = FrameSampling(num_frames=count, mode=mode)
    shift = 0 if mode == "dense" else 1  # dense counts from one in both, as published
    for video, frames in zip(
        [sampling.training(length, random.Random(seed)), *sampling.evaluation(length)],
        [sampling.training(length, random.Random(seed), 1), *sampling.evaluation(length, 1)],
        strict=True,
    ):
        assert [wrap([n + shift], length, 1)[0] for n in video] == wrap(frames, length, 1)


def test_plain_training_covers_each_segment_evenly() -> None:
    sampling, rng = FrameSampling(num_frames=4), random.Random(0)
    draws = [sampling.training(23, rng) for _ in range(500)]
    for segment in range(4):
        seen = [plan[segment] for plan in draws]
        assert set(seen) == set(range(5 * segment, 5 * segment + 5))
        assert all(60 < seen.count(frame) < 140 for frame in set(seen))


def test_segments_of_several_frames() -> None:
    sampling = FrameSampling(num_frames=2, segment_length=3, mode="interval", frame_interval=2)
    assert sampling.evaluation(20) == [[3, 5, 7, 11, 13, 15]]
    assert FrameSampling(num_frames=2, segment_length=3).evaluation(20) == [[4, 5, 6, 14, 15, 16]]


def test_dense_clips() -> None:
    sampling = FrameSampling(num_frames=16, mode="dense")
    clips = sampling.evaluation(164, clips=10)
    assert [clip[0] for clip in clips] == [1, 12, 23, 34, 45, 56, 67, 78, 89, 101]
    assert all(clip == list(range(clip[0], clip[0] + 64, 4)) for clip in clips)
    assert sampling.evaluation(164) == [list(range(51, 51 + 64, 4))]


def test_linspace_outside_the_video() -> None:
    assert linspace_frames(3, 10, span=(-4, 30)) == [0, 9, 9]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_frames": 0}, "num_frames must be at least 1, got 0"),
        ({"num_frames": 8, "mode": "uniform"}, "sampling is one of plain, .* got 'uniform'"),
        ({"num_frames": 65, "mode": "dense"}, "dense sampling spans 64 frames"),
        ({"num_frames": 8, "segment_length": 2, "mode": "dense"}, "segment_length=2 goes with plain and interval"),
        ({"num_frames": 8, "frame_interval": 2}, "frame_interval=2 goes with interval"),
    ],
)
def test_arguments_are_checked(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FrameSampling(**arguments)


def test_lengths_and_clips_are_checked() -> None:
    sampling = FrameSampling(num_frames=8)
    with pytest.raises(ValueError, match="at least 1 frame is needed, got 0"):
        sampling.evaluation(0)
    with pytest.raises(ValueError, match="10 clips of a video need dense sampling, not plain"):
        sampling.evaluation(100, clips=10)
