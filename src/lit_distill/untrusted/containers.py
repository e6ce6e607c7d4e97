"""What a video file declares, held against its bytes before FFmpeg makes room for it: mp4 and mov, Matroska and WebM.

FFmpeg makes tables of what the headers declare, some fifty bytes for each sample, stream, or fragment, before it looks
whether there is anything of it in the file.
"""

from __future__ import annotations

import io
import zlib
from bisect import bisect_right, insort_right
from collections.abc import Iterator
from itertools import islice
from typing import BinaryIO, Final

EBML: Final = b"\x1aE\xdf\xa3"
"""How Matroska and WebM begin."""

_KNOWN: Final = frozenset(
    (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"udta", b"uuid", b"junk", b"pict", b"prfl",
     b"styp", b"sidx", b"moof", b"hoov", b"ediw")
)  # fmt: skip

_MAX_ENTRIES: Final = 4_000_000  # samples of all tracks; fragments times streams
_MAX_HEADERS: Final = 64 << 20  # bytes of a file that are not its samples
_MAX_STREAMS: Final = 256
_MAX_ATTACHED: Final = 256 << 20
_MAX_ELEMENTS: Final = 10_000
_MAX_NOTES: Final = 10_000  # boxes, names, titles, chapters: FFmpeg compares or copies all before it for some of them
_FEW: Final = 1 << 14  # bytes of tags and chapters up to which they are not counted
_MAX_CUES: Final = 100_000
_MAX_MOVED: Final = 50_000_000
_WINDOW: Final = 1 << 14

_SAMPLES: Final = frozenset((b"mdat", b"free", b"skip", b"wide", b"junk", b"pict"))
_CONTAINERS: Final = frozenset(
    (b"moov", b"hoov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"dinf", b"udta", b"mvex", b"moof", b"traf",
     b"meta", b"ilst", b"wave", b"sinf", b"schi", b"tref", b"iprp", b"ipco", b"mfra", b"wide")
)  # fmt: skip
# Of those that a movie has for each fragment; FFmpeg looks at one of them alone.
_OF_FRAGMENTS: Final = frozenset(
    (b"moof", b"mfhd", b"traf", b"tfhd", b"tfdt", b"trun", b"sidx", b"ssix", b"styp", b"senc", b"saiz", b"saio",
     b"sbgp", b"sgpd", b"subs", b"uuid", b"prft", b"emsg")
)  # fmt: skip
# Where the number of entries is in the content of a box, and how long each of them is at least.
_COUNTS: Final = {
    b"stts": (4, 8), b"ctts": (4, 8), b"stsc": (4, 12), b"stco": (4, 4), b"co64": (4, 8), b"stss": (4, 4),
    b"stps": (4, 4), b"elst": (4, 12), b"dref": (4, 8), b"stsd": (4, 8), b"sbgp": (8, 8), b"tfra": (12, 11),
}  # fmt: skip
# Those of a track that stand in a description of its samples too.
_DESCRIBED: Final = frozenset(
    (b"stsz", b"stz2", b"trun", b"wave", b"stbl", b"elst", b"stsc", b"stco", b"co64", b"udta", b"meta", b"ilst")
)
_PCM: Final = frozenset(
    (b"sowt", b"twos", b"raw ", b"NONE", b"in24", b"in32", b"fl32", b"fl64", b"lpcm", b"ipcm", b"fpcm", b"alaw",
     b"ulaw", b"ima4", b"MAC3", b"MAC6", b"agsm", b"ms\x00\x02", b"ms\x00\x11")
)  # fmt: skip


class ExcessError(ValueError):
    """A video that declares more than its bytes can hold, or than is ever needed."""


def check_container(file: BinaryIO, size: int, head: bytes) -> bool:
    """Whether a file may be opened as mp4 or mov, once its headers are found to be within the limits.

    Args:
        file: seekable.
        size: of it, in bytes.
        head: its first eight bytes.

    Raises:
        ExcessError: it declares too much; the message says what.
    """
    if head[:4] == EBML:
        _Matroska(_Bytes(file, size)).check()
        return False
    return _Movie(_Bytes(file, size)).check()


class _Bytes:
    """Parts of a file, read a window at a time."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self.size = file, size
        self._start, self._window = 0, b""

    def read(self, start: int, count: int) -> bytes:
        """Bytes at a place; fewer at the end."""
        offset = start - self._start
        if offset < 0 or offset + count > len(self._window):
            self._file.seek(start)
            self._start, self._window, offset = start, self._file.read(max(count, _WINDOW)) or b"", 0
        return self._window[offset : offset + count]

    def number(self, start: int, count: int = 4) -> int:
        """A number at a place; zero beyond the end."""
        return int.from_bytes(self.read(start, count), "big")


class _Track:
    """What the tables of a track declare."""

    def __init__(self) -> None:
        self.samples = self.edits = self.chunks = self.fragments = 0
        self.sound = self.pcm = False
        self.durations = self.duration = self.per_chunk = 0

    @property
    def entries(self) -> int:
        """Of FFmpeg's index. Of sound without compression it makes one for 1,024 samples, of a chunk at least one."""
        if self.sound and self.pcm and (self.durations, self.duration) == (1, 1):
            samples = self.chunks * -(-self.per_chunk // 1024)
        else:
            samples = self.samples
        return samples + self.fragments


class _Movie:
    """The boxes of an mp4 or mov file, those within others included, as far as FFmpeg looks into them."""

    def __init__(self, file: _Bytes) -> None:
        self._file = file
        self._most = min(_MAX_ENTRIES, max(file.size, 1 << 12))
        self._tracks = [_Track()]  # the first for what stands in none
        self._headers = self._boxes = self._fragments = self._notes = 0

    def check(self) -> bool:
        """Whether it is one at all; raises an ExcessError where it declares too much."""
        if not any(kind in _KNOWN for kind, *_ in islice(self._walk(self._file, 0, self._file.size), 8)):
            return False
        for kind, start, end in self._walk(self._file, 0, self._file.size):
            inner = self._file.read(start + 4, 4)
            if kind not in _SAMPLES:
                self._spend(end - start)
                self._visit(self._file, kind, start, end, 0)
            elif inner in (b"mvhd", b"cmov"):  # FFmpeg looks for a header there, where there is no other
                self._spend(end - start)
                self._visit(self._file, b"moov", start, end, 0)
        self._sum()
        return True

    def _sum(self) -> None:
        entries = sum(track.entries for track in self._tracks)
        repeated = sum(track.entries * track.edits for track in self._tracks)
        if entries > self._most or repeated > 4 * self._most:
            raise ExcessError(
                f"its tracks declare {max(entries, repeated):,} samples, more than a file of {self._file.size:,} bytes "
                f"may: the limit is {self._most:,}"
            )
        if self._fragments * len(self._tracks) > max(self._most, 1 << 16):
            raise ExcessError(f"it has {self._fragments:,} fragments of {len(self._tracks) - 1} tracks, too many")

    def _spend(self, count: int) -> None:
        self._headers += count
        if self._headers > _MAX_HEADERS:
            raise ExcessError(f"its headers have more than {_MAX_HEADERS:,} bytes, the limit")

    def _note(self, count: int) -> None:
        self._notes += count
        if self._notes > _MAX_NOTES:
            raise ExcessError(f"its headers have more than {_MAX_NOTES:,} parts, names or titles, the limit")

    def _walk(self, file: _Bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Type, start and end of the content of each box."""
        while start + 8 <= end:
            self._boxes += 1
            head = file.read(start, 16)
            size, kind, content = int.from_bytes(head[:4], "big"), head[4:8], start + 8
            if size == 1:
                size, content = int.from_bytes(head[8:], "big"), start + 16
            elif size == 0:
                size = end - start
            if size < content - start:
                return  # FFmpeg ends here too
            yield kind, content, min(start + size, end)
            start += size

    def _visit(self, file: _Bytes, kind: bytes, start: int, end: int, depth: int) -> None:
        if depth > 16 or self._boxes > _MAX_ENTRIES // 4:
            raise ExcessError("its boxes are nested too deep, or too many")
        if kind not in _OF_FRAGMENTS:
            self._note(1)
        if kind == b"trak":
            self._tracks.append(_Track())
            if len(self._tracks) > _MAX_STREAMS + 1:
                raise ExcessError(f"it has more than {_MAX_STREAMS} tracks, the limit")
        elif kind in (b"moof", b"sidx"):
            place = start + (30 if file.number(start, 1) else 22)
            self._fragments += max(1, file.number(place, 2)) if kind == b"sidx" else 1
        if kind == b"cmov":
            self._unpacked(file, start, end, depth)
        elif kind in _CONTAINERS:
            if kind == b"meta" and file.read(start + 4, 4) != b"hdlr":  # of QuickTime; others have a version before
                start += 4
            for inner in self._walk(file, start, end):
                self._visit(file, *inner, depth + 1)
        elif kind == b"keys":
            self._note(file.number(start + 4))
        else:
            self._declared(file, self._tracks[-1], kind, start, end)
        if kind == b"stsd":
            self._descriptions(file, start + 8, end, depth)

    def _declared(self, file: _Bytes, track: _Track, kind: bytes, start: int, end: int) -> None:
        if kind in (b"stsz", b"stz2"):
            track.samples = max(track.samples, file.number(start + 8))
        elif kind == b"trun":
            track.fragments += file.number(start + 4)
        elif kind == b"hdlr" and file.read(start + 8, 4) in (b"soun", b"vide"):
            track.sound = file.read(start + 8, 4) == b"soun"
        elif kind in (b"iloc", b"iinf"):
            if file.number(start + (4 if kind == b"iinf" else 6), 4 if file.number(start, 1) else 2) > 1 << 16:
                raise ExcessError("it declares more pictures than a video has")
        elif kind in _COUNTS:
            place, length = _COUNTS[kind]
            count = file.number(start + place)
            if count > self._most:
                raise ExcessError(f"its box {kind.decode()} declares {count:,} entries in {end - start:,} bytes")
            if kind == b"elst":
                track.edits = max(track.edits, min(count, (end - start) // length))
            elif kind in (b"stco", b"co64"):
                track.chunks = max(track.chunks, count)
            elif kind == b"stts":
                track.durations, track.duration = count, file.number(start + 12)
            elif kind == b"stsc" and track.sound:
                found = (file.number(start + 12 + 12 * number) for number in range(min(count, (end - start) // 12)))
                track.per_chunk = max(track.per_chunk, max(found, default=0))

    def _descriptions(self, file: _Bytes, start: int, end: int, depth: int) -> None:
        """What describes the samples; FFmpeg reads boxes within it as those of the track."""
        kinds = set()
        for kind, content, stop in self._walk(file, start, end):
            kinds.add(kind)
            for skipped in (
                8,
                28,
                44,
                64,
                70,
                78,
            ):  # of the fields of sound, pictures and others, and of their versions
                for inner, *place in self._walk(file, content + skipped, stop):
                    if inner in _DESCRIBED:
                        self._visit(file, inner, place[0], place[1], depth + 1)
        self._tracks[-1].pcm = bool(kinds) and kinds <= _PCM

    def _unpacked(self, file: _Bytes, start: int, end: int, depth: int) -> None:
        """A compressed header."""
        for kind, content, stop in self._walk(file, start, end):
            if kind == b"cmvd":
                try:
                    packed = file.read(content + 4, stop - content - 4)
                    unpacked = zlib.decompressobj().decompress(packed, _MAX_HEADERS // 4)
                except zlib.error:
                    return
                self._spend(len(unpacked))
                inner = _Bytes(io.BytesIO(unpacked), len(unpacked))
                for box in self._walk(inner, 0, len(unpacked)):
                    self._visit(inner, *box, depth + 1)


class _Matroska:
    """The elements of a Matroska or WebM file before its first cluster, and those that its index of elements names."""

    _SEGMENT, _CLUSTER, _VOID, _CRC = 0x18538067, 0x1F43B675, 0xEC, 0xBF
    _TRACKS, _ATTACHMENTS, _SEEKHEAD, _CUES = 0x1654AE6B, 0x1941A469, 0x114D9B74, 0x1C53BB6B
    _TAGS, _CHAPTERS, _CUE_TIME = 0x1254C367, 0x1043A770, 0xB3
    _LEVEL = frozenset((_TRACKS, _ATTACHMENTS, _SEEKHEAD, _CUES, _TAGS, _CHAPTERS, 0x1549A966))
    _NOTES = frozenset((0x7373, 0x67C8, 0x45B9, 0xB6, 0x80))  # of tags and chapters, what holds others

    def __init__(self, file: _Bytes) -> None:
        self._file = file
        self._headers = self._noted = self._notes = 0
        self._seen: set[int] = set()

    def check(self) -> None:
        """Raise an ExcessError where they declare too much."""
        for kind, start, end in self._walk(0, self._file.size):
            if kind == self._SEGMENT:
                for inner, content, stop in self._walk(start, end):
                    if inner == self._CLUSTER:
                        break
                    self._element(inner, content, stop, start)
            elif kind in self._LEVEL:
                self._element(kind, start, end, 0)

    def _element(self, kind: int, start: int, end: int, segment: int) -> None:
        if start in self._seen or kind in (self._VOID, self._CRC):
            return
        self._seen.add(start)
        most = _MAX_ATTACHED if kind == self._ATTACHMENTS else _MAX_HEADERS // 4
        self._headers += end - start
        if end - start > most or self._headers > _MAX_ATTACHED + _MAX_HEADERS:
            raise ExcessError(f"its headers have more than {most:,} bytes, the limit")
        if kind in (self._TRACKS, self._ATTACHMENTS):
            least = _MAX_STREAMS if kind == self._TRACKS else _MAX_ELEMENTS
            for number, _ in enumerate(self._walk(start, end)):
                if number > least:
                    raise ExcessError(f"it has more than {least:,} tracks or attachments, the limit")
        elif kind in (self._TAGS, self._CHAPTERS):
            self._noted += end - start
            if self._noted > _FEW:
                self._count(start, end, 0)
        elif kind == self._CUES and end - start > 10 * _FEW:
            self._check_cues(start, end)
        elif kind == self._SEEKHEAD:
            for number, (_, place, stop) in enumerate(self._walk(start, end)):
                if number > _MAX_ELEMENTS:
                    raise ExcessError("its index of elements is too long")
                for field, content, after in self._walk(place, stop):
                    if field == 0x53AC:
                        at = segment + self._file.number(content, min(8, after - content))
                        found = next(self._walk(at, self._file.size), None) if at < self._file.size else None
                        if found and found[0] in self._LEVEL:
                            self._element(*found, segment)

    def _check_cues(self, start: int, end: int) -> None:
        """FFmpeg keeps an index in the order of time, and moves all that comes later at each insertion."""
        times: list[int] = []
        moved = parts = 0
        for _, place, stop in self._walk(start, end):
            time = 0
            for kind, content, after in self._walk(place, stop):
                parts += 1
                if kind == self._CUE_TIME:
                    time = self._file.number(content, min(8, after - content))
            moved += len(times) - bisect_right(times, time)
            insort_right(times, time)
            if moved > _MAX_MOVED or max(len(times), parts // 4) > _MAX_CUES:
                raise ExcessError(f"its index has more than {_MAX_CUES:,} entries, the limit, or is not in order")

    def _count(self, start: int, end: int, depth: int) -> None:
        for kind, content, stop in self._walk(start, end):
            self._notes += 1
            if self._notes > 4 * _MAX_NOTES or depth > 16:
                raise ExcessError(f"it has more than {_MAX_NOTES:,} tags or chapters, the limit, or in each other")
            if kind in self._NOTES:
                self._count(content, stop, depth + 1)

    def _walk(self, start: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Identity, start and end of the content of each element."""
        while start < end:
            head = self._file.read(start, 12)
            if not head or not head[0]:
                return
            width = 9 - head[0].bit_length()
            kind, sized = int.from_bytes(head[:width], "big"), head[width : width + 1]
            if width > 4 or not sized or not sized[0]:
                return
            length = 9 - sized[0].bit_length()
            field = int.from_bytes(head[width : width + length], "big") & ((1 << (7 * length)) - 1)
            content = start + width + length
            size = end - content if field == (1 << (7 * length)) - 1 else field  # all ones: to the end
            yield kind, content, min(content + size, end)
            start = content + size
