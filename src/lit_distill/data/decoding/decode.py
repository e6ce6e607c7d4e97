"""Exact frames out of video files and folders of images, read as data: no network, no playlists, no silent shortage.

The frames of a video are those that decoding everything gives, in that order, and damage is never painted over: a
packet that can't be decoded, or a frame of which the decoder says that it is concealed, on the way to a wanted frame is
a :class:`VideoError`. Packets of before the first key frame, as in a cut recording, need give no frame.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import av
import numpy as np

from lit_distill.data.decoding.container import Opened, Packet, opened
from lit_distill.data.decoding.frames import Clip, Form, Frames, quarter_turns, read_image
from lit_distill.data.decoding.groups import Distrust, NoIndex, Shallow, divided, facts_reader, numbered, picture
from lit_distill.data.decoding.layout import (
    Limits,
    Rectangle,
    ShortVideoError,
    VideoError,
    VideoInfo,
    VideoLayout,
    VideoSource,
)
from lit_distill.data.decoding.pruned import (
    Groups,
    SoughtGroups,
    WholeVideo,
    container_of,
    decode_groups,
    indexed_groups,
    reordering_depth,
    starts_of,
)

__all__ = [
    "Frames",
    "Limits",
    "ShortVideoError",
    "VideoError",
    "VideoInfo",
    "VideoLayout",
    "VideoSource",
    "count_frames",
    "probe",
    "read_frames",
    "read_images",
    "scan",
]

_LARGE = 64 << 20  # bytes of a file from which on its packets are not kept in memory
_LIMITS = Limits()


def probe(source: VideoSource, *, limits: Limits = _LIMITS) -> VideoInfo:
    """Read the headers of a video.

    The number of frames is that of the index (mp4, mov: frames that the edit list drops are not counted) or of the
    header; where both are silent the packets are counted. One frame is decoded, for its size and rotation.

    Args:
        source: the path of a regular file, bytes, or a seekable file object.
        limits: of what may be spent on it.

    Returns:
        the :class:`VideoInfo`.

    Raises:
        VideoError: not a regular file, or not a video that can be read within the limits.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.decoding.encode import write_video
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", np.zeros((5, 32, 48, 3), np.uint8), fps=10)
        ...     info = probe(f"{folder}/a.mp4")
        >>> info.frames, info.width, info.height, info.fps, info.codec
        (5, 48, 32, 10.0, 'mpeg4')
    """
    with opened(source, limits) as video:
        return _info(video, _count(video))


def count_frames(source: VideoSource, *, limits: Limits = _LIMITS) -> int:
    """Number of frames of a video, from its index or header; the packets are counted where both are silent.

    Args:
        source: the path of a regular file, bytes, or a seekable file object.
        limits: of what may be spent on it.

    Returns:
        the number that :func:`probe` gives, without decoding anything.

    Raises:
        VideoError: not a regular file, or not a video that can be read within the limits.
    """
    with opened(source, limits, headers_only=True) as video:
        return _count(video)


def scan(source: VideoSource, *, limits: Limits = _LIMITS, stream: int | None = None) -> VideoLayout:
    """Find out how a video is laid out, once, for all later reads.

    All packets are read and one frame is decoded. Where the packets don't tell the order of the frames, all are
    decoded, to count them.

    Args:
        source: the path of a regular file, bytes, or a seekable file object.
        limits: of what may be spent on it.
        stream: which of its video streams, from 0; none for the one that FFmpeg takes for the best.

    Returns:
        the layout; its number of frames is exact.

    Raises:
        VideoError: not a regular file, or not a video that can be read within the limits.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.decoding.encode import write_video
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", np.zeros((30, 32, 48, 3), np.uint8))
        ...     layout = scan(f"{folder}/a.mp4")
        ...     clip = read_frames(f"{folder}/a.mp4", [29], layout=layout)
        >>> layout.info.frames, layout.info.codec, clip.shape
        (30, 'mpeg4', (1, 32, 48, 3))
    """
    for headers_only in (True, False):
        try:
            return _scan_packets(source, limits, headers_only, stream)
        except Shallow:
            continue
        except Distrust:
            break
    with opened(source, limits, stream=stream) as video:
        count = sum(1 for _ in _all_frames(video))
    with opened(source, limits, stream=stream) as video:
        return VideoLayout(_info(video, count), video.size, stream=stream)


def read_frames(
    source: VideoSource,
    indices: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
    crop: Rectangle | None = None,
    flip: bool = False,
    limits: Limits = _LIMITS,
    layout: VideoLayout | None = None,
    suffix: str | None = None,
    out: Frames | None = None,
) -> Frames:
    """Decode the wanted frames of a video, exactly those that decoding everything gives.

    Only the groups of pictures that hold a wanted frame are decoded, to the last one wanted, without the frames that
    nothing refers to. Where the packets leave a doubt of which frame is which (times that repeat or don't order, frames
    that are not shown, interlaced pictures, containers without times, unknown codecs, ...) everything up to the last
    wanted frame is decoded.

    Args:
        source: the path of a regular file, bytes, or a seekable file object; with ``suffix`` the path of a folder.
        indices: 0-based, in display order; unsorted and repeated ones are allowed, negative ones are not.
        size: (height, width) to resize to, bilinear, in the pass that converts the colours; none keeps the size.
        crop: (left, top, width, height) of the part that is wanted, in pixels of the first frame as shown; only that is
            converted, and resized to ``size``. With a size its sides may be fractions of pixels.
        flip: whether it is mirrored, left to right, in the same pass.
        limits: of what may be spent on it.
        layout: what :func:`scan` found of this very file. It spares the reading of headers and unneeded packets. It is
            checked against what is read: one of another file changes nothing but the time. Of several video streams
            it says which one is read.
        suffix: pattern of file names, such as ``"img_{:05}.jpg"``: the source is a folder of images, numbered from 1,
            of which only the wanted ones are read; frame 0 is image 1.
        out: an array (T, H, W, 3) of uint8 that the frames are written to; none for a new one.

    Returns:
        RGB frames (T, H, W, 3), uint8, in the order of ``indices``.

    Raises:
        ValueError: no index, or a negative one; a crop that no frame has; an ``out`` of another shape.
        ShortVideoError: the video ends before the last wanted frame.
        VideoError: it can't be read within the limits, is damaged, its frames change their size, or have no room for
            the crop.

    Example:
        >>> import numpy as np
        >>> from tempfile import TemporaryDirectory
        >>> from lit_distill.data.decoding.encode import write_video
        >>> video = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1) * np.full((1, 32, 32, 3), 40, np.uint8)
        >>> with TemporaryDirectory() as folder:
        ...     write_video(f"{folder}/a.mp4", video)
        ...     clip = read_frames(f"{folder}/a.mp4", [5, 0, 5])
        ...     part = read_frames(f"{folder}/a.mp4", [5, 0, 5], crop=(4, 0, 20, 30), flip=True)
        >>> clip.shape, bool((clip[0] == clip[2]).all()), bool((part == clip[:, :30, 23:3:-1]).all())
        ((3, 32, 32, 3), True, True)
    """
    indices = [int(index) for index in indices]
    if not indices or min(indices) < 0:
        raise ValueError(f"read_frames expects at least one index, none negative, got {indices}")
    form = Form(size, crop, flip)
    form.check()
    if suffix is not None:
        if not isinstance(source, (str, os.PathLike)):
            raise ValueError(f"read_frames with a suffix expects the path of a folder, got {type(source).__name__}")
        return _read_images(source, suffix, [index + 1 for index in indices], form, limits, out)
    stream = None if layout is None else layout.stream
    way: _Way | None = _read_by_index if layout is None else partial(_read_by_layout, layout)
    while way is not None:
        try:
            headers_only = way not in (_read_by_packets_probed, _read_everything)
            with opened(source, limits, headers_only=headers_only, stream=stream) as video:
                clip = Clip(video.name, indices, form, out)
                way(video, frozenset(indices), clip)
                return clip.frames
        except Distrust as doubt:
            way = _next_way(way, doubt)
    raise AssertionError("decoding everything leaves no doubt")


def read_images(
    folder: str | os.PathLike[str],
    suffix: str,
    numbers: Sequence[int],
    *,
    size: tuple[int, int] | None = None,
    limits: Limits = _LIMITS,
) -> Frames:
    """Decode the wanted frames of a folder of images.

    Args:
        folder: where the images are.
        suffix: pattern of their names, a format string of the number, such as ``"img_{:05}.jpg"``.
        numbers: those of the wanted frames, as in the names; repeated ones are allowed.
        size: (height, width) to resize to, bilinear; none keeps the size.
        limits: of what may be spent on them: pixels of an image, seconds of all.

    Returns:
        RGB frames (T, H, W, 3), uint8, in the order of ``numbers``.

    Raises:
        VideoError: an image is missing, unreadable or beyond the limits, or the images' sizes differ.
    """
    return _read_images(folder, suffix, numbers, Form(size), limits, None)


def _read_images(
    folder: str | os.PathLike[str],
    suffix: str,
    numbers: Sequence[int],
    form: Form,
    limits: Limits,
    out: Frames | None,
) -> Frames:
    until = time.thread_time() + limits.seconds
    clip = Clip(os.fspath(folder), numbers, form, out)
    for number in sorted(set(numbers)):
        image = read_image(Path(folder, suffix.format(number)), limits)
        if time.thread_time() > until:
            raise VideoError(folder, f"reading it took more than {limits.seconds:g} s, the limit")
        if form == Form():
            clip.put(number, image)
        else:
            clip.take(number, av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24"))
    return clip.frames


_Way = Callable[[Opened, frozenset[int], Clip], None]


def _next_way(way: _Way, doubt: Distrust) -> _Way | None:
    """The cheapest of those left that may be exact."""
    if isinstance(way, partial):
        return _read_by_index
    if isinstance(doubt, NoIndex):
        return _read_by_packets
    if isinstance(doubt, Shallow) and way is not _read_by_packets_probed:
        return _read_by_packets_probed
    return _read_everything if way is not _read_everything else None


def _read_by_layout(layout: VideoLayout, video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    if video.size != layout.size or video.context.name != layout.info.codec:
        raise Distrust
    groups = SoughtGroups(video, layout.starts, layout.seeks, layout.ticks, layout.info.frames)
    _read_groups(groups, video, wanted, clip)


def _read_by_index(video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    if container_of(video) != "mov":
        return _read_by_packets(video, wanted, clip)
    try:
        return _read_groups(indexed_groups(video), video, wanted, clip)
    except Distrust as doubt:
        raise NoIndex from doubt


def _read_by_packets(video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    if video.size > _LARGE:
        raise Distrust
    _read_groups(WholeVideo(video), video, wanted, clip)


def _read_by_packets_probed(video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    """The same, once FFmpeg has guessed the depth of reordering that the headers don't say."""
    _read_by_packets(video, wanted, clip)


def _read_groups(groups: Groups, video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    if groups.total is not None and max(wanted) >= groups.total:
        raise Distrust
    try:
        decode_groups(video, groups, wanted, clip.take)
    except av.InvalidDataError as error:
        raise Distrust from error


def _read_everything(video: Opened, wanted: frozenset[int], clip: Clip) -> None:
    last, count = max(wanted), 0
    for index, frame in enumerate(_all_frames(video)):
        if frame.is_corrupt:
            raise VideoError(video.name, f"frame {index} is damaged")
        if index in wanted:
            clip.take(index, frame)
        if index == last:
            return
        count = index + 1
    raise ShortVideoError(video.name, f"frame {last} was wanted, but it has {count} frames", count)


def _all_frames(video: Opened) -> Iterator[av.VideoFrame]:
    """Every frame; what comes before the first key frame, in the file or in time, need not be there."""
    key: Packet | None = None
    for packet in video.packets():
        if key is None and packet.is_keyframe:
            key = packet
        try:
            yield from video.context.decode(packet)
        except av.InvalidDataError:
            if key is not None and (packet.pts is None or key.pts is None or packet.pts >= key.pts):
                raise
    yield from video.context.decode(None)


def _scan_packets(source: VideoSource, limits: Limits, headers_only: bool, stream: int | None) -> VideoLayout:
    with opened(source, limits, headers_only=headers_only, stream=stream) as video:
        inspect, depth = facts_reader(video), reordering_depth(video)
        pictures, times = [], []
        for packet in video.packets():
            pictures.append(picture(packet, inspect))
            times.append(packet.pts if packet.dts is None or container_of(video) != "mov" else packet.dts)
        places = divided(pictures)
        starts, total = starts_of(pictures, places)
        for group, start in zip(places, starts, strict=True):
            numbered(pictures[group.start : group.stop], start, depth=depth)
    with opened(source, limits, stream=stream) as video:
        ticks, seeks = ([of[group.start] for group in places] for of in ([one.time for one in pictures], times))
        return VideoLayout(_info(video, total), video.size, tuple(starts), tuple(ticks), tuple(seeks), stream)


def _info(video: Opened, count: int) -> VideoInfo:
    """What the headers and the first frame say."""
    stream, container = video.stream, video.container
    if stream.duration is not None and stream.time_base is not None:
        duration = float(stream.duration * stream.time_base)
    else:
        duration = (container.duration or 0) / av.time_base
    container.seek(0)  # counting may have read to the end
    frame = next(_all_frames(video), None)
    if frame is None:
        raise VideoError(video.name, "it has no frame that can be decoded")
    turns = quarter_turns(frame)
    width, height = (frame.height, frame.width) if turns % 2 else (frame.width, frame.height)
    fps = float(stream.average_rate or 0)
    return VideoInfo(count, fps, duration, width, height, stream.codec_context.name, turns * 90)


def _count(video: Opened) -> int:
    stream = video.stream
    if container_of(video) == "mov" and len(stream.index_entries):
        return sum(not entry.is_discard for entry in stream.index_entries)
    return stream.frames or sum(not packet.is_discard for packet in video.packets())
