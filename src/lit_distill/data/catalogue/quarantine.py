"""What happens to a video that can't be read: counted, left out, the same list in every process; never swapped."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor

from lit_distill._screen import few
from lit_distill.data.catalogue.samples import Sample

OnBad: TypeAlias = Literal["raise", "quarantine"]
Batch: TypeAlias = tuple[Tensor, Tensor, Tensor]

_NAMED = 20  # files in a message; the list itself has all


class QuarantineError(ValueError):
    """More videos are unreadable than the run may leave out, or a batch has no readable one."""


class BadVideo(NamedTuple):
    """What a worker hands over in the place of an item that it could not read: where, which and why."""

    position: int
    path: str
    reason: str

    @property
    def is_unreadable(self) -> bool:
        """How the preflight, which knows no data set, tells it from an item."""
        return True


class PartialBatch(NamedTuple):
    """What :func:`lit_distill.data.datasets.collate` makes of items of which some, or all, could not be read."""

    batch: Batch | None
    bad: list[BadVideo]


class Quarantined(NamedTuple):
    """An entry of the list: the epoch that found it first, and its path relative to the data's root."""

    epoch: int
    split: str
    path: str
    reason: str


class QuarantineList:
    """The videos that a run leaves out, and how many it may.

    An epoch takes out of its order those that an *earlier* epoch found, and out of its batches those that it finds
    itself. What is trained on so is a function of (seed, epoch, the list at the epoch's start), and a run resumed
    within an epoch goes on as an unbroken one does: what that epoch had found already does not move its order.

    Args:
        max_bad: how many different videos may be left out, over all processes and splits.
        root: folder that the list's paths are relative to.

    Raises:
        ValueError: ``max_bad`` is negative.

    Example:
        >>> bad = QuarantineList(max_bad=1, root="videos")
        >>> bad.note([BadVideo(7, "videos/a.mp4", "it has no video stream")], split="train", epoch=0)
        >>> bad.merge([bad.found])
        >>> bad.known_before(0), bad.known_before(1)
        (frozenset(), frozenset({'a.mp4'}))
        >>> bad.note([BadVideo(9, "videos/b.mp4", "it is empty")], split="train", epoch=1)
        Traceback (most recent call last):
        lit_distill.data.catalogue.quarantine.QuarantineError: 2 videos can't be read, data.max_bad allows 1: ...
    """

    def __init__(self, *, max_bad: int, root: str | os.PathLike[str]) -> None:
        if max_bad < 0:
            raise ValueError(f"data.max_bad must be at least 0, got {max_bad}")
        self.max_bad, self.root = max_bad, os.path.normpath(root)
        self._prefix = os.path.join(self.root, "")
        self.agreed: dict[str, Quarantined] = {}
        self._found: dict[str, Quarantined] = {}
        self.collected = False
        """Whether a callback brings the processes' findings together."""

    @property
    def found(self) -> list[Quarantined]:
        """What this process found since the last :meth:`merge`."""
        return list(self._found.values())

    @property
    def entries(self) -> list[Quarantined]:
        """The list that all processes agree on, in the order of finding."""
        return sorted(self.agreed.values())

    def name(self, path: str) -> str:
        """A sample's path as the list has it."""
        return path.removeprefix(self._prefix)

    def path(self, name: str) -> str:
        """The sample's path again."""
        return os.path.join(self.root, name)

    def note(self, bad: Iterable[BadVideo], *, split: str, epoch: int) -> None:
        """Take down what this process could not read.

        Raises:
            QuarantineError: this process knows of more than ``max_bad`` videos.
        """
        for video in bad:
            name = self.name(video.path)
            if name not in self.agreed:
                self._found.setdefault(name, Quarantined(epoch, split, name, video.reason))
        self.check()

    def merge(self, lists: Iterable[Iterable[Quarantined | Sequence[Any]]]) -> None:
        """Make the findings of all processes, or of a checkpoint, one list: the same in every process.

        Where several found a video, the first by (epoch, split) counts.
        """
        for entry in sorted(Quarantined(*entry) for found in lists for entry in found):
            self.agreed.setdefault(entry.path, entry)
        self._found.clear()

    def check(self) -> None:
        """See that no more videos are left out than may be.

        Raises:
            QuarantineError: there are more; it names them.
        """
        known = sorted({**self._found, **self.agreed}.values())
        if len(known) > self.max_bad:
            raise QuarantineError(
                f"{len(known)} videos can't be read, data.max_bad allows {self.max_bad}: "
                + _named((entry.path, entry.reason) for entry in known)
                + "; mend them, take them out of the lists, or set data.max_bad (python -m lit_distill.index finds all)"
            )

    def known_before(self, epoch: int) -> frozenset[str]:
        """Paths of the videos that earlier epochs found."""
        return frozenset(entry.path for entry in self.agreed.values() if entry.epoch < epoch)

    def to_json(self) -> list[dict[str, Any]]:
        """The agreed list as JSON can hold it."""
        return [
            {"path": entry.path, "reason": entry.reason, "split": entry.split, "epoch": entry.epoch}
            for entry in self.entries
        ]


class Admission:
    """Between the loader of a split and the loop: lets readable samples through, takes the others down.

    In training no batch may be missing, since processes would go out of step.
    """

    def __init__(self, quarantine: QuarantineList, *, split: str, samples: Sequence[Sample], training: bool) -> None:
        self.quarantine, self.split, self.training = quarantine, split, training
        self._samples = samples
        self._excluded: tuple[frozenset[str], frozenset[int]] = (frozenset(), frozenset())

    def excluded(self, epoch: int) -> frozenset[int]:
        """Positions of the samples that an epoch leaves out of its order."""
        known = self.quarantine.known_before(epoch)
        if known != self._excluded[0]:
            self._excluded = known, self._positions(known)
        return self._excluded[1]

    def left_out(self) -> int:
        """How many samples of this split the agreed list holds."""
        return len(self._positions(self.quarantine.agreed))

    def _positions(self, names: Collection[str]) -> frozenset[int]:
        if not names:
            return frozenset()
        wanted = {self.quarantine.path(name) for name in names}
        return frozenset(position for position, sample in enumerate(self._samples) if sample.name in wanted)

    def __call__(self, batches: Iterable[Batch | PartialBatch], epoch: int) -> Iterator[Batch]:
        """The readable part of each batch.

        Raises:
            QuarantineError: too many videos are unreadable, a training batch has no readable one, or nothing is left
                to evaluate in this process.
        """
        passed, bad = 0, []
        for batch in batches:
            if isinstance(batch, PartialBatch):
                self.quarantine.note(batch.bad, split=self.split, epoch=epoch)
                if batch.batch is None:
                    bad += batch.bad
                    if self.training:
                        raise QuarantineError(
                            f"a training batch has no readable video: {self._listed(batch.bad)}; "
                            "find the bad ones first (python -m lit_distill.index), or set a larger data.batch_size"
                        )
                    continue
                batch = batch.batch
            passed += 1
            yield batch
        if not passed and not self.training:
            raise QuarantineError(
                f"nothing is left to evaluate of this process's {self.split} videos: {self._listed(bad)}"
            )

    def _listed(self, bad: Iterable[BadVideo]) -> str:
        return _named((self.quarantine.name(video.path), video.reason) for video in bad)


def reason_for(path: str, error_path: str, reason: str) -> str:
    """A reason that says which file inside a folder of frames it is about."""
    return reason if error_path == path else f"{os.path.relpath(error_path, path)}: {reason}"


def from_json(state: Mapping[str, Any]) -> list[Quarantined]:
    """The entries of what a checkpoint holds.

    Raises:
        ValueError: it is of another form.
    """
    try:
        return [
            Quarantined(int(entry["epoch"]), str(entry["split"]), str(entry["path"]), str(entry["reason"]))
            for entry in state["quarantine"]
        ]
    except (KeyError, TypeError, OverflowError) as error:
        raise ValueError(f"the checkpoint's quarantine list is malformed: {error!r}") from error


def _named(videos: Iterable[tuple[str, str]]) -> str:
    return few((f"{path} ({reason})" for path, reason in videos), _NAMED)
