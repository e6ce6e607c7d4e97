"""The embedded data set: real video files of handwritten digits in motion, made on first use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lit_distill.data._making import CLASS_NAMES, cache_root, make, set_folder
from lit_distill.data._rendering import MOTIONS, DigitsSpec
from lit_distill.data.datamodule import VideoDataModule


class MovingDigits(VideoDataModule):
    """Handwritten digits that move through cluttered, noisy scenes; a class is a digit and its motion.

    A single frame cannot tell the motion, a motion cannot tell the digit. The clips are made once for each
    specification, in under two minutes on two cores, from the digits and photographs that scikit-learn ships (extra
    ``lit-distill[digits]``); the digits' writers and the backgrounds differ between the splits.

    Args:
        root: the folder to make the set's folder in; by default ``$LIT_DISTILL_CACHE``, or ``~/.cache/lit_distill``.
        clips: clips of train, val and test; multiples of the number of classes.
        digits: the digits shown.
        motions: the motions shown.
        length: frames of a clip's file.
        side: width and height of the video, in pixels.
        making_seed: of the clips themselves; ``seed`` is that of their sampling in training.
        num_classes: number of digits times number of motions; given, it is checked.
        spec: further fields of the specification, such as ``noise`` or ``clutter``.
        **loading: as for :class:`VideoDataModule`; a clip is never flipped, for that would change its label.

    Raises:
        ValueError: an unknown digit or motion, numbers of clips that do not give equal classes, another num_classes.

    Example:
        >>> data = MovingDigits(clips=(16, 8, 8), digits=(3, 7), motions=("left", "right"), num_frames=4, size=32)
        >>> data.num_classes
        4
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        clips: Sequence[int],
        digits: Sequence[int] = tuple(range(10)),
        motions: Sequence[str] = tuple(MOTIONS),
        length: int = 32,
        side: int = 64,
        making_seed: int = 0,
        num_classes: int | None = None,
        spec: dict[str, Any] | None = None,
        **loading: Any,
    ) -> None:
        self.spec = DigitsSpec.from_json(
            {
                "seed": making_seed, "clips": list(clips), "digits": list(digits), "motions": list(motions),
                "frames": length, "side": side, **(spec or {}),
            }
        )  # fmt: skip
        classes = len(self.spec.class_names)
        if num_classes is not None and num_classes != classes:
            raise ValueError(
                f"data.num_classes is {num_classes}, but {len(self.spec.digits)} digits times "
                f"{len(self.spec.motions)} motions are {classes} classes"
            )
        self.making_root = cache_root() if root is None else Path(root).expanduser()
        folder = set_folder(self.spec, self.making_root)
        super().__init__(
            root=folder,
            train_list="train.txt",
            val_list="val.txt",
            test_list="test.txt",
            num_classes=classes,
            class_names=CLASS_NAMES,
            flip=0.0,
            **loading,
        )

    def prepare_data(self) -> None:
        """Make the clips, unless they are there."""
        make(self.spec, self.making_root)
