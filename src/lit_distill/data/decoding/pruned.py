"""Decoding no more than the wanted frames need: their groups, to the last wanted one, without what nothing needs."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence, Set
from itertools import accumulate
from typing import Protocol

import av

from lit_distill.data.decoding.bitstream import ENTRY, LEADS
from lit_distill.data.decoding.container import Opened, Packet
from lit_distill.data.decoding.groups import Distrust, Group, Picture, divided, facts_reader, numbered, picture

# Decoders that leave a frame undecoded when they are asked to, exactly if nothing refers to it.
_SKIPPING = ("h264", "hevc", "mpeg4")
_SEEKABLE = ("mov", "matroska")


class Groups(Protocol):
    """Where the groups of a video come from."""

    @property
    def starts(self) -> Sequence[int]:
        """Index of each group's first shown frame."""

    @property
    def total(self) -> int | None:
        """Number of shown frames, where it is known."""

    def get(self, number: int) -> Group:
        """A group with its packets."""


class WholeVideo:
    """All groups of a video whose packets are in memory.

    Args:
        video: from its beginning on.

    Raises:
        Distrust: its packets don't tell the order of its frames.
    """

    def __init__(self, video: Opened) -> None:
        inspect, depth = facts_reader(video), reordering_depth(video)
        self._packets = list(video.packets())
        self._pictures = [picture(packet, inspect) for packet in self._packets]
        self._places = divided(self._pictures)
        self.starts: Sequence[int]
        self.total: int | None
        self.starts, self.total = starts_of(self._pictures, self._places)
        self._indices = [
            numbered(self._pictures[places.start : places.stop], start, depth=depth)
            for places, start in zip(self._places, self.starts, strict=True)
        ]

    def get(self, number: int) -> Group:
        """A group with its packets."""
        places = slice(self._places[number].start, self._places[number].stop)
        return Group(self._packets[places], self._pictures[places], self._indices[number])


class SoughtGroups:
    """Groups that are sought in the file, one by one, and checked when they are read.

    Args:
        video: in a container that seeks by an index.
        starts: index of the first shown frame of each group.
        seeks: time to seek to for each.
        ticks: presentation time of each group's first picture; without them the times to seek to are their times of
            decoding.
        total: number of frames; None where it is not known.

    Raises:
        Distrust: the packets of this container or codec tell nothing.
    """

    def __init__(
        self, video: Opened, starts: Sequence[int], seeks: Sequence[int], ticks: Sequence[int] | None, total: int | None
    ) -> None:
        if not starts or starts[0] or container_of(video) not in _SEEKABLE:
            raise Distrust
        self.starts, self.total = starts, total
        self._video, self._seeks, self._ticks = video, seeks, ticks
        self._inspect, self._depth = facts_reader(video), reordering_depth(video)
        self._rest: Iterator[Packet] = iter(())
        self._pending: tuple[int, Packet] | None = None  # the group that the next packet begins
        self._read: dict[int, Group] = {}
        if ticks is None:
            self.get(0)  # an index promises frames at the beginning that a cut file can't show

    def get(self, number: int) -> Group:
        """A group with its packets.

        Raises:
            Distrust: it is not what was promised.
        """
        if number not in self._read:
            self._read[number] = self._fetch(number)
        return self._read[number]

    def _fetch(self, number: int) -> Group:
        packets = [self._sought(number)]
        pictures = [picture(packets[0], self._inspect)]
        if not pictures[0].facts & ENTRY:
            raise Distrust
        self._pending = None
        for packet in self._rest:
            one = picture(packet, self._inspect)
            if one.facts & ENTRY:
                self._pending = (number + 1, packet)
                if one.time <= max(each.time for each in pictures):
                    raise Distrust
                break
            packets.append(packet)
            pictures.append(one)
        last = number + 1 == len(self.starts)
        group = Group(packets, pictures, numbered(pictures, self.starts[number], depth=self._depth))
        shown, end = sum(one.shown for one in pictures), self.total if last else self.starts[number + 1]
        if last != (self._pending is None) or (end is not None and shown != end - self.starts[number]):
            raise Distrust
        if any(group.leading) and (self._ticks is None or not number or not pictures[0].facts & LEADS):
            raise Distrust
        return group

    def _sought(self, number: int) -> Packet:
        if self._pending is None or self._pending[0] != number:
            self._video.container.seek(self._seeks[number], stream=self._video.stream)
            self._rest = self._video.packets()
            self._pending = (number, next(self._rest, None))
        packet = self._pending[1]
        while packet is not None and not self._begins(packet, number):
            packet = next(self._rest, None)
        if packet is None:
            raise Distrust
        return packet

    def _begins(self, packet: Packet, number: int) -> bool:
        if self._ticks is None:
            return bool(packet.dts == self._seeks[number])
        return bool(packet.pts == self._ticks[number])


def indexed_groups(video: Opened) -> SoughtGroups:
    """The groups that the index of an mp4 or mov file tells of, without reading its packets.

    Raises:
        Distrust: there is no such index, or it is not one of plain frames.
    """
    if container_of(video) != "mov":
        raise Distrust
    entries = list(video.stream.index_entries)
    least = 16 if video.context.name == "mpeg4" else 1  # bytes; shorter ones may be place-holders that give no frame
    keys = [place for place, entry in enumerate(entries) if entry.is_keyframe]
    if any(entry.size < least for entry in entries) or any(entry.is_discard for entry in entries):
        raise Distrust
    return SoughtGroups(video, keys, [entries[place].timestamp for place in keys], None, len(entries))


def decode_groups(video: Opened, groups: Groups, wanted: Set[int], take: Callable[[int, av.VideoFrame], None]) -> None:
    """Decode the wanted frames and hand each to ``take``.

    Args:
        video: whose decoder is fresh.
        groups: of the video.
        wanted: indices in display order.
        take: called with the index and the frame.

    Raises:
        Distrust: what came out is not what the packets promised.
    """
    decoder = _Decoder(video, wanted, take)
    numbers = sorted({bisect_right(groups.starts, index) - 1 for index in wanted})
    needs_previous = {number for number in numbers if _leads(groups.get(number), wanted)}
    reached = -1  # the group at whose end the decoder stands, not drained
    for number in numbers:
        if number in needs_previous and reached != number - 1:
            decoder.feed(groups.get(number - 1), fresh=True)
            reached = number - 1
        group = groups.get(number)
        fresh = reached != number - 1 or number not in needs_previous
        if number + 1 in needs_previous:
            decoder.feed(group, fresh=fresh)
            reached = number
        else:
            last = max(place for place, index in enumerate(group.indices) if index in wanted)
            decoder.feed(group, fresh=fresh, places=last + 1)
            decoder.drain()
            reached = -1
    if decoder.missing:
        raise Distrust


class _Decoder:
    def __init__(self, video: Opened, wanted: Set[int], take: Callable[[int, av.VideoFrame], None]) -> None:
        self._video, self._wanted, self._take = video, wanted, take
        self.missing = set(wanted)
        self._context, self._depth = video.context, video.context.reorder_depth
        self._skips = self._context.name in _SKIPPING
        self._last = -1

    def feed(self, group: Group, *, fresh: bool, places: int | None = None) -> None:
        """Decode a group, or its first places; a fresh start leaves out what refers to frames before it."""
        spare, leading = group.spare, group.leading
        for place, packet in enumerate(group.packets[:places]):
            if fresh and leading[place]:
                continue
            self._video.check_time()
            index = packet.pts = group.indices[place]
            skip = self._skips and spare[place] and index not in self._wanted
            if skip:
                self._context.skip_frame = "NONREF"
            self._out(packet)
            if skip:
                self._context.skip_frame = "DEFAULT"

    def drain(self) -> None:
        """Take what the decoder holds back, and make it ready for another group."""
        self._out(None)
        self._context.flush_buffers()
        self._context.reorder_depth = self._depth  # flushing forgets it
        self._last = -1

    def _out(self, packet: Packet | None) -> None:
        for frame in self._context.decode(packet):
            index = frame.pts
            if index is None or index <= self._last or frame.is_corrupt or frame.interlaced_frame:
                raise Distrust
            self._last = index
            if index in self._wanted:
                self._take(index, frame)
                self.missing.discard(index)


def _leads(group: Group, wanted: Set[int]) -> bool:
    return any(lead and index in wanted for lead, index in zip(group.leading, group.indices, strict=True))


def container_of(video: Opened) -> str:
    """The first of the names of the container's format, such as ``"mov"``."""
    return str(video.container.format.name.split(",")[0])


def reordering_depth(video: Opened) -> int | None:
    """How many frames the decoder holds back, where it may drop what comes later; None where it drops none."""
    return video.context.reorder_depth if video.context.name == "h264" else None


def starts_of(pictures: Sequence[Picture], places: Sequence[range]) -> tuple[list[int], int]:
    """Index of the first shown frame of each group, and the number of all."""
    shown = [sum(pictures[place].shown for place in group) for group in places]
    sums = list(accumulate(shown, initial=0))
    return sums[:-1], sums[-1]
