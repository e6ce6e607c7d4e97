"""Which frames of a video make a clip: the published index arithmetic, mode by mode.

A plan gives the numbers of frames as they were published: 0-based for video files, the 1-based numbers of file names
for folders of frames. Numbers past the end of a short video are brought back into it by :func:`wrap`.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

Mode: TypeAlias = Literal["plain", "linspace", "dense", "select_left", "interval"]

DENSE_SPAN = 64
"""Frames that one clip of dense sampling spans."""

DENSE_CLIPS = 10
"""Clips of a video in dense evaluation."""


@dataclass(frozen=True, kw_only=True)
class FrameSampling:
    r"""The frames of a clip, out of a video of L frames, for a clip of N.

    With :math:`a = \lfloor L/N \rfloor` and segments :math:`i = 0..N-1`:

    - ``plain``: :math:`i a + u_i`, u uniform in 0..a-1; in evaluation :math:`i a + \lfloor (a-1)/2 \rfloor`.
    - ``select_left``: the same in training; in evaluation :math:`\lfloor (i + 1/2) L/N \rfloor`.
    - ``linspace``: N evenly spaced frames from the first to the last, cut to integers; nothing is random.
    - ``dense``: every :math:`\lfloor 64/N \rfloor`-th frame from a random start; in evaluation from 10 evenly spaced
      starts, or from the middle one.
    - ``interval``: ``segment_length`` frames, ``frame_interval`` apart, from a random start in each of N windows; in
      evaluation from the middle of each.

    Videos shorter than the clip: ``plain`` counts 0..N-1 (wrapping then repeats the video), ``select_left`` repeats the
    first frame, ``dense`` wraps. Matches PaddleVideo's ``Sampler``, with its peculiarities: the last L - aN frames are
    never used by ``plain``, ``select_left`` gives the first frame only where L = N too, and ``dense`` counts from 1
    for video files also.

    Args:
        num_frames: N, number of segments, at least 1; for ``dense`` at most 64.
        mode: see above.
        segment_length: frames taken in each segment (``plain``, ``interval``), at least 1; the clip then has
            N * segment_length frames.
        frame_interval: distance of the frames in a segment (``interval``), at least 1.

    Raises:
        ValueError: a value is out of its range, or does not go with the mode.

    Example:
        >>> sampling = FrameSampling(num_frames=8)
        >>> sampling.evaluation(50)
        [[2, 8, 14, 20, 26, 32, 38, 44]]
        >>> sampling.training(50, random.Random(0))
        [3, 9, 12, 20, 28, 33, 39, 44]
    """

    num_frames: int
    mode: Mode = "plain"
    segment_length: int = 1
    frame_interval: int = 1

    def __post_init__(self) -> None:
        modes = ("plain", "linspace", "dense", "select_left", "interval")
        if self.mode not in modes:
            raise ValueError(f"sampling is one of {', '.join(modes)}, got {self.mode!r}")
        for name in ("num_frames", "segment_length", "frame_interval"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.mode == "dense" and self.num_frames > DENSE_SPAN:
            raise ValueError(f"dense sampling spans {DENSE_SPAN} frames, num_frames={self.num_frames} is more")
        if self.segment_length > 1 and self.mode not in ("plain", "interval"):
            raise ValueError(f"segment_length={self.segment_length} goes with plain and interval, not {self.mode}")
        if self.frame_interval > 1 and self.mode != "interval":
            raise ValueError(f"frame_interval={self.frame_interval} goes with interval, not {self.mode}")

    def training(self, length: int, rng: random.Random, first: int = 0) -> list[int]:
        """Frames of one clip for training.

        Args:
            length: L, frames of the video, at least 1.
            rng: source of the random draws.
            first: number of the first frame: 0, or 1 for the file names of images.

        Returns:
            the frames' numbers.
        """
        self._require(length)
        average = length // self.num_frames
        if self.mode == "plain":
            spare = average - self.segment_length
            starts = [
                i * average + rng.randint(0, spare) if spare >= 0 else i * max(average, 1) for i in self._segments
            ]
            return self._plain(starts, length, first)
        if self.mode == "select_left":
            starts = self._left(length, average, rng)
            return [start + first for start in starts]
        if self.mode == "interval":
            return self._windows(self._interval_starts(length, rng), length, first)
        if self.mode == "dense":
            places = max(1, length - DENSE_SPAN + 1)
            return self._dense(0 if places == 1 else rng.randint(0, places - 2), length)
        return [frame + first for frame in linspace_frames(self.num_frames, length)]

    def evaluation(self, length: int, first: int = 0, *, clips: int = 1) -> list[list[int]]:
        """Frames of the clips for evaluation.

        Args:
            length: L, frames of the video, at least 1.
            first: number of the first frame: 0, or 1 for the file names of images.
            clips: how many: 1, or more with ``dense``.

        Returns:
            the frames' numbers, a list a clip.

        Raises:
            ValueError: several clips without dense sampling.
        """
        self._require(length)
        if clips != 1 and self.mode != "dense":
            raise ValueError(f"{clips} clips of a video need dense sampling, not {self.mode}")
        average = length // self.num_frames
        if self.mode == "plain":
            middle = (average - 1) // 2 if average >= self.segment_length else 0
            return [self._plain([i * max(average, 1) + middle for i in self._segments], length, first)]
        if self.mode == "select_left":
            step = length / self.num_frames
            starts = [int(step / 2.0 + step * i) if length > self.num_frames else 0 for i in self._segments]
            return [[start + first for start in starts]]
        if self.mode == "interval":
            window = (length - self.segment_length * self.frame_interval + 1) / self.num_frames
            starts = [int(i * window + window / 2.0) if window > 0 else 0 for i in self._segments]
            return [self._windows(starts, length, first)]
        if self.mode == "dense":
            last = max(0, length - DENSE_SPAN)
            starts = [last // 2] if clips == 1 else np.linspace(0, last, clips, dtype=int).tolist()
            return [self._dense(start, length) for start in starts]
        return [[frame + first for frame in linspace_frames(self.num_frames, length)]]

    @property
    def _segments(self) -> range:
        return range(self.num_frames)

    def _plain(self, starts: Sequence[int], length: int, first: int) -> list[int]:
        frames = [start + offset for start in starts for offset in range(self.segment_length)]
        # the names of frame files are not wrapped, as published: wrap() brings them back
        return [frame + first if first else frame % length for frame in frames]

    def _left(self, length: int, average: int, rng: random.Random) -> list[int]:
        if average > 0:
            return [i * average + rng.randint(0, average - 1) for i in self._segments]
        return [0] * self.num_frames

    def _dense(self, start: int, length: int) -> list[int]:
        stride = DENSE_SPAN // self.num_frames
        return [(i * stride + start) % length + 1 for i in self._segments]

    def _interval_starts(self, length: int, rng: random.Random) -> list[int]:
        span = self.segment_length * self.frame_interval
        places = length - span + 1
        window = places // self.num_frames
        if window > 0:
            return [i * window + rng.randint(0, window - 1) for i in self._segments]
        if length > max(self.num_frames, span):
            return sorted(rng.randint(0, places - 1) for _ in self._segments)
        if window == 0:
            return [round(i * places / self.num_frames) for i in self._segments]
        return [0] * self.num_frames

    def _windows(self, starts: Sequence[int], length: int, first: int) -> list[int]:
        offsets = range(0, self.segment_length * self.frame_interval, self.frame_interval)
        return [(start + offset) % length + first for start in starts for offset in offsets]

    def _require(self, length: int) -> None:
        if length < 1:
            raise ValueError(f"a video of at least 1 frame is needed, got {length}")


def linspace_frames(count: int, length: int, *, span: tuple[float, float] | None = None) -> list[int]:
    """Evenly spaced frames from 0, both ends included, cut to integers; ``span`` is cut to the video.

    Example:
        >>> linspace_frames(4, 50), linspace_frames(4, 50, span=(3, 40))
        ([0, 16, 32, 49], [3, 15, 27, 40])
    """
    start, end = span or (0, length - 1)
    frames: list[int] = np.linspace(start, end, count).clip(0, length - 1).astype(int).tolist()
    return frames


def wrap(numbers: Sequence[int], length: int, first: int = 0) -> list[int]:
    """Bring frame numbers past the end of a video back to its beginning.

    The published reader did so for videos in plain sampling only; elsewhere it failed on them, and took another sample.

    Example:
        >>> wrap([1, 3, 5], 3, 1)
        [1, 3, 2]
    """
    return [first + (number - first) % length for number in numbers]
