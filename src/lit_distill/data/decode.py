"""Exact frames out of video files and folders of images, read as data: no network, no playlists, no silent shortage."""

from __future__ import annotations

import os
import stat
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import av.container
import av.stream
import av.video.reformatter
import av.video.stream
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image

Frames = NDArray[np.uint8]
"""A clip as RGB bytes (T, H, W, 3)."""

# Formats that fetch what a file names (playlists, concatenations, image sequences) are not among them.
_OPTIONS = {
    "format_whitelist": "mov,matroska,avi,mpeg,mpegts,flv,asf,ogg,m4v,h264,hevc,ivf,nut",
    "protocol_whitelist": "file",
}


class VideoError(Exception):
    """A video that can't be read: which one, and why.

    Args:
        path: the video file or folder of frames.
        reason: what is wrong with it. Without one, ``path`` is taken as the whole message: that is how a data loader
            hands on the error of a worker process.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(f"{self.path}: {reason}" if reason else self.path)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason)


class ShortVideoError(VideoError):
    """A video that ended before a wanted frame.

    Args:
        path: the video file.
        reason: what was asked and what came.
        frames: how many frames decoding the whole file gave.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "", frames: int = 0) -> None:
        super().__init__(path, reason)
        self.frames = frames

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason, self.frames)


@dataclass(frozen=True)
class VideoInfo:
    """What a video's headers say.

    Attributes:
        frames: number of frames.
        fps: frames per second, on average; 0.0 where it is not said.
        duration: seconds; 0.0 where it is not said.
        width: of a frame as shown, in pixels.
        height: of a frame as shown, in pixels.
        codec: FFmpeg's name of the codec, such as ``"h264"``.
        rotation: degrees, anticlockwise, by which the decoded frames are turned to be shown: 0, 90, 180 or 270.
            :func:`read_frames` turns them.
    """

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    codec: str
    rotation: int


def probe(path: str | os.PathLike[str]) -> VideoInfo:
    """Read the headers of a local video file.

    The number of frames is that of the index (mp4, mov: frames that the edit list drops are not counted) or of the
    header; where both are silent the packets are counted. One frame is decoded, for its size and rotation.

    Args:
        path: a regular file.

    Returns:
        the :class:`VideoInfo`.

    Raises:
        VideoError: not a regular file, or not a video that can be read.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.encode import write_video
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", np.zeros((5, 32, 48, 3), np.uint8), fps=10)
        ...     info = probe(f"{folder}/a.mp4")
        >>> info.frames, info.width, info.height, info.fps, info.codec
        (5, 48, 32, 10.0, 'mpeg4')
    """
    with _opened(path) as (container, stream):
        count = _count(container, stream)
        if stream.duration is not None and stream.time_base is not None:
            duration = float(stream.duration * stream.time_base)
        else:
            duration = (container.duration or 0) / av.time_base
        container.seek(0)  # counting may have read to the end
        frame = next(container.decode(stream), None)
        if frame is None:
            raise VideoError(path, "it has no frame that can be decoded")
        turns = _quarter_turns(frame)
        width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
        fps = float(stream.average_rate or 0)
        return VideoInfo(count, fps, duration, width, height, stream.codec_context.name, turns * 90)


def count_frames(path: str | os.PathLike[str]) -> int:
    """Number of frames of a local video file, from its index or header; the packets are counted where both are silent.

    Args:
        path: a regular file.

    Returns:
        the number that :func:`probe` gives, without decoding anything.

    Raises:
        VideoError: not a regular file, or not a video that can be read.
    """
    with _opened(path) as (container, stream):
        return _count(container, stream)


def read_frames(path: str | os.PathLike[str], indices: Sequence[int], *, size: tuple[int, int] | None = None) -> Frames:
    """Decode the wanted frames of a local video file, exactly those that decoding everything gives.

    Args:
        path: a regular file.
        indices: 0-based, in display order; unsorted and repeated ones are allowed, negative ones are not.
        size: (height, width) to resize to, bilinear, in the pass that converts the colours; none keeps the size.

    Returns:
        RGB frames (T, H, W, 3), uint8, in the order of ``indices``.

    Raises:
        ValueError: no index, or a negative one.
        ShortVideoError: the video ends before the last wanted frame.
        VideoError: it can't be read, or its frames change their size.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.encode import write_video
        >>> video = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.full((1, 32, 32, 3), 40, np.uint8)
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", video)
        ...     clip = read_frames(f"{folder}/a.mp4", [5, 0, 5])
        >>> clip.shape, bool((clip[0] == clip[2]).all())
        ((3, 32, 32, 3), True)
    """
    if not len(indices) or min(indices) < 0:
        raise ValueError(f"read_frames expects at least one index, none negative, came {list(indices)}")
    wanted, last = set(indices), max(indices)
    reformatter = av.video.reformatter.VideoReformatter()
    found: dict[int, Frames] = {}
    with _opened(path) as (container, stream):
        position = -1
        for position, frame in enumerate(container.decode(stream)):
            if position in wanted:
                found[position] = _to_rgb(frame, reformatter, size)
            if position == last:
                break
        else:
            count = position + 1
            raise ShortVideoError(path, f"frame {last} was wanted, but it has {count} frames", count)
    shapes = {frame.shape for frame in found.values()}
    if len(shapes) > 1:
        raise VideoError(path, f"its frames change their size: {sorted(shapes)}")
    return np.stack([found[index] for index in indices])


def read_images(folder: str | os.PathLike[str], suffix: str, numbers: Sequence[int]) -> Frames:
    """Decode the wanted frames of a folder of images.

    Args:
        folder: where the images are.
        suffix: pattern of their names, a format string of the number, such as ``"img_{:05}.jpg"``.
        numbers: those of the wanted frames, as in the names; repeated ones are allowed.

    Returns:
        RGB frames (T, H, W, 3), uint8, in the order of ``numbers``.

    Raises:
        VideoError: an image is missing or unreadable, or the images' sizes differ.
    """
    found = {number: _read_image(Path(folder, suffix.format(number))) for number in sorted(set(numbers))}
    shapes = {frame.shape for frame in found.values()}
    if len(shapes) != 1:
        raise VideoError(folder, f"its frames differ in size: {sorted(shapes)}")
    return np.stack([found[number] for number in numbers])


@contextmanager
def _opened(
    path: str | os.PathLike[str],
) -> Iterator[tuple[av.container.InputContainer, av.video.stream.VideoStream]]:
    """Open a local file for decoding; whatever FFmpeg says against it becomes a VideoError."""
    try:
        _require_regular(path)
        # "file:" and an absolute path: a name such as "concat:a|b" is a name, not a protocol
        with av.open(f"file:{os.path.abspath(path)}", options=_OPTIONS) as container:
            cover = av.stream.Disposition.attached_pic
            stream = next((s for s in container.streams.video if not s.disposition & cover), None)
            if stream is None:
                raise VideoError(path, "it has no video stream")
            # the data loader's workers are the parallelism: FFmpeg's threads cost more than they gain beside them
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
            yield container, stream
    except (OSError, av.FFmpegError) as error:  # FFmpeg's errors are not all OSErrors
        raise VideoError(path, _one_line(error)) from error


def _count(container: av.container.InputContainer, stream: av.video.stream.VideoStream) -> int:
    if "mov" in container.format.name.split(",") and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames or sum(bool(packet.size) and not packet.is_discard for packet in container.demux(stream))


def _read_image(file: Path) -> Frames:
    try:
        _require_regular(file)
        with warnings.catch_warnings():
            # torchvision 0.29 announces that its decoders will go; Pillow gives the same bytes, 1.4 times slower
            warnings.simplefilter("ignore", DeprecationWarning)
            image = decode_image(torch.from_numpy(np.fromfile(file, np.uint8)), ImageReadMode.RGB)
    except (OSError, RuntimeError) as error:
        raise VideoError(file, _one_line(error)) from error
    frame: Frames = image.permute(1, 2, 0).numpy()
    return frame


def _to_rgb(
    frame: av.VideoFrame, reformatter: av.video.reformatter.VideoReformatter, size: tuple[int, int] | None
) -> Frames:
    turns = _quarter_turns(frame)
    height, width = (size if turns % 2 == 0 else size[::-1]) if size is not None else (None, None)
    converted = reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
    return np.rot90(converted.to_ndarray(), turns)


def _quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns that show the frame upright."""
    return round(frame.rotation / 90) % 4


def _require_regular(path: str | os.PathLike[str]) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise VideoError(path, "not a regular file")


def _one_line(error: BaseException) -> str:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(reason.split()) or type(error).__name__
