"""Damaged video files, read under limits: each is seeded by its number, so that any of them can be made again.

Run by test_mutants.py as `python mutants.py <folder of base files> <first> <count>`; prints a JSON line a mutant.
"""

from __future__ import annotations

import json
import random
import resource
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from data.video_files import STBL, Spec, decode_everything, encode, find_box
from lit_distill.data import Limits, VideoError, count_frames, probe, read_frames, scan

LIMITS = Limits(frames=2000, pixels=1 << 20, seconds=5)
ALIKE = 10.0  # mean difference of bytes below which two frames look the same; those of a base differ by more
MEMORY = 1 << 30  # bytes that a read may add

BASES = {
    "b.mp4": Spec("libx264", {"g": "12", "bf": "2", "b_strategy": "0"}, 40),
    "b.mkv": Spec("libx264", {"g": "12", "bf": "2"}, 40, seed=1),
    "b.ts": Spec("libx264", {"g": "12", "bf": "2"}, 40, seed=2),
    "a.avi": Spec("mpeg4", {"g": "12"}, 40, seed=3),
    "a.mov": Spec("mpeg4", {"g": "12", "bf": "1"}, 40, seed=4),
    "v.webm": Spec("libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}, 40, seed=5),
    "h.mp4": Spec("libx265", {"g": "12"}, 40, height=64, seed=6),
    "v.mp4": Spec("libvpx-vp9", {"g": "12", "cpu-used": "8", "deadline": "realtime"}, 40, seed=7),
    "sound.mp4": Spec("libx264", {"g": "12"}, 40, audio_first=True, seed=8),
    "fast.mp4": Spec("libx264", {"g": "12"}, 40, container_options={"movflags": "faststart"}, seed=9),
}
Mutate = Callable[[bytearray, random.Random], bytes]


def write_bases(folder: Path) -> None:
    """Encode the files that the mutants are made from."""
    for name, spec in BASES.items():
        encode(folder / name, spec)
    encode(folder / "none.mp4", replace(BASES["b.mp4"], frames=0))
    with av.open(str(folder / "only_sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        for number in range(40):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            samples.sample_rate, samples.pts = 16000, number * 1024
            container.mux(stream.encode(samples))
        container.mux(stream.encode())


def truncated(data: bytearray, chance: random.Random) -> bytes:
    return bytes(data[: chance.randrange(len(data))])


def flipped(data: bytearray, chance: random.Random, begin: int, end: int) -> bytes:
    for _ in range(chance.choice([1, 1, 2, 8, 40])):
        data[chance.randrange(begin, max(end, begin + 1))] ^= 1 << chance.randrange(8)
    return bytes(data)


def flipped_header(data: bytearray, chance: random.Random) -> bytes:
    """In the header: the moov box of an mp4 file, the first kilobyte of another."""
    at = data.find(b"moov")
    begin, end = (at, at + int.from_bytes(data[at - 4 : at], "big")) if at > 0 else (0, 1024)
    return flipped(data, chance, begin, min(end, len(data)))


def flipped_body(data: bytearray, chance: random.Random) -> bytes:
    at = data.find(b"mdat")
    begin, end = (at, at + int.from_bytes(data[at - 4 : at], "big")) if at > 0 else (1024, len(data))
    return flipped(data, chance, begin, min(end, len(data)))


def without_stream(data: bytearray, chance: random.Random) -> bytes:
    """The tag that says "video" changed, wherever it stands."""
    for tag in (b"vide", b"vids", b"V_MPEG4", b"V_VP9", b"avc1", b"mp4v", b"hvc1", b"vp09"):
        data = bytearray(bytes(data).replace(tag, bytes(chance.choices(b"abcdefgh", k=len(tag)))))
    return bytes(data)


def huge(data: bytearray, chance: random.Random) -> bytes:
    """Width and height, wherever a header says them, made huge."""
    large = chance.choice([4096, 16384, 30000, 65535])
    for form, old in ((">HH", (64, 48)), (">HH", (64, 64)), ("<II", (64, 48)), ("<HH", (64, 48))):
        was = struct.pack(form, *old)
        data = bytearray(bytes(data).replace(was, struct.pack(form, large, large)))
    at = data.find(b"\xb0\x81\x40\xba\x81\x30")  # PixelWidth 64, PixelHeight 48
    if at >= 0:  # one byte each: the largest
        data[at + 2], data[at + 5] = 255, 255
    return bytes(data)


def endless(data: bytearray, chance: random.Random) -> bytes:
    """Durations or counts of samples without end."""
    many = chance.choice([0x7FFFFFFF, 0xFFFFFFFF, 100_000_000, 10_000_000])
    try:
        table = find_box(bytes(data), *STBL, chance.choice([b"stts", b"stsz", b"stsc", b"ctts"]))
    except StopIteration:
        for tag, offset in ((b"avih", 24), (b"strh", 40), (b"\x44\x89\x88", 3)):
            at = data.find(tag)
            if at >= 0:
                struct.pack_into("<I", data, at + offset, many)
        return bytes(data)
    for offset in chance.choice([(4,), (8,), (12,), (4, 8), (8, 12), (4, 8, 12)]):
        if table[0] + offset + 4 <= table[1]:
            struct.pack_into(">I", data, table[0] + offset, chance.choice([many, 1, many]))
    for box in ((b"moov", b"mvhd"), (b"moov", b"trak", b"mdia", b"mdhd")):
        struct.pack_into(">I", data, find_box(bytes(data), *box)[0] + 16, many)
    return bytes(data)


def noise(data: bytearray, chance: random.Random) -> bytes:
    """Something else under the name of a video."""
    return chance.choice(
        [
            b"",
            b"not a video\n" * 50,
            chance.randbytes(5000),
            b"#EXTM3U\n#EXTINF:9,\nb.mp4\n#EXT-X-ENDLIST\n",
            b"ffconcat version 1.0\nfile b.mp4\n",
            b"\x89PNG\r\n\x1a\n" + chance.randbytes(400),
            b"\0\0\0\x20ftypisom" + chance.randbytes(4000),
            b"\x1aE\xdf\xa3" + chance.randbytes(4000),
            b"RIFF" + chance.randbytes(4) + b"AVI LIST" + chance.randbytes(4000),
            b"G" + b"".join(chance.randbytes(187) + b"G" for _ in range(40)),
        ]
    )


KINDS: dict[str, Mutate] = {
    "truncated": truncated,
    "flipped header": flipped_header,
    "flipped body": flipped_body,
    "no stream": without_stream,
    "audio only": lambda data, chance: bytes(data),
    "zero frames": lambda data, chance: bytes(data),
    "huge": huge,
    "endless": endless,
    "wrong ending": lambda data, chance: bytes(data) if chance.random() < 0.4 else noise(data, chance),
}
_WEIGHTS = {"flipped header": 3, "flipped body": 3, "truncated": 2, "endless": 2, "audio only": 0.2, "zero frames": 0.2}


def make(folder: Path, number: int) -> tuple[str, str, Path]:
    """Write a mutant; its kind, the name of its base, and where it is."""
    chance = random.Random(number)
    kind = chance.choices(list(KINDS), [_WEIGHTS.get(kind, 1) for kind in KINDS])[0]
    base = {"audio only": "only_sound.mp4", "zero frames": "none.mp4"}.get(kind, chance.choice(list(BASES)))
    ending = chance.choice([".mp4", ".avi", ".mkv", ".txt"]) if kind == "wrong ending" else Path(base).suffix
    path = folder / f"mutant{number}{ending}"
    path.write_bytes(KINDS[kind](bytearray((folder / base).read_bytes()), chance))
    return kind, base, path


def outcome(path: Path, originals: list[NDArray[np.uint8]], number: int) -> str:
    """How a mutant is read: ``error``; ``same`` or ``changed``, the right frames; ``short`` or ``swapped``."""
    chance = random.Random(-number)
    indices = chance.choice([[0, 13, 26, 39], list(range(20, 28)), sorted(chance.choices(range(40), k=6)), [39]])
    for look in (probe, count_frames, scan):
        with suppress(VideoError):
            look(path, limits=LIMITS)
    try:
        layout = scan(path, limits=LIMITS) if number % 3 == 0 else None
        frames = read_frames(path, indices, limits=LIMITS, layout=layout)
    except VideoError:
        return "error"
    if len(frames) != len(indices):
        return "short"
    if not originals or frames.shape[1:] != originals[0].shape:
        return judged(path, frames, indices)
    if all(np.array_equal(frame, originals[index]) for frame, index in zip(frames, indices, strict=True)):
        return "same"
    if len({frame.tobytes() for frame in frames}) < len(set(indices)):
        return judged(path, frames, indices)  # one frame for two
    # damage that no decoder can notice changes pixels; what it may not do is to give what is another frame by its looks
    for frame, index in zip(frames, indices, strict=True):
        distances = [float(np.abs(frame.astype(int) - one).mean()) for one in originals]
        if np.argmin(distances) != index and min(distances) < ALIKE:
            return judged(path, frames, indices)
    return "changed"


def judged(path: Path, frames: NDArray[np.uint8], indices: list[int]) -> str:
    """Whether decoding everything, plainly, gives these frames too."""
    try:
        everything, _ = decode_everything(path)
        same = all(np.array_equal(frame, everything[index]) for frame, index in zip(frames, indices, strict=True))
    except (av.FFmpegError, IndexError):
        same = False
    return "changed" if same else "swapped"


def main(folder: Path, first: int, count: int) -> None:
    """Read the mutants from a number on."""
    originals = {name: decode_everything(folder / name)[0] for name in BASES}
    for number in range(first, first + count):
        kind, base, path = make(folder, number)
        record: dict[str, object] = {"number": number, "kind": kind, "base": base}
        print(json.dumps({"begun": number}), flush=True)
        before, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.thread_time()
        try:
            record["outcome"] = outcome(path, originals.get(base, []), number)
        except Exception:  # whatever else a read raises is what is looked for
            record["outcome"], record["error"] = "crash", traceback.format_exc()
        record["seconds"] = time.thread_time() - begun
        record["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        print(json.dumps(record), flush=True)
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
