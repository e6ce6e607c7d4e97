"""The best of a pool for each class, as a teacher ranks it; and files of equal contents, found without reading all."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lit_distill.untrusted.opening import open_untrusted


class Chosen(NamedTuple):
    """A file that a class takes, and the probability of the class for it."""

    label: int
    score: float
    path: str


class TopPerClass:
    """The k files of each class that a teacher gives it with the highest probability (Yalniz et al., 2019).

    What is chosen does not depend on the order of adding: of equal scores the first paths are taken. Memory is that of
    the chosen files, not of the pool.

    Args:
        k: files a class, at least 1.
        min_score: probabilities below it are left out, 0 to 1.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> best = TopPerClass(k=1)
        >>> for path, label, score in (("a", 0, 0.9), ("b", 0, 0.95), ("c", 1, 0.4), ("d", 1, 0.4)):
        ...     best.add(path, label, score)
        >>> best.chosen()
        [Chosen(label=0, score=0.95, path='b'), Chosen(label=1, score=0.4, path='c')]
    """

    def __init__(self, *, k: int, min_score: float = 0.0) -> None:
        if k < 1:
            raise ValueError(f"k, the files of each class, must be at least 1, got {k}")
        if not 0.0 <= min_score <= 1.0:
            raise ValueError(f"min_score is a probability from 0 to 1, got {min_score}")
        self.k, self.min_score = k, min_score
        self.candidates: defaultdict[int, int] = defaultdict(int)
        """How many files each class could choose from, by its label."""
        self._kept: defaultdict[int, list[Chosen]] = defaultdict(list)

    def add(self, path: str, label: int, score: float) -> None:
        """Take a file into account for a class."""
        if score >= self.min_score:
            self.candidates[label] += 1
            self._kept[label].append(Chosen(label, score, path))
            if len(self._kept[label]) >= 2 * self.k:
                self._prune(label)

    def chosen(self) -> list[Chosen]:
        """The chosen files: class by class, best first."""
        for label in self._kept:
            self._prune(label)
        return [chosen for label in sorted(self._kept) for chosen in self._kept[label]]

    def _prune(self, label: int) -> None:
        self._kept[label] = sorted(self._kept[label], key=lambda c: (-c.score, c.path))[: self.k]


class Twin(NamedTuple):
    """A file that is left out, since another one, which stays, has the same bytes."""

    path: str
    other: str


def without_twins(pool: Sequence[str], against: Iterable[str] = ()) -> tuple[list[str], list[Twin]]:
    """Leave out files whose contents another one has: a file of ``against``, or one further ahead in the pool.

    Contents are equal where the bytes are, by SHA-256; only files of equal sizes are read. A folder of frames is all
    files in it, by their names. A video that was cut, scaled or encoded again is another one.

    Args:
        pool: paths of files, or of folders of frames.
        against: paths that nothing in the pool may be equal to; those that are not there are passed over.

    Returns:
        the paths that stay, in their order, and those that do not.

    Raises:
        OSError: a file can't be read.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = Path(tempfile.mkdtemp())
        >>> for name, text in (("a", "x"), ("b", "y"), ("c", "y"), ("val", "x")):
        ...     _ = (folder / name).write_text(text)
        >>> stay, gone = without_twins([str(folder / name) for name in "abc"], [str(folder / "val")])
        >>> [Path(path).name for path in stay], [(Path(a).name, Path(b).name) for a, b in gone]
        (['b'], [('a', 'val'), ('c', 'b')])
    """
    of_size: defaultdict[int, list[tuple[str, bool]]] = defaultdict(list)
    for paths, wanted in ((against, False), (pool, True)):
        for path in dict.fromkeys(paths):
            size = _size(path)
            if size is not None:
                of_size[size].append((path, wanted))
    others: dict[str, str] = {}
    for alike in of_size.values():
        if len(alike) == 1 or not any(wanted for _, wanted in alike):
            continue
        first: dict[str, str] = {}
        for path, wanted in alike:
            other = first.setdefault(_digest(path), path)
            if wanted and other != path:
                others[path] = other
            elif wanted and any(path == known for known, ours in alike if not ours):
                others[path] = path
    unique = list(dict.fromkeys(pool))
    return [p for p in unique if p not in others], [Twin(p, others[p]) for p in unique if p in others]


def _files(path: str) -> list[str]:
    if not os.path.isdir(path):
        return [path]
    return sorted(entry.path for entry in os.scandir(path) if entry.is_file())


def _size(path: str) -> int | None:
    """Bytes of a file or of a folder's files; None where it is not there, which reading it will tell."""
    try:
        return sum(os.path.getsize(file) for file in _files(path))
    except OSError:
        return None


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    for file in _files(path):
        if file != path:
            digest.update(f"{os.path.basename(file)}\0{os.path.getsize(file)}\0".encode("utf-8", "surrogateescape"))
        with open_untrusted(file, what="a video or image") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()
