"""What a packet holds, by its first bits: the evidence on which packets may be left undecoded.

Nothing is decoded here. A packet of which it is not certain that it gives exactly one frame has no facts at all (None).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

# Facts of a packet that gives exactly one frame, added up. Plain numbers: there is one for every packet of a video.
ENTRY = 1
"""Decoding can start here: nothing shown later refers to anything before."""
LEADS = 2
"""An entry after which frames may come that are shown before it and refer to what came before it."""
SPARE = 4
"""Nothing refers to this frame."""
LAYERED = 8
"""Of a higher temporal layer, which may refer to what is SPARE."""

Inspect: TypeAlias = Callable[[bytes], "int | None"]


def inspector(codec: str, extradata: bytes | None) -> Inspect | None:
    """What tells a packet's facts; None for a codec whose packets are not read here."""
    if codec in ("h264", "hevc"):
        of_nal = _h264 if codec == "h264" else _hevc
        size = _nal_length_size(codec, extradata)
        return lambda data: of_nal(data, size)
    return {"mpeg4": _mpeg4, "vp9": _vp9, "libvpx-vp9": _vp9, "av1": _av1, "libdav1d": _av1}.get(codec)


def _nal_length_size(codec: str, extradata: bytes | None) -> int:
    """Bytes of the length before each NAL unit; 0 where they stand behind start codes."""
    place = 4 if codec == "h264" else 21
    if not extradata or extradata[0] != 1 or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


def _nal_starts(data: bytes, length_size: int) -> list[int]:
    """Where the first NAL units begin, up to 64 of them: parameter sets and messages come before the picture."""
    starts: list[int] = []
    position = 0
    while len(starts) < 64:
        if length_size:
            start = position + length_size
            position = start + int.from_bytes(data[position:start], "big")
            if start >= len(data) or position > len(data):
                break
        else:
            found = data.find(b"\0\0\1", position)
            start = position = found + 3
            if found < 0 or start >= len(data):
                break
        starts.append(start)
    return starts


def _h264(data: bytes, length_size: int) -> int | None:
    for start in _nal_starts(data, length_size):
        kind = data[start] & 31
        if kind in (1, 5):
            if not data[start + 1 : start + 2] or not data[start + 1] & 0x80:
                return None  # not the picture's first slice
            return ENTRY if kind == 5 else 0 if data[start] & 0x60 else SPARE
        if kind in (2, 3, 4, 20, 21):
            return None  # partitions, layers and views
    return None


def _hevc(data: bytes, length_size: int) -> int | None:
    for start in _nal_starts(data, length_size):
        kind = data[start] >> 1 & 63
        if kind < 32:
            head = data[start + 1 : start + 3]
            if len(head) < 2 or data[start] & 1 or head[0] & 0xF8 or not head[1] & 0x80:
                return None  # another layer, or not the picture's first slice
            if kind >= 16:
                return ENTRY if kind in (18, 20) else ENTRY | LEADS
            facts = SPARE if kind % 2 == 0 else 0
            return facts | LAYERED if head[0] & 7 > 1 else facts
    return None


def _mpeg4(data: bytes) -> int | None:
    start = data.find(b"\0\0\1\xb6")
    # no picture, several packed into one, or one so short that it may be a place-holder that gives no frame
    if start < 0 or len(data) - start < 16 or data.find(b"\0\0\1\xb6", start + 4) >= 0:
        return None
    return (ENTRY | LEADS, 0, SPARE, 0)[data[start + 4] >> 6]


def _vp9(data: bytes) -> int | None:
    frames = [data]
    marker = data[-1]
    if marker & 0xE0 == 0xC0:  # a superframe: hidden frames and a shown one
        count, width = (marker & 7) + 1, (marker >> 3 & 3) + 1
        index = len(data) - 2 - count * width
        if index <= 0 or data[index] != marker:
            return None
        sizes = [int.from_bytes(data[at : at + width], "little") for at in range(index + 1, len(data) - 1, width)]
        ends = [sum(sizes[: number + 1]) for number in range(count)]
        frames = [data[end - size : end] for size, end in zip(sizes, ends, strict=True) if size]
        if not frames or ends[-1] > index:
            return None
    heads = [_vp9_head(frame) for frame in frames]
    if sum(shown for _, shown in heads) != 1:
        return None
    # a skipped frame would be missed even if nothing refers to it: motion vectors and probabilities live on
    return ENTRY if heads[0][0] else 0


def _vp9_head(frame: bytes) -> tuple[bool, bool]:
    """Whether it is a key frame, whether it is shown; a frame that is none is shown twice, which no packet is."""
    if frame[0] >> 6 != 2:
        return False, False
    bits = frame[0] << 1 if frame[0] & 0x30 == 0x30 else frame[0]  # profile 3 has a bit more
    if bits & 8:
        return False, True
    return not bits & 4, bool(bits & 2)


def _av1(data: bytes) -> int | None:
    position, shown, key = 0, 0, None
    while position < len(data):
        head = data[position]
        kind, extended, sized = head >> 3 & 15, head >> 2 & 1, head >> 1 & 1
        position += 1
        if extended:
            if position >= len(data) or data[position] >> 3 & 3:
                return None  # spatial layers
            position += 1
        size = len(data) - position
        if sized:
            size = 0
            for shift in range(0, 56, 7):
                if position >= len(data):
                    return None
                byte = data[position]
                position += 1
                size |= (byte & 127) << shift
                if byte < 128:
                    break
        if position + size > len(data):
            return None
        if kind == 1 and (not size or data[position] & 8):
            return None  # the reduced header of a still picture
        if kind in (3, 6):
            if not size:
                return None
            bits = data[position]
            shown += bits >> 7 or bits >> 4 & 1
            if key is None:
                key = bits & 0xF0 == 0x10  # not an existing frame, of type KEY, shown
        position += size
    if shown != 1:
        return None
    return ENTRY if key else 0
