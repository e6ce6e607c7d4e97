"""The embedded data set: real video files of handwritten digits in motion, made on first use."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from lit_distill._files import cache_root, expand_home
from lit_distill.data.datamodule import VideoDataModule
from lit_distill.data.moving_digits.making import CLASS_NAMES, make, set_folder
from lit_distill.data.moving_digits.rendering import MOTIONS, DigitsSpec
from lit_distill.data.transforms import Aspect


class MovingDigits(VideoDataModule):
    """Handwritten digits that move through cluttered, noisy, unevenly lit scenes; a class is a digit and its motion.

    A single frame cannot tell the motion (positions are uniform over a frame that wraps round), a motion cannot tell
    the digit, classes are equally many. The clips are made once for each specification, in under two minutes on two
    cores, from the digits and photographs that scikit-learn ships (extra ``lit-distill[digits]``, which the making
    alone needs). Scans and backgrounds differ between the splits. Equal specifications give equal files on one machine.

    Args:
        root: the folder to make the set's folder in; by default ``$LIT_DISTILL_CACHE``, or ``~/.cache/lit_distill``.
        clips: clips of train, val and test; multiples of the number of classes.
        digits: the digits shown, of 0 to 9.
        motions: the motions shown: left, right, up, down, clockwise, counterclockwise, zoom_in, zoom_out.
        length: frames of a clip's file.
        side: width and height of the video, in pixels; even.
        making_seed: of the clips themselves; ``seed`` is that of their sampling in training.
        num_classes: number of digits times number of motions; given, it is checked.
        train_list: another list of training clips than the set's own, such as :mod:`lit_distill.select` writes.
        aspect: as for :class:`VideoDataModule`; the clips are square, and stay so by default.
        spec: how the scenes look: ``digit_side`` ``speed`` ``radius`` ``octaves`` (fractions of the side, and octaves,
            a frame), ``contrast`` ``noise`` as ranges [low, high]; ``clutter`` ``fps`` ``crf`` as whole numbers.
        **loading: as for :class:`VideoDataModule`, but for its files, and for what would change labels: ``flip``, and
            ``augment="trivialaugment"``, whose rotations turn one motion into another.

    Raises:
        ValueError: an unknown digit, motion or field, clips that leave classes unequal, another number of classes.

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
        train_list: str | os.PathLike[str] = "train.txt",
        aspect: Aspect = "keep",
        spec: Mapping[str, Any] | None = None,
        **loading: Any,
    ) -> None:
        own = {
            "seed": making_seed,
            "clips": clips,
            "digits": digits,
            "motions": motions,
            "frames": length,
            "side": side,
        }
        look = {name: list(v) if isinstance(v, Sequence) else v for name, v in (spec or {}).items()}
        unknown = look.keys() - (DigitsSpec.__dataclass_fields__.keys() - own.keys())
        if unknown:
            known = ", ".join(name for name in DigitsSpec.__dataclass_fields__ if name not in own)
            raise ValueError(f"data.spec has the fields {known}, got {', '.join(sorted(unknown))}")
        own = {name: list(v) if isinstance(v, Sequence) else v for name, v in own.items()}
        self.spec = DigitsSpec.from_json({**own, **look})
        classes = len(self.spec.class_names)
        if num_classes not in (None, classes):
            raise ValueError(
                f"data.num_classes is {num_classes}, but {len(self.spec.digits)} digits times "
                f"{len(self.spec.motions)} motions are {classes} classes"
            )
        if loading.get("augment") == "trivialaugment":
            raise ValueError(
                "data.augment=trivialaugment rotates clips by up to 135 degrees, which turns a motion to the left into "
                "one to the right: choose randaugment or autoaugment for moving digits"
            )
        self.making_root = cache_root() if root is None else expand_home(root)
        super().__init__(
            root=set_folder(self.spec, self.making_root),
            train_list=train_list,
            val_list="val.txt",
            test_list="test.txt",
            num_classes=classes,
            class_names=CLASS_NAMES,
            aspect=aspect,
            flip=0.0,
            **loading,
        )

    def prepare_data(self) -> None:
        """Make the clips, unless they are there whole.

        Raises:
            OSError: the folder cannot be written, or its disk is full.
            ModuleNotFoundError: scikit-learn is missing.
        """
        make(self.spec, self.making_root)
