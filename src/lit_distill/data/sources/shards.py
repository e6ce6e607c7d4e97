"""Video files in tar shards of WebDataset's layout, in a local folder or on an object store."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar

from lit_distill.data.catalogue.archives import Archives, MemberFile
from lit_distill.data.catalogue.lists import ListFile
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.shards import find_samples, shard_names
from lit_distill.data.catalogue.video_index import Stamp
from lit_distill.data.sources.base import named
from lit_distill.data.sources.videos import VideoFiles


@dataclass(frozen=True, kw_only=True, eq=False)
class Shards(VideoFiles):
    """Video files that are members of tar shards; a list is a pattern of shards, or a file that names them.

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
        """The samples of shards; those that are not known yet are looked through."""
        file = os.fspath(listed.file)
        try:
            names = shard_names(file, self.archives)
        except FileNotFoundError as error:
            given = f"{listed.key}=<file or pattern> or data.root=<folder or URL>"
            raise FileNotFoundError(f"no list of shards {self.archives.join(file)}, set {given}") from error
        samples, stamps = find_samples(
            names,
            self.archives,
            num_classes=listed.num_classes,
            first_label=listed.first_label,
            class_names=listed.class_names,
            roots=listed.roots,
        )
        self.stamps.update(stamps)
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
