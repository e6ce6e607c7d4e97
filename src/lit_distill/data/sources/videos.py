"""Video files, whose frames are decoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import Check, VideoIndex
from lit_distill.data.decoding.decode import Frames, read_frames, scan
from lit_distill.data.decoding.layout import Limits, Rectangle, VideoLayout, VideoSource
from lit_distill.data.sources.base import Source, Video, chunks

_SIDE: Final = (16, 16)  # of frames that are decoded to see that they can be
_IN_KEYS: Final = "img_{:05}.jpg"  # stands in the keys of the cache of clips, for videos too, since the first release


class DecodedVideo(Video):
    """A video of which only the wanted frames are decoded, and scaled or cropped in the pass that converts them."""

    def __init__(self, file: VideoSource, layout: VideoLayout, limits: Limits) -> None:
        self.file, self.layout, self.limits = file, layout, limits
        self.length = layout.info.frames
        self.size: tuple[int, int] = layout.info.width, layout.info.height

    def read(
        self,
        numbers: Sequence[int],
        *,
        size: tuple[int, int] | None = None,
        crop: Rectangle | None = None,
        flip: bool = False,
        out: Frames | None = None,
    ) -> Frames:
        """The frames of some numbers, see :func:`lit_distill.data.read_frames`."""
        return read_frames(
            self.file, numbers, size=size, crop=crop, flip=flip, limits=self.limits, layout=self.layout, out=out
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoFiles(Source):
    """Video files, in lists of lines ``path label``.

    Args:
        limits: of what may be spent on a video.
        stream: which video stream of each file, from 0; none for the one that FFmpeg takes for the best.
        index: where the videos' layouts are kept; without one each is scanned again when it is opened, to the same end.
    """

    limits: Limits = Source.limits
    index: VideoIndex | None = None
    stream: int | None = None

    def __post_init__(self) -> None:
        given = self.stream
        if given is not None and (isinstance(given, bool) or not isinstance(given, int) or given < 0):
            raise ValueError(f"data.video_stream is a number from 0, or null for the best stream, got {given!r}")

    def open(self, sample: Sample) -> DecodedVideo:
        """Find out how a video is laid out: from the index, or by a scan."""
        file = self.file(sample)  # one for headers and frames: a member of an archive is fetched once
        if self.index is None:
            return DecodedVideo(file, scan(file, limits=self.limits, stream=self.stream), self.limits)
        layout = self.index.layout(
            sample.name, limits=self.limits, source=file, stamp=self.stamp(sample), stream=self.stream
        )
        return DecodedVideo(file, layout, self.limits)

    def file(self, sample: Sample) -> VideoSource:
        """What is decoded."""
        return sample.path

    def identity(self, sample: Sample, length: int) -> tuple[object, ...]:
        """Path, member, size and time, and the stream where one was chosen."""
        chosen = () if self.stream is None else (f"stream {self.stream}",)
        return (*super().identity(sample, length)[:-1], _IN_KEYS, *chosen)

    def check(self, sample: Sample, check: Check) -> VideoLayout:
        """Scan a video, and decode all of it if asked to."""
        file = self.file(sample)
        video = DecodedVideo(file, scan(file, limits=self.limits, stream=self.stream), self.limits)
        if check == "decode":
            frames = range(video.length)
            for numbers in chunks(frames) if video.layout.starts else [frames]:
                video.read(numbers, size=_SIDE)
        return video.layout

    def bare(self) -> VideoFiles:
        """Without the index."""
        return replace(self, index=None)
