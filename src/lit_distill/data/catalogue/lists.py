"""List files: one line a video, `path label`, or a line a folder of frames, `dir frames label`."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_distill._files import expand_home
from lit_distill.data.catalogue.samples import UNLABELLED, Sample
from lit_distill.untrusted.budgets import lines_of
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.showing import short_errors

# Names that FFmpeg would take for a protocol. They are refused for what they mean to be: the reader opens regular files
# only, by "file:" and an absolute path.
_REMOTE = re.compile(
    r"(?:async|cache|concatf?|crypto|data|fd|file|gopher|hls|ftp|https?|ipfs|mms\w*|pipe|rtmp\w*|"
    r"rtp|rtsp|sctp|srt|subfile|tcp|tee|tls|udp|unix)[:,]",
    re.IGNORECASE,
)
_SCORE = re.compile(r"(?<=\d)[\s,]+\d+\.\d+$")
_MORE_FIELDS = re.compile(r"\.[A-Za-z]\w{1,4}[\s,]+-?\d+(\.\d+)?$")  # a path that ends in a number of its own
_IN_QUOTES = re.compile(r'"((?:[^"]|"")*)"\s*(?:[\s,]\s*(.*))?$')
_PLAYLISTS = (".m3u8", ".m3u", ".mpd", ".ffconcat", ".concat", ".pls", ".asx", ".xspf", ".sdp", ".ism", ".smil")


@dataclass(frozen=True, kw_only=True)
class ListFile:
    """A list of samples, and what its lines are read by; see :func:`read_list`.

    Attributes:
        file: as the config has it: relative to the root.
        key: of the config, such as ``data.train_list``.
        root: folder that the paths are relative to.
        num_classes: labels must be below it.
        first_label: number of the first class.
        class_names: by class index, where they are known.
        roots: further folders that paths may lead to.
        labelled: whether its samples have labels.
        encoding: of the file.
    """

    file: str | os.PathLike[str]
    key: str
    root: str | os.PathLike[str]
    num_classes: int
    first_label: int = 0
    class_names: Sequence[str] = ()
    roots: Sequence[str | os.PathLike[str]] = ()
    labelled: bool = True
    encoding: str = "utf-8"

    @property
    def path(self) -> Path:
        """Where it is."""
        return Path(self.root, expand_home(self.file))

    def read(self, *, counted: bool = False) -> list[Sample]:
        """What it names, see :func:`read_list`."""
        return read_list(
            self.path, root=self.root, num_classes=self.num_classes, counted=counted, first_label=self.first_label,
            class_names=self.class_names, roots=self.roots, labelled=self.labelled,
            encoding=self.encoding,
        )  # fmt: skip


@short_errors()
def read_list(
    file: str | os.PathLike[str],
    *,
    root: str | os.PathLike[str],
    num_classes: int,
    counted: bool = False,
    first_label: int = 0,
    class_names: Sequence[str] = (),
    roots: Sequence[str | os.PathLike[str]] = (),
    labelled: bool = True,
    encoding: str = "utf-8",
) -> list[Sample]:
    """Read a list file: ``path label`` a line for videos, ``dir frames label`` for folders of frames.

    The fields of a line are separated by commas if its last field then is a number, else by white space; a path may
    hold either, and may stand in double quotes. Empty lines, and lines that begin with ``#`` and a space, are passed
    over. A line of a video list may leave its label out if the video's folder has the name of a class, as in the
    official test lists of UCF-101. A decimal number after the label, such as the score of :mod:`lit_distill.select`,
    is passed over.

    A list is data: what it names must be local and inside the root, links followed; URLs, FFmpeg's protocols
    (``concat:…``) and playlists are refused.

    Args:
        file: the list.
        root: folder that the paths are relative to; an absolute path must lie inside.
        num_classes: labels must be below it.
        counted: whether its lines are ``dir frames label``.
        first_label: number of the first class in the file: 1 for lists that count from one.
        class_names: names of the classes, for lines without a label.
        roots: further folders that absolute paths, and links in the root, may lead to.
        labelled: false for a list of videos without labels, lines ``path`` or ``dir frames``: samples then have the
            label -1, and labels that a line has all the same are passed over.
        encoding: of the file, unless it begins with a byte order mark.

    Returns:
        the samples in the order of the file.

    Raises:
        ValueError: a line is malformed, a label is out of range, a path is not local or leads out of the root, or
            there is no line; the message has the file and the line's number.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "train.txt").write_text("swim/a clip.mp4 1\\nrun/b.mp4,0\\n")
        ...     samples = read_list(f"{folder}/train.txt", root="videos", num_classes=2)
        >>> [(sample.path, sample.label) for sample in samples]
        [('videos/swim/a clip.mp4', 1), ('videos/run/b.mp4', 0)]
    """
    base = os.path.normpath(root)
    folder_labels = {name: index for index, name in enumerate(class_names)}
    samples, numbers_of = [], []
    for number, line in enumerate(lines_of(file, what="a list of samples", encoding=encoding), 1):
        if is_blank(line):
            continue
        where = f"{os.fspath(file)}:{number}"
        path, numbers = _fields(_SCORE.sub("", line.strip()), 2 if counted else 1)
        if not counted and _MORE_FIELDS.search(path) and not os.path.exists(os.path.join(base, path)):
            raise ValueError(
                f"{where}: expected 'path label', got {line.strip()!r}: there is no file {path!r}; lists of lines "
                "'dir frames label' are for data.format=frames"
            )
        if not labelled:
            label = UNLABELLED
            if counted and not numbers:
                path, numbers = _fields(line.strip(), 1)
            if counted and not numbers:
                raise ValueError(f"{where}: expected 'dir frames', got {line.strip()!r}")
        elif not counted and not numbers:
            label = folder_labels.get(Path(path).parent.name, UNLABELLED)
            if label == UNLABELLED:
                raise ValueError(f"{where}: expected 'path label', got {line.strip()!r}")
        else:
            if len(numbers) != (2 if counted else 1):
                raise ValueError(f"{where}: expected 'dir frames label', got {line.strip()!r}")
            label = numbers[-1] - first_label
        if labelled and not 0 <= label < num_classes:
            raise ValueError(
                f"{where}: label {label + first_label} is out of range: num_classes={num_classes} and "
                f"first_label={first_label} allow {first_label} to {num_classes - 1 + first_label}; "
                "set data.num_classes, or data.first_label=1 if the list counts from one"
            )
        frames = numbers[0] if counted else None
        if frames is not None and frames < 1:
            raise ValueError(f"{where}: a folder needs at least 1 frame, got {frames}")
        samples.append(Sample(_inside(path, base, roots, where), label, frames))
        numbers_of.append(number)
    if not samples:
        line = "path label" if labelled else "path"
        raise ValueError(f"{os.fspath(file)}: the list is empty, expected a line {line!r} for each video")
    outside = _linked_outside(samples, [base, *roots])
    if outside:
        first = min(outside)
        more = f"; {len(outside) - 1} more entries lead out too" if len(outside) > 1 else ""
        raise ValueError(
            f"{os.fspath(file)}:{numbers_of[first]}: {samples[first].path} is a link to {outside[first]}, outside the "
            f"root {base!r}{more}; set data.root to a folder that holds it, or admit its folder by "
            f"data.roots=[{os.path.dirname(outside[first])}]"
        )
    return samples


def is_blank(line: str) -> bool:
    """Whether a line of a list names nothing: an empty one, or a comment."""
    return not line.strip() or re.match(r"\s*#(\s|$)", line) is not None


def unquoted(line: str) -> tuple[str, str] | None:
    """The first field of a line where it stands in double quotes, and what follows; None for other lines.

    Example:
        >>> unquoted('"a, ""b"".mp4", 3'), unquoted("a.mp4 3")
        (('a, "b".mp4', '3'), None)
    """
    found = _IN_QUOTES.match(line.strip())
    return None if found is None else (found[1].replace('""', '"'), (found[2] or "").strip())


@short_errors()
def read_class_names(file: str | os.PathLike[str], num_classes: int, *, encoding: str = "utf-8") -> tuple[str, ...]:
    """Read the names of the classes: one a line in the order of their indices, or ``number name`` lines.

    Args:
        file: the numbers, where every line has one, count up from 0 or from 1 (UCF-101's ``classInd.txt``).
        num_classes: how many names are expected.
        encoding: of the file, unless it begins with a byte order mark.

    Returns:
        the names, by class index.

    Raises:
        ValueError: their number is another, or one comes twice.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     _ = Path(folder, "names.txt").write_text("1 Archery\\n2 Bowling\\n")
        ...     read_class_names(f"{folder}/names.txt", 2)
        ('Archery', 'Bowling')
    """
    names = [line.strip() for line in lines_of(file, what="a list of class names", encoding=encoding) if line.strip()]
    heads = [name.replace(",", " ").split(maxsplit=1) for name in names]
    if heads and all(len(head) == 2 and head[0].isdecimal() for head in heads):
        first = int(heads[0][0])
        if first in (0, 1) and [int(head[0]) for head in heads] == list(range(first, first + len(heads))):
            names = [head[1].strip() for head in heads]
    if len(names) != num_classes:
        raise ValueError(
            f"{os.fspath(file)}: expected num_classes={num_classes} names, one a line, got {len(names)}; "
            "set data.num_classes or data.class_names"
        )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ValueError(f"{os.fspath(file)}: each class needs a name of its own, these come twice: {twice}")
    return tuple(names)


def missing_samples(samples: Sequence[Sample]) -> list[Sample]:
    """The samples whose file or folder does not exist.

    Each folder that holds some is listed once: far fewer round trips to a network file system than a look at each file.
    """
    folders: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        folders[os.path.dirname(sample.path)].append(sample)
    there: set[str] = set()
    for folder, entries in folders.items():
        try:
            names = set(os.listdir(folder))
        except (FileNotFoundError, NotADirectoryError):
            continue
        there.update(sample.path for sample in entries if os.path.basename(sample.path) in names)
    return [sample for sample in samples if sample.path not in there]


def _fields(line: str, numbers: int) -> tuple[str, list[int]]:
    """Path and trailing integers of a line; fewer integers than ``numbers`` where the line does not end in them."""
    if (quoted := unquoted(line)) is not None:
        rest = quoted[1].replace(",", " ").split()
        if len(rest) == numbers and all(part.isdecimal() for part in rest):
            return quoted[0], [int(part) for part in rest]
        return (quoted[0], []) if not rest else (line, [])
    for separator in (",", None):
        path, *rest = line.rsplit(separator, numbers)
        if len(rest) == numbers and path.strip() and all(part.strip().isdecimal() for part in rest):
            return path.strip(), [int(part) for part in rest]
    return line, []


def _inside(path: str, root: str, roots: Sequence[str | os.PathLike[str]], where: str) -> str:
    """``path`` under ``root``, judged by its text; where links lead is looked at for all entries together."""
    if is_address(path) or _REMOTE.match(path) or "\0" in path:
        raise ValueError(
            f"{where}: {path!r} is no local file but a URL or protocol, which is never opened; fetch it into data.root "
            "and list its path"
        )
    if path.lower().endswith(_PLAYLISTS):
        raise ValueError(
            f"{where}: {path!r} is a playlist, which names other files and is never opened; list the videos themselves"
        )
    reach = os.path.normpath(os.path.join(os.path.abspath(root), path))
    for folder in (root, *roots):
        inside = reach.removeprefix(os.path.join(os.path.abspath(folder), ""))
        if not os.path.isabs(inside):
            return os.path.join(folder, inside)
    raise ValueError(f"{where}: {path!r} is not inside the root {root!r}; set data.root to a folder that holds it")


def _linked_outside(samples: Sequence[Sample], roots: Sequence[str | os.PathLike[str]]) -> dict[int, str]:
    """Where the samples lead that links take out of the roots, by their position.

    Each folder is resolved and listed once; only entries that are links themselves are looked at one by one.
    """
    real = [os.path.realpath(root) for root in roots]
    folders: defaultdict[str, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        folders[os.path.dirname(sample.path)].append(position)
    outside: dict[int, str] = {}
    for folder, positions in folders.items():
        target = os.path.realpath(folder)
        if not is_inside(target, real):
            outside.update((p, os.path.join(target, os.path.basename(samples[p].path))) for p in positions)
            continue
        try:
            with os.scandir(folder) as entries:
                links = {entry.name for entry in entries if entry.is_symlink()}
        except (FileNotFoundError, NotADirectoryError):
            continue  # what is missing is reported elsewhere
        for position in positions if links else ():
            if os.path.basename(samples[position].path) in links:
                target = os.path.realpath(samples[position].path)
                if not is_inside(target, real):
                    outside[position] = target
    return outside


def shown(path: Path) -> str:
    """A path in a message; of a relative one where that is."""
    return str(path) if path.is_absolute() else f"{path} (that is {path.absolute()})"


def is_inside(target: str, roots: Sequence[str]) -> bool:
    """Whether a resolved path is one of the resolved folders, or below one."""
    return any(target == root or target.startswith(os.path.join(root, "")) for root in roots)
