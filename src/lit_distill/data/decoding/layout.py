"""What is said about a video: why it can't be read, within which limits it is, its headers, how it is laid out."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO, TypeAlias

from lit_distill.untrusted.showing import printable_lines

VideoSource: TypeAlias = str | os.PathLike[str] | bytes | BinaryIO | io.IOBase
"""Where a video is: the path of a regular file, its bytes, or a seekable binary file object, such as ``io.BytesIO``.

Errors call a file object by its attribute ``name``, where it has one.
"""

Rectangle: TypeAlias = tuple[float, float, float, float]
"""Left, top, width and height, in pixels from the upper left corner."""


class VideoError(Exception):
    """A video that can't be read: which one, and why.

    Args:
        path: the video file or folder of frames.
        reason: what is wrong with it. Without one, ``path`` is taken as the whole message: that is how a data loader
            hands on the error of a worker process.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        self.path, self.reason = os.fspath(path), reason
        super().__init__(printable_lines(f"{self.path}: {reason}" if reason else self.path))

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason)


class ShortVideoError(VideoError):
    """A video that ended before a wanted frame.

    Args:
        path: the video file.
        reason: what was asked and what was found.
        frames: how many frames decoding the whole file gave.
    """

    def __init__(self, path: str | os.PathLike[str], reason: str = "", frames: int = 0) -> None:
        super().__init__(path, reason)
        self.frames = frames

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.path, self.reason, self.frames)


@dataclass(frozen=True)
class Limits:
    """What one call may spend on a video before it is a :class:`VideoError`.

    Args:
        frames: of the video, read or promised by its index.
        pixels: width times height of a frame; more is refused before a frame is allocated. The default is 8K UHD.
        seconds: of CPU time of the calling thread.

    Raises:
        ValueError: one of them is not positive.

    Example:
        >>> Limits(seconds=5)
        Limits(frames=1000000, pixels=33177600, seconds=5)
    """

    frames: int = 1_000_000
    pixels: int = 7680 * 4320
    seconds: float = 60.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ValueError(f"Limits expects {name} > 0, got {value!r}")


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
            :func:`lit_distill.data.read_frames` turns them.
    """

    frames: int
    fps: float
    duration: float
    width: int
    height: int
    codec: str
    rotation: int


@dataclass(frozen=True)
class VideoLayout:
    """How a video is laid out, as :func:`lit_distill.data.scan` found it: what later reads need not find out again.

    A group is a run of pictures at whose first one decoding can start.

    Attributes:
        info: what the headers say; ``info.frames`` is the number of frames that decoding everything gives.
        size: of the file, in bytes; a file of another size is read as if there were no layout.
        starts: index of each group's first shown frame, ascending; empty where only decoding everything is exact.
        ticks: presentation time of each group's key frame, in units of the stream.
        seeks: time to seek to for each group, in units of the stream.
        stream: which of the file's video streams was asked for; none for the best.
    """

    info: VideoInfo
    size: int
    starts: tuple[int, ...] = ()
    ticks: tuple[int, ...] = ()
    seeks: tuple[int, ...] = ()
    stream: int | None = None

    def to_json(self) -> dict[str, Any]:
        """The layout as what JSON can hold; :meth:`from_json` is the way back."""
        return {**asdict(self), "starts": list(self.starts), "ticks": list(self.ticks), "seeks": list(self.seeks)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> VideoLayout:
        """The layout of a record that :meth:`to_json` made.

        Args:
            record: of that form; numbers only, nothing is built by name.

        Raises:
            ValueError: it is not of that form.

        Example:
            >>> layout = VideoLayout(VideoInfo(9, 25.0, 0.36, 64, 48, "h264", 0), size=1234, starts=(0,))
            >>> VideoLayout.from_json(layout.to_json()) == layout
            True
        """
        try:
            info = VideoInfo(**record["info"])
            starts, ticks, seeks = (
                tuple(int(number) for number in record[name]) for name in ("starts", "ticks", "seeks")
            )
            stream = record.get("stream")
            return cls(info, int(record["size"]), starts, ticks, seeks, None if stream is None else int(stream))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not the record of a video's layout: {error!r}; scan the video again") from error


def name_of(source: VideoSource) -> str:
    """What errors call a source."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    name = getattr(source, "name", None)
    return name if isinstance(name, str) else f"<{type(source).__name__}>"
