"""Folders of frames: images that are numbered from 1."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Final

from lit_distill.data.catalogue.lists import is_inside
from lit_distill.data.catalogue.samples import Sample
from lit_distill.data.catalogue.video_index import Check, stamp_of
from lit_distill.data.decoding.decode import Frames, read_images
from lit_distill.data.decoding.layout import Limits, VideoError
from lit_distill.data.sources.base import Source, Video, chunks

_SIDE: Final = (16, 16)  # of frames that are decoded to see that they can be


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameFolders(Source):
    """Folders of frames, in lists of lines ``dir frames label``.

    Args:
        suffix: pattern of the file names, such as ``img_{:05}.jpg``.
        limits: of what may be spent on a call.
        inside: folders that links among the images must not lead out of; none to follow them anywhere.
    """

    first: ClassVar[int] = 1
    counted: ClassVar[bool] = True
    suffix: str = "img_{:05}.jpg"
    limits: Limits = Source.limits
    inside: Sequence[str | os.PathLike[str]] = ()

    @cached_property
    def _real(self) -> list[str]:
        return [os.path.realpath(folder) for folder in self.inside]

    @property
    def things(self) -> str:
        """Folders of frames."""
        return f"folders of frames named {self.suffix}"

    def open(self, sample: Sample) -> FrameFolder:
        """A folder; nothing of it is read yet."""
        return FrameFolder(self, sample)

    def identity(self, sample: Sample, length: int) -> tuple[object, ...]:
        """Path, and size and time of every image."""
        stamps = [stamp_of(file) for file in self.files(sample, range(1, length + 1))]
        return os.path.abspath(sample.path), sample.member, stamps, length, self.suffix

    def files(self, sample: Sample, numbers: Sequence[int]) -> list[str]:
        """The images of some numbers."""
        return [os.path.join(sample.path, self.suffix.format(number)) for number in numbers]

    def refuse(self, sample: Sample, numbers: Sequence[int]) -> None:
        """Raise VideoError for an image that is a link out of ``inside``."""
        for file in self.files(sample, numbers) if self._real else ():
            if os.path.islink(file) and not is_inside(os.path.realpath(file), self._real):
                raise VideoError(file, "a link that leads out of data.root; admit its folder by data.roots")

    def check(self, sample: Sample, check: Check) -> None:
        """See that all images are there, or decode them."""
        folder, numbers = sample.path, range(1, _count(sample) + 1)
        if check == "decode":
            for part in chunks(numbers):
                read_images(folder, self.suffix, part, size=_SIDE, limits=self.limits)
            return
        try:
            there = {entry.name for entry in os.scandir(folder) if entry.is_file()}
        except OSError as error:
            raise VideoError(folder, error.strerror or str(error)) from error
        missing = [name for number in numbers if (name := self.suffix.format(number)) not in there]
        if missing:
            raise VideoError(folder, f"{len(missing)} of its {len(numbers)} images are missing, first {missing[0]}")


class FrameFolder(Video):
    """The images of one folder."""

    def __init__(self, source: FrameFolders, sample: Sample) -> None:
        self.source, self.sample, self.length = source, sample, _count(sample)

    def read(self, numbers: Sequence[int]) -> Frames:
        """The images of some numbers, see :func:`lit_distill.data.read_images`."""
        self.refuse(numbers)
        return read_images(self.sample.path, self.source.suffix, numbers, limits=self.source.limits)

    def refuse(self, numbers: Sequence[int]) -> None:
        """Raise VideoError for an image that is a link out of the data's folders."""
        self.source.refuse(self.sample, numbers)


def _count(sample: Sample) -> int:
    assert sample.frames is not None, "a folder of frames is listed with their number"
    return sample.frames
