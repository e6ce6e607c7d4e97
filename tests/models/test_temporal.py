from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_distill.models.temporal import TemporalAttention, TemporalShift, frames_of, temporal_shift


def shift_by_loop(frames: Tensor, num_frames: int, from_previous: int, from_next: int) -> Tensor:
    shifted = torch.zeros_like(frames)
    for index in range(len(frames)):
        t = index % num_frames
        for channel in range(frames.shape[1]):
            offset = -1 if channel < from_previous else 1 if channel < from_previous + from_next else 0
            if 0 <= t + offset < num_frames:
                shifted[index, channel] = frames[index + offset, channel]
    return shifted


@pytest.mark.parametrize(
    ("num_frames", "channels", "expected"),
    [(8, 16, (2, 2)), (3, 8, (2, 3)), (5, 12, (2, 2)), (16, 8, (0, 1)), (7, 5, (0, 1)), (16, 256, (16, 16))],
)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_default_shift_is_the_loop(
    num_frames: int, channels: int, expected: tuple[int, int], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    frames = torch.randn(2 * num_frames, channels, 3, 2).contiguous(memory_format=layout)
    shifted = temporal_shift(frames, num_frames)
    assert torch.equal(shifted, shift_by_loop(frames, num_frames, *expected))
    assert shifted.is_contiguous(memory_format=layout)
    module = TemporalShift(channels, num_frames)
    assert (module.from_previous, module.from_next) == expected
    assert torch.equal(module(frames), shifted)


@pytest.mark.parametrize(("ratio", "expected"), [(0.25, (2, 3)), (0.1, (1, 1)), (0.49, (4, 5)), (0.05, (0, 1))])
def test_shift_by_a_given_ratio(ratio: float, expected: tuple[int, int]) -> None:
    torch.manual_seed(1)
    frames = torch.randn(4, 10, 2, 2)
    assert torch.equal(temporal_shift(frames, 4, ratio=ratio), shift_by_loop(frames, 4, *expected))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_shift_carries_the_gradient_back_to_where_values_came_from(layout: torch.memory_format) -> None:
    torch.manual_seed(2)
    frames = torch.randn(6, 6, 2, 2).contiguous(memory_format=layout)
    weight = torch.randn(6, 6, 2, 2)
    ours, theirs = frames.clone().requires_grad_(), frames.clone().requires_grad_()
    ours_gradient = torch.autograd.grad((temporal_shift(ours, 3) * weight).sum(), ours)
    theirs_gradient = torch.autograd.grad((shift_by_loop(theirs, 3, 2, 2) * weight).sum(), theirs)
    assert torch.equal(ours_gradient[0], theirs_gradient[0])


def test_no_frame_leaks_into_another_clip() -> None:
    frames = torch.zeros(8, 8, 1, 1)
    frames[4:] = torch.inf
    assert torch.isfinite(temporal_shift(frames, 4)[:4]).all()


def test_stills_pass_as_they_are() -> None:
    stills = torch.randn(2, 8, 3, 3)
    assert torch.equal(TemporalShift(8, 1)(stills), stills)
    assert torch.equal(temporal_shift(stills, 1), stills)


@pytest.mark.parametrize("num_frames", [0, 2])
def test_too_few_frames_for_the_default_ratio(num_frames: int) -> None:
    with pytest.raises(ValueError, match="at least 3 frames, or 1 for stills"):
        TemporalShift(8, num_frames)


@pytest.mark.parametrize("ratio", [0.0, 0.5, -0.1, float("nan")])
def test_ratio_out_of_range(ratio: float) -> None:
    with pytest.raises(ValueError, match=r"ratio between 0 and 0\.5"):
        temporal_shift(torch.zeros(4, 4, 1, 1), 4, ratio=ratio)


def test_incomplete_clips() -> None:
    with pytest.raises(ValueError, match=r"whole clips of 4 frames.*\(6, 4, 1, 1\)"):
        temporal_shift(torch.zeros(6, 4, 1, 1), 4)


def test_attention_weighs_whole_frames() -> None:
    torch.manual_seed(3)
    attention = TemporalAttention(4)
    frames = torch.randn(8, 5, 3, 2)
    clips = frames.reshape(2, 4, 5, 3, 2)
    weights = torch.sigmoid(clips.mean(dim=(2, 3, 4)) @ attention.fc.weight.T + attention.fc.bias)
    expected = (clips * weights[:, :, None, None, None]).reshape(frames.shape)
    torch.testing.assert_close(attention(frames), expected)


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((8, 3, 9, 9), torch.float32, r"Net expects .*\(B, 8, 3, H, W\).*\(8, 3, 9, 9\).*batch dimension"),
        ((2, 16, 3, 9, 9), torch.float32, "sample 8 frames, or build it with num_frames=16"),
        ((2, 8, 4, 9, 9), torch.float32, "pass RGB frames"),
        ((2, 3, 8, 9, 9), torch.float32, "swap dimensions 1 and 2"),
        ((3, 9, 9), torch.float32, "lay it out as batch, frames"),
        ((2, 8, 3, 9, 9), torch.uint8, "uint8.*convert the pixels to float"),
    ],
)
def test_what_is_no_batch_of_clips(shape: tuple[int, ...], dtype: torch.dtype, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        frames_of(torch.zeros(shape, dtype=dtype), 8, name="Net")
