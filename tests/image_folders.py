"""Folders of small images for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = ("cat", "dog", "emu")


def write_images(root: Path, *, classes: Sequence[str] = CLASSES, train: int = 4, val: int = 2, side: int = 40) -> Path:
    """JPEGs ``root/<split>/<class>/<number>.jpg`` of noise about a colour of the class, no two alike."""
    for split, count in (("train", train), ("val", val)):
        for label, name in enumerate(classes):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                rng = np.random.default_rng([label, number, split == "val"])
                pixels = rng.integers(0, 120, (side - 8, side, 3), dtype=np.uint8)
                pixels[..., label % 3] += 120
                Image.fromarray(pixels).save(folder / f"{number}.jpg", quality=95)
    return root
