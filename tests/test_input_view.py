from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2.functional import resize

from lit_distill.data import InputView


@pytest.mark.parametrize(("length", "kept"), [(32, 8), (16, 16), (8, 3), (9, 4), (5, 1), (64, 7)])
def test_every_kept_frame_is_of_its_own_part_of_the_clip(length: int, kept: int) -> None:
    frames = InputView(num_frames=kept).frames(length)
    assert len(frames) == kept
    for number, frame in enumerate(frames):
        assert number * length / kept <= frame + 0.5 <= (number + 1) * length / kept
        middle = (number + 0.5) * length / kept
        assert abs(frame + 0.5 - middle) <= 0.5


def test_a_clip_keeps_those_frames_and_nothing_else_changes() -> None:
    clips = torch.arange(8.0).reshape(1, 8, 1, 1, 1).expand(2, 8, 3, 6, 6)
    view = InputView(num_frames=4)
    assert view(clips)[0, :, 0, 0, 0].tolist() == [1.0, 3.0, 5.0, 7.0] == [float(n) for n in view.frames(8)]
    assert InputView()(clips) is clips
    assert InputView(num_frames=8, size=6)(clips) is clips


@pytest.mark.parametrize("shape", [(2, 4, 3, 16, 16), (2, 3, 4, 3, 16, 16), (2, 3, 16, 16)])
def test_frames_are_resized_antialiased_one_by_one(shape: tuple[int, ...]) -> None:
    clips = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    small = InputView(size=6)(clips)
    wanted = torch.stack([resize(frame, [6, 6], antialias=True) for frame in clips.flatten(0, -4)])
    torch.testing.assert_close(small, wanted.reshape(*shape[:-2], 6, 6))
    stripes = (torch.arange(16) % 2).float().expand(1, 1, 3, 16, 16)
    assert (InputView(size=4)(stripes) - 0.5).abs().max() < 0.15, "without antialiasing stripes would be all or nothing"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_the_type_stays(dtype: torch.dtype) -> None:
    clips = torch.rand(1, 4, 3, 8, 8).to(dtype)
    small = InputView(num_frames=2, size=4)(clips)
    assert small.dtype == dtype
    torch.testing.assert_close(small.float(), InputView(num_frames=2, size=4)(clips.float()), atol=1e-2, rtol=1e-2)


def test_the_shape_is_told_beforehand() -> None:
    for view in (InputView(), InputView(num_frames=3), InputView(size=4), InputView(num_frames=3, size=4)):
        for shape in ((5, 8, 3, 16, 16), (5, 2, 8, 3, 16, 16)):
            assert view.shape(shape) == tuple(view(torch.zeros(shape)).shape)
    assert InputView(size=4).shape((3, 16, 16)) == (3, 4, 4)


def test_mixing_and_flips_agree_with_the_view() -> None:
    """All that is done to a clip is linear in its pixels, or a mirror: the view of it is it of the view."""
    a, b = torch.rand(2, 1, 8, 3, 16, 16)
    view = InputView(num_frames=2, size=8)
    torch.testing.assert_close(view(0.3 * a + 0.7 * b), 0.3 * view(a) + 0.7 * view(b))
    torch.testing.assert_close(view(a.flip(-1)), view(a).flip(-1))


def test_says_what_is_wrong() -> None:
    clips: Tensor = torch.zeros(1, 4, 3, 8, 8)
    with pytest.raises(ValueError, match=r"num_frames=5 of clips of 4 frames: data\.num_frames is the most"):
        InputView(num_frames=5)(clips)
    with pytest.raises(ValueError, match=r"size=9 of frames \(8, 8\): data\.size is the most"):
        InputView(size=9)(clips)
    with pytest.raises(ValueError, match=r"expected normalised clips .* got torch\.uint8"):
        InputView(size=4)(clips.byte())
    with pytest.raises(ValueError, match="expected normalised clips"):
        InputView(num_frames=2)(clips[0])
    for wrong in (0, -1, 1.5, True, "8"):
        with pytest.raises(ValueError, match="num_frames is a whole number of at least 1"):
            InputView(num_frames=wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="inputs of a model are num_frames, size, mean, std, data_mean, data_std, got"):
        InputView.of({"frames": 4})
