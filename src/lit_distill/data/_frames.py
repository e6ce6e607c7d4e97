"""Decoded frames into one array of RGB bytes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias, cast

import av
import av.video.reformatter
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image

from lit_distill.data._container import one_line, require_regular
from lit_distill.data.video import VideoError

Frames: TypeAlias = NDArray[np.uint8]
"""A clip as RGB bytes (T, H, W, 3)."""


class Clip:
    """Frames in the order in which they were asked for, converted as they come.

    Args:
        name: of the video, for errors.
        indices: of the frames, repeated ones included.
        size: (height, width) of the frames as shown; None keeps theirs.
    """

    def __init__(self, name: str, indices: Sequence[int], size: tuple[int, int] | None) -> None:
        self._name, self._size = name, size
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            self._places.setdefault(index, []).append(place)
        self._count = len(indices)
        # one for all frames: it keeps its tables, and in one thread it costs a fifth of a fresh one
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._frames: Frames | None = None

    def take(self, index: int, frame: av.VideoFrame) -> None:
        """Convert a frame, turned upright, to the places that asked for it.

        Raises:
            VideoError: its size is not that of the frames before.
        """
        turns = quarter_turns(frame)
        height, width = self._size or (None, None)
        if turns % 2:
            height, width = width, height
        converted = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = converted.planes[0]
        pixels = cast("bytes", plane)  # a plane is a buffer, which its stubs do not say alike in all releases
        rows = np.frombuffer(pixels, np.uint8).reshape(-1, plane.line_size)
        image = rows[: converted.height, : converted.width * 3].reshape(converted.height, converted.width, 3)
        self.put(index, np.rot90(image, turns))

    def put(self, index: int, image: Frames) -> None:
        """Copy an image (H, W, 3) to the places that asked for it.

        Raises:
            VideoError: its size is not that of the frames before.
        """
        if self._frames is None:
            self._frames = np.empty((self._count, *image.shape), np.uint8)
        if image.shape != self._frames.shape[1:]:
            sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (self._frames.shape[1:], image.shape))
            raise VideoError(self._name, f"its frames differ in size: {sizes}")
        self._frames[self._places[index]] = image

    @property
    def frames(self) -> Frames:
        """The clip (T, H, W, 3), once every frame is there."""
        assert self._frames is not None
        return self._frames


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns that show the frame upright."""
    return round(frame.rotation / 90) % 4


def read_image(file: Path, size: tuple[int, int] | None = None) -> Frames:
    """Decode an image file, as RGB bytes (H, W, 3).

    Raises:
        VideoError: it is missing or unreadable.
    """
    try:
        require_regular(file)
        with warnings.catch_warnings():
            # torchvision 0.29 announces that its decoders will go; Pillow gives the same bytes, 1.4 times slower
            warnings.simplefilter("ignore", DeprecationWarning)
            image = decode_image(torch.from_numpy(np.fromfile(file, np.uint8)), ImageReadMode.RGB)
    except (OSError, RuntimeError) as error:
        raise VideoError(file, one_line(error)) from error
    frame: Frames = image.permute(1, 2, 0).numpy()
    if size is not None:
        whole = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")
        return whole.reformat(width=size[1], height=size[0], threads=1).to_ndarray()  # type: ignore[return-value]
    return frame
