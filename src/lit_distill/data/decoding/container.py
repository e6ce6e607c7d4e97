"""Opening a video as data: a local file or bytes, no protocol, no playlist, within limits."""

from __future__ import annotations

import errno
import io
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias, cast

import av
import av.container
import av.stream
import av.video.codeccontext
import av.video.stream

from lit_distill.data.decoding.layout import Limits, VideoError, VideoSource, name_of
from lit_distill.untrusted.budgets import MAX_RATIO
from lit_distill.untrusted.containers import EBML, ExcessError, check_container
from lit_distill.untrusted.opening import UntrustedFileError, open_untrusted

Packet: TypeAlias = Any  # av.Packet is generic in its stubs and not at run time

# Formats that fetch what a file names (playlists, concatenations, image sequences) are not among them.
_FORMATS = "matroska,avi,mpeg,mpegts,flv,asf,ogg,m4v,h264,hevc,ivf,obu,nut,gif"

# FFmpeg decodes up to 20 frames to guess what the headers of these containers say: most of the time of a short read.
_HEADERS = {"skip_frame": "all", "probesize": "2048"}

_HEAD = 16  # bytes of a file that say what it is
_KINDS = {
    b"\x89PNG": "a PNG image", b"\xff\xd8\xff": "a JPEG image", b"BM": "a BMP image", b"II*\0": "a TIFF image",
    b"MM\0*": "a TIFF image", b"PK\x03\x04": "a zip archive", b"\x1f\x8b": "a gzip archive", b"%PDF": "a PDF",
    b"<!DOCTYPE": "a web page", b"<!doctype": "a web page", b"<html": "a web page",
    b"version https://": "a pointer of Git LFS (fetch it by git lfs pull)",
}  # fmt: skip
_TEXT = bytes([9, 10, 13, *range(32, 127)])

_SMALL = 1 << 15  # bytes of a part
_OPENING = 1.0  # seconds of CPU time that the headers of a file may take that is neither a movie nor Matroska

# FFmpeg takes 4 KiB for each unit behind a start code in a packet of these, and twice that while it opens a file.
_OF_UNITS = ("h264", "hevc")
_START_CODE = b"\0\0\1"
_MAX_UNITS = 10_000  # of a packet
_MAX_OPENING_UNITS = 30_000  # of what is read to open a file

# Decoders that drop or conceal damaged frames without a word, unless they are set to fail.
_SILENT = ("h264", "hevc", "mpeg4")


@dataclass
class Opened:
    """A video that is open for decoding.

    Attributes:
        name: what errors call it.
        size: of the file, in bytes.
        container: its container.
        stream: its video stream; covers and thumbnails are none.
        limits: what may be spent on it.
        until: CPU time of this thread at which the limit of seconds is reached.
    """

    name: str
    size: int
    container: av.container.InputContainer
    stream: av.video.stream.VideoStream
    limits: Limits
    until: float

    @property
    def context(self) -> av.video.codeccontext.VideoCodecContext:
        """The stream's decoder."""
        return self.stream.codec_context

    def packets(self) -> Iterator[Packet]:
        """The stream's packets from here to the end of the file, empty ones left out."""
        packets = enumerate(self.container.demux(self.stream))
        of_units = self.context.name in _OF_UNITS
        while True:
            try:
                number, packet = next(packets)
            except (StopIteration, IndexError):  # IndexError: at the end of a file in which streams appeared midway
                return
            if number > self.limits.frames:
                raise VideoError(self.name, f"it has more than {self.limits.frames} frames, the limit")
            if number % 64 == 0:
                self.check_time()
            if packet.size and packet.stream_index == self.stream.index:
                if of_units and packet.size > 3 * _MAX_UNITS and bytes(packet).count(_START_CODE) > _MAX_UNITS:
                    raise VideoError(self.name, f"a packet has more than {_MAX_UNITS:,} units, the limit")
                yield packet

    def check_time(self) -> None:
        """Raise a VideoError when the limit of seconds is spent."""
        if time.thread_time() > self.until:
            raise VideoError(self.name, f"reading it took more than {self.limits.seconds:g} s, the limit")


@contextmanager
def opened(
    source: VideoSource, limits: Limits, *, headers_only: bool = False, stream: int | None = None
) -> Iterator[Opened]:
    """Open a video for decoding; whatever FFmpeg says against it becomes a VideoError.

    Args:
        source: a regular file, bytes, or a seekable file object.
        limits: of what may be spent until the end of the ``with`` block.
        headers_only: believe the headers of an mp4, mov, mkv or webm file without decoding its first frames. What the
            headers don't say, such as the rate or the depth of reordering, then is not guessed.
        stream: which of its video streams, from 0; none for the one that FFmpeg takes for the best.

    Raises:
        VideoError: it can't be opened or is beyond the limits.
    """
    name, until = name_of(source), time.thread_time() + limits.seconds
    options = {"protocol_whitelist": "file", "max_pixels": str(limits.pixels)}
    try:
        file, size, head, is_movie = _resolved(source)
        # mov only for what its headers were held against its bytes of: FFmpeg finds it in files of any other name too
        options["format_whitelist"] = f"mov,{_FORMATS}" if is_movie else _FORMATS
        quick = _HEADERS if headers_only and (head[4:8] == b"ftyp" or head[:4] == EBML) else {}
        with ExitStack() as stack:
            timed = None
            if not is_movie and head[:4] != EBML:  # nobody has counted what its headers hold
                if isinstance(file, str):
                    file = stack.enter_context(open_untrusted(file.removeprefix("file:"), what="a video", buffering=0))
                file = timed = _Timed(file, name, until - limits.seconds, min(limits.seconds, _OPENING))
            container = stack.enter_context(_open(file, options | quick, name, head))
            if timed is not None:
                timed.opened(limits.seconds)
            if quick and len(_video_streams(container)) > 1:  # which is the best is seen in their first frames
                stack.close()
                if not isinstance(file, str):
                    file.seek(0)
                container = stack.enter_context(_open(file, options, name, head))
            chosen = _video_stream(container, name, stream)
            context = chosen.codec_context
            # the data loader's workers are the parallelism: FFmpeg's threads cost more than they gain beside them
            context.thread_type, context.thread_count = "NONE", 1
            context.options = {"max_pixels": str(limits.pixels)}
            if context.name in _SILENT:
                context.options |= {"err_detect": "explode"}
            video = Opened(name, size, container, chosen, limits, until)
            video.check_time()
            if context.width * context.height > limits.pixels:
                reason = f"{context.width} x {context.height} is more than {limits.pixels} pixels a frame, the limit"
                raise VideoError(name, reason)
            if max(context.width, context.height) > MAX_RATIO * min(context.width, context.height):
                reason = f"{context.width} x {context.height}: one side is more than {MAX_RATIO} times the other"
                raise VideoError(name, reason)
            if len(chosen.index_entries) > limits.frames:
                reason = f"its index has {len(chosen.index_entries)} frames, the limit is {limits.frames}"
                raise VideoError(name, reason)
            yield video
    except UntrustedFileError as error:
        raise VideoError(name, error.reason) from error
    except ExcessError as error:
        raise VideoError(name, str(error)) from error
    except (OSError, av.FFmpegError) as error:  # FFmpeg's errors are not all OSErrors
        raise VideoError(name, one_line(error)) from error


class _Timed:
    """A file that ends in an error when a time is over: FFmpeg reads it in small parts, its headers too.

    Attributes:
        name: of the file; FFmpeg looks at its ending where the content leaves a doubt.
        seconds: of CPU time of this thread, from ``begin`` on.
    """

    def __init__(self, file: BinaryIO, name: str, begin: float, seconds: float) -> None:
        self.seek, self.tell = file.seek, file.tell
        self.name, self.seconds = name, seconds
        self._file, self._begin = file, begin
        self._units: int | None = 0  # none once it is open
        self._ended = False

    def opened(self, seconds: float) -> None:
        """Its headers are read: what follows has this time, and is counted by packets."""
        self.seconds, self._units = seconds, None

    def read(self, size: int = -1) -> bytes:
        """Bytes from the position on; none after the error, of which FFmpeg says the first and prints others.

        Raises:
            VideoError: the time is over, or there are too many units in what is read to open it.
        """
        if self._ended:
            return b""
        part = self._file.read(size) or b""
        if self._units is not None:
            self._units += part.count(_START_CODE)
            if self._units > _MAX_OPENING_UNITS:
                self._ended = True
                raise VideoError(self.name, f"its beginning has more than {_MAX_OPENING_UNITS:,} units, the limit")
        if time.thread_time() > self._begin + self.seconds:
            self._ended = True
            raise VideoError(self.name, f"reading it took more than {self.seconds:g} s, the limit")
        return part


def _open(file: Any, options: dict[str, str], name: str, head: bytes) -> av.container.InputContainer:
    try:
        container: av.container.InputContainer = av.open(
            file,
            options=options,
            metadata_errors="replace",
            buffer_size=_SMALL if isinstance(file, _Timed) else 1 << 18,
        )
    except av.FFmpegError as error:
        if kind := _kind(head):
            raise VideoError(name, f"it is {kind}, no video") from error
        if error.errno != errno.EINVAL:
            raise
        # what it says of a format that it knows and that is not on the list
        raise VideoError(name, "Invalid data: no video of a format that is read, such as mp4, mkv or avi") from error
    return container


def _kind(head: bytes) -> str:
    """What a file is by its first bytes, where it is of a kind that is often named like a video; empty for others."""
    if not head:
        return "an empty file"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "a WebP image"
    found = next((kind for start, kind in _KINDS.items() if head.startswith(start)), "")
    if not found and not head.translate(None, _TEXT):
        return "text"
    return found


def one_line(error: BaseException) -> str:
    """An error's reason in one line."""
    reason = getattr(error, "strerror", None) or str(error)  # FFmpeg's errors have it too, without number and path
    return " ".join(reason.split()) or type(error).__name__


def _resolved(source: VideoSource) -> tuple[Any, int, bytes, bool]:
    """What FFmpeg is to open, its size in bytes, its first bytes, and whether it may be an mp4 or mov."""
    if isinstance(source, (str, os.PathLike)):
        with open_untrusted(source, what="a video", buffering=0) as opened_file:
            size, head = os.fstat(opened_file.fileno()).st_size, opened_file.read(_HEAD)
            is_movie = check_container(opened_file, size, head)
        # "file:" and an absolute path: a name such as "concat:a|b" is a name, not a protocol
        return f"file:{os.path.abspath(source)}", size, head, is_movie
    file = io.BytesIO(source) if isinstance(source, (bytes, bytearray, memoryview)) else source
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(_HEAD)
    is_movie = check_container(cast("BinaryIO", file), size, head)
    file.seek(0)
    return file, size, head, is_movie


def _video_streams(container: av.container.InputContainer) -> list[av.video.stream.VideoStream]:
    """The streams of a file but covers and thumbnails."""
    not_video = av.stream.Disposition.attached_pic | av.stream.Disposition.timed_thumbnails
    return [stream for stream in container.streams.video if not stream.disposition & not_video]


def _size(stream: av.video.stream.VideoStream) -> str:
    context = stream.codec_context
    return "no decoder" if context is None else f"{context.width}x{context.height}"


def _video_stream(container: av.container.InputContainer, name: str, wanted: int | None) -> av.video.stream.VideoStream:
    """The wanted stream, or the best: by FFmpeg's ``av_find_best_stream`` disposition, then frames and bit rate."""
    streams = _video_streams(container)
    if not streams:
        raise VideoError(name, "it has no video stream")
    if wanted is not None and not wanted < len(streams):
        raise VideoError(name, f"it has {len(streams)} video streams, video_stream={wanted} counts from 0")
    decodable = [stream for stream in streams if stream.codec_context is not None]
    if not decodable:
        raise VideoError(name, "there is no decoder for its video stream")
    if wanted is not None:
        if streams[wanted].codec_context is None:
            raise VideoError(name, f"there is no decoder for its video stream {wanted}")
        return streams[wanted]
    found = container.streams.best("video")
    best = next((stream for stream in decodable if stream is found), None) or max(
        decodable,
        key=lambda stream: (
            bool(stream.disposition & av.stream.Disposition.default),
            stream.codec_context.width * stream.codec_context.height,
        ),
    )
    if len(streams) > 1:
        sizes = [f"{number} ({_size(one)})" for number, one in enumerate(streams)]
        warnings.warn(  # without the file's name: it is said once, not of each file of a kind
            f"a file has several video streams, {', '.join(sizes)}: {sizes[streams.index(best)]} is read, which is "
            "FFmpeg's choice; data.video_stream=<number> reads another",
            stacklevel=2,
        )
    return best
