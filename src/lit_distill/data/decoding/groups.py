"""Groups of pictures: where decoding can start, and which frame is which, from packets alone.

All of it is evidence or nothing: whoever finds a sign that the packets don't tell the order of the frames raises
:class:`Distrust`, and everything is decoded instead.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

from lit_distill.data.decoding.bitstream import ENTRY, LAYERED, LEADS, SPARE, Inspect, inspector
from lit_distill.data.decoding.container import Opened, Packet

# Containers whose presentation times are those of the frames. AVI has none, so FFmpeg counts; that is right for MPEG-4.
_TIMED = {"mov", "matroska", "mpegts", "flv"}
_COUNTED = {("avi", "mpeg4")}


class Distrust(Exception):
    """The packets don't tell which frame is which; decoding everything does."""


class NoIndex(Distrust):
    """The index of the file does not tell; reading all packets may."""


class Shallow(Distrust):
    """The frames ask for more reordering than the decoder, as far as it is known, does."""


@dataclass(frozen=True)
class Picture:
    """One packet, without its data.

    Attributes:
        time: of presentation, in units of the stream.
        facts: what its first bits say.
        shown: whether the container means it to be shown.
    """

    time: int
    facts: int
    shown: bool


@dataclass(frozen=True)
class Group:
    """A run of pictures, at whose first one decoding can start.

    Attributes:
        packets: their packets, in decoding order.
        pictures: what these say.
        indices: of each picture in display order, -1 for one that is not shown.
    """

    packets: Sequence[Packet]
    pictures: Sequence[Picture]
    indices: Sequence[int]

    @property
    def leading(self) -> list[bool]:
        """Which pictures are shown before the first one: they may refer to what came before it."""
        return [one.time < self.pictures[0].time for one in self.pictures]

    @property
    def spare(self) -> list[bool]:
        """Which pictures nothing refers to."""
        layered = any(one.facts & LAYERED for one in self.pictures)
        return [bool(one.facts & SPARE) and not layered for one in self.pictures]


def facts_reader(video: Opened) -> Inspect:
    """What reads the facts of this video's packets.

    Raises:
        Distrust: no packet of this container or codec tells.
    """
    context = video.context
    container, codec = video.container.format.name.split(",")[0], context.name
    inspect = inspector(codec, context.extradata)
    progressive = context.field_order <= 1
    if inspect is None or not progressive or not (container in _TIMED or (container, codec) in _COUNTED):
        raise Distrust
    return inspect


def picture(packet: Packet, inspect: Inspect) -> Picture:
    """A packet's facts and time.

    Raises:
        Distrust: it does not tell them.
    """
    facts = inspect(bytes(packet))
    if facts is None or packet.pts is None or packet.is_corrupt:
        raise Distrust
    return Picture(packet.pts, facts, not packet.is_discard)


def divided(pictures: Sequence[Picture]) -> list[range]:
    """Divide a whole video, in decoding order, into groups: the places of each.

    Raises:
        Distrust: times overlap between groups; the first group lacks what its first frames refer to; frames after the
            first group are not shown.
    """
    entries = [place for place, one in enumerate(pictures) if one.facts & ENTRY]
    if not entries or entries[0]:
        raise Distrust
    groups = [range(*pair) for pair in zip(entries, [*entries[1:], len(pictures)], strict=True)]
    before: int | None = None
    for group in groups:
        key, times = pictures[group.start], [pictures[place].time for place in group if pictures[place].shown]
        if any(time < key.time for time in times) and (group is groups[0] or not key.facts & LEADS):
            raise Distrust
        if group is not groups[0] and (len(times) < len(group) or (before is not None and min(times) <= before)):
            raise Distrust
        before = max(times, default=None)
    return groups


def numbered(pictures: Sequence[Picture], start: int, *, depth: int | None) -> list[int]:
    """The indices of a group's pictures in display order, -1 for those that are not shown.

    Args:
        pictures: of the group, in decoding order.
        start: index of the first shown one.
        depth: how many frames the decoder holds back for reordering, where it may drop what comes later than that.

    Raises:
        Distrust: times repeat.
        Shallow: they ask for more reordering than the decoder does.
    """
    order = sorted(one.time for one in pictures if one.shown)
    if len(set(order)) < len(order):
        raise Distrust
    ranks = [bisect_left(order, one.time) if one.shown else -1 for one in pictures]
    if depth is not None and _reordering(ranks) > depth:
        raise Shallow
    return [start + rank if rank >= 0 else -1 for rank in ranks]


def _reordering(ranks: Sequence[int]) -> int:
    """The largest number of pictures that come before another in decoding order and after it in display order."""
    seen: list[int] = []
    most = 0
    for rank in ranks:
        if rank >= 0:
            most = max(most, len(seen) - bisect_left(seen, rank))
            insort(seen, rank)
    return most
