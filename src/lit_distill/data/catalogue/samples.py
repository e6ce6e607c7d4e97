"""What a data set is made of: its samples, held compactly however many there are."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

UNLABELLED = -1
"""The label of a sample that has none."""


class Member(NamedTuple):
    """A file inside an archive that stores it as it is: its name there, its first byte and its size."""

    name: str
    offset: int
    size: int


class Sample(NamedTuple):
    """One entry of a list file, or of an archive.

    Attributes:
        path: the video file, the folder of frames, or the archive.
        label: class index, from 0; -1 (:data:`UNLABELLED`) for a sample that has none.
        frames: how many frames the folder holds; None for a video file, which says so itself.
        member: the video inside the archive; None where ``path`` is the video.
    """

    path: str
    label: int
    frames: int | None = None
    member: Member | None = None

    @property
    def name(self) -> str:
        """What messages call it: its path, for a member of an archive followed by the member's name."""
        return self.path if self.member is None else f"{self.path}/{self.member.name}"

    def name_in(self, root: str | os.PathLike[str] | None) -> str:
        """Its name below the data's folder, so that two copies of a data set have the same.

        Example:
            >>> Sample("/data/run/1.mp4", 0).name_in("/data"), Sample("/mnt/1.mp4", 0).name_in("/data")
            ('run/1.mp4', '/mnt/1.mp4')
        """
        folder = os.fspath(root or "")
        is_below = bool(folder) and Path(self.name).is_relative_to(folder)
        return Path(self.name).relative_to(folder).as_posix() if is_below else self.name


class SampleTable(Sequence[Sample]):
    """Samples as a few arrays instead of many objects; they read like a list of samples.

    Reading an object writes its reference count: a list of samples that worker processes share at first is copied
    into each of them, page by page, over an epoch. Arrays stay shared.

    Example:
        >>> table = SampleTable([Sample("a.mp4", 0), Sample("b.tar", 2, member=Member("c.mp4", 512, 9))])
        >>> len(table), table[-1].name, table[0] == Sample("a.mp4", 0)
        (2, 'b.tar/c.mp4', True)
    """

    def __init__(self, samples: Iterable[Sample]) -> None:
        paths: dict[str, int] = {}
        rows, names = [], []
        for path, label, frames, member in samples:
            offset, size = (-1, -1) if member is None else (member.offset, member.size)
            rows.append((paths.setdefault(path, len(paths)), label, -1 if frames is None else frames, offset, size))
            names.append("" if member is None else member.name)
        self._paths, self._names = _Texts(paths), _Texts(names)
        self._rows = np.array(rows, np.int64).reshape(len(rows), 5)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Sample: ...

    @overload
    def __getitem__(self, index: slice) -> list[Sample]: ...

    def __getitem__(self, index: int | slice) -> Sample | list[Sample]:
        """A sample, or the samples of a slice."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        path, label, frames, offset, size = self._rows[index].tolist()
        member = Member(self._names[index], offset, size) if offset >= 0 else None
        return Sample(self._paths[path], label, None if frames < 0 else frames, member)

    def __iter__(self) -> Iterator[Sample]:
        return (self[index] for index in range(len(self)))

    @property
    def groups(self) -> NDArray[np.int64]:
        """Number of each sample's path, in the order of their first appearance: samples of one archive share it."""
        groups: NDArray[np.int64] = self._rows[:, 0]
        return groups


class _Texts:
    """Strings in one run of bytes."""

    def __init__(self, texts: Iterable[str]) -> None:
        parts = [text.encode("utf-8", "surrogateescape") for text in texts]
        self._bytes = np.frombuffer(b"".join(parts), np.uint8)
        self._ends = np.cumsum([len(part) for part in parts], dtype=np.int64)

    def __getitem__(self, index: int) -> str:
        index %= len(self._ends)
        start = self._ends[index - 1] if index else 0
        return self._bytes[start : self._ends[index]].tobytes().decode("utf-8", "surrogateescape")
