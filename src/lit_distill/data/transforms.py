"""Geometry of clips as published, on bytes (T, H, W, 3) in the workers; normalisation on floats, a batch at a time.

Resizing is Pillow's antialiased bilinear filter, to which the published figures belong. The same filter of
torchvision.transforms.v2 on byte tensors rounds its weights to 16 bits and is off by up to 2 of 255 levels.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from lit_distill.data.decoding.decode import Frames
from lit_distill.data.decoding.layout import Rectangle

Aspect: TypeAlias = Literal["fixed", "keep", "square"]

MULTI_SCALES = (1.0, 0.875, 0.75, 0.66)
"""Published scales of the multi-scale crop, of the shorter side."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Box(NamedTuple):
    """A rectangle in pixels, from its upper left corner."""

    left: int
    top: int
    width: int
    height: int


def scaled_size(
    width: int, height: int, short: int, *, aspect: Aspect = "fixed", rounded: bool = False
) -> tuple[int, int]:
    """Size of a frame whose shorter side becomes ``short``, as published in PaddleVideo's ``Scale``.

    Args:
        width: of the frame.
        height: of the frame.
        short: the new shorter side, in pixels.
        aspect: ``"fixed"``: the longer side becomes int(4/3 short) whatever it was, the published default; ``"keep"``:
            the frame's own ratio; ``"square"``: both sides become ``short``.
        rounded: round the longer side half up where the ratio is kept, instead of cutting it.

    Returns:
        (width, height). A frame whose shorter side is ``short`` already is left as it is, under every ``aspect``.

    Raises:
        ValueError: ``aspect`` is none of the three.

    Example:
        >>> scaled_size(1920, 1080, 256), scaled_size(1920, 1080, 256, aspect="keep")
        ((341, 256), (455, 256))
    """
    if aspect not in ("fixed", "keep", "square"):
        raise ValueError(f"aspect is 'fixed', 'keep' or 'square', got {aspect!r}")
    shorter, longer = min(width, height), max(width, height)
    if shorter == short:
        return width, height
    if aspect == "fixed":
        long = int(short * 4.0 / 3.0)
    elif aspect == "square":
        long = short
    else:
        long = int(longer * (short / shorter) + 0.5) if rounded else int(longer * short / shorter)
    return (short, long) if width <= height else (long, short)


def multi_scale_sizes(
    width: int, height: int, target: int, *, scales: Sequence[float] = MULTI_SCALES, max_distort: int = 1
) -> list[tuple[int, int]]:
    """Candidate sizes of a multi-scale crop: pairs of scaled shorter sides, at most ``max_distort`` steps apart.

    Sides within 2 pixels of ``target``, to which the crop is resized, become it.

    Example:
        >>> multi_scale_sizes(341, 256, 256)[:4]
        [(256, 256), (224, 256), (256, 224), (224, 224)]
    """
    sides = [int(min(width, height) * scale) for scale in scales]
    sides = [target if abs(side - target) < 3 else side for side in sides]
    return [(w, h) for i, h in enumerate(sides) for j, w in enumerate(sides) if abs(i - j) <= max_distort]


def multi_scale_offsets(width: int, height: int, crop: tuple[int, int]) -> list[tuple[float, float]]:
    """Candidate offsets of a multi-scale crop: corners, centre, middles of the sides and of the quarters.

    Coinciding offsets are dropped among the corners and the centre only, as published: the others weigh more then.
    They are (left, top) pairs, not yet rounded.

    Example:
        >>> multi_scale_offsets(256, 256, (256, 256))[:3], len(multi_scale_offsets(341, 256, (224, 224)))
        ([(0.0, 0.0), (0.0, 0.0), (0.0, 0.0)], 13)
    """
    x, y = (width - crop[0]) / 4, (height - crop[1]) / 4
    quarters = [(0, 0)]
    quarters += (
        [(4, 0)] * (x != 0) + [(0, 4)] * (y != 0) + [(4, 4)] * (x != 0 and y != 0) + [(2, 2)] * (x != 0 or y != 0)
    )
    quarters += [(0, 2), (4, 2), (2, 4), (2, 0), (1, 1), (3, 1), (1, 3), (3, 3)]
    return [(i * x, j * y) for i, j in quarters]


def multi_scale_box(width: int, height: int, target: int, rng: random.Random) -> Box:
    """A random crop among the candidates of :func:`multi_scale_sizes` and :func:`multi_scale_offsets`, in this order.

    Its corners are rounded half to even.
    """
    crop = rng.choice(multi_scale_sizes(width, height, target))
    left, top = rng.choice(multi_scale_offsets(width, height, crop))
    return Box(round(left), round(top), round(left + crop[0]) - round(left), round(top + crop[1]) - round(top))


def random_box(width: int, height: int, side: int, rng: random.Random) -> Box:
    """A square of ``side`` at a random place, every place alike: left is drawn, then top.

    Raises:
        ValueError: the frame is smaller than the square.
    """
    _require_room(width, height, side)
    return Box(rng.randint(0, width - side), rng.randint(0, height - side), side, side)


def center_box(width: int, height: int, side: int, *, rounded: bool = True) -> Box:
    """The square of ``side`` in the middle; half pixels are ``rounded`` to even, as published by default, or cut.

    Raises:
        ValueError: the frame is smaller than the square.

    Example:
        >>> center_box(341, 256, 224), center_box(227, 231, 224)
        (Box(left=58, top=16, width=224, height=224), Box(left=2, top=4, width=224, height=224))
    """
    _require_room(width, height, side)
    left, top = (width - side) / 2.0, (height - side) / 2.0
    return Box(round(left) if rounded else int(left), round(top) if rounded else int(top), side, side)


def three_boxes(width: int, height: int, side: int) -> list[Box]:
    """Left, right and middle square of ``side``, halfway down.

    As published for dense evaluation (PaddleVideo's ``GroupFullResSample``): steps are whole quarters of the room, so
    the right crop may stand up to 3 pixels off the edge, and upright frames are cropped along their width too.

    Raises:
        ValueError: the frame is smaller than the square.

    Example:
        >>> [box.left for box in three_boxes(341, 256, 224)]
        [0, 116, 58]
    """
    _require_room(width, height, side)
    x, y = (width - side) // 4, (height - side) // 4
    return [Box(i * x, 2 * y, side, side) for i in (0, 4, 2)]


def crop(frames: Frames, box: Box) -> Frames:
    """The part of every frame (T, H, W, 3) inside ``box``, as a view."""
    return frames[:, box.top : box.top + box.height, box.left : box.left + box.width]


def resize(frames: Frames, width: int, height: int) -> Frames:
    """Resize every frame (T, H, W, 3) uint8 by Pillow's antialiased bilinear filter, unless it has that size."""
    if frames.shape[1:3] == (height, width):
        return frames
    return np.stack(
        [
            np.asarray(Image.fromarray(np.ascontiguousarray(frame)).resize((width, height), Image.Resampling.BILINEAR))
            for frame in frames
        ]
    )


def normalize(clips: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    r"""Turn bytes into normalised floats: :math:`(x / 255 - mean) / std` for each channel.

    Args:
        clips: (..., 3, H, W), uint8, in memory in this order or as they are decoded, channels last.
        mean: of each channel, on the scale 0 to 1.
        std: of each channel, on the same scale.

    Returns:
        (..., 3, H, W), float32, contiguous.

    Example:
        >>> normalize(torch.full((1, 3, 1, 1), 255, dtype=torch.uint8), (0.5,) * 3, (0.25,) * 3).flatten().tolist()
        [2.0, 2.0, 2.0]
    """
    means, stds = (torch.tensor(list(v), dtype=torch.float32, device=clips.device)[:, None, None] for v in (mean, std))
    if clips.device.type != "cpu" or clips.ndim < 4 or not clips.numel():
        floats = torch.empty(clips.shape, device=clips.device)
        return floats.copy_(clips).div_(255.0).sub_(means).div_(stds)
    # on a CPU most of the time goes into new pages: NumPy asks for large ones; and frame by frame stays in the cache
    floats = torch.from_numpy(np.empty(tuple(clips.shape), np.float32))
    for frame, out in zip(clips.flatten(0, -4), floats.flatten(0, -4), strict=True):
        out.copy_(frame).div_(255.0).sub_(means).div_(stds)
    return floats


class View(NamedTuple):
    """A view of frames: a part of them, resized, and a square of that, mirrored or not.

    Attributes:
        width: of the frames, scaled, in pixels.
        height: of the frames, scaled, in pixels.
        part: of the frames.
        resized: (width, height) to which the part is resized.
        square: of the resized part.
        flip: whether it is mirrored, left to right.
    """

    width: int
    height: int
    part: Box
    resized: tuple[int, int]
    square: Box
    flip: bool

    def __call__(self, frames: Frames) -> Frames:
        """The view (T, side, side, 3) of scaled frames (T, H, W, 3)."""
        view = crop(resize(crop(frames, self.part), *self.resized), self.square)
        return view[:, :, ::-1] if self.flip else view

    def crop_of(self, width: int, height: int) -> Rectangle:
        """The part of a frame, before it is scaled, that the view shows: what a reader crops and resizes in one pass.

        Example:
            >>> View(340, 256, Box(10, 20, 168, 192), (256, 256), Box(16, 0, 224, 224), False).crop_of(680, 512)
            (41.0, 40.0, 294.0, 336.0)
        """
        x, y = self.part.width / self.resized[0], self.part.height / self.resized[1]
        across, down = width / self.width, height / self.height
        return (
            (self.part.left + self.square.left * x) * across,
            (self.part.top + self.square.top * y) * down,
            self.square.width * x * across,
            self.square.height * y * down,
        )


@dataclass(frozen=True, kw_only=True)
class ClipTransform:
    """The published transforms of a clip: scale, then in training multi-scale crop, random crop and flip, else crops.

    Args:
        size: side of the clip that comes out, in pixels.
        scale: shorter side after scaling, and side of the multi-scale crop; at least ``size``.
        aspect: see :func:`scaled_size`.
        multi_scale: whether training crops at several scales before the random crop.
        flip: probability of a horizontal flip in training; 0.0 for classes that a flip changes.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> frames = np.zeros((2, 48, 64, 3), np.uint8)
        >>> ClipTransform(size=28, scale=32).training(frames, random.Random(0)).shape
        (2, 28, 28, 3)
    """

    size: int
    scale: int
    aspect: Aspect = "fixed"
    multi_scale: bool = True
    flip: float = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.size <= self.scale:
            raise ValueError(f"size must be from 1 to scale={self.scale}, got {self.size}: set data.size or data.scale")
        if not 0.0 <= self.flip <= 1.0:
            raise ValueError(f"flip is a probability from 0 to 1, got {self.flip}")
        scaled_size(4, 3, self.scale, aspect=self.aspect)

    def scaled(self, frames: Frames) -> Frames:
        """``frames`` (T, H, W, 3) with their shorter side at ``scale``; those that come so are left as they are."""
        height, width = frames.shape[1:3]
        return resize(frames, *self.scaled_size(width, height))

    def scaled_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) of a frame after its scaling, which a reader may do on the way."""
        return scaled_size(width, height, self.scale, aspect=self.aspect)

    def view(self, width: int, height: int, rng: random.Random) -> View:
        """A random view for training of frames that are scaled to ``width`` x ``height``, drawn from ``rng``."""
        part, resized = Box(0, 0, width, height), (width, height)
        if self.multi_scale:
            part, resized = multi_scale_box(width, height, self.scale, rng), (self.scale, self.scale)
        square = random_box(*resized, self.size, rng)
        return View(width, height, part, resized, square, rng.random() < self.flip)

    def training(self, frames: Frames, rng: random.Random) -> Frames:
        """A random view (T, size, size, 3) of ``frames``, drawn from ``rng``."""
        frames = self.scaled(frames)
        return self.view(frames.shape[2], frames.shape[1], rng)(frames)

    def center(self, frames: Frames) -> Frames:
        """The middle (T, size, size, 3) of ``frames``."""
        frames = self.scaled(frames)
        return crop(frames, center_box(frames.shape[2], frames.shape[1], self.size))

    def three_crops(self, frames: Frames) -> list[Frames]:
        """Left, right and middle (T, size, size, 3) of ``frames``."""
        frames = self.scaled(frames)
        return [crop(frames, box) for box in three_boxes(frames.shape[2], frames.shape[1], self.size)]


def _require_room(width: int, height: int, side: int) -> None:
    if min(width, height) < side:
        raise ValueError(f"a crop of {side}x{side} needs frames of at least that size, got {width}x{height}")
