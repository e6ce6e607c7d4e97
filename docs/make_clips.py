"""Makes docs/clips.gif: clips of the embedded test split in motion, and what three networks take them for.

python docs/make_clips.py <folder of the clips> <run of the Student alone> <of the distilled one> <of the Teacher>

The committed picture is of the comparison's seed 0: runs/compare/baseline/seed0, kd/seed0 and teacher. Which clips are
shown is no choice: every fifth of the list, from the first on, so that classes differ.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import av
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import nn

from lit_distill import load_student
from lit_distill.data.preprocess import Preprocess

PICTURE = Path(__file__).parent / "clips.gif"
SHOWN, STEP = 6, 5
SIDE, GAP, LINE, FPS = 112, 12, 17, 10
INK, RIGHT, WRONG = "#1e293b", "#15803d", "#b91c1c"
NAMES = ("alone", "distilled", "Teacher")


def clips_of(folder: Path) -> list[tuple[Path, int]]:
    """Path and class of the clips to show."""
    lines = (folder / "test.txt").read_text(encoding="utf-8").splitlines()[: SHOWN * STEP : STEP]
    return [(folder / path, int(label)) for path, label in (line.rsplit(maxsplit=1) for line in lines)]


def preprocess_of(network: nn.Module) -> Preprocess:
    """How a video becomes the input of a run's network."""
    return cast("Preprocess", network.preprocess)


def answers(network: nn.Module, clips: Sequence[tuple[Path, int]]) -> list[int]:
    """The class that a run's network takes each clip for."""
    network.eval()
    with torch.inference_mode():
        return [int(network(preprocess_of(network)(str(path))).argmax()) for path, _ in clips]


def main(folder: Path, runs: Sequence[str]) -> None:
    """Draw the clips side by side, each with its class and the three answers below, wrong ones in parentheses."""
    clips, networks = clips_of(folder), [load_student(run) for run in runs]
    classes = preprocess_of(networks[0]).class_names
    said = [answers(network, clips) for network in networks]
    videos = []
    for path, _ in clips:
        with av.open(str(path)) as container:
            frames = [Image.fromarray(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
        videos.append([frame.resize((SIDE, SIDE), Image.Resampling.NEAREST) for frame in frames])
    font = ImageFont.load_default(size=13)
    pages = []
    for moment in range(min(map(len, videos))):
        page = Image.new("RGB", (SHOWN * (SIDE + GAP) + GAP, SIDE + 2 * GAP + 4 * LINE), "white")
        draw = ImageDraw.Draw(page)
        for place, ((_, label), video) in enumerate(zip(clips, videos, strict=True)):
            left, top = GAP + place * (SIDE + GAP), GAP
            page.paste(video[moment], (left, top))
            draw.text((left, top + SIDE + 2), classes[label].replace("_", " "), INK, font)
            for row, (name, given) in enumerate(zip(NAMES, said, strict=True), 1):
                is_right = given[place] == label
                answer = classes[given[place]].replace("_", " ")
                text = f"{name}: {answer if is_right else f'({answer})'}"
                draw.text((left, top + SIDE + 2 + row * LINE), text, RIGHT if is_right else WRONG, font)
        pages.append(page.quantize(64, dither=Image.Dither.NONE))
    pages[0].save(PICTURE, save_all=True, append_images=pages[1:], duration=1000 // FPS, loop=0, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
