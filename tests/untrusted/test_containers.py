"""Videos that declare more than their bytes hold are refused before FFmpeg makes room for it."""

from __future__ import annotations

import io
import itertools
import resource
import struct
import sys
import time
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lit_distill.data import VideoError, probe, read_frames, write_video
from lit_distill.data.decoding import container
from lit_distill.untrusted.containers import ExcessError, check_container

MANY = 50_000_000
MATRIX = struct.pack(">9I", 0x10000, 0, 0, 0, 0x10000, 0, 0, 0, 0x40000000)


def box(kind: bytes, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full(kind: bytes, *parts: bytes, version: int = 0, flags: int = 0) -> bytes:
    return box(kind, struct.pack(">I", (version << 24) | flags), *parts)


def numbers(*values: int) -> bytes:
    return struct.pack(f">{len(values)}I", *values)


def hdlr(kind: bytes) -> bytes:
    return full(b"hdlr", bytes(4), kind, bytes(12), b"x\0")


def pictures(kind: bytes = b"mp4v", *inner: bytes) -> bytes:
    fields = bytes(6) + b"\0\1" + bytes(16) + struct.pack(">HH", 64, 48) + bytes(50)
    return full(b"stsd", numbers(1), box(kind, fields, *inner))


def sound(kind: bytes = b"sowt") -> bytes:
    fields = bytes(6) + b"\0\1" + bytes(8) + struct.pack(">HHHHI", 2, 16, 0, 0, 44100 << 16)
    return full(b"stsd", numbers(1), box(kind, fields))


def table(count: int, *, sizes: bytes | None = None, per_chunk: int = 0, chunks: int = 1, duration: int = 40,
          described: bytes = b"") -> bytes:  # fmt: skip
    return box(
        b"stbl",
        described or pictures(),
        full(b"stts", numbers(1, count, duration)),
        full(b"stsc", numbers(1, 1, per_chunk or count, 1)),
        sizes or full(b"stsz", numbers(1, count)),
        full(b"stco", numbers(chunks, *[40] * chunks)),
    )


def track(stbl: bytes, *, media: bytes = b"vide", edits: bytes = b"") -> bytes:
    tkhd = full(b"tkhd", numbers(0, 0, 1, 0, 1000), bytes(16), MATRIX, numbers(64 << 16, 48 << 16), flags=7)
    mdhd = full(b"mdhd", numbers(0, 0, 1000, 1000, 0))
    dinf = box(b"dinf", full(b"dref", numbers(1), full(b"url ", flags=1)))
    return box(b"trak", tkhd, edits, box(b"mdia", mdhd, hdlr(media), box(b"minf", dinf, stbl)))


FTYP = box(b"ftyp", b"isom", bytes(4), b"isom")
MVHD = full(b"mvhd", numbers(0, 0, 1000, 1000, 0x10000), bytes(12), MATRIX, bytes(24), numbers(9))


def movie(*parts: bytes) -> bytes:
    return FTYP + box(b"moov", MVHD, *parts) + box(b"mdat", bytes(4000))


def fragmented(*traf: bytes) -> bytes:
    mvex = box(b"mvex", full(b"trex", numbers(1, 1, 40, 1, 0)))
    head = box(b"moov", MVHD, track(table(0)), mvex)
    return FTYP + head + box(b"moof", full(b"mfhd", numbers(1)), box(b"traf", *traf)) + box(b"mdat", bytes(400))


def compressed() -> bytes:
    moov = box(b"moov", MVHD, track(table(MANY)))
    packed = box(b"cmvd", numbers(len(moov)), zlib.compress(moov))
    return FTYP + box(b"moov", box(b"cmov", box(b"dcom", b"zlib"), packed)) + box(b"mdat", bytes(400))


def element(identity: str, *parts: bytes) -> bytes:
    content = b"".join(parts)
    return bytes.fromhex(identity) + struct.pack(">Q", len(content) | (1 << 56)) + content


def matroska(*parts: bytes) -> bytes:
    return element("1A45DFA3", element("4282", b"matroska")) + element("18538067", *parts)


def hidden() -> bytes:
    """Tracks within a void element, which the index of elements names."""
    tracks = element("1654AE6B", b"\xae\x80" * 100_000)
    seek = element("114D9B74", element("4DBB", element("53AB", b"\x16\x54\xae\x6b"), element("53AC", bytes(8))))
    place = struct.pack(">Q", len(seek) + 9)
    return matroska(seek[:-8] + place, element("EC", tracks))


def several_edits() -> bytes:
    sizes = full(b"stsz", numbers(0, 3000, *[1] * 3000))
    edits = full(b"elst", numbers(3000), struct.pack(">IiI", 1000, 0, 0x10000) * 3000)
    return movie(track(table(3000, sizes=sizes), edits=box(b"edts", edits)))


def tags(count: int) -> bytes:
    pairs = (element("67C8", element("45A3", b"%x" % number), element("4487", b"y")) for number in range(count))
    return element("1254C367", element("7373", *pairs))


def chapters(count: int) -> bytes:
    atoms = (element("B6", element("73C4", numbers(count - number)), element("91", b"\0")) for number in range(count))
    return element("1043A770", element("45B9", *atoms))


def cues(count: int) -> bytes:
    place = element("B7", element("F7", b"\1"), element("F1", b"\1"))
    return element("1C53BB6B", *(element("BB", place, element("B3", numbers(count - n))) for n in range(count)))


def mentioned(part: bytes) -> bytes:
    """A part behind the pictures, which the index of elements names."""
    void = element("EC", bytes(200))
    seek = element("114D9B74", element("4DBB", element("53AB", part[:4]), element("53AC", bytes(8))))
    return matroska(seek[:-8] + struct.pack(">Q", len(seek) + len(void)), void, part)


def names(kind: bytes, count: int) -> bytes:
    title = full(b"mean", b"a"), full(b"data", bytes(4), b"y", flags=1)
    return box(kind, *(box(b"----", title[0], full(b"name", b"%x" % number), title[1]) for number in range(count)))


HOSTILE: dict[str, Callable[[], bytes]] = {
    "five tracks": lambda: movie(*[track(table(MANY))] * 5),
    "one track": lambda: movie(track(table(MANY))),
    "compact sizes": lambda: movie(track(table(MANY, sizes=full(b"stz2", numbers(4, MANY))))),
    "no ftyp": lambda: movie(track(table(MANY)))[len(FTYP) :],
    "an unknown box first": lambda: box(b"abcd", bytes(4)) + movie(track(table(MANY))),
    "free space first": lambda: box(b"free", bytes(4)) + movie(track(table(MANY)))[len(FTYP) :],
    "a header in free space": lambda: FTYP + box(b"free", MVHD, track(table(MANY))) + box(b"mdat", bytes(400)),
    "a compressed header": compressed,
    "a box of 2^62 bytes": lambda: FTYP + struct.pack(">I4sQ", 1, b"moov", 1 << 62) + MVHD + track(table(MANY)),
    "sizes in a description": lambda: movie(
        track(table(5, sizes=box(b"free"), described=pictures(b"mp4v", full(b"stsz", numbers(1, MANY)))))
    ),
    "chunks of sound": lambda: movie(
        track(table(MANY, per_chunk=2 * 10**9, chunks=20, duration=1, described=sound()), media=b"soun")
    ),
    "pictures that say they are sound": lambda: movie(
        track(table(MANY, duration=1, described=pictures(b"avc1")), media=b"soun")
    ),
    "edits that repeat": several_edits,
    "a fragment": lambda: fragmented(full(b"tfhd", numbers(1), flags=0x20000), full(b"trun", numbers(MANY))),
    "pictures of HEIF": lambda: movie(
        full(b"meta", hdlr(b"pict"), full(b"iloc", b"\x44\0", numbers(200_000_000), version=2))
    ),
    "tracks": lambda: movie(*[box(b"trak")] * 10_000),
    "tracks of Matroska": lambda: matroska(element("1654AE6B", b"\xae\x80" * 100_000)),
    "hidden tracks of Matroska": hidden,
    "tags of Matroska": lambda: matroska(tags(20_000)),
    "tags of Matroska in many parts": lambda: matroska(tags(5_000) * 4),
    "chapters of Matroska": lambda: matroska(chapters(20_000)),
    "chapters of Matroska behind": lambda: mentioned(chapters(20_000)),
    "an index of Matroska that runs backwards": lambda: matroska(cues(12_000)),
    "names in a header": lambda: movie(box(b"udta", full(b"meta", hdlr(b"mdir"), names(b"ilst", 11_000)))),
    "names of a track": lambda: movie(*[track(table(3)) + names(b"udta", 1_000)] * 12),
    "names of samples": lambda: movie(track(table(5, described=pictures(b"mp4v", names(b"udta", 11_000))))),
    "encryption of a movie": lambda: movie(full(b"pssh", bytes(16), numbers(0)) * 11_000),
    "encryption of a fragment": lambda: fragmented(full(b"tfhd", numbers(1)), full(b"pssh", bytes(20)) * 11_000),
    "keys of names": lambda: movie(box(b"meta", hdlr(b"mdta"), full(b"keys", numbers(20_000)))),
    "attachments of Matroska": lambda: matroska(element("1941A469", b"\x61\xa7\x80" * 100_000)),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_video_that_declares_too_much_is_refused_before_anything_is_made_of_it(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*arguments: object, **options: object) -> None:
        raise AssertionError("FFmpeg was asked")

    monkeypatch.setattr(av, "open", opened)
    content = HOSTILE[kind]()
    file = tmp_path / "a.avi"
    file.write_bytes(content)
    begin = time.process_time()
    for source in (file, content):
        with pytest.raises(VideoError, match=r"declare|limit|more than") as caught:
            read_frames(source, [0])
        assert "\n" not in str(caught.value)
    assert time.process_time() - begin < 1


def test_what_is_no_movie_by_its_boxes_is_not_read_as_one(tmp_path: Path) -> None:
    file = tmp_path / "a.mp4"
    file.write_bytes(b"\0\0\0\0abcd" + movie(track(table(MANY))))
    begin = time.process_time()
    with pytest.raises(VideoError):
        read_frames(file, [0])
    assert time.process_time() - begin < 1


def test_headers_that_nobody_counts_have_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.avi"
    write_video(file, np.zeros((3, 32, 32, 3), np.uint8))
    assert probe(file).frames == 3
    monkeypatch.setattr(container, "_OPENING", -1.0)
    for source in (file, file.read_bytes()):
        with pytest.raises(VideoError, match=r"took more than -1 s, the limit"):
            probe(source)


UNITS = b"\0\0\1\x68\xce\x38\x80"  # a parameter set of H.264 behind a start code


def test_units_of_a_file_that_is_being_opened_have_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.avi"
    for start in (b"\0\0\0\1\x67\x42\xc0\x0a\xf8\x41\xa2", b"\0\0\0\1\x40\1\x0c\1\xff\xff"):  # H.264, HEVC
        file.write_bytes(start + UNITS * 50_000)
        for source in (file, file.read_bytes()):
            with pytest.raises(VideoError, match=r"its beginning has more than 30,000 units, the limit"):
                probe(source)


def test_units_of_a_packet_have_a_limit(tmp_path: Path) -> None:
    file = tmp_path / "a.ts"
    with av.open(file, "w", format="mpegts") as output:
        stream = output.add_stream("libx264", rate=25, width=32, height=32, pix_fmt="yuv420p")
        frame = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
        packets = [packet for _ in range(30) for packet in stream.encode(frame)] + stream.encode()
        for number, packet in enumerate(packets):
            content = UNITS * 11_000 * (number == 25) + bytes(packet)
            changed = av.Packet(content)
            changed.stream, changed.pts, changed.dts = stream, packet.pts, packet.dts
            changed.time_base, changed.is_keyframe = packet.time_base, packet.is_keyframe
            output.mux(changed)
    for read in (probe, lambda it: read_frames(it, [28])):
        with pytest.raises(VideoError, match=r"a packet has more than 10,000 units, the limit"):
            read(file)


def test_a_file_whose_time_is_over_says_so_once(tmp_path: Path) -> None:
    timed = container._Timed(io.BytesIO(bytes(9)), "a.avi", -10.0, 0.0)
    with pytest.raises(VideoError, match=r"more than 0 s"):
        timed.read(3)
    assert timed.read(3) == b""


def test_what_an_honest_matroska_says_of_itself_passes() -> None:
    ascending = element("1C53BB6B", *(element("BB", element("B3", numbers(n))) for n in range(9_000)))
    content = matroska(tags(900), chapters(300), ascending)
    assert not check_container(io.BytesIO(content), len(content), content[:8])


@pytest.mark.parametrize(
    ("ending", "options"),
    [
        *itertools.product(["mp4", "mov"], [{}, {"movflags": "frag_keyframe+empty_moov"}, {"movflags": "faststart"}]),
        ("mkv", {}),
        ("avi", {}),
    ],
)
def test_honest_videos_with_sound_pass(ending: str, options: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("mpeg4", rate=25, width=64, height=48, pix_fmt="yuv420p")
        heard = container.add_stream("aac" if ending == "mp4" else "pcm_s16le", rate=48000, layout="mono")
        for number in range(100):
            picture = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number, np.uint8), format="rgb24")
            container.mux(stream.encode(picture))
            tone = av.AudioFrame.from_ndarray(np.zeros((1, 1920), np.int16), format="s16", layout="mono")
            tone.sample_rate = 48000
            container.mux(heard.encode(tone))
        container.mux(stream.encode())
        container.mux(heard.encode())
    with path.open("rb") as file:
        assert check_container(file, path.stat().st_size, file.read(8)) == (ending in ("mp4", "mov"))
    assert probe(path).frames == 100
    assert len(read_frames(path, [99])) == 1


def test_attachments_are_left_alone(tmp_path: Path) -> None:
    """Fonts, playlists and scripts that Matroska carries: neither opened by their names nor written anywhere."""
    pixels = np.arange(6 * 48 * 64 * 3, dtype=np.uint8).reshape(6, 48, 64, 3)
    file = tmp_path / "a.mkv"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for name, kind, content in (
            ("../../outside.ttf", "font/ttf", b"\0\1\0\0" + bytes(1 << 20)),
            ("/outside.m3u8", "application/x-mpegURL", b"#EXTM3U\nhttp://127.0.0.1:9/x\n"),
            ("concat:a|b", "text/plain", b"ffconcat version 1.0\nfile /etc/passwd\n"),
            ("cover.png\x1b[2J", "image/png", b"\x89PNG\r\n\x1a\n"),
        ):
            container.add_attachment(name, kind, content)
        for picture in pixels:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    opened: list[object] = []
    watching = True

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and event in ("open", "socket.connect", "socket.getaddrinfo", "subprocess.Popen"):
            opened.extend(name for name in arguments[:1] if not isinstance(name, int))  # a descriptor

    sys.addaudithook(watch)
    try:
        assert probe(file).frames == 6
        assert read_frames(file, [0, 5]).shape == (2, 48, 64, 3)
    finally:
        watching = False
    assert set(opened) <= {str(file)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.mkv"]


def test_a_small_honest_video_passes(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", np.zeros((1, 32, 32, 3), np.uint8))
    content = (tmp_path / "a.mp4").read_bytes()
    assert len(read_frames(content, [0])) == 1
    place = content.index(b"stsz") + 12
    changed = content[:place] + numbers(MANY) + content[place + 4 :]
    with pytest.raises(ExcessError):
        check_container(io.BytesIO(changed), len(changed), changed[:8])


@pytest.mark.parametrize("sides", [(16, 1600), (1600, 16)])
def test_a_video_that_becomes_long_is_refused(sides: tuple[int, int], tmp_path: Path) -> None:
    """Its shorter side is scaled to a size, and the other with it where the data keep the ratio."""
    write_video(tmp_path / "a.mp4", np.zeros((2, *sides, 3), np.uint8))
    with pytest.raises(VideoError, match="one side is more than 50 times the other"):
        read_frames(tmp_path / "a.mp4", [0])


# ---------------------------------------------------------------- containers without a look at what they declare

OTHERS = {
    "avi": "mpeg4", "asf": "mpeg4", "flv": "flv1", "nut": "mpeg4", "mpegts": "mpeg2video", "mpeg": "mpeg2video",
    "matroska": "mpeg4", "gif": "gif",
}  # fmt: skip


def muxed(container: str, codec: str) -> bytes:
    content, rng = io.BytesIO(), np.random.default_rng(0)
    with av.open(content, "w", format=container) as output:
        stream: Any = output.add_stream(codec, rate=25)
        stream.width = stream.height = 64
        stream.pix_fmt = "rgb8" if codec == "gif" else "yuv420p"
        for _ in range(4):
            frame = av.VideoFrame.from_ndarray(rng.integers(0, 255, (64, 64, 3), np.uint8), format="rgb24")
            output.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        output.mux(stream.encode())
    return content.getvalue()


@pytest.mark.parametrize("container", OTHERS)
def test_numbers_that_are_too_large_cost_nothing_in_other_containers(container: str) -> None:
    """Any four bytes of head and tail say 50,000,000: FFmpeg makes no room for them, and errors are VideoErrors."""
    honest = muxed(container, OTHERS[container])
    assert len(read_frames(io.BytesIO(honest), [0, 3])) == 2
    places = [*range(0, min(len(honest), 1500), 5), *range(len(honest) - 200, len(honest) - 4, 5)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for place, order in itertools.product(places, "<>"):
        patched = bytearray(honest)
        patched[place : place + 4] = struct.pack(f"{order}I", MANY)
        begin = time.process_time()
        with suppress(VideoError), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of several streams
            read_frames(io.BytesIO(patched), [0])
        assert time.process_time() - begin < 3, "0.16 s at most were seen"
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 300, "60 MB at most were seen"


def test_a_second_stream_without_a_decoder_is_named() -> None:
    """Four bytes of this file turn its stream into two, one of them of a codec that there is not."""
    honest = muxed("flv", "flv1")
    found = []
    for place in range(len(honest[:400])):
        patched = bytearray(honest)
        patched[place : place + 4] = struct.pack("<I", MANY)
        with suppress(VideoError), warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            read_frames(io.BytesIO(patched), [0])
        found += [str(warning.message) for warning in told if "no decoder" in str(warning.message)]
    assert found
