"""Draws and encodes the clips of the embedded data set; also runs as a program, one worker process of its making.

Needs NumPy and PyAV only, never the package around it: the making starts this very file in fresh interpreters, which
therefore come up in a fraction of a second and share nothing with the training program.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final, NamedTuple, cast

import av
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

SPLITS: Final = ("train", "val", "test")

# Part of the specification: raise it whenever a change below alters a single pixel or byte.
RENDERING: Final = 2


class Motion(NamedTuple):
    """What a motion changes: the unit velocity (right, down), the sense of turning, the sense of zooming."""

    right: int = 0
    down: int = 0
    turn: int = 0
    zoom: int = 0


MOTIONS: Final[Mapping[str, Motion]] = MappingProxyType(
    {
        "left": Motion(right=-1),
        "right": Motion(right=1),
        "up": Motion(down=-1),
        "down": Motion(down=1),
        "clockwise": Motion(turn=1),
        "counterclockwise": Motion(turn=-1),
        "zoom_in": Motion(zoom=1),
        "zoom_out": Motion(zoom=-1),
    }
)

# Where the splits part the 1,797 scans, which lie in the file by writer, so that (nearly) every writer is in one split
# only; and, as fractions of the width, the photographs. In the order of SPLITS.
_SCAN_CUTS: Final = (0, 1000, 1250, 1797)
_STRIP_CUTS: Final = (0.0, 0.6, 0.8, 1.0)

_CELL: Final = 4  # pixels of a sprite for each pixel of the 8x8 scan
_MARGIN: Final = 1  # empty cells round the scan, so that strokes end softly


@dataclass(frozen=True)
class DigitsSpec:
    """All that the set depends on; lengths are fractions of the frame's side.

    Args:
        seed: seed of every random choice.
        clips: clips of each split, in the order of ``SPLITS``: multiples of the number of classes.
        digits: the digits shown, 0-9.
        motions: the motions shown, keys of ``MOTIONS``.
        frames: frames of a clip.
        side: width and height of a frame, in pixels.
        fps: frames a second, as written in the file.
        digit_side: smallest and largest side of a digit.
        speed: smallest and largest way a frame.
        radius: smallest and largest radius of a turning digit's path.
        octaves: smallest and largest change of size a frame of a zooming digit, in octaves.
        contrast: opacity range of a digit.
        clutter: largest number of drifting fragments of other digits.
        noise: range of the luma noise's standard deviation, in levels of 255.
        crf: constant rate factor of the encoder: larger is smaller files.

    Raises:
        ValueError: a digit, a motion or a number that cannot be drawn, or clips that leave the classes unequal.
    """

    seed: int
    clips: tuple[int, int, int]
    digits: tuple[int, ...]
    motions: tuple[str, ...]
    frames: int
    side: int
    fps: int = 25
    digit_side: tuple[float, float] = (0.3, 0.6)
    speed: tuple[float, float] = (0.012, 0.025)
    radius: tuple[float, float] = (0.11, 0.17)
    octaves: tuple[float, float] = (0.018, 0.032)
    contrast: tuple[float, float] = (0.35, 0.9)
    clutter: int = 2
    noise: tuple[float, float] = (6.0, 18.0)
    crf: int = 26

    def __post_init__(self) -> None:
        if not self.digits or len(set(self.digits)) < len(self.digits) or not set(self.digits) <= set(range(10)):
            raise ValueError(f"data.digits are different numbers of 0..9, got {list(self.digits)}")
        if not self.motions or len(set(self.motions)) < len(self.motions) or not set(self.motions) <= set(MOTIONS):
            raise ValueError(f"data.motions are different ones of {', '.join(MOTIONS)}, got {list(self.motions)}")
        classes = len(self.class_names)
        if len(self.clips) != len(SPLITS) or any(count < classes or count % classes for count in self.clips):
            raise ValueError(
                f"data.clips are the numbers of clips of {', '.join(SPLITS)}: multiples of {classes}, the number of "
                f"classes, got {list(self.clips)}"
            )
        if self.frames < 1 or self.side < 16 or self.side % 2:
            raise ValueError(
                "data.length is at least 1 frame and data.side an even number of at least 16 pixels, "
                f"got {self.frames} and {self.side}"
            )
        for name in ("digit_side", "speed", "radius", "octaves", "contrast", "noise"):
            low, high = getattr(self, name)
            if not 0 <= low <= high or (low == 0 and name in ("digit_side", "radius")):
                raise ValueError(f"data.spec.{name} is a range [low, high] of numbers above 0, got [{low}, {high}]")
        if self.digit_side[1] > 0.8:
            raise ValueError(
                f"data.spec.digit_side goes up to 0.8, for digits to fit the frame, got {self.digit_side[1]}"
            )

    @property
    def jobs(self) -> tuple[tuple[str, int], ...]:
        """Split and index of every clip."""
        return tuple((split, index) for split, count in zip(SPLITS, self.clips, strict=True) for index in range(count))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes in the order of their labels, digit by digit."""
        return tuple(f"{digit}_{motion}" for digit in self.digits for motion in self.motions)

    def label(self, index: int) -> int:
        """The label of the clip at an index of any split: classes take turns, so that they are equally many."""
        return index % (len(self.digits) * len(self.motions))

    def file(self, split: str, index: int) -> str:
        """The path of a clip, relative to the set's folder."""
        return f"{split}/{self.class_names[self.label(index)]}/{index:05d}.mp4"

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> DigitsSpec:
        """Build the specification from its JSON form, in which tuples are lists."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return cls(**values)


class Sources(NamedTuple):
    """The real material: scans (N, 8, 8) in 0..1, their digits (N,), photographs (H, W, 3) in 0..255."""

    scans: Floats
    digits: npt.NDArray[np.int64]
    photos: tuple[Bytes, ...]

    def save(self, path: Path) -> None:
        """Write the material to an ``.npz`` file."""
        photos = {f"photo{i}": photo for i, photo in enumerate(self.photos)}
        np.savez(path, scans=self.scans, digits=self.digits, **photos)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> Sources:
        """Read the material from an ``.npz`` file."""
        with np.load(path, allow_pickle=False) as arrays:
            photos = tuple(arrays[name] for name in sorted(arrays.files) if name.startswith("photo"))
            return cls(arrays["scans"], arrays["digits"], photos)

    def of_split(self, split: str) -> Sources:
        """Keep what one split may use: its range of scans and its column strip of every photograph."""
        part = SPLITS.index(split)
        scans = slice(*_SCAN_CUTS[part : part + 2])
        left, right = _STRIP_CUTS[part : part + 2]
        strips = tuple(p[:, round(left * p.shape[1]) : round(right * p.shape[1])] for p in self.photos)
        return Sources(self.scans[scans], self.digits[scans], strips)


class Path2D(NamedTuple):
    """Where a sprite is in each frame: centre (T,) right and down in pixels, side of the scan (T,) in pixels."""

    right: Floats
    down: Floats
    side: Floats


def trace(motion: Motion, spec: DigitsSpec, rng: np.random.Generator) -> Path2D:
    """Draw a random path of one motion.

    At every single frame the position is uniform over the frame (which wraps round) and the logarithm of the side is
    uniform over its range (which wraps too), whatever the motion: one frame tells nothing of it. For the same reason
    all motions take the same draws in the same order.
    """
    t = np.arange(spec.frames, dtype=np.float64)
    start = rng.uniform(0, spec.side, 2)
    speed = rng.uniform(*spec.speed) * spec.side
    radius = rng.uniform(*spec.radius) * spec.side
    angle = rng.uniform(0, 2 * math.pi) + motion.turn * speed / radius * t
    sway = rng.uniform(0, 0.02 * spec.side, (2, 1)) * np.sin(
        2 * math.pi * (t / rng.uniform(20, 40, (2, 1)) + rng.uniform(0, 1, (2, 1)))
    )
    right = start[0] + motion.right * speed * t + radius * np.cos(angle) + sway[0]
    down = start[1] + motion.down * speed * t + radius * np.sin(angle) + sway[1]
    smallest, largest = np.log2(spec.digit_side)
    range_ = largest - smallest
    octave = (rng.uniform(0, range_) + motion.zoom * rng.uniform(*spec.octaves) * t) % range_ if range_ else 0.0 * t
    side = spec.side * 2.0 ** (smallest + octave)
    return Path2D(*(values.astype(np.float32) for values in (right, down, side)))


def render(spec: DigitsSpec, sources: Sources, split: str, index: int) -> Bytes:
    """Draw a clip, a function of the specification, the split and the index alone: (T, side, side, 3) RGB in 0..255."""
    digit, motion = divmod(spec.label(index), len(spec.motions))
    rng = np.random.default_rng((spec.seed, SPLITS.index(split), index))
    material = sources.of_split(split)

    frames, level = _background(spec, material.photos, rng)
    for _ in range(rng.integers(0, spec.clutter + 1)):
        scan = material.scans[rng.integers(len(material.scans))]
        _draw(frames, _fragment(scan, rng), _drift(spec, rng), _colour(level, rng), rng.uniform(0.25, 0.6), rng)
    candidates = np.flatnonzero(material.digits == spec.digits[digit])
    scan = material.scans[rng.choice(candidates)]
    path = trace(MOTIONS[spec.motions[motion]], spec, rng)
    _draw(frames, scan, path, _colour(level, rng), rng.uniform(*spec.contrast), rng)
    _light(frames, rng)
    frames += rng.uniform(*spec.noise) * rng.standard_normal((*frames.shape[:3], 1), dtype=np.float32)
    clip: Bytes = np.clip(frames + 0.5, 0, 255).astype(np.uint8)
    return clip


def _background(spec: DigitsSpec, strips: Sequence[Bytes], rng: np.random.Generator) -> tuple[Floats, float]:
    """A faint photograph over a plain tint under a wandering camera: frames (T, S, S, 3), and the tint's mean level."""
    strip = strips[int(rng.integers(len(strips)))]
    level = rng.uniform(60, 195)
    tint = (level + rng.uniform(-30, 30, 3)).astype(np.float32)
    contrast = np.float32(rng.uniform(0.1, 0.35))
    walk = np.cumsum(rng.normal(0, 0.007 * spec.side, (2, spec.frames)), axis=1)
    walk += rng.uniform(0, strip.shape[:2])[:, None]
    rows, row_part = _mirrored(walk[0], spec.side + 1, strip.shape[0])
    columns, column_part = _mirrored(walk[1], spec.side + 1, strip.shape[1])
    seen = strip[rows[:, :, None], columns[:, None, :]].astype(np.float32)
    seen = seen[:, :-1] + (seen[:, 1:] - seen[:, :-1]) * row_part[:, None, None, None]
    seen = seen[:, :, :-1] + (seen[:, :, 1:] - seen[:, :, :-1]) * column_part[:, None, None, None]
    return tint + contrast * (seen - np.float32(128)), level


def _mirrored(offset: npt.NDArray[np.float64], length: int, size: int) -> tuple[npt.NDArray[np.int64], Floats]:
    """Whole indices (T, length) from each offset on, mirrored at the ends of 0..size-1; and the offsets' fractions."""
    whole = np.floor(offset)
    turn = (whole[:, None] + np.arange(length)).astype(np.int64) % (2 * size)
    return np.minimum(turn, 2 * size - 1 - turn), (offset - whole).astype(np.float32)


def _drift(spec: DigitsSpec, rng: np.random.Generator) -> Path2D:
    """A straight path in any direction, of constant side: how clutter moves."""
    angle = rng.uniform(0, 2 * math.pi)
    way = np.arange(spec.frames) * rng.uniform(*spec.speed) * spec.side
    start = rng.uniform(0, spec.side, 2)
    side = np.full(spec.frames, spec.side * rng.uniform(*spec.digit_side))
    right, down = start[0] + way * math.cos(angle), start[1] + way * math.sin(angle)
    return Path2D(right.astype(np.float32), down.astype(np.float32), side.astype(np.float32))


def _fragment(scan: Floats, rng: np.random.Generator) -> Floats:
    """The scan with all but a window of 4x4 to 5x5 pixels blanked: strokes, no digit."""
    height, width = rng.integers(4, 6, 2)
    top, left = rng.integers(0, 9 - height), rng.integers(0, 9 - width)
    part = np.zeros_like(scan)
    part[top : top + height, left : left + width] = scan[top : top + height, left : left + width]
    return part


def _colour(level: float, rng: np.random.Generator) -> Floats:
    """A random colour, brighter or darker than the background's level, whichever has the room (or either)."""
    bright = rng.uniform() < np.clip((195 - level) / 135, 0.1, 0.9)
    low, high = (level + 50, 255) if bright else (0, level - 50)
    return np.clip(rng.uniform(low, high) + rng.uniform(-45, 45, 3), 0, 255).astype(np.float32)


def _draw(frames: Floats, scan: Floats, path: Path2D, colour: Floats, opacity: float, rng: np.random.Generator) -> None:
    """Blend a scan into all frames along its path, slightly turned, sheared and stretched, wrapping round the frame."""
    size = frames.shape[1]
    turn, shear, stretch = rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15), math.exp(rng.uniform(-0.12, 0.12))
    linear = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    linear = linear @ np.array([[1.0, shear], [0.0, 1.0]]) @ np.diag([stretch, 1 / stretch])
    (a, b), (c, d) = np.linalg.inv(linear).astype(np.float32)
    grid = np.arange(size, dtype=np.float32)
    half = np.float32(size / 2)
    right = (grid - path.right[:, None] + half) % size - half
    down = (grid - path.down[:, None] + half) % size - half
    # Sprite pixels for each frame pixel: the scan's 8 cells cover path.side pixels.
    zoom = (8 * _CELL / path.side)[:, None]
    right, down = (right * zoom)[:, None, :], (down * zoom)[:, :, None]
    centre = np.float32((8 + 2 * _MARGIN) * _CELL / 2 - 0.5)
    u, v = a * right + b * down + centre, c * right + d * down + centre
    extent = 2 * centre
    inside = np.flatnonzero((u > 0) & (u < extent) & (v > 0) & (v < extent))
    coverage = np.float32(opacity) * _bilinear(_sprite(scan), v.ravel()[inside], u.ravel()[inside])
    pixels = frames.reshape(-1, 3)
    pixels[inside] += coverage[:, None] * (colour - pixels[inside])


def _sprite(scan: Floats) -> Floats:
    """The scan with its margin, enlarged by bicubic interpolation."""
    sprite: Floats = np.clip(_CUBIC @ np.pad(scan, _MARGIN) @ _CUBIC.T, 0, 1)
    return sprite


def _cubic(cells: int) -> Floats:
    """The matrix (cells * _CELL, cells) of Catmull-Rom interpolation, zero beyond the ends."""
    position = (np.arange(cells * _CELL) + 0.5) / _CELL - 0.5
    x: npt.NDArray[np.float64] = np.abs(position[:, None] - np.arange(cells))
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    matrix: Floats = np.where(x < 1, near, np.where(x < 2, far, 0)).astype(np.float32)
    return matrix


_CUBIC: Final = _cubic(8 + 2 * _MARGIN)


def _bilinear(image: Floats, rows: Floats, columns: Floats) -> Floats:
    """Values of an image at fractional places, all strictly inside it."""
    width = image.shape[1]
    row, column = rows.astype(np.int32), columns.astype(np.int32)
    row_part, column_part = rows - row, columns - column
    flat, place = image.ravel(), row * width + column
    upper = flat[place] + (flat[place + 1] - flat[place]) * column_part
    lower = flat[place + width] + (flat[place + width + 1] - flat[place + width]) * column_part
    values: Floats = upper + (lower - upper) * row_part
    return values


def _light(frames: Floats, rng: np.random.Generator) -> None:
    """Light the scene from one side, and let the light flicker."""
    steps, size = frames.shape[:2]
    angle, strength = rng.uniform(0, 2 * math.pi), rng.uniform(0, 0.4)
    axis = np.linspace(-1, 1, size, dtype=np.float32)
    ramp = 1 + np.float32(strength * math.cos(angle)) * axis + np.float32(strength * math.sin(angle)) * axis[:, None]
    flicker = np.asarray(rng.uniform(0.85, 1.15, size=steps), dtype=np.float32)
    frames *= (ramp * flicker[:, None, None])[..., None]


def encode(clip: Bytes, path: Path, *, fps: int, crf: int, codec: str) -> None:
    """Write a clip (T, H, W, 3) as a video file; equal clips give equal bytes."""
    with av.open(str(path), "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        options = {**_OPTIONS[codec], **_quality(codec, crf)}
        stream = cast("av.VideoStream", container.add_stream(codec, rate=fps, options=options))
        stream.height, stream.width = clip.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for planes in _yuv420(clip):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(planes, format="yuv420p")))
        container.mux(stream.encode(None))


# No B-frames and no look-ahead (which macroblock trees, weighted prediction and scene cuts need): with them libx264's
# files of small pictures differ from process to process, in one thread too.
_OPTIONS: Final[Mapping[str, Mapping[str, str]]] = MappingProxyType(
    {
        "libx264": {
            "threads": "1",
            "preset": "veryfast",
            "tune": "fastdecode",
            "bf": "0",
            "x264-params": "mbtree=0:weightp=0:scenecut=0:rc-lookahead=0",
        },
        "mpeg4": {"threads": "1"},
    }
)


def _quality(codec: str, crf: int) -> dict[str, str]:
    """The options for a quality; for MPEG-4 a fixed quantizer that gives files of about the same size."""
    if codec == "libx264":
        return {"crf": str(crf)}
    quantizer = str(min(31, max(2, round(crf / 3))))
    return {"qmin": quantizer, "qmax": quantizer}


def _yuv420(clip: Bytes) -> Bytes:
    """RGB (T, H, W, 3) as planes (T, 3 H / 2, W) of BT.601 in studio range, the chroma of 2x2 pixels averaged."""
    steps, height, width, _ = clip.shape
    pixels = clip.astype(np.float32)
    pairs = pixels[:, ::2] + pixels[:, 1::2]
    fours = (pairs[:, :, ::2] + pairs[:, :, 1::2]) / 4
    planes = (pixels @ _BT601[0] + 16, fours @ _BT601[1] + 128, fours @ _BT601[2] + 128)
    joined = np.concatenate([(plane + 0.5).astype(np.uint8).reshape(steps, -1) for plane in planes], axis=1)
    return joined.reshape(steps, height * 3 // 2, width)


_BT601: Final = np.array(
    [[65.481, 128.553, 24.966], [-37.797, -74.203, 112.0], [112.0, -93.786, -18.214]], dtype=np.float32
) / np.float32(255)


def choose_codec() -> str:
    """The encoder to use: H.264, or MPEG-4 where this build of PyAV has no H.264 encoder."""
    try:
        av.codec.Codec("libx264", "w")
    except av.error.FFmpegError:
        return "mpeg4"
    return "libx264"


def work(folder: Path, worker: int, workers: int) -> Iterator[tuple[str, int, str]]:
    """Make every ``workers``-th clip in a folder that holds ``job.json`` and ``sources.npz``.

    Yields the relative path, the size in bytes and the SHA-256 of each file.
    """
    job = json.loads((folder / "job.json").read_text())
    spec, codec = DigitsSpec.from_json(job["spec"]), job["codec"]
    sources = Sources.load(folder / "sources.npz")
    for split, index in spec.jobs[worker::workers]:
        name = spec.file(split, index)
        encode(render(spec, sources, split, index), folder / name, fps=spec.fps, crf=spec.crf, codec=codec)
        content = (folder / name).read_bytes()
        yield name, len(content), hashlib.sha256(content).hexdigest()


def _main(folder: str, worker: str, workers: str) -> None:
    """Report each finished clip, or the error that ends the work, as a line of JSON."""
    # Ctrl-C reaches the whole group: the maker ends its workers itself, and a dead maker ends them by the broken pipe.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        for made in work(Path(folder), int(worker), int(workers)):
            _report(made)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        _report({"error": error.strerror or str(error)})
        sys.exit(1)


def _report(message: object) -> None:
    """Write a line to the standard output at once and whole: the workers share one pipe."""
    os.write(1, (json.dumps(message) + "\n").encode())


if __name__ == "__main__":
    _main(*sys.argv[1:])
