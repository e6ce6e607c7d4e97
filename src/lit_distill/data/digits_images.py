"""The embedded images: scans of handwritten digits, written out as files once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Unpack

from PIL import Image

from lit_distill._files import cache_root, expand_home
from lit_distill.data.datasets import Item
from lit_distill.data.images import ImageDataset, ImageFolderDataModule, evaluation_transform
from lit_distill.data.loading import Loading, Split
from lit_distill.data.moving_digits.making import load_sources
from lit_distill.data.moving_digits.rendering import SPLITS
from lit_distill.data.samplers import SampleKey


class _KeptImages(ImageDataset):
    """Images whose view never changes, decoded once."""

    def __init__(self, samples: list[tuple[str, int]], *, size: int) -> None:
        super().__init__(samples, transform=evaluation_transform(size=size, scale=size))
        self._items: dict[int, Item] = {}

    def __getitem__(self, key: SampleKey | int) -> Item:
        index = key[1] if isinstance(key, tuple) else key
        if index not in self._items:
            self._items[index] = super().__getitem__(index)
        return self._items[index]


class DigitsImages(ImageFolderDataModule):
    """The 1,797 scans of handwritten digits that scikit-learn ships, as images of 8 x 8 gray pixels and 10 classes.

    The files, in the layout of :class:`ImageFolderDataModule`, are written once, in a second (extra
    ``lit-distill[digits]``, which the writing alone needs). 1,000 scans are for training, 250 for validation and 547
    for test: those of :class:`MovingDigits`, so that no scan, and nearly no writer, is in two splits. Images are shown
    as they are, without augmentation, and kept in memory.

    Args:
        root: the folder to write the set's folder in; by default ``$LIT_DISTILL_CACHE``, or ``~/.cache/lit_distill``.
        num_classes: 10; given, it is checked.
        size: side that the networks see, in pixels.
        batch_size: images a batch, in each process.
        **loading: as for every data module, see :class:`lit_distill.data.loading.SampleDataModule`.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> data = DigitsImages(labelled_share=0.04, unlabelled_share=0.75)
        >>> data.num_classes, data.size
        (10, 8)
    """

    def __init__(
        self,
        *,
        root: str | os.PathLike[str] | None = None,
        num_classes: int | None = None,
        size: int = 8,
        batch_size: int = 32,
        **loading: Unpack[Loading],
    ) -> None:
        if num_classes not in (None, 10):
            raise ValueError(f"data.num_classes of the digits is 10, got {num_classes}")
        self.making_root = cache_root() if root is None else expand_home(root)
        super().__init__(
            root=self.making_root / "digits_images", num_classes=10, test="test", size=size, scale=size,
            batch_size=batch_size, **loading,
        )  # fmt: skip

    def prepare_data(self) -> None:
        """Write the files, unless they are there: into a folder beside, which is then renamed.

        Raises:
            OSError: the folder cannot be written, or its disk is full.
            ModuleNotFoundError: scikit-learn is missing.
        """
        if self.root.is_dir():
            return
        self.making_root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.making_root, prefix=".digits_images-") as place:
            folder = Path(place, "whole")
            _write(folder)
            try:
                folder.rename(self.root)
            except OSError:
                if not self.root.is_dir():  # else another process was first
                    raise

    def _dataset(self, split: Split) -> ImageDataset:
        samples = self._listed_samples(split)
        if split == "train":
            samples = self._training_samples(samples)
        return _KeptImages([sample[:2] for sample in samples], size=self.size)


def _write(folder: Path) -> None:
    sources = load_sources()
    for split in SPLITS:
        part = sources.of_split(split)
        for number, (scan, digit) in enumerate(zip(part.scans, part.digits, strict=True)):
            place = folder / split / str(digit)
            place.mkdir(parents=True, exist_ok=True)
            Image.fromarray((scan * 255).round().astype("uint8")).save(place / f"{number:04}.png")
