from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from lit_distill.data import write_video


def moving_bars(frames: int, *, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Frames that all differ: a bright bar moves over a still texture."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 120, (height // 8, width // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    video = np.repeat(texture[None], frames, 0)
    for number, frame in enumerate(video):
        frame[:, (3 * number) % width : (3 * number) % width + 6] = 250
        frame[: height // 4] = (number * 5 + seed * 40) % 256
    return video


def decode_all(path: Path) -> list[NDArray[np.uint8]]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False) for frame in container.decode(video=0)]


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with 3 classes of 4 videos (of 20, 5, 12 and 33 frames) and the lists train.txt and val.txt."""
    root = tmp_path_factory.mktemp("videos")
    lines = []
    for label, name in enumerate(("jump", "run", "swim")):
        (root / name).mkdir()
        for number, frames in enumerate((20, 5, 12, 33)):
            write_video(root / name / f"{number}.mp4", moving_bars(frames, seed=label * 4 + number))
            lines.append(f"{name}/{number}.mp4 {label}")
    write_lines(root / "train.txt", lines)
    write_lines(root / "val.txt", lines[:7])
    write_lines(root / "classes.txt", ["jump", "run", "swim"])
    return root


def write_images(
    folder: Path, frames: Sequence[NDArray[np.uint8]], *, suffix: str = "img_{:05}.jpg", first: int = 1
) -> None:
    """Write frames (H, W, 3) as images numbered from ``first``."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, frame in enumerate(frames, first):
        Image.fromarray(frame).save(folder / suffix.format(number), quality=95)


def grey(frames: int, step: int) -> list[NDArray[np.uint8]]:
    """Frames of one grey level each: ``step``, ``2 step``, ..."""
    return [np.full((40, 50, 3), step * number, np.uint8) for number in range(1, frames + 1)]


def write_lines(file: Path, lines: Sequence[str]) -> Path:
    file.write_text("".join(f"{line}\n" for line in lines))
    return file
