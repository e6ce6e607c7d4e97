"""Normalised inputs of a few real samples: of a run's data, or of files, for commands that try a network on them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal

import torch
from lightning import LightningDataModule
from torch import Tensor

from lit_distill._views import InputView
from lit_distill.data import ImageFolderDataModule, VideoDataModule, normalize
from lit_distill.data.preprocess import Preprocess
from lit_distill.untrusted.folders import files_below

_BATCH = 8


def labelled_batches(
    data: LightningDataModule, split: Literal["train", "val"], count: int | None, *, view: InputView | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches (inputs, class indices) of a data module, unmixed, of at most ``count`` samples.

    Raises:
        FileNotFoundError: the data is not there.
        ValueError: it is no data module of this library.
    """
    if not isinstance(data, (VideoDataModule, ImageFolderDataModule)):
        raise ValueError(f"samples of {type(data).__name__} can't be prepared: give input=<folder of files> instead")
    data.prepare_data()
    data.setup("fit" if split == "train" else "validate")
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    left = count
    for clips, labels, *_ in loader:
        inputs = normalize(clips[:left], data.mean, data.std)
        yield inputs if view is None else view(inputs), labels[:left]
        if left is not None:
            left -= len(inputs)
            if left <= 0:
                return


def batches_of(source: str | os.PathLike[str], preprocess: Preprocess, count: int) -> Iterator[Tensor]:
    """Batches of the files that ``source`` is or holds, at most ``count``, as evaluation gives them.

    Raises:
        FileNotFoundError: there is no such file, or nothing in the folder.
        VideoError: a video can't be read.
    """
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(f"no file or folder {path} (input=…)")
    below = (Path(place, name) for place, names in files_below(path) for name in names)
    files = [path] if path.is_file() else sorted(file for file in below if file.is_file())
    if not files:
        raise FileNotFoundError(f"no files in the folder {path} (input=…)")
    left = islice(files, count)
    while chunk := list(islice(left, _BATCH)):
        yield preprocess.normalize(torch.stack([preprocess.read(file) for file in chunk]))
