"""What makes a network of images one of videos: shifting channels between frames, and weighing the frames."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F


def frames_of(video: Tensor, num_frames: int, *, name: str) -> Tensor:
    """Lay clips (B, T, 3, H, W) of floats out as images (B*T, 3, H, W), clip by clip.

    Raises:
        ValueError: another number of dimensions, frames or channels, or integer pixels.
    """
    expected = f"{name} expects float clips of shape (B, {num_frames}, 3, H, W)"
    got = f"got {video.dtype} of shape {tuple(video.shape)}"
    if video.ndim != 5:
        hint = "add a batch dimension" if video.ndim == 4 else "lay it out as batch, frames, channels, height, width"
        raise ValueError(f"{expected}, {got}: {hint}")
    if video.shape[2] != 3:
        hint = "swap dimensions 1 and 2" if video.shape[1] == 3 else "pass RGB frames"
        raise ValueError(f"{expected}, {got}: {hint}")
    if video.shape[1] != num_frames:
        raise ValueError(f"{expected}, {got}: sample {num_frames} frames, or build it with num_frames={video.shape[1]}")
    if not video.is_floating_point():
        raise ValueError(f"{expected}, {got}: convert the pixels to float and normalise them")
    frames = video.flatten(0, 1)
    # CPU kernels, the depthwise ones above all, are up to twice as fast on this layout; it stays through every layer.
    # On other devices it is the user's choice, by network.to(memory_format=torch.channels_last).
    return frames.contiguous(memory_format=torch.channels_last) if frames.device.type == "cpu" else frames


def temporal_shift(frames: Tensor, num_frames: int, *, ratio: float | None = None) -> Tensor:
    r"""Let some channels of each frame come from its neighbours; parameter-free.

    With :math:`c_1 = \lfloor C r \rfloor` and :math:`c_2 = \lfloor 2 C r \rfloor`, channels [0, c1) of frame t are
    those of frame t-1, channels [c1, c2) those of frame t+1, and the rest stay. Outside the clip is zero.

    Matches ``paddle.nn.functional.temporal_shift``, whose directions are the reverse of the original TSM code (Lin et
    al., ICCV 2019) and whose products are rounded to single precision.

    Args:
        frames: features (B*T, C, H, W), clip by clip.
        num_frames: T, at least 1.
        ratio: r, in (0, 0.5); default 1 / T, as in all PP-TSM networks, and nothing for stills (T = 1).

    Returns:
        Shifted features, of the same shape.

    Raises:
        ValueError: the ratio is out of its range (the default needs T of at least 3, or 1), or T does not divide the
            batch.

    Example:
        >>> frames = torch.arange(1.0, 5.0).reshape(4, 1, 1, 1).expand(4, 3, 1, 1)    # one clip of 4 frames
        >>> temporal_shift(frames, 4, ratio=0.34)[:, :, 0, 0].T.tolist()
        [[0.0, 1.0, 2.0, 3.0], [2.0, 3.0, 4.0, 0.0], [1.0, 2.0, 3.0, 4.0]]
    """
    if frames.shape[0] % num_frames:
        raise ValueError(
            f"temporal shift expects whole clips of {num_frames} frames, got features of shape {tuple(frames.shape)}"
        )
    if ratio is None and num_frames == 1:
        return frames
    return _shift(frames, num_frames, *_shifted_channels(frames.shape[1], num_frames, ratio))


class TemporalShift(nn.Module):
    """:func:`temporal_shift` at ratio 1/T, for features of a known number of channels.

    Args:
        channels: C of the features.
        num_frames: T, at least 3; or 1 for stills, which pass as they are.

    Raises:
        ValueError: 2 frames, or none.

    Example:
        >>> TemporalShift(16, 8)(torch.ones(8, 16, 2, 2))[0, :4, 0, 0]
        tensor([0., 0., 1., 1.])
    """

    def __init__(self, channels: int, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.from_previous, self.from_next = _shifted_channels(channels, num_frames, None)

    def forward(self, frames: Tensor) -> Tensor:
        """Shift features (B*T, C, H, W)."""
        if self.num_frames == 1:
            return frames
        return _shift(frames, self.num_frames, self.from_previous, self.from_next)

    def extra_repr(self) -> str:
        """Shown in the module's print."""
        return f"num_frames={self.num_frames}, from_previous={self.from_previous}, from_next={self.from_next}"


class TemporalAttention(nn.Module):
    r"""Weigh the frames of a clip: :math:`x_t \cdot \sigma(W m + b)_t` with :math:`m_t` the mean of :math:`x_t`.

    The mean runs over channels, height and width. Matches PaddleVideo's ``GlobalAttention`` of PP-TSMv2.

    Args:
        num_frames: T; the layer mixes exactly so many frames.

    Example:
        >>> attention = TemporalAttention(4)
        >>> attention(torch.ones(8, 6, 5, 5)).shape
        torch.Size([8, 6, 5, 5])
    """

    def __init__(self, num_frames: int) -> None:
        super().__init__()
        self.num_frames = num_frames
        self.fc = nn.Linear(num_frames, num_frames)

    def forward(self, frames: Tensor) -> Tensor:
        """Weigh features (B*T, C, H, W)."""
        means = frames.mean(dim=(1, 2, 3)).reshape(-1, self.num_frames)
        weights = torch.sigmoid(self.fc(means))
        return frames * weights.flatten().reshape(-1, 1, 1, 1)


def _shifted_channels(channels: int, num_frames: int, ratio: float | None) -> tuple[int, int]:
    """How many channels come from the frame before, and from the frame after."""
    if ratio is None:
        if num_frames == 1:
            return 0, 0
        if num_frames < 3:
            raise ValueError(
                f"temporal shift expects at least 3 frames, or 1 for stills, got {num_frames}: its ratio 1/T must be "
                "below 0.5"
            )
        ratio = 1.0 / num_frames
    if not 0.0 < ratio < 0.5:
        raise ValueError(f"temporal shift expects a ratio between 0 and 0.5, got {ratio}")
    single = np.float32(ratio)
    first, second = int(np.float32(channels) * single), int(np.float32(2 * channels) * single)
    return first, second - first


def _shift(frames: Tensor, num_frames: int, from_previous: int, from_next: int) -> Tensor:
    clips = torch.unflatten(frames, 0, (-1, num_frames))
    channels = 2
    if frames.is_contiguous(memory_format=torch.channels_last):
        # (B, C, T, H, W) is to five dimensions what channels_last is to four, so no step below changes the layout
        clips, channels = clips.transpose(1, 2), 1
    # one split, a pad each (one side filled, the other cropped), one cat: a single full copy forwards and backwards
    rest = frames.shape[1] - from_previous - from_next
    before, after, same = torch.split(clips, [from_previous, from_next, rest], dim=channels)
    inner = (0, 0) * (1 + channels)
    pieces = [F.pad(before, (*inner, 1, -1)), F.pad(after, (*inner, -1, 1)), same]
    # an empty piece has no layout, which would cost the others theirs
    shifted = torch.cat([piece for piece in pieces if piece.shape[channels]], dim=channels)
    return (shifted.transpose(1, 2) if channels == 1 else shifted).flatten(0, 1)
