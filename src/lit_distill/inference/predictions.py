"""Classes of many files: decoded by a few workers, in the order they came, each bad one told instead of thrown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from lit_distill._cores import available_cores
from lit_distill.data import VideoError
from lit_distill.data.preprocess import Preprocess
from lit_distill.inference.classifiers import Classifier

_MOST_WORKERS = 8


class Top(NamedTuple):
    """One of the most probable classes; the name is the number where names are not known."""

    label: int
    name: str
    score: float


class Prediction(NamedTuple):
    """The most probable classes of a file, most probable first, or why it can't be read."""

    input: str
    top: tuple[Top, ...] = ()
    error: str = ""


def predict_files(
    classifier: Classifier,
    preprocess: Preprocess,
    paths: Sequence[str],
    *,
    topk: int = 5,
    batch_size: int | None = 8,
    num_workers: int | None = 0,
) -> Iterator[list[Prediction]]:
    """Classify files, a batch at a time and in their order.

    Memory does not grow with their number: at most ``batch_size * (2 * num_workers + 1)`` clips are held.

    Args:
        classifier: gives probabilities.
        preprocess: reads the files.
        paths: of the files.
        topk: how many classes of each; all where there are fewer.
        batch_size: files that the classifier is given at once; None for 1 of dense views, else 8.
        num_workers: processes that decode; 0 to decode in this one, None for :func:`default_workers`.

    Yields:
        The predictions of each batch, one a file; a file that can't be read has an error.

    Raises:
        ValueError: a number is out of its range; the class names are not as many as the probabilities.
    """
    batch_size = (1 if preprocess.views == "dense" else 8) if batch_size is None else batch_size
    num_workers = default_workers(len(paths)) if num_workers is None else num_workers
    for name, value, least in (("topk", topk, 1), ("batch_size", batch_size, 1), ("num_workers", num_workers, 0)):
        if value < least:
            raise ValueError(f"{name} must be at least {least}, got {value}")
    loader = DataLoader(
        _Files(paths, preprocess),
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=_collate,
        prefetch_factor=2 if num_workers else None,
        generator=torch.Generator(),  # the global one is not ours to draw from
    )
    start = 0
    for stacked, errors in loader:
        names = paths[start : start + batch_size]
        start += batch_size
        classified = iter(() if stacked is None else _tops(classifier(stacked), topk, preprocess.class_names))
        yield [
            Prediction(name, error=error) if error else Prediction(name, next(classified))
            for name, error in zip(names, errors, strict=True)
        ]


def default_workers(files: int) -> int:
    """Decoding processes where none are asked for: one a core, at most 8; none for a single file."""
    return 0 if files == 1 else min(_MOST_WORKERS, available_cores(), files)


class _Files(Dataset[tuple[Tensor | None, str]]):
    """The bytes of each file, or why it can't be read."""

    def __init__(self, paths: Sequence[str], preprocess: Preprocess) -> None:
        self.paths, self.preprocess = paths, preprocess

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor | None, str]:
        path = self.paths[index]
        try:
            return self.preprocess.read(path), ""
        except VideoError as error:
            return None, error.reason or str(error)
        except (OSError, ValueError) as error:
            return None, str(error) or type(error).__name__


def _collate(items: Sequence[tuple[Tensor | None, str]]) -> tuple[Tensor | None, list[str]]:
    good = [tensor for tensor, _ in items if tensor is not None]
    return torch.stack(good) if good else None, [error for _, error in items]


def _tops(probabilities: Tensor, topk: int, class_names: Sequence[str]) -> list[tuple[Top, ...]]:
    classes = probabilities.shape[1]
    if class_names and len(class_names) != classes:
        raise ValueError(f"the network gives {classes} classes, and there are {len(class_names)} class names")
    names = class_names or [str(index) for index in range(classes)]
    top = probabilities.topk(min(topk, classes), dim=1)
    return [
        tuple(Top(label, names[label], score) for label, score in zip(labels, scores, strict=True))
        for labels, scores in zip(top.indices.tolist(), top.values.tolist(), strict=True)
    ]
