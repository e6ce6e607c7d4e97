"""CPU time of a clip of 16 frames: lit_distill beside decord, torchcodec, OpenCV and decode-everything with PyAV.

All readers run in one interleaved run, on one thread, on files that are generated here: H.264, 10 s at 30 frames/s.
Each clip is compared with decode-everything. Run: python benchmarks/decode.py
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from results import left_out, missing, parser, write_section

from lit_distill.data import read_frames, scan
from lit_distill.data.decoding.bitstream import SPARE, inspector

Frames = NDArray[np.uint8]
Read = Callable[[], Frames]

COUNT, RATE = 300, 30
CLIPS = {
    "uniform": [int((place + 0.5) * COUNT / 16) for place in range(16)],
    "dense": list(range(140, 172, 2)),
}
TOLERANCE = 3  # of 255, between conversions from YUV to RGB of different rounding


def hard(width: int, height: int) -> Iterator[Frames]:
    """A fine texture under a window that moves fast, with a second one moving over it: few frames are left out."""
    rng = np.random.default_rng(0)
    grain = torch.from_numpy(rng.integers(0, 255, (1, 3, height + 400, width + 400)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(grain, 7, 1, 3)
    texture = ((smooth - smooth.mean()) * 3 + 128).clamp(0, 255).byte()[0].permute(1, 2, 0).numpy()
    for number in range(COUNT):
        x, y = int(100 + 90 * np.sin(number / 17)), int(100 + 80 * np.cos(number / 23))
        image = texture[y : y + height, x : x + width].copy()
        at = number * 3 % (width - 40)
        image[height // 4 : height // 2, at : at + 40] = texture[: height // 2 - height // 4, :40]
        yield image


def film(width: int, height: int) -> Iterator[Frames]:
    """Soft shapes under a camera that pans smoothly, an object that crosses, and the noise of a sensor."""
    chance = torch.Generator().manual_seed(0)
    side = (height + 200, width + 200)
    scene = torch.zeros(1, 3, *side)
    for scale, strength in ((64, 1.0), (16, 0.5), (4, 0.25)):
        coarse = torch.rand(1, 3, side[0] // scale + 2, side[1] // scale + 2, generator=chance)
        scene += strength * torch.nn.functional.interpolate(coarse, size=side, mode="bicubic")
    scene = ((scene - scene.mean()) / scene.std() * 45 + 120).clamp(0, 255)[0]
    for number in range(COUNT):
        x, y = 50 + 30 * np.sin(number / 60), 60 + 15 * np.cos(number / 70)
        left, top = int(x), int(y)
        part = scene[:, top : top + height + 1, left : left + width + 1]
        part = part[:, :, :-1] * (left + 1 - x) + part[:, :, 1:] * (x - left)
        part = part[:, :-1] * (top + 1 - y) + part[:, 1:] * (y - top)
        at = int(number * 1.2) % (width - 60)
        part[:, height // 3 : height // 3 + 60, at : at + 50] = scene[:, :60, 150:200]
        noisy = part + 4 * torch.randn(1, height, width, generator=chance)
        yield noisy.clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()


CONTENTS = {"hard": hard, "film": film}
PEERS = ("decord", "torchcodec", "OpenCV")


def write(path: Path, width: int, height: int, gop: int, content: str) -> None:
    with av.open(str(path), "w") as container:
        options = {"g": str(gop), "crf": "23", "preset": "medium", "threads": "1"}
        stream: Any = container.add_stream("libx264", rate=RATE, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for image in CONTENTS[content](width, height):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def unneeded(path: Path) -> float:
    """Share of the frames that no other frame refers to."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        inspect = inspector("h264", stream.codec_context.extradata)
        assert inspect is not None
        facts = [inspect(bytes(packet)) for packet in container.demux(stream) if packet.size]
    return sum(bool((fact or 0) & SPARE) for fact in facts) / len(facts)


def everything(path: str, indices: Sequence[int]) -> Frames:
    found: dict[int, Any] = {}
    with av.open(path) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
        for number, frame in enumerate(container.decode(stream)):
            if number in indices:
                found[number] = frame.to_ndarray(format="rgb24")
    return np.stack([found[index] for index in indices])


def with_decord(path: str, indices: Sequence[int], **size: int) -> Frames:
    decord = import_module("decord")
    clip: Frames = decord.VideoReader(path, num_threads=1, **size).get_batch(list(indices)).asnumpy()
    return clip


def with_torchcodec(path: str, indices: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
    decoders, torchcodec_transforms = import_module("torchcodec.decoders"), import_module("torchcodec.transforms")
    transforms: dict[str, Any] = {"transforms": [torchcodec_transforms.Resize(size)]} if size else {}
    decoder = decoders.VideoDecoder(path, num_ffmpeg_threads=1, seek_mode="exact", dimension_order="NHWC", **transforms)
    clip: Frames = decoder.get_frames_at(list(indices)).data.numpy()
    return clip


def with_opencv(path: str, indices: Sequence[int], size: tuple[int, int] | None = None) -> Frames:
    cv2 = import_module("cv2")
    cv2.setNumThreads(1)
    capture = cv2.VideoCapture(path, cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    found: dict[int, Frames] = {}
    for number in range(max(indices) + 1):
        capture.grab()
        if number in indices:
            image = cv2.cvtColor(capture.retrieve()[1], cv2.COLOR_BGR2RGB)
            found[number] = np.asarray(cv2.resize(image, size[::-1]) if size else image, np.uint8)
    return np.stack([found[index] for index in indices])


def readers(path: str, indices: Sequence[int], layout: Any, size: tuple[int, int] | None) -> dict[str, Read]:
    """Each reader of a clip; lit_distill once without and once with the layout that an index of the data set holds."""
    both: dict[str, Any] = {"size": size} if size else {}
    found: dict[str, Read] = {
        "lit_distill": partial(read_frames, path, indices, **both),
        "with layout": partial(read_frames, path, indices, layout=layout, **both),
        "decord": partial(with_decord, path, indices, **({"height": size[0], "width": size[1]} if size else {})),
        "torchcodec": partial(with_torchcodec, path, indices, **both),
        "OpenCV": partial(with_opencv, path, indices, **both),
    }
    if not size:
        found["all, PyAV"] = partial(everything, path, indices)
    return found


def probes(folder: str) -> dict[str, Read]:
    """A frame by each optional reader: some are imported without the libraries that they decode with."""
    path = str(Path(folder, "probe.mp4"))
    write(Path(path), 64, 64, 12, "hard")
    return {name: read for name, read in readers(path, [0], None, None).items() if name in PEERS}


def measured(reads: dict[str, Read], rounds: int) -> dict[str, list[float]]:
    """CPU milliseconds of each reader, round by round, interleaved."""
    torch.set_num_threads(1)
    for read in reads.values():
        read()
    times: dict[str, list[float]] = {name: [] for name in reads}
    for number in range(rounds):
        names = list(reads)
        for name in names[number % len(names) :] + names[: number % len(names)]:
            begun = time.process_time()
            reads[name]()
            times[name].append((time.process_time() - begun) * 1e3)
    return times


def in_worker(
    path: str, indices: Sequence[int], size: tuple[int, int] | None, absent: Sequence[str], rounds: int
) -> dict[str, list[float]]:
    reads = readers(path, indices, scan(path), size)
    return measured({name: read for name, read in reads.items() if name not in absent}, rounds)


def main() -> None:
    options = parser(__doc__, quick="one round of one small file")
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--sizes", nargs="+", default=["340x256", "1280x720"], help="width x height of the files")
    options.add_argument("--content", choices=CONTENTS, default="hard", help="what the files show")
    asked = options.parse_args()
    rounds, sizes, gops = (1, ["160x128"], [12]) if asked.quick else (asked.rounds, asked.sizes, [12, 60, 250])
    with tempfile.TemporaryDirectory() as folder:
        absent = missing(probes(folder), asked)
    names = [name for name in (*PEERS, "all, PyAV") if name not in absent]
    head = "| file | clip | size | workers | lit_distill ms | with layout ms | " + " | ".join(
        f"{n} / ours" for n in names
    )
    rows = [f"{head} |", "|" + "---|" * (6 + len(names))]
    ratios: dict[tuple[str, bool], list[float]] = {}
    compared, largest, equal = 0, dict.fromkeys(names, 0), 0
    with tempfile.TemporaryDirectory() as folder, ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for width, height in (map(int, size.split("x")) for size in sizes):
            for gop in gops:
                path = str(Path(folder, f"{width}x{height}-{gop}.mp4"))
                write(Path(path), width, height, gop, asked.content)
                share = f"{100 * unneeded(Path(path)):.0f} %"
                for clip, indices in CLIPS.items():
                    wanted = everything(path, indices)
                    for name, read in readers(path, indices, scan(path), None).items():
                        if name in absent:
                            continue
                        difference = int(np.abs(read().astype(int) - wanted).max())
                        if name in largest:
                            largest[name] = max(largest[name], difference)
                        else:
                            compared, equal = compared + 16, equal + 16 * (difference == 0)
                    for size in (None, (256, 256)):
                        for workers in (1, 2) if size is None else (1,):
                            job = partial(in_worker, path, indices, size, list(absent))
                            futures = [pool.submit(job, rounds) for _ in range(workers)]
                            each = [future.result() for future in futures]
                            times = {name: [t for one in each for t in one[name]] for name in each[0]}
                            ours = times["lit_distill"]
                            cells = [spread(ours), spread(times["with layout"])]
                            for name in names:
                                if name in times:
                                    pairs = [other / own for other, own in zip(times[name], ours, strict=True)]
                                    cells.append(
                                        f"**{statistics.median(pairs):.2f}** ({min(pairs):.2f}-{max(pairs):.2f})"
                                    )
                                    ratios.setdefault((name, size is not None), []).append(statistics.median(pairs))
                                else:
                                    cells.append("")

                            shape = f"{size[0]} x {size[1]}" if size else "kept"
                            file = f"{width}x{height}, GOP {gop}, {share}"
                            rows.append(f"| {file} | {clip} | {shape} | {workers} | {' | '.join(cells)} |")
                            print(rows[-1], flush=True)
    lines = [
        f"{' '.join((CONTENTS[asked.content].__doc__ or '').split())} Beside each file: frames no other refers to.",
        "16 frames of H.264, 10 s at 30 frames/s: CPU ms a clip, and how many times longer others take; medians",
        f"(min-max) of {rounds} interleaved rounds a worker, one thread a reader, the file opened again for each clip.",
        "`with layout` is what a data set with an index pays. torchcodec in its exact mode.",
        "",
        f"Frames equal to those of decode-everything, every byte: {equal}/{compared}. Largest difference of:",
        ", ".join(f"{name} {largest[name]}" for name in names)
        + f" of 255 (conversion of colours; <= {TOLERANCE} is rounding).",
        "",
        *left_out(absent),
        "Over all rows: "
        + "; ".join(
            f"{name} / ours{', resized,' if resized else ''} {statistics.median(of):.2f} ({min(of):.2f}-{max(of):.2f})"
            for (name, resized), of in ratios.items()
        )
        + ".",
        "",
        *rows,
    ]
    print("\n".join(lines[: -len(rows)]))
    if asked.quick:
        return
    given = f"--content {asked.content} --rounds {rounds} --sizes {' '.join(sizes)}"
    command = f"python benchmarks/decode.py {given}"
    write_section(f"decode, {asked.content}", command, lines, beside=["av", "decord", "torchcodec", "cv2"])


def spread(times: Sequence[float]) -> str:
    return f"{statistics.median(times):.1f} ({min(times):.1f}-{max(times):.1f})"


if __name__ == "__main__":
    main()
