"""What `select` does: it lists which of an unlabelled pool a student may learn from."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lit_distill._files import expand_home, write_text
from lit_distill._screen import Screen, numeric
from lit_distill.data import ImageFolderDataModule, Sample, VideoDataModule
from lit_distill.data.preprocess import Preprocess, count_images
from lit_distill.inference.inputs import find_inputs
from lit_distill.inference.opened import open_classifier
from lit_distill.inference.predict import SOME_FAILED
from lit_distill.inference.predictions import predict_files
from lit_distill.inference.rows import as_utf8
from lit_distill.inference.selection import Chosen, TopPerClass, without_twins
from lit_distill.runs.opened import open_run
from lit_distill.runs.run import Run

_CLASSES_SHOWN = 40


class Selection(NamedTuple):
    """What :func:`run` chose, class by class, best first; how many files were unreadable or copies."""

    chosen: list[Chosen]
    failed: int
    twins: int


def run(config: DictConfig, console: Console | None = None) -> Selection:
    """Rank the pool of a composed ``select.yaml``, and write the list and what was left out of it.

    Raises:
        ValueError: the config asks for what there is not, or nothing is left to choose from.
        FileNotFoundError: the run, its weights, its data or the pool are not there.
    """
    console = console or Screen()
    if config.per_file < 1:
        raise ValueError(f"per_file, the classes of a file, must be at least 1, got {config.per_file}")
    best = TopPerClass(k=config.k, min_score=config.min_score)
    opened = open_run(config)
    preprocess = opened.preprocess(views=config.views)
    data = _Data(opened, config.data.root)
    pool = (
        data.unlabelled() if config.unlabelled is None else _absolute(find_inputs(config.unlabelled, preprocess).paths)
    )
    paths, twins = without_twins(pool, _against(config, preprocess, data))
    if not paths:
        raise ValueError(f"none of the {len(pool)} files is left to choose from: all are equal to files of against=")
    classifier = open_classifier(
        opened, preprocess, model=config.named, checkpoint=config.checkpoint, device=config.device
    )
    skipped = [
        (path, f"has the same bytes as {other}" if other != path else "is among the labelled files, or in against=")
        for path, other in twins
    ]
    for batch in predict_files(
        classifier,
        preprocess,
        paths,
        topk=config.per_file,
        batch_size=config.batch_size,
        num_workers=config.num_workers,
    ):
        for prediction in batch:
            if prediction.error:
                skipped.append((prediction.input, " ".join(prediction.error.split())))
            for top in prediction.top:
                best.add(prediction.input, top.label, float(f"{top.score:.6f}"))  # as the list will have it
    chosen = best.chosen()
    output = expand_home(config.output)
    left_out = output.with_suffix(".skipped.txt")
    write_text(output, "".join(f"{data.line(entry, preprocess)}\n" for entry in chosen))
    write_text(left_out, "".join(f"{as_utf8(path)}\t{as_utf8(reason)}\n" for path, reason in sorted(skipped)))
    result = Selection(chosen, len(skipped) - len(twins), len(twins))
    _show(console, result, best, opened, ranked=len(paths) - result.failed, output=output, left_out=left_out)
    return result


class _Data:
    """The run's own data, looked at where something is asked of it."""

    def __init__(self, opened: Run, root: str | None) -> None:
        self._opened, self._root = opened, root
        self._module: VideoDataModule | ImageFolderDataModule | None = None

    @property
    def module(self) -> VideoDataModule | ImageFolderDataModule:
        if self._module is None:
            module = self._opened.data(root=self._root)
            if not isinstance(module, (VideoDataModule, ImageFolderDataModule)):
                raise ValueError(f"a selection is of videos or images, the run's data are {type(module).__name__}")
            self._module = module
        return self._module

    def unlabelled(self) -> list[str]:
        """The files without labels of the training data."""
        self.module.prepare_data()
        found = _paths(self.module.kinds()[1])
        if not found:
            raise ValueError("the run's data have no files without labels: give unlabelled=<a folder or a list>")
        return found

    def labelled(self) -> list[str]:
        """The files with labels, of training, validation and test."""
        try:
            self.module.prepare_data()
            samples = [*self.module.kinds()[0], *self.module.evaluated()]
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{error}; to know what not to select, give data.root=<folder of the run's data>, "
                "against=[<folders and lists>] or against=[] for nothing"
            ) from error
        return _paths(samples)

    def line(self, chosen: Chosen, preprocess: Preprocess) -> str:
        """A line of a list that this data module reads: paths inside its root are relative to it."""
        module = self.module
        path = chosen.path.removeprefix(os.path.join(os.path.abspath(module.root), ""))
        frames = f" {count_images(chosen.path, preprocess.suffix)}" if os.path.isdir(chosen.path) else ""
        label = chosen.label + getattr(module, "first_label", 0)
        return f"{as_utf8(path)}{frames} {label} {chosen.score:.6f}"


def _against(config: DictConfig, preprocess: Preprocess, data: _Data) -> list[str]:
    if config.against is None:
        return data.labelled()
    given = [config.against] if isinstance(config.against, str) else config.against
    return _absolute([path for place in given for path in find_inputs(place, preprocess).paths])


def _absolute(paths: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(os.path.abspath(path) for path in paths))


def _paths(samples: Sequence[Sample]) -> list[str]:
    if any(sample.member is not None for sample in samples):
        raise ValueError("videos in shards are not selected: give unlabelled=<folder or list> against=<folders, lists>")
    return _absolute([sample.path for sample in samples])


def _show(
    console: Console, result: Selection, best: TopPerClass, opened: Run, *, ranked: int, output: Path, left_out: Path
) -> None:
    counts = Counter(chosen.label for chosen in result.chosen)
    lowest = {chosen.label: chosen.score for chosen in result.chosen}  # the last of each class
    names = opened.class_names or tuple(str(label) for label in range(opened.num_classes or 1 + max(counts, default=0)))
    table = Table("class", *numeric("candidates", "selected", "lowest score"))
    for label, name in list(enumerate(names))[:_CLASSES_SHOWN]:
        score = f"{lowest[label]:.4f}" if label in lowest else ""
        table.add_row(name, str(best.candidates[label]), str(counts[label]), score)
    console.print(table)
    if len(names) > _CLASSES_SHOWN:
        console.print(f"… and {len(names) - _CLASSES_SHOWN} classes more")
    short = sum(counts[label] < best.k for label in range(len(names)))
    told = [f"{len(result.chosen)} lines of {ranked} files ranked"]
    told += [f"{short} of {len(names)} classes have fewer than k={best.k}"] if short else []
    told += [f"{result.twins} left out for their contents"] if result.twins else []
    told += [f"{result.failed} can't be read"] if result.failed else []
    told += [f"written {output}, what was left out {left_out}"]
    console.print("; ".join(told), soft_wrap=True)


def main(config: DictConfig) -> None:
    """Select files; exit code 3 where some could not be read."""
    if run(config).failed:
        sys.exit(SOME_FAILED)
