"""The interface of a source of videos, and what most sources share."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from lit_distill.data.catalogue.lists import ListFile, missing_samples, shown
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import Check, Stamp, VideoIndex, stamp_of
from lit_distill.data.decoding.frames import Frames
from lit_distill.data.decoding.layout import Limits, VideoLayout

_CHUNK = 500  # frames decoded under one time limit, where decoding can start anywhere


class Video(ABC):
    """A video that was opened.

    Attributes:
        length: number of frames, at least 1.
        size: (width, height) of a frame in pixels, where it is known before one is read.
    """

    length: int
    size: tuple[int, int] | None = None

    @abstractmethod
    def read(self, numbers: Sequence[int]) -> Frames:
        """The frames of some numbers.

        Args:
            numbers: ascending or not, repeated or not; they count from the source's :attr:`Source.first`.

        Returns:
            (len(numbers), H, W, 3), RGB, uint8; a new array, or one that nobody changes.

        Raises:
            VideoError: one of them can't be read; it is never replaced by another.
        """

    def refuse(self, numbers: Sequence[int]) -> None:
        """Raise VideoError for frames that may not be read, though a cache may hold them; of most videos, for none."""
        return


class Source(ABC):
    """What the videos of a data set are read from; a data set has one, which all its worker processes are given.

    A format is a subclass: :meth:`open` is all that it must have. :meth:`samples` reads list files, whose lines are
    ``path label``; :meth:`identity` tells the frames of one sample from those of another, for caches on disk.

    Example:
        >>> import numpy as np
        >>> class Grey(Video):
        ...     length = 9
        ...
        ...     def read(self, numbers):
        ...         return np.stack([np.full((48, 64, 3), number, np.uint8) for number in numbers])
        >>> class GreyVideos(Source):
        ...     def open(self, sample):
        ...         return Grey()
        >>> GreyVideos().open(Sample("a.grey", 0)).read([2, 3]).shape
        (2, 48, 64, 3)
    """

    first: ClassVar[int] = 0
    """Number of the first frame; 1 where frames are files that are numbered from 1."""
    counted: ClassVar[bool] = False
    """Whether the lines of lists are ``dir frames label``."""
    packed: ClassVar[bool] = False
    """Whether samples are members of archives: the root may be a URL, ``data.shuffle=shards`` orders by archive."""
    limits: Limits = Limits()
    """Of what may be spent on a video."""
    index: VideoIndex | None = None
    """What is known of the videos' layouts, where anything is."""

    @property
    def things(self) -> str:
        """What a list names, in words."""
        return "videos"

    @abstractmethod
    def open(self, sample: Sample) -> Video:
        """A sample's video, for as many frames as it has.

        Args:
            sample: one of :meth:`samples`.

        Raises:
            VideoError: it can't be read.
        """

    def identity(self, sample: Sample, length: int) -> tuple[object, ...]:
        """All that a sample's frames depend on, as values whose ``repr`` is another for other frames.

        By default path, size and time of the last change, and the attributes of this source.

        Args:
            sample: which.
            length: of its video.
        """
        made = f"{type(self).__module__}.{type(self).__qualname__}", sorted(vars(self).items())
        return os.path.abspath(sample.path), sample.member, self.stamp(sample), length, made

    def stamp(self, sample: Sample) -> Stamp | None:
        """Size in bytes and time of the last change of what a sample is in; None where there is nothing."""
        return stamp_of(sample.path)

    def samples(self, listed: ListFile) -> list[Sample]:
        """What a list names, whether it is there or not.

        Raises:
            FileNotFoundError: there is no such list.
            ValueError: it is malformed.
        """
        if not listed.path.is_file():
            raise FileNotFoundError(
                f"no list {shown(listed.path)}, set {listed.key}=<file> or data.root=<folder>; the root must hold "
                f"{self.layout([listed.file])}"
            )
        return listed.read(counted=self.counted)

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """Those that are not there."""
        return missing_samples(samples)

    def layout(self, lists: Iterable[str | os.PathLike[str]]) -> str:
        """What the root must hold, in words.

        Args:
            lists: the names of the lists.
        """
        line = "dir frames label" if self.counted else "path label"
        return f"{named(lists)} (a line '{line}' each) and the {self.things} that they name"

    def check(self, sample: Sample, check: Check) -> VideoLayout | None:
        """Look a sample through, for ``python -m lit_distill.index``.

        Args:
            sample: which.
            check: ``"headers"``, or ``"decode"`` for every frame.

        Returns:
            Its layout, where that is to be kept in the index of videos.

        Raises:
            VideoError: what is wrong with it.
        """
        video = self.open(sample)
        if check == "decode":
            for numbers in chunks(range(self.first, self.first + video.length)):
                video.read(numbers)
        return None

    def bare(self) -> Source:
        """The same without what is known of its videos: small, to be handed to other processes."""
        return self


def chunks(numbers: range, step: int = _CHUNK) -> Iterator[range]:
    """Parts of a range of frames, each of which is decoded under one time limit.

    Example:
        >>> list(chunks(range(1, 8), 3))
        [range(1, 4), range(4, 7), range(7, 8)]
    """
    return (numbers[start : start + step] for start in range(0, len(numbers), step))


def named(lists: Iterable[str | os.PathLike[str]]) -> str:
    """The lists' names, in their order."""
    return ", ".join(sorted({os.fspath(file) for file in lists}))
