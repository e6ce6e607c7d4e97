"""A part of each frame, scaled and mirrored in the pass that converts its colours: nothing else is converted."""

from __future__ import annotations

import math
from typing import NamedTuple, TypeAlias

import av
import av.filter
import av.video.reformatter
import numpy as np
from numpy.typing import NDArray

from lit_distill.data.decoding.layout import Rectangle

Image: TypeAlias = NDArray[np.uint8]

# Formats whose pixels, in frames of even sides, are converted each by itself, so that a part of the frame gives that
# part of the picture. Others take neighbours or a dither pattern into account: they are converted whole, unless scaled.
_POINTWISE = frozenset(
    ("yuv420p", "yuvj420p", "yuva420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p", "gbrp", "rgb24", "gray")
)
_GRID = 4  # pixels: parts begin and end where the chroma samples of every format do
_CLOSE = 1e-6  # of a pixel: less is rounding


class _Span(NamedTuple):
    """One side of a part: which pixels of the frame are converted, to how many, and where the wanted ones are there."""

    start: int
    length: int
    scaled: int
    offset: int


class Cropper:
    """Converts the same part of frames to RGB bytes.

    Args:
        reformatter: shared by all conversions.
        crop: the part, in pixels of the first frame as shown, of frames of another size the same share; None for all.
        size: (height, width) of what comes out; None for that of the part.
        flip: whether it is mirrored, left to right.
    """

    def __init__(
        self,
        reformatter: av.video.reformatter.VideoReformatter,
        crop: Rectangle | None,
        size: tuple[int, int] | None,
        *,
        flip: bool,
    ) -> None:
        self._reformatter, self._crop, self._size, self._flip = reformatter, crop, size, flip
        self._first: tuple[int, int] | None = None
        self._graph: tuple[object, av.filter.Graph] | None = None

    def __call__(self, frame: av.VideoFrame, turns: int) -> Image:
        """The part (H, W, 3) of a frame that is shown after so many anticlockwise quarter turns.

        Raises:
            ValueError: the crop does not lie inside the frame.
        """
        odd = turns % 2 == 1
        shown = (frame.height, frame.width) if odd else (frame.width, frame.height)
        wanted = self._of(shown)
        out = self._size or (round(wanted[3]), round(wanted[2]))
        rows, columns = out[::-1] if odd else out
        left, top, width, height = unturned(wanted, shown, turns)
        across, down = _span(left, width, frame.width, columns), _span(top, height, frame.height, rows)
        scaled = (across.length, down.length) != (across.scaled, down.scaled)
        if not scaled and not _is_pointwise(frame):
            flipped = False
            image = pixels(self._reformatter.reformat(frame, format="rgb24", threads=1))
            image = image[down.start :, across.start :]
        else:
            # turned by a quarter, another side is mirrored; and its last chroma sample must end where the part does
            flipped = self._flip and not odd and across.length % _GRID == 0
            part = self._part(frame, across, down, flip=flipped)
            image = pixels(
                self._reformatter.reformat(part, width=across.scaled, height=down.scaled, format="rgb24", threads=1)
            )
        first = across.scaled - across.offset - columns if flipped else across.offset
        image = np.rot90(image[down.offset : down.offset + rows, first : first + columns], turns)
        return image[:, ::-1] if self._flip and not flipped else image

    def _of(self, shown: tuple[int, int]) -> Rectangle:
        """The crop in pixels of a frame of this size."""
        self._first = self._first or shown
        if self._crop is None:
            return 0, 0, *shown
        left, top, width, height = self._crop
        if left + width > self._first[0] + _CLOSE or top + height > self._first[1] + _CLOSE:
            raise ValueError(f"the crop {self._crop} does not lie inside frames of {self._first[0]} x {self._first[1]}")
        if shown == self._first:
            return self._crop
        x, y = shown[0] / self._first[0], shown[1] / self._first[1]
        return left * x, top * y, width * x, height * y

    def _part(self, frame: av.VideoFrame, across: _Span, down: _Span, *, flip: bool) -> av.VideoFrame:
        """The same frame seen from another pixel on: nothing is copied, unless it is mirrored."""
        key = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range, across, down)
        if self._graph is None or self._graph[0] != key:
            graph = av.filter.Graph()
            graph.threads = 1
            size = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1"
            nodes = [
                graph.add("buffer", size),
                graph.add("crop", f"{across.length}:{down.length}:{across.start}:{down.start}"),
            ]
            nodes += [graph.add("hflip")] if flip else []
            graph.link_nodes(*nodes, graph.add("buffersink"))
            graph.configure()
            self._graph = key, graph
        self._graph[1].vpush(frame)
        return self._graph[1].vpull()


def _is_pointwise(frame: av.VideoFrame) -> bool:
    return frame.format.name in _POINTWISE and frame.width % 2 == frame.height % 2 == 0


def pixels(frame: av.VideoFrame) -> Image:
    """The bytes (H, W, 3) of a frame of format rgb24, not copied."""
    plane = frame.planes[0]
    rows: Image = np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size)  # type: ignore[call-overload]
    return rows[: frame.height, : frame.width * 3].reshape(frame.height, frame.width, 3)


def unturned(part: Rectangle, shown: tuple[int, int], turns: int) -> Rectangle:
    """Where a part of a frame as shown is in the frame as stored, before its anticlockwise quarter turns.

    Args:
        part: of the frame as shown.
        shown: its width and height.
        turns: how many.
    """
    for _ in range(turns):
        left, top, width, height = part
        part = shown[1] - top - height, left, height, width
        shown = shown[1], shown[0]
    return part


def _span(start: float, length: float, whole: int, wanted: int) -> _Span:
    """The pixels that cover a part, from chroma sample to chroma sample; as they are scaled the part has its size."""
    first = math.floor((start + _CLOSE) / _GRID) * _GRID
    end = min(math.ceil((start + length - _CLOSE) / _GRID) * _GRID, whole)
    factor = wanted / length
    scaled = max(round((end - first) * factor), wanted)
    return _Span(first, end - first, scaled, min(round((start - first) * factor), scaled - wanted))
