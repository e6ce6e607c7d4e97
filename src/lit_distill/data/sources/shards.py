"""Video files in tar shards of WebDataset's layout: found once, read by byte range, in any order."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lit_distill._files import cache_folder, write_text
from lit_distill.data.catalogue.archives import Archives, MemberFile, Stamp
from lit_distill.data.catalogue.lists import ListFile, is_inside
from lit_distill.data.catalogue.samples import Member, Sample
from lit_distill.data.catalogue.tar import TarError, members, shown
from lit_distill.data.samplers import seeded
from lit_distill.data.sources.base import named
from lit_distill.data.sources.videos import VideoFiles
from lit_distill.untrusted.budgets import INDEX_BYTES, decoded
from lit_distill.untrusted.naming import is_address
from lit_distill.untrusted.opening import UntrustedFileError, private_folder, read_untrusted
from lit_distill.untrusted.showing import printable, short_errors

VIDEO_ENDINGS: Final = ("mp4", "mkv", "webm", "avi", "mov", "m4v", "mpg", "mpeg", "ts", "flv", "ogv", "wmv", "3gp")
"""Endings that make a member the video of its sample."""

_FORMAT: Final = 1
_LABEL_BYTES: Final = 1 << 20
_AT_ONCE: Final = 8  # shards looked through side by side: much of that is waiting for the store
_RANGE: Final = re.compile(r"(\d+)\.\.(\d+)")
_NUMBER: Final = re.compile(r"-?[0-9]{1,9}")
_MOST: Final = 250_000  # of 64 MB each, they hold 16 TB
_CHARACTERS: Final = 32 << 20  # of all their names
_LONGEST: Final = 1024  # characters of a pattern: each name that it stands for may have as many


class Entry(NamedTuple):
    """A sample of a shard: what its members' names begin with, its video, its class as stored."""

    key: str
    video: Member
    label: int | str


def expand(pattern: str) -> list[str]:
    """The names that a brace pattern stands for.

    Args:
        pattern: with ranges such as ``{0000..0063}``, whose zeros are kept, or alternatives such as ``{a,b}``.

    Raises:
        ValueError: a range runs backwards or is malformed, or there are more than 250,000 names, or too long ones.

    Example:
        >>> expand("train-{08..10}.tar"), expand("{a,b}-{1..2}.tar"), expand("a.tar")
        (['train-08.tar', 'train-09.tar', 'train-10.tar'], ['a-1.tar', 'a-2.tar', 'b-1.tar', 'b-2.tar'], ['a.tar'])
    """
    if len(pattern) > _LONGEST:
        raise ValueError(f"{pattern[:80]!r}…: a pattern has at most {_LONGEST} characters, got {len(pattern)}")
    if "{" not in pattern and "}" not in pattern:
        return [pattern]
    names = [""]
    for part in re.split(r"(\{[^{}]*\})", pattern):
        choices = [part]
        if part.startswith("{"):
            bounds = _RANGE.fullmatch(part[1:-1])
            if bounds:
                first, last = bounds.groups()
                if int(last) < int(first):
                    raise ValueError(f"{pattern!r}: the range {part} runs backwards")
                if int(last) - int(first) >= _MOST:
                    raise ValueError(f"{pattern!r} stands for more than {_MOST:,} shards")
                choices = [f"{number:0{len(first)}}" for number in range(int(first), int(last) + 1)]
            elif "," in part:
                choices = part[1:-1].split(",")
            else:
                raise ValueError(f"{pattern!r}: expected a range such as {{0000..0063}} or {{a,b}}, got {part}")
        elif "{" in part or "}" in part:
            raise ValueError(f"{pattern!r}: a brace without its partner")
        if len(names) * len(choices) > _MOST:
            raise ValueError(f"{pattern!r} stands for more than {_MOST:,} shards")
        if len(names) * sum(map(len, choices)) + len(choices) * sum(map(len, names)) > _CHARACTERS:
            raise ValueError(f"{pattern[:80]!r}…: its names have more than {_CHARACTERS:,} characters: shorten them")
        names = [name + choice for name in names for choice in choices]
    return names


@short_errors()
def shard_names(listed: str, archives: Archives) -> list[str]:
    """The shards of a split, relative to the root: a pattern's, or those that a list file in it names, one a line.

    Raises:
        ValueError: a name leads out of the root, is a URL, is no tar, comes twice, or there is none.
        FileNotFoundError: there is no such list.
    """
    if "{" in listed or listed.endswith(".tar"):
        names = expand(listed)
    else:
        with archives.open(archives.join(listed)) as file:
            content = file.read(_CHARACTERS + 1)
        if len(content) > _CHARACTERS:
            raise ValueError(
                f"{listed}: expected a list of shards of at most {_CHARACTERS:,} bytes, got more: split it"
            )
        names, characters = [], 0
        for line in io.StringIO(decoded(listed, content), newline=None):
            more = expand(line.strip()) if line.strip() else []
            names += more
            characters += sum(map(len, more))
            if len(names) > _MOST or characters > _CHARACTERS:
                raise ValueError(f"{listed} stands for more than {_MOST:,} shards, or {_CHARACTERS:,} characters")
    for name in names:
        if is_address(name) or "\0" in name or "\\" in name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{listed}: the shard {name!r} is not inside the root {archives.root}")
        if not name.endswith(".tar"):
            raise ValueError(f"{listed}: a shard is an uncompressed .tar, which can be read anywhere, got {name!r}")
    if not names:
        raise ValueError(f"{listed}: no shards, expected a name such as train-0000.tar a line")
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{listed}: the shard {twice!r} comes twice")
    return names


@short_errors()
def scan_shard(archives: Archives, path: str, size: int) -> list[Entry]:
    """The samples of a shard, from one pass over its headers; of its contents only labels are read.

    A sample is a run of members with one key: a video (:data:`VIDEO_ENDINGS`) and its label, ``key.cls`` (a number) or
    ``key.json`` (an object with ``label``). Other members are passed over.

    Raises:
        ValueError: the shard is refused; the message names it, the member and the reason.
    """
    entries: list[Entry] = []
    keys: set[str] = set()
    try:
        with archives.open(path) as file:
            for key, parts in _samples(list(members(file, size))):
                if key in keys:
                    raise TarError(f"the sample {key!r} comes twice")
                keys.add(key)
                videos = [member for ending, member in parts if ending in VIDEO_ENDINGS]
                if len(videos) != 1:
                    raise TarError(f"the sample {key!r} has {len(videos)} videos, expected one: {key}.mp4")
                entries.append(Entry(key, videos[0], _label(file, key, dict(parts))))
    except TarError as error:
        raise ValueError(printable(f"{path}: {error}; the shard is refused")) from error
    if not entries:
        raise ValueError(f"{path}: it holds no sample, expected members such as 0001.mp4 and 0001.cls")
    return entries


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards(VideoFiles):
    """Video files that are members of tar shards; a list is a pattern of shards, or a file that names them.

    What a shard holds is kept in a file of the cache folder, which counts for a shard of that size and time only.

    Args:
        archives: what they are read through.
        stamps: size and time of each shard by its path; :meth:`samples` adds to them.
    """

    packed: ClassVar[bool] = True
    archives: Archives
    stamps: dict[str, Stamp] = field(default_factory=dict)

    def file(self, sample: Sample) -> MemberFile:
        """The member of a shard."""
        return self.archives.source(sample)

    def identity(self, sample: Sample, length: int) -> tuple[object, ...]:
        """Path of the shard as it was given, member, size and time."""
        return (sample.path, *super().identity(sample, length)[1:])

    def stamp(self, sample: Sample) -> Stamp:
        """Of the shard."""
        return self.stamps[sample.path]

    def samples(self, listed: ListFile) -> list[Sample]:
        """The samples of shards in their order; shards that are not known yet are looked through.

        Raises:
            ValueError: a shard is refused, or a label is out of range.
            FileNotFoundError: a list or a shard is missing; the message names the first.
        """
        file = os.fspath(listed.file)
        try:
            names = shard_names(file, self.archives)
        except FileNotFoundError as error:
            given = f"{listed.key}=<file or pattern> or data.root=<folder or URL>"
            raise FileNotFoundError(f"no list of shards {self.archives.join(file)}, set {given}") from error
        inside = [os.path.realpath(each) for each in (self.archives.root, *listed.roots)]
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            found = list(pool.map(lambda name: self._look(name, inside), names))
        if faults := [fault for *_, fault in found if fault]:
            warnings.warn(
                f"the headers of {len(faults)} shards will be read again next time: {faults[0]}", stacklevel=2
            )
        self.stamps.update({path: stamp for path, stamp, *_ in found})
        numbers = {name: number for number, name in enumerate(listed.class_names)}
        first, samples = listed.first_label, []
        for path, _, entries, _ in found:
            for key, video, stored in entries:
                label = numbers.get(stored, -1) if isinstance(stored, str) else stored - first
                if not 0 <= label < listed.num_classes:
                    raise ValueError(
                        f"{path}: the label {stored!r:.80} of {key!r:.200} is out of range: expected {first} to "
                        f"{first + listed.num_classes - 1}{' or a class name' if numbers else ''}; set "
                        "data.num_classes, data.first_label or data.class_names"
                    )
                samples.append(Sample(path, label, member=video))
        return samples

    def missing(self, samples: Sequence[Sample]) -> list[Sample]:
        """None: a missing shard is an error."""
        return []

    def layout(self, lists: Iterable[str | os.PathLike[str]]) -> str:
        """What the root must hold, in words."""
        return f"{named(lists)} (tar shards, or files that list them)"

    def bare(self) -> Shards:
        """Without the index and the stamps."""
        return replace(self, index=None, stamps={})

    def _look(self, name: str, inside: Sequence[str]) -> tuple[str, Stamp, list[Entry], Exception | None]:
        """Path, stamp and samples of a shard, and why these could not be kept."""
        path = self.archives.join(name)
        if not self.archives.remote and not is_inside(os.path.realpath(path), inside):
            raise ValueError(f"{path} is a link that leads out of data.root; admit its folder by data.roots")
        try:
            stamp = self.archives.stamp(path)
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"no shard {path}, set data.root=<folder or URL that holds it> or the list of shards"
            ) from error
        identity = path if self.archives.remote else str(Path(path).absolute())
        file = cache_folder("shards") / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.json"
        if (entries := _known(file, identity, stamp)) is not None:
            return path, stamp, entries, None
        entries = scan_shard(self.archives, path, stamp[0])
        try:
            record = {"format": _FORMAT, "shard": identity, "stamp": stamp, "entries": entries}
            private_folder(file.parent)
            write_text(file, json.dumps(record), private=True)
        except (OSError, UntrustedFileError) as error:
            return path, stamp, entries, error
        return path, stamp, entries, None


class ShardOrder:
    """An order of training for sequential stores: shards shuffled, then samples within windows of it.

    Args:
        groups: number of each sample's shard.
        window: samples that are shuffled together; more mix better, and touch more shards at a time.
        seed: of the order, with the epoch.

    Example:
        >>> order = ShardOrder(np.array([0, 0, 1, 1, 2, 2]), window=3, seed=0)
        >>> sorted(order(5)) == list(range(6)), order(5) == order(5), order(5) == order(6)
        (True, True, False)
    """

    def __init__(self, groups: NDArray[np.int64], *, window: int, seed: int) -> None:
        if window < 1:
            raise ValueError(f"data.shuffle_window must be at least 1, got {window}")
        self.groups, self.window, self.seed = groups, window, seed

    def __call__(self, epoch: int) -> list[int]:
        """The positions of all samples in the order of an epoch."""
        rank = np.unique(self.groups)
        order = list(range(len(rank)))
        seeded("shards", self.seed, epoch).shuffle(order)
        place = np.empty(len(rank), np.int64)
        place[order] = np.arange(len(rank))
        positions: list[int] = np.argsort(place[np.searchsorted(rank, self.groups)], kind="stable").tolist()
        for start in range(0, len(positions), self.window):
            window = positions[start : start + self.window]
            seeded("window", self.seed, epoch, start).shuffle(window)
            positions[start : start + self.window] = window
        return positions


def _samples(found: Sequence[Member]) -> Iterator[tuple[str, list[tuple[str, Member]]]]:
    """Runs of members with one key, as (key, [(ending, member), ...])."""
    key = ""
    parts: list[tuple[str, Member]] = []
    for member in found:
        folder, slash, base = member.name.removeprefix("./").rpartition("/")
        stem, _, ending = base.partition(".")
        if not stem:  # hidden files
            continue
        if parts and folder + slash + stem != key:
            yield key, parts
            parts = []
        key = folder + slash + stem
        parts.append((ending.lower(), member))
    if parts:
        yield key, parts


def _label(file: Any, key: str, parts: dict[str, Member]) -> int | str:
    member = parts.get("cls") or parts.get("json")
    if member is None:
        raise TarError(f"the sample {key!r} has no label: expected {key}.cls or {key}.json")
    if member.size > _LABEL_BYTES:
        raise TarError(f"member {shown(member.name)} has {member.size} bytes, too many for a label")
    file.seek(member.offset)
    text = file.read(member.size).decode("utf-8", "replace").strip()
    label: Any = text
    if member is not parts.get("cls"):
        try:
            record = json.loads(text)
        except (ValueError, RecursionError):
            record = None
        label = record.get("label") if isinstance(record, dict) else None
    if isinstance(label, str) and _NUMBER.fullmatch(label):
        label = int(label)
    if isinstance(label, bool) or not isinstance(label, (int, str)) or label == "":
        raise TarError(f"member {shown(member.name)} holds no label: expected a number{' in .cls' if member else ''}")
    return label


def _known(file: Path, identity: str, stamp: Stamp) -> list[Entry] | None:
    """What the index says of a shard, None where it says nothing of the shard as it is now."""
    try:
        record = json.loads(read_untrusted(file, what="an index of a shard", limit=INDEX_BYTES, own=True))
        if [record["format"], record["shard"], tuple(record["stamp"])] != [_FORMAT, identity, stamp]:
            return None
        entries = [
            Entry(str(key), Member(str(name), int(offset), int(size)), label if isinstance(label, str) else int(label))
            for key, (name, offset, size), label in record["entries"]
        ]
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None
    inside = all(entry.video.offset >= 0 <= entry.video.size <= stamp[0] - entry.video.offset for entry in entries)
    return entries if entries and inside else None
