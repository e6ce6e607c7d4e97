"""Decoded frames into one array of RGB bytes."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

import av
import av.video.reformatter
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_image

from lit_distill.data.decoding.container import one_line
from lit_distill.data.decoding.cropping import Cropper, pixels
from lit_distill.data.decoding.layout import Limits, Rectangle, VideoError
from lit_distill.untrusted.budgets import IMAGE_BYTES
from lit_distill.untrusted.images import open_image
from lit_distill.untrusted.opening import UntrustedFileError, read_untrusted

Frames: TypeAlias = NDArray[np.uint8]
"""A clip as RGB bytes (T, H, W, 3)."""


class Form(NamedTuple):
    """What of each frame is converted, and how, see :func:`lit_distill.data.read_frames`.

    Attributes:
        size: (height, width) of what comes out; None keeps that of the frame, or of the crop.
        crop: part of the frame as shown; None for all of it.
        flip: whether it is mirrored, left to right.
    """

    size: tuple[int, int] | None = None
    crop: Rectangle | None = None
    flip: bool = False

    def check(self) -> None:
        """Raise ValueError for a crop that no frame has."""
        if self.crop is None:
            return
        left, top, width, height = self.crop
        if not (left >= 0 and top >= 0 and width > 0 and height > 0):
            raise ValueError(f"crop is (left, top, width, height) in pixels, inside the frames, got {self.crop}")
        if self.size is None and any(value != int(value) for value in self.crop):
            raise ValueError(f"a crop without a size is one of whole pixels, got {self.crop}")

    def cropper(self, reformatter: av.video.reformatter.VideoReformatter) -> Cropper | None:
        """What converts a part of each frame, or mirrors it; None where whole frames are converted as they are."""
        if self.crop is None and not self.flip:
            return None
        return Cropper(reformatter, self.crop, self.size, flip=self.flip)


class Clip:
    """Frames in the order in which they were asked for, converted as they come.

    Args:
        name: of the video, for errors.
        indices: of the frames, repeated ones included.
        form: what of each frame is converted, and how.
        out: what they are written to; None for an array of their own.
    """

    def __init__(self, name: str, indices: Sequence[int], form: Form, out: Frames | None = None) -> None:
        self._name, self._form, self._out = name, form, out
        self._places: dict[int, list[int]] = {}
        for place, index in enumerate(indices):
            self._places.setdefault(index, []).append(place)
        self._count = len(indices)
        # one for all frames: it keeps its tables, and in one thread it costs a fifth of a fresh one
        self._reformatter = av.video.reformatter.VideoReformatter()
        self._cropper = form.cropper(self._reformatter)
        self._frames: Frames | None = None

    def take(self, index: int, frame: av.VideoFrame) -> None:
        """Convert a frame, turned upright, to the places that asked for it.

        Raises:
            VideoError: its size is not that of the frames before, or has no room for the crop.
        """
        turns = quarter_turns(frame)
        if self._cropper is None:
            height, width = self._form.size or (None, None)
            if turns % 2:
                height, width = width, height
            converted = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
            image = np.rot90(pixels(converted), turns) if turns else pixels(converted)
        else:
            try:
                image = self._cropper(frame, turns)
            except ValueError as error:
                raise VideoError(self._name, one_line(error)) from error
        self.put(index, image)

    def put(self, index: int, image: Frames) -> None:
        """Copy an image (H, W, 3) to the places that asked for it.

        Raises:
            ValueError: the clip has no room in ``out``.
            VideoError: its size is not that of the frames before.
        """
        if self._frames is None:
            self._frames = self._room((self._count, *image.shape))
        if image.shape != self._frames.shape[1:]:
            sizes = " and ".join(f"{shape[1]} x {shape[0]}" for shape in (self._frames.shape[1:], image.shape))
            raise VideoError(self._name, f"its frames differ in size: {sizes}")
        for place in self._places[index]:
            self._frames[place] = image

    def _room(self, shape: tuple[int, ...]) -> Frames:
        if self._out is None:
            return np.empty(shape, np.uint8)
        if self._out.shape != shape or self._out.dtype != np.uint8:
            raise ValueError(
                f"out is an array of uint8 {shape} for these frames, got {self._out.dtype} {self._out.shape}"
            )
        return self._out

    @property
    def frames(self) -> Frames:
        """The clip (T, H, W, 3), once every frame is there."""
        assert self._frames is not None
        return self._frames


def quarter_turns(frame: av.VideoFrame) -> int:
    """Anticlockwise quarter turns that show the frame upright."""
    return round(frame.rotation / 90) % 4


def read_image(file: Path, limits: Limits) -> Frames:
    """Decode an image file, as RGB bytes (H, W, 3).

    Raises:
        VideoError: it is missing, unreadable, or larger than the limit of pixels.
    """
    try:
        data = read_untrusted(file, what="an image", limit=IMAGE_BYTES)
        with warnings.catch_warnings():
            # torchvision 0.29 announces that its decoders will go; Pillow gives the same bytes, 1.4 times slower
            warnings.simplefilter("ignore")
            open_image(io.BytesIO(data), max_pixels=limits.pixels)  # its header
            image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), ImageReadMode.RGB)
    except UntrustedFileError as error:
        raise VideoError(file, error.reason) from error
    except Exception as error:  # a decoder of damaged data raises nearly anything
        raise VideoError(file, one_line(error)) from error
    frame: Frames = image.permute(1, 2, 0).numpy()
    return frame
