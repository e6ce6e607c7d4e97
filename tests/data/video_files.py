"""Small video files of every kind that the reader has to get right, made by the encoders at hand."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import av
import av.stream
import numpy as np
from numpy.typing import NDArray

Build = Callable[[Path], None]


def scene(frames: int, *, height: int = 48, width: int = 64, seed: int = 0) -> NDArray[np.uint8]:
    """Frames that all differ and are told apart after any codec: textures that move, a grey level that counts."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 160, (height, 4 * width, 3), dtype=np.uint8)
    texture = texture[::4, ::4].repeat(4, 0).repeat(4, 1)[:height]
    video = np.empty((frames, height, width, 3), np.uint8)
    for number in range(frames):
        shift = (2 * number + (number // 23) * 37) % (3 * width)
        video[number] = texture[:, shift : shift + width]
        video[number, : height // 3] = (number * 37 + seed * 11) % 251
        video[number, -height // 4 :, : (number * 3) % width] = 255
    return video


@dataclass(frozen=True)
class Spec:
    """What to encode, and how."""

    codec: str
    options: Mapping[str, str] = field(default_factory=dict)
    frames: int = 50
    height: int = 48
    width: int = 64
    pix_fmt: str = "yuv420p"
    fps: int = 25
    container_options: Mapping[str, str] = field(default_factory=dict)
    times: Callable[[int], int] | None = None  # of frame n, in ticks of 1/1000 s
    rotation: int = 0
    audio_first: bool = False
    cover: bool = False
    interlaced: bool = False
    seed: int = 0


_QUIET = {
    "libx265": ("x265-params", "log-level=none:pools=none:frame-threads=1"),
    "libx264": ("threads", "1"),
    "libsvtav1": ("svtav1-params", "lp=1"),
}


def encode(path: Path, spec: Spec) -> None:
    """Write a file; its ending names the container."""
    options = dict(spec.options)
    name, value = _QUIET.get(spec.codec, ("threads", "1"))
    options[name] = f"{options[name]}:{value}" if name in options else value
    with av.open(str(path), "w", options=dict(spec.container_options)) as container:
        sound = container.add_stream("aac", rate=16000, layout="mono") if spec.audio_first else None
        cover: Any = container.add_stream("mjpeg", rate=25) if spec.cover else None
        if cover is not None:
            cover.width, cover.height, cover.pix_fmt = 32, 32, "yuvj420p"
            cover.disposition = av.stream.Disposition.attached_pic
        stream: Any = container.add_stream(spec.codec, rate=spec.fps, options=options)
        stream.height, stream.width, stream.pix_fmt = spec.height, spec.width, spec.pix_fmt
        if spec.interlaced:
            stream.codec_context.flags |= 0x20040000  # interlaced DCT and motion estimation
        if spec.times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        if spec.rotation:
            stream.set_display_rotation(spec.rotation)
        if sound is not None:
            for number in range(spec.frames * 16000 // spec.fps // 1024):
                tone = np.sin(np.arange(1024, dtype=np.float32)[None] / 9 + number) / 4
                samples = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                samples.sample_rate, samples.pts = 16000, number * 1024
                container.mux(sound.encode(samples))
        if cover is not None:
            picture = av.VideoFrame.from_ndarray(np.zeros((32, 32, 3), np.uint8), format="rgb24")
            container.mux(cover.encode(picture.reformat(format="yuvj420p")))
        if not spec.frames:
            container.start_encoding()  # a header all the same
        for number, image in enumerate(scene(spec.frames, height=spec.height, width=spec.width, seed=spec.seed)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=spec.pix_fmt)
            if spec.times is not None:
                frame.pts, frame.time_base = spec.times(number), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        for each in (sound, cover, stream):
            if each is not None:
                container.mux(each.encode())


def remux(source: Path, path: Path, *, shift: int = 0, keep: slice = slice(None), **options: str) -> None:
    """Copy the packets of a video into another container, their times shifted by a number of frames."""
    with av.open(str(source)) as old, av.open(str(path), "w", options=options) as new:
        stream = old.streams.video[0]
        assert stream.time_base is not None
        assert stream.average_rate is not None
        ticks = round(shift / stream.average_rate / stream.time_base)
        copy = new.add_stream_from_template(stream)
        for packet in [packet for packet in old.demux(stream) if packet.size][keep]:
            packet.pts = None if packet.pts is None else packet.pts + ticks
            packet.dts = None if packet.dts is None else packet.dts + ticks
            packet.stream = copy
            new.mux(packet)


def decode_everything(path: Path) -> tuple[list[NDArray[np.uint8]], bool]:
    """All frames as shown, decoded plainly, and whether the decoder calls one of them corrupt.

    Packets before the first key frame may fail; what else fails raises av.FFmpegError.
    """
    frames, corrupt, begun = [], False, False
    with av.open(str(path)) as container:
        cover = av.stream.Disposition.attached_pic
        stream = next(stream for stream in container.streams.video if not stream.disposition & cover)
        for packet in container.demux(stream):
            try:
                decoded = packet.decode()
            except av.InvalidDataError:
                if begun or packet.is_keyframe:
                    raise
                continue
            begun = begun or packet.is_keyframe
            for frame in decoded:
                corrupt = corrupt or frame.is_corrupt
                image = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                frames.append(np.rot90(image, round(frame.rotation / 90) % 4))
    return frames, corrupt


# Boxes of mp4 files


def boxes(data: bytes, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """The kind, the start of the payload and the end of each box."""
    while start + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, start)
        if size < 8 or start + size > end:
            return
        yield kind, start + 8, start + size
        start += size


def find_box(data: bytes, *kinds: bytes) -> tuple[int, int]:
    """Payload of the box at a path of kinds, in the first track that has it."""
    start, end = 0, len(data)
    for kind in kinds:
        start, end = next((s, e) for k, s, e in boxes(data, start, end) if k == kind)
    return start, end


STBL = (b"moov", b"trak", b"mdia", b"minf", b"stbl")


def with_edits(path: Path, edits: Sequence[tuple[int, int, int]], *, speed: int = 1) -> None:
    """Replace the edit list of an mp4 file whose moov box stands at its end.

    Args:
        path: the file.
        edits: (duration in ms, first frame or -1 for nothing, whether it moves) of each.
        speed: frames a second.
    """
    data = path.read_bytes()
    moov = find_box(data, b"moov")
    assert moov[1] == len(data)
    scale = struct.unpack_from(">I", data, find_box(data, b"moov", b"trak", b"mdia", b"mdhd")[0] + 12)[0]
    movie = struct.unpack_from(">I", data, find_box(data, b"moov", b"mvhd")[0] + 12)[0]
    start, end = find_box(data, b"moov", b"trak", b"edts", b"elst")
    first = struct.unpack_from(">i", data, start + 12)[0]  # the time of frame 0
    rows = b"".join(
        struct.pack(">iihh", ms * movie // 1000, first + frame * scale // speed if frame >= 0 else -1, moves, 0)
        for ms, frame, moves in edits
    )
    payload = struct.pack(">II", 0, len(edits)) + rows
    grown = len(payload) - (end - start)
    changed = bytearray(data[:start] + payload + data[end:])
    for kinds in ((b"moov",), (b"moov", b"trak"), (b"moov", b"trak", b"edts"), (b"moov", b"trak", b"edts", b"elst")):
        at = find_box(data, *kinds)[0] - 8
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + grown)
    path.write_bytes(changed)


def _edited(path: Path, spec: Spec, edits: Sequence[tuple[int, int, int]]) -> None:
    encode(path, spec)
    with_edits(path, edits, speed=spec.fps)


def _patched(path: Path, spec: Spec, find: bytes, offset: int, value: int) -> None:
    """Write a 32-bit little-endian number behind a tag of an AVI file."""
    encode(path, spec)
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, data.index(find) + offset, value)
    path.write_bytes(data)


def _sample_count(path: Path, spec: Spec, change: int) -> None:
    encode(path, spec)
    data = bytearray(path.read_bytes())
    at = find_box(bytes(data), *STBL, b"stsz")[0] + 8
    struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + change)
    path.write_bytes(data)


def _remuxed(path: Path, spec: Spec, ending: str, options: Mapping[str, str], shift: int, keep: slice) -> None:
    source = path.with_name(f"{path.stem}.source{ending}")
    encode(source, spec)
    remux(source, path, shift=shift, keep=keep, **options)
    source.unlink()


def _cut(path: Path, spec: Spec, first: float, last: float, block: int = 1) -> None:
    encode(path, spec)
    data = path.read_bytes()
    begin, end = (int(len(data) * share) // block * block for share in (first, last))
    path.write_bytes(data[begin:end])


def _joined(path: Path, specs: Sequence[Spec]) -> None:
    parts = []
    for spec in specs:
        encode(path, spec)
        parts.append(path.read_bytes())
    path.write_bytes(b"".join(parts))


def _packed_b_frames(path: Path) -> None:
    """MPEG-4 in AVI as DivX wrote it: a B frame shares the packet of the frame before it, a place-holder follows."""
    plain = path.with_name("plain.avi")
    encode(plain, Spec("mpeg4", {"bf": "1", "g": "12", "b_strategy": "0"}, frames=40))
    with av.open(str(plain)) as old:
        stream: Any = old.streams.video[0]
        packets = [bytes(packet) for packet in old.demux(stream) if packet.size]
        mark = b"\0\0\1\xb2DivX503b1393p"
        with av.open(str(path), "w") as new:
            copy: Any = new.add_stream("mpeg4", rate=25)
            copy.height, copy.width, copy.pix_fmt = stream.height, stream.width, "yuv420p"
            chunks: list[bytes] = []
            for number, data in enumerate(packets):
                at = data.index(b"\0\0\1\xb6")
                if data[at + 4] >> 6 == 2 and chunks:
                    chunks[-1] += data
                    chunks.append(b"\0\0\1\xb6" + bytes([0x50 | number % 2, 0x80, 0x7F]))
                else:
                    chunks.append(data[:at] + mark + data[at:] if data[at + 4] >> 6 == 0 else data)
            for number, data in enumerate(chunks):
                packet = av.Packet(data)
                packet.pts = packet.dts = number
                packet.time_base = Fraction(1, 25)
                packet.stream = copy
                packet.is_keyframe = b"\0\0\1\xb0" in data[:8]
                new.mux(packet)
    plain.unlink()


def _irregular(number: int) -> int:
    return 40 * number + (number * number * 7) % 31


def _bursts(number: int) -> int:
    return number * 3 + (number // 10) * 700


def _same_ticks(number: int) -> int:
    return number // 2


def all_files() -> dict[str, Build]:
    """Every file by its name."""
    files: dict[str, Build] = {}

    def add(name: str, spec: Spec) -> None:
        assert name not in files, name
        files[name] = partial(encode, spec=spec)

    x264: dict[str, dict[str, str]] = {
        "p": {"bf": "0"},
        "b": {"bf": "2", "b_strategy": "0"},
        "pyramid": {"bf": "5", "x264-params": "b-pyramid=normal:b-adapt=0:ref=4"},
    }
    for seed, ending in enumerate(("mp4", "mkv", "ts", "avi", "flv", "mov")):
        for gop in (1, 12, 60, 250):
            for kind, options in x264.items():
                frames = 130 if gop == 60 else 40
                add(f"h264_{kind}_g{gop}.{ending}", Spec("libx264", {**options, "g": str(gop)}, frames, seed=seed))
    more = {
        "open": "open-gop=1:keyint=10:bframes=3",
        "open_pyramid": "open-gop=1:keyint=12:bframes=5:b-adapt=0:b-pyramid=strict",
        "refresh": "intra-refresh=1:keyint=12:bframes=0",
        "refresh_b": "intra-refresh=1:keyint=15:bframes=2",
        "cavlc": "cabac=0:keyint=14",
        "slices": "slices=4:keyint=16",
        "temporal": "direct=temporal:bframes=3:b-adapt=0:keyint=18",
        "weights": "weightp=2:weightb=1:bframes=2:keyint=20",
        "refs": "ref=8:bframes=4:b-adapt=0:keyint=24",
        "lossless": "qp=0:keyint=10",
        "mbaff": "interlaced=1:keyint=12",
        "bff": "bff=1:keyint=12:bframes=2",
        "fake": "fake-interlaced=1:keyint=12",
        "annexb_aud": "aud=1:keyint=12",
        "nal_hrd": "nal-hrd=vbr:vbv-maxrate=300:vbv-bufsize=300:keyint=12",
        "pulldown": "pic-struct=1:keyint=12",
        "infinite": "keyint=infinite:bframes=3",
        "cuts": "keyint=250:min-keyint=1:scenecut=100:bframes=3",
    }
    for kind, params in more.items():
        for ending in ("mp4", "mkv"):
            add(f"h264_{kind}.{ending}", Spec("libx264", {"x264-params": params}, 60, seed=3))
    for pix_fmt in ("yuv422p", "yuv444p", "yuvj420p", "yuv420p10le", "gray", "nv12"):
        add(f"h264_{pix_fmt}.mp4", Spec("libx264", {"g": "12"}, 40, pix_fmt=pix_fmt))
    add("h264_odd.mp4", Spec("libx264", {"g": "12"}, 30, height=49, width=67, pix_fmt="yuv444p"))
    add("h264_rgb.mkv", Spec("libx264rgb", {"g": "12"}, 30, pix_fmt="rgb24"))

    x265 = {
        "closed": "open-gop=0:keyint=10",
        "open": "open-gop=1:keyint=10",
        "open_b": "open-gop=1:keyint=12:bframes=5:b-adapt=0",
        "p": "bframes=0:keyint=12",
        "long": "keyint=250:bframes=4",
        "intra": "keyint=1",
        "layers": "temporal-layers=3:keyint=16:bframes=3:b-adapt=0",
        "radl": "open-gop=0:radl=2:keyint=14:bframes=4:b-adapt=0",
        "headers": "repeat-headers=1:keyint=12:aud=1",
        "rskip": "keyint=20:ref=5:weightb=1:slices=2",
    }
    for kind, params in x265.items():
        for ending in ("mp4", "mkv", "ts"):
            add(f"hevc_{kind}.{ending}", Spec("libx265", {"x265-params": params}, 45, height=64, seed=5))
    add("hevc_10bit.mp4", Spec("libx265", {"g": "12"}, 30, height=64, pix_fmt="yuv420p10le"))
    add("hevc_444.mkv", Spec("libx265", {"g": "12"}, 30, height=64, pix_fmt="yuv444p"))
    add("hevc_fields.mp4", Spec("libx265", {"x265-params": "interlace=tff:keyint=12"}, 30, height=64))

    for ending in ("mp4", "mkv", "avi"):
        for gop in (1, 12, 60):
            for b in (0, 2):
                frames = 130 if gop == 60 else 40
                options = {"g": str(gop), "bf": str(b), "b_strategy": "0"}
                add(f"mpeg4_b{b}_g{gop}.{ending}", Spec("mpeg4", options, frames, seed=7))
        add(f"mpeg4_qpel.{ending}", Spec("mpeg4", {"flags": "+qpel+mv4", "g": "12", "bf": "2"}, 40))
        add(
            f"mpeg4_closed.{ending}",
            Spec("mpeg4", {"flags": "+cgop", "g": "12", "bf": "2", "sc_threshold": "1000000000"}),
        )
        add(f"mpeg4_interlaced.{ending}", Spec("mpeg4", {"g": "12", "bf": "2"}, 40, interlaced=True))
        add(f"mpeg4_odd.{ending}", Spec("mpeg4", {"g": "12"}, 40, height=51, width=77))
    files["mpeg4_packed.avi"] = _packed_b_frames

    for ending in ("webm", "mkv", "mp4"):
        for gop in (1, 12, 250):
            options = {"g": str(gop), "cpu-used": "8", "deadline": "realtime"}
            add(f"vp9_g{gop}.{ending}", Spec("libvpx-vp9", options, 40))
            lag = {"g": str(gop), "cpu-used": "5", "deadline": "good", "auto-alt-ref": "1", "lag-in-frames": "16"}
            add(f"vp9_hidden_g{gop}.{ending}", Spec("libvpx-vp9", lag, 40))
    add("vp9_resilient.webm", Spec("libvpx-vp9", {"g": "12", "error-resilient": "1", "cpu-used": "8"}, 40))
    add("vp9_odd.webm", Spec("libvpx-vp9", {"g": "12", "cpu-used": "8"}, 40, height=49, width=67))
    for pix_fmt in ("yuva420p", "yuv444p", "gbrp"):
        add(f"vp9_{pix_fmt}.webm", Spec("libvpx-vp9", {"g": "12", "cpu-used": "8"}, 30, pix_fmt=pix_fmt))
    for alt in ("0", "1"):
        options = {"g": "12", "auto-alt-ref": alt, "lag-in-frames": "10", "cpu-used": "5"}
        add(f"vp8_alt{alt}.webm", Spec("libvpx", options, 40))

    for ending in ("mp4", "mkv", "webm", "ivf", "obu"):
        for gop in (1, 12, 250):
            add(f"av1_g{gop}.{ending}", Spec("libsvtav1", {"g": str(gop), "preset": "12"}, 36, height=64))
    for kind, params in {"low_delay": "pred-struct=1", "grain": "film-grain=20"}.items():
        options = {"g": "16", "preset": "10", "svtav1-params": params}
        add(f"av1_{kind}.mp4", Spec("libsvtav1", options, 36, height=64))
    add("av1_10bit.mkv", Spec("libsvtav1", {"g": "12", "preset": "12"}, 30, height=64, pix_fmt="yuv420p10le"))

    for codec, ending, pix_fmt in (
        ("mjpeg", "avi", "yuvj420p"),
        ("mjpeg", "mov", "yuvj420p"),
        ("mpeg1video", "mpg", "yuv420p"),
        ("mpeg2video", "mpg", "yuv420p"),
        ("mpeg2video", "ts", "yuv420p"),
        ("mpeg2video", "mkv", "yuv420p"),
        ("msmpeg4v2", "avi", "yuv420p"),
        ("wmv2", "asf", "yuv420p"),
        ("flv", "flv", "yuv420p"),
        ("h263p", "avi", "yuv420p"),
        ("ffv1", "mkv", "yuv420p"),
        ("huffyuv", "avi", "yuv422p"),
        ("prores_ks", "mov", "yuva444p10le"),
        ("qtrle", "mov", "argb"),
        ("png", "mov", "rgba"),
        ("utvideo", "avi", "gbrap"),
        ("rawvideo", "nut", "yuv420p"),
        ("snow", "nut", "yuv420p"),
    ):
        options = {"g": "12", **({"bf": "2"} if codec == "mpeg2video" else {}), "strict": "-2"}
        add(f"{codec}.{ending}", Spec(codec, options, 30, pix_fmt=pix_fmt))

    for ending in ("mp4", "mkv", "mov"):
        for kind, times in {"vfr": _irregular, "bursts": _bursts, "same": _same_ticks}.items():
            if kind == "same" and ending != "mkv":
                continue  # other containers refuse it
            options = {"g": "12", "bf": "2", "time_base": "1/1000"}
            add(f"{kind}.{ending}", Spec("libx264", options, 50, times=times))
    b12 = Spec("libx264", {"g": "12", "bf": "3", "b_strategy": "0"}, 50)
    pb = Spec("mpeg4", {"g": "12", "bf": "2"}, 50)
    for angle in (90, 180, -90):
        add(f"rotated{angle}.mp4", Spec("libx264", {"g": "12"}, 30, rotation=angle))
    for ending in ("mp4", "mkv", "ts", "avi"):
        add(f"sound_first.{ending}", Spec("libx264", {"g": "12"}, 50, audio_first=True))
    add("cover.mp4", Spec("libx264", {"g": "12"}, 30, cover=True))
    for frames in (1, 2, 3):
        for codec, ending in (("libx264", "mp4"), ("mpeg4", "avi"), ("libvpx-vp9", "webm")):
            add(f"frames{frames}_{codec}.{ending}", Spec(codec, {}, frames))
    for flags in ("frag_keyframe+empty_moov", "faststart", "negative_cts_offsets", "frag_every_frame", "disable_chpl"):
        name = flags.replace("+", "_")
        add(f"{name}.mp4", Spec("libx264", {"g": "12", "bf": "2"}, 60, container_options={"movflags": flags}))
    for shift in (-1, -5, -13, 7):
        for spec, kind in ((b12, "h264"), (pb, "mpeg4")):
            files[f"shifted{shift}_{kind}.mp4"] = partial(
                _remuxed, spec=spec, ending=".mkv", options={}, shift=shift, keep=slice(None)
            )
    edits: dict[str, Sequence[tuple[int, int, int]]] = {
        "delay": [(400, -1, 1), (2000, 0, 1)],
        "trim": [(1200, 5, 1)],
        "trim_end": [(600, 0, 1)],
        "late": [(800, 17, 1)],
        "two": [(400, 3, 1), (600, 30, 1)],
        "loop": [(800, 0, 1), (800, 0, 1)],
        "back": [(600, 24, 1), (600, 2, 1)],
        "dwell": [(400, 4, 0), (1000, 4, 1)],
    }
    for kind, rows in edits.items():
        for spec, codec in ((b12, "h264"), (pb, "mpeg4")):
            files[f"edit_{kind}_{codec}.mp4"] = partial(_edited, spec=spec, edits=rows)
    for value in (0, 3, 5000):
        plain = Spec("mpeg4", {"g": "12"}, 40)
        files[f"count{value}.avi"] = partial(_patched, spec=plain, find=b"strh", offset=40, value=value)
        files[f"total{value}.avi"] = partial(_patched, spec=plain, find=b"avih", offset=24, value=value)
    for change in (-4, 3):
        files[f"samples{change}.mp4"] = partial(_sample_count, spec=b12, change=change)
    for keep in (slice(5, None), slice(0, 31), slice(14, 40)):
        for spec, codec in ((b12, "h264"), (pb, "mpeg4")):
            name = f"packets{keep.start or 0}to{keep.stop or 50}_{codec}.mkv"
            files[name] = partial(_remuxed, spec=spec, ending=".mp4", options={}, shift=0, keep=keep)
    cr = Spec("libx265", {"x265-params": "open-gop=1:keyint=10:bframes=3:b-adapt=0"}, 50, height=64)
    files["starts_open_hevc.mkv"] = partial(_remuxed, spec=cr, ending=".mp4", options={}, shift=0, keep=slice(10, None))
    files["cut.ts"] = partial(_cut, spec=b12, first=0.3, last=0.9, block=188)
    files["cut.mkv"] = partial(_cut, spec=b12, first=0.0, last=0.7)
    files["cut.avi"] = partial(_cut, spec=pb, first=0.0, last=0.7)
    files["cut.mp4"] = partial(
        _cut, spec=Spec("libx264", {"g": "12"}, 60, container_options={"movflags": "faststart"}), first=0.0, last=0.8
    )
    files["joined.ts"] = partial(_joined, specs=[b12, Spec("libx264", {"g": "12"}, 30, seed=9)])
    files["joined_sizes.ts"] = partial(_joined, specs=[b12, Spec("libx264", {"g": "12"}, 30, height=64, width=80)])
    return files
