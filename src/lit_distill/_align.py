"""Features of frames of different numbers, brought to the same frames of time."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses.base import Signal


def aligned_in_time(first: Signal, second: Signal, *, clips: int | None = None) -> tuple[Signal, Signal]:
    """Both signals with the frames of the one that has fewer; lists layer by layer.

    A signal of frames is (B * T, ...), clip by clip. The longer one, say T' frames a clip, is averaged over the frames
    that fall into the time of each of the T: groups of T' / T where T divides T', else adaptively, groups that share
    their borders, for which B must be known. Signals of equally many rows are left as they are.

    Args:
        first: of the learner.
        second: of the teacher.
        clips: B, where it is known.

    Raises:
        ValueError: the rows are no whole number of frames for each clip, or as many clips on one side only.

    Example:
        >>> teacher = torch.arange(8.0).reshape(8, 1)  # 2 clips of 4 frames
        >>> aligned_in_time(torch.zeros(4, 1), teacher)[1].flatten().tolist()
        [0.5, 2.5, 4.5, 6.5]
    """
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return _aligned(first, second, clips)
    if isinstance(first, Tensor) or isinstance(second, Tensor) or len(first) != len(second):
        raise ValueError("align_time pairs layers with layers: a list of as many references on both sides, or one each")
    pairs = [_aligned(ours, theirs, clips) for ours, theirs in zip(first, second, strict=True)]
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def _aligned(first: Tensor, second: Tensor, clips: int | None) -> tuple[Tensor, Tensor]:
    if not first.ndim or not second.ndim or not len(first) or not len(second):
        raise ValueError(f"align_time takes frames (B * T, ...), got {tuple(first.shape)} and {tuple(second.shape)}")
    rows = min(len(first), len(second))
    return _averaged(first, rows, clips), _averaged(second, rows, clips)


def _averaged(frames: Tensor, rows: int, clips: int | None) -> Tensor:
    if len(frames) == rows:
        return frames
    whole = frames.to(torch.promote_types(frames.dtype, torch.float32))
    if len(frames) % rows == 0 and (clips is None or rows % clips == 0):
        return whole.unflatten(0, (rows, -1)).mean(dim=1).to(frames.dtype)  # type: ignore[no-untyped-call, no-any-return]
    if clips is None or len(frames) % clips or rows % clips:
        known = "the number of clips is not known: it is taken from GroundTruth" if clips is None else f"{clips} clips"
        raise ValueError(
            f"align_time: {len(frames)} and {rows} rows are no whole numbers of frames for each clip ({known})"
        )
    series = whole.reshape(clips, len(frames) // clips, -1).transpose(1, 2)
    pooled = F.adaptive_avg_pool1d(series, rows // clips).transpose(1, 2)
    return pooled.reshape(rows, *frames.shape[1:]).to(frames.dtype)
