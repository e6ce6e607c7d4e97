"""Clips per second of the whole VideoDataModule beside decoding alone: the same frames of the same files.

Whole: sampling, decoding with crop, resizing and flip, stacking, hand-over, normalisation on the device. Decoding
alone: read_frames with the same frame plans and views, with the layouts known, in equally many processes; beside a
cache, which keeps whole frames, whole frames. Rounds are interleaved; medians with min and max. CPU time is that of
all processes. Workers are running before the first round. Run: python benchmarks/loading.py
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from results import parser, write_section

from lit_distill.data import VideoDataModule, write_video
from lit_distill.data.samplers import seeded
from lit_distill.data.sampling import wrap
from lit_distill.data.sources.videos import DecodedVideo

FRAMES, HEIGHT, WIDTH = 250, 256, 340
REPEATS = 5
GOP = 60


class Cost(NamedTuple):
    """Clips a second by the clock, and CPU milliseconds a clip."""

    rate: float
    cpu: float


def make_files(folder: Path, videos: int, gop: int) -> None:
    """Textures that drift, noise on them: about the bits of compressed films."""
    for number in range(videos):
        rng = np.random.default_rng(number)
        texture = rng.integers(0, 256, (HEIGHT // 8 + 8, WIDTH // 8 + 48, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
        frames = np.stack([texture[t // 8 : t // 8 + HEIGHT, t : t + WIDTH] for t in range(FRAMES)])
        noise = rng.integers(0, 12, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        frames = frames // 2 + 60 + np.stack([np.roll(noise, 7 * t, 1) for t in range(FRAMES)])
        write_video(folder / f"{number}.mp4", frames, codec="libx264", options={"g": str(gop), "crf": "23"})
    listed = [f"{number}.mp4 0\n" for number in range(videos)] * REPEATS  # a long epoch from few files
    (folder / "list.txt").write_text("".join(listed))


def cpu_seconds() -> float:
    return sum(
        usage.ru_utime + usage.ru_stime
        for usage in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    )


def process_seconds(pids: Sequence[int]) -> float:
    """CPU seconds so far of living processes: workers that stay are in no sum of ended children."""
    ticks = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


class Whole:
    """The data module's training loader, an epoch a round, its workers alive between rounds."""

    def __init__(self, folder: Path, workers: int, *, normalised: bool, **arguments: Any) -> None:
        self.normalised = normalised
        self.data = VideoDataModule(
            root=folder, train_list="list.txt", val_list="list.txt", num_classes=1, num_workers=workers, batch_size=4,
            **arguments,
        )  # fmt: skip
        self.loader = self.data.train_dataloader()
        self.epoch = -1
        self.round()  # workers started, layouts known, a cache filled

    def round(self) -> Cost:
        self.epoch += 1
        self.loader.sampler.set_epoch(self.epoch)  # type: ignore[attr-defined]
        before, start, clips = self._cpu(), time.perf_counter(), 0
        for batch in self.loader:
            if self.normalised:
                batch = self.data.on_after_batch_transfer(batch, 0)
            clips += len(batch[0])
        seconds = time.perf_counter() - start
        return Cost(clips / seconds, 1e3 * (self._cpu() - before) / clips)

    def _cpu(self) -> float:
        iterator: Any = self.loader._iterator
        return time.process_time() + process_seconds([worker.pid for worker in iterator._workers] if iterator else [])


class Alone:
    """read_frames with the plans of the data module's epochs, the videos dealt out to processes that live on."""

    def __init__(self, whole: Whole, workers: int) -> None:
        self.dataset = whole.data.datasets["train"]
        self.epoch = -1
        fork = multiprocessing.get_context("fork")
        self.pipes: list[Any] = []
        self.processes: list[Any] = []
        for number in range(workers):
            mine, theirs = fork.Pipe()
            process = fork.Process(target=self._serve, args=(theirs, number, workers), daemon=True)
            process.start()
            self.pipes.append(mine)
            self.processes.append(process)
        self.round()

    def round(self) -> Cost:
        self.epoch += 1
        before, start = self._cpu(), time.perf_counter()
        for pipe in self.pipes:
            pipe.send(self.epoch)
        clips = sum(pipe.recv() for pipe in self.pipes)
        seconds = time.perf_counter() - start
        return Cost(clips / seconds, 1e3 * (self._cpu() - before) / clips)

    def _serve(self, pipe: Any, number: int, workers: int) -> None:
        torch.set_num_threads(1)
        dataset = self.dataset
        while True:
            epoch = pipe.recv()
            mine = range(number, len(dataset), workers)
            for index in mine:
                sample = dataset.samples[index]
                video = dataset.source.open(sample)
                plan = dataset.sampling.training(video.length, seeded("frames", dataset.seed, epoch, index))
                numbers = wrap(plan, video.length)
                if dataset.in_one_pass and isinstance(video, DecodedVideo):  # the same part, resized and mirrored alike
                    dataset._view(video, numbers, epoch, index)
                else:  # whole frames, scaled alike
                    dataset._decode(sample, video, sorted(set(numbers)))
            pipe.send(len(mine))

    def _cpu(self) -> float:
        return process_seconds([process.pid for process in self.processes])


def span(values: Sequence[float], digits: int = 0) -> str:
    low, middle, high = (f"{f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle} ({low}-{high})"


def row(name: str, variants: dict[str, Callable[[], Cost]], rounds: int) -> str:
    costs: dict[str, list[Cost]] = {variant: [] for variant in variants}
    for _ in range(rounds):
        for variant, measure in variants.items():
            costs[variant].append(measure())
    alone, whole = costs["alone"], costs["whole"]
    rate = [b.rate / a.rate for a, b in zip(alone, whole, strict=True)]
    cpu = [a.cpu / b.cpu for a, b in zip(alone, whole, strict=True)]
    return (
        f"| {name} | {span([c.rate for c in alone], 1)} | {span([c.rate for c in whole], 1)} | {span(rate, 2)} "
        f"| {span([c.cpu for c in alone])} | {span([c.cpu for c in whole])} | {span(cpu, 2)} |"
    )


def main() -> None:
    options = parser(__doc__, quick="one round of one file")
    options.add_argument("--gop", type=int, default=GOP)
    options.add_argument("--rounds", type=int, default=5)
    options.add_argument("--videos", type=int, default=8, help="files, each read five times a round")
    asked = options.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rounds, videos = (1, 1) if asked.quick else (asked.rounds, asked.videos)
    lines = [
        f"16 frames of 224 x 224 out of {FRAMES} frames of {WIDTH} x {HEIGHT} (H.264, GOP {asked.gop}): the whole "
        "VideoDataModule beside `read_frames` alone of the same views, interleaved, median over "
        f"{rounds} rounds (min-max). `Bytes handed over` is what a process with a GPU pays; `normalised` "
        "includes float32 in the main process, as training on a CPU pays. CPU time is that of all processes.",
        "",
        "| training view, workers | alone, clips/s | whole | ratio | alone, CPU ms/clip | whole | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    views: dict[str, dict[str, Any]] = {
        "multi-scale crop, bytes handed over": {"normalised": False},
        "random crop, bytes handed over": {"multi_scale": False, "normalised": False},
        "multi-scale crop, normalised": {"normalised": True},
        "multi-scale crop, normalised, cache=memory from epoch 2 on": {"cache": "memory", "normalised": True},
    }
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LIT_DISTILL_CACHE"] = f"{folder}/cache"
        make_files(Path(folder), videos, asked.gop)
        for name, given in views.items():
            for workers in (1, 2):
                whole = Whole(Path(folder), workers, **given)
                alone = Alone(whole, workers)
                lines.append(row(f"{name}, {workers}", {"alone": alone.round, "whole": whole.round}, rounds))
                print(lines[-1], flush=True)
                for process in alone.processes:
                    process.kill()
                del whole, alone
    print("\n".join(lines))
    if not asked.quick:
        command = f"python benchmarks/loading.py --rounds {rounds} --videos {videos}"
        command += f" --gop {asked.gop}" if asked.gop != GOP else ""
        write_section("loading", command, lines, beside=["av"])


if __name__ == "__main__":
    main()
