"""PP-TSMv2 at its published size, engine by engine: the network, and a 10 s clip from the file to its logits.

`python benchmarks/inference.py` measures torch eager, torch.compile, ONNX Runtime float32 and int8;
`--paddle-python <interpreter>` adds the origin's own framework, where that interpreter has paddlepaddle.

Engines take turns in one run. On a shared machine wall times are disturbed by others, and so CPU times of all threads
stand beside them; ratios are those of the same round. Spinning is off in ONNX Runtime, as `predict` has it; OpenMP's
threads (torch, Paddle) are set to sleep where they wait, so that CPU time is work and not waiting.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch loads OpenMP
os.environ.setdefault("KMP_BLOCKTIME", "0")

import numpy as np
import torch
from results import left_out, missing, parser, write_section
from torch import Tensor, nn

from lit_distill.data import FrameSampling, VideoDataModule, write_video
from lit_distill.data.preprocess import Preprocess
from lit_distill.inference import benchmark
from lit_distill.inference.exported import fused
from lit_distill.inference.onnx_files import OnnxNetwork, quantize_onnx, write_onnx
from lit_distill.models import PPTSMv2, pptsm_v2
from lit_distill.models.layers import ConvBN

CLASSES, FRAMES, SIDE = 400, 16, 224
WARM_UP = 2
Run = Callable[[Tensor], Tensor]


@dataclass
class Times:
    """Seconds of one stage, a round each."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Paddle:
    """A process of Paddle's interpreter that runs the same network with the same weights."""

    def __init__(self, python: str, folder: Path, threads: int) -> None:
        worker = str(Path(__file__).with_name("paddle_pptsm_v2.py"))
        self._process = subprocess.Popen(
            [python, worker, str(folder), str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": ""},
        )  # fmt: skip
        self.answer: dict[str, Any] = {}

    def __call__(self, clip: Tensor) -> Tensor:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("ANSWER "):
                self.answer = json.loads(line.removeprefix("ANSWER "))
                return torch.tensor(self.answer["logits"])
        raise RuntimeError(f"Paddle's process ended with {self._process.wait()}: run {self._process.args!r} by hand")

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()


def probe_paddle(python: str | None) -> None:
    """Raise where there is no interpreter with Paddle."""
    if python is None:
        raise ImportError("no interpreter that has paddlepaddle was given by --paddle-python")
    alone = {**os.environ, "PYTHONPATH": ""}
    tried = subprocess.run([python, "-c", "import paddle"], capture_output=True, text=True, check=False, env=alone)
    if tried.returncode:
        raise ImportError(f"{python}: {tried.stderr.strip().splitlines()[-1]}")


def network() -> PPTSMv2:
    """The published size, random weights."""
    torch.manual_seed(0)
    return PPTSMv2(CLASSES, FRAMES).eval()


def folded(convolution: ConvBN | nn.Conv2d) -> nn.Conv2d:
    """A convolution with the BatchNorm behind it in its weights."""
    if isinstance(convolution, nn.Conv2d):
        return convolution
    whole: nn.Conv2d = torch.nn.utils.fuse_conv_bn_eval(convolution.conv, convolution.bn)
    return whole


def paddle_weights(model: PPTSMv2) -> dict[str, np.ndarray]:
    """The weights of a fused network under the names of `paddle_pptsm_v2.PPTSMv2`."""
    weights: dict[str, Tensor] = {}

    def put(name: str, layer: nn.Module) -> None:
        weights[f"{name}.weight"] = layer.weight.T if isinstance(layer, nn.Linear) else layer.weight  # type: ignore[assignment]
        if layer.bias is not None:
            weights[f"{name}.bias"] = layer.bias  # type: ignore[assignment]

    def put_block(name: str, block: Any) -> None:
        put(f"{name}.dw", folded(block.dw_conv))
        if not isinstance(block.se, nn.Identity):
            put(f"{name}.gate.0", block.se.conv1)
            put(f"{name}.gate.1", block.se.conv2)
        for index, pointwise in enumerate((block.pw_conv_1, block.pw_conv_2) if block.split else (block.pw_conv,)):
            put(f"{name}.pw.{index}", folded(pointwise))

    stem_conv, stem_block = model.stem
    put("stem.0", folded(stem_conv))  # type: ignore[arg-type]
    put_block("stem.1", stem_block)
    blocks = [block for stage in model.stages for block in stage]  # type: ignore[attr-defined]
    for index, block in enumerate(blocks):
        put_block(f"blocks.{index}", block)
    put("attention", model.temporal_attention.fc)  # type: ignore[arg-type]
    put("last_conv", model.last_conv)
    put("fc", model.fc)
    return {name: tensor.detach().contiguous().numpy() for name, tensor in weights.items()}


@contextmanager
def default_layout() -> Iterator[None]:
    """Frames as PyTorch lays them out by default, not channels last."""
    with mock.patch.object(pptsm_v2, "frames_of", lambda video, *_, **__: video.flatten(0, 1)):
        yield


def engines(clip: Tensor, folder: Path, threads: int, paddle_python: str | None) -> dict[str, Run]:
    """What is compared, by name; the first is what ratios are of."""
    model, bare = network(), fused(network())
    plain = network()

    def in_default_layout(batch: Tensor) -> Tensor:
        with default_layout():
            logits: Tensor = plain(batch)
        return logits

    whole, small = folder / "float.onnx", folder / "int8.onnx"
    if not small.exists():
        write_onnx(bare, torch.cat([clip, clip]), whole)
        quantize_onnx(whole, small, [clip])
    runs: dict[str, Run] = {
        "torch eager": model,
        "torch eager, default layout": in_default_layout,
        "torch eager, branches fused": bare,
        "torch.compile": benchmark.engine("compile", fused(network()), clip, folder),
        "ONNX Runtime float32": OnnxNetwork(whole, threads=threads),
        "ONNX Runtime int8": OnnxNetwork(small, threads=threads),
    }
    if paddle_python is not None:
        np.savez(folder / "weights.npz", **paddle_weights(fused(network())))  # type: ignore[arg-type]
        np.save(folder / "clip.npy", clip.numpy())
        runs["Paddle, oneDNN"] = Paddle(paddle_python, folder, threads)
    return runs


@torch.inference_mode()
def measured(
    runs: dict[str, Run], read: Callable[[], Tensor], rounds: int
) -> tuple[dict[str, Times], dict[str, Tensor]]:
    """Times of every engine and of reading the clip, in turns, and the logits that they gave."""
    times = {name: Times() for name in ("reading", *runs)}
    logits: dict[str, Tensor] = {}
    for turn in range(WARM_UP + rounds):
        wall, cpu = time.perf_counter(), time.process_time()
        clip = read()
        taken = {"reading": (time.perf_counter() - wall, time.process_time() - cpu)}
        for name, run in runs.items():
            wall, cpu = time.perf_counter(), time.process_time()
            logits[name] = run(clip)
            taken[name] = (time.perf_counter() - wall, time.process_time() - cpu)
            if isinstance(run, Paddle):
                taken[name] = (run.answer["wall"], run.answer["cpu"])
        if turn >= WARM_UP:
            for name, (seconds, work) in taken.items():
                times[name].wall.append(seconds)
                times[name].cpu.append(work)
    return times, logits


def spread(values: Sequence[float], form: str) -> str:
    """Median (min-max)."""
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:{form}} ({low:{form}}-{high:{form}})"


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Round by round."""
    return [a / b for a, b in zip(first, second, strict=True)]


def table(times: dict[str, Times], logits: dict[str, Tensor], threads: int) -> list[str]:
    """The engines of one number of threads."""
    first = next(iter(logits))
    lines = [
        f"{threads} thread{'s' if threads > 1 else ''}; reading the clip takes "
        f"{spread([1e3 * s for s in times['reading'].cpu], '.0f')} ms of CPU, "
        f"{spread([1e3 * s for s in times['reading'].wall], '.0f')} ms.",
        "",
        "| engine | CPU ms | x eager | ms | x eager | clip, file to logits, CPU ms | ms | logits off by |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name in logits:
        mine, eager, reading = times[name], times[first], times["reading"]
        cells = [name]
        for own, base in ((mine.cpu, eager.cpu), (mine.wall, eager.wall)):
            cells += [spread([1e3 * s for s in own], ".0f"), f"**{spread(ratios(base, own), '.2f')}**"]
        for read, own in ((reading.cpu, mine.cpu), (reading.wall, mine.wall)):
            cells.append(spread([1e3 * (a + b) for a, b in zip(read, own, strict=True)], ".0f"))
        off = float((logits[name] - logits[first]).abs().max() / logits[first].abs().max())
        lines.append(f"| {' | '.join(cells)} | {off:.1e} |")
    paddle = next((name for name in logits if name.startswith("Paddle")), None)
    if paddle is not None:
        onnx = times["ONNX Runtime float32"]
        work, wall = (
            spread(ratios(a, b), ".2f")
            for a, b in ((times[paddle].cpu, onnx.cpu), (times[paddle].wall, onnx.wall))
        )  # fmt: skip
        lines += ["", f"Paddle takes **{work}** times the CPU of ONNX Runtime float32, **{wall}** times as long."]
    return lines


def ten_seconds(path: Path) -> None:
    """250 frames of 340 x 256, GOP 60, that move."""
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (40, 64, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    frames = np.stack([np.roll(picture, (t, 2 * t), (0, 1))[:256, :340] for t in range(250)])
    write_video(path, frames, fps=25, codec="libx264", options={"g": "60", "crf": "23", "preset": "veryfast"})


def preprocess() -> Preprocess:
    """As in evaluation on Kinetics-400."""
    data = VideoDataModule(
        root=".", train_list="a", val_list="b", num_classes=CLASSES, num_frames=FRAMES, size=SIDE, scale=256
    )
    assert isinstance(data.sampling, FrameSampling)
    return Preprocess.of(data)


def main() -> None:
    """Measure, print, and write the section of RESULTS.md."""
    options = parser(__doc__, quick="two rounds, one thread")
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options.add_argument("--paddle-python", help="an interpreter that has paddlepaddle")
    asked = options.parse_args()
    rounds, threads_of = (2, [1]) if asked.quick else (asked.rounds, asked.threads)
    absent = missing({"Paddle": partial(probe_paddle, asked.paddle_python)}, asked)
    paddle_python = None if absent else asked.paddle_python
    prepared = preprocess()
    work = benchmark.multiply_adds(network(), torch.zeros(1, FRAMES, 3, SIDE, SIDE)) / 1e9
    lines = [
        f"PP-TSMv2, {FRAMES} x 3 x {SIDE} x {SIDE}, {CLASSES} classes, a batch of one; {work:.2f} G multiply-adds.",
        f"Median of {rounds} interleaved rounds (min-max); ratios within a round. CPU time is of all threads:",
        "others share the machine, wall times are as much theirs. A clip: 10 s, 340 x 256, H.264, 25 frames/s, GOP 60.",
        "`torch eager` is the trained form as the library runs it (channels last on a CPU). Weights are equal in all.",
        "",
        *left_out(absent),
    ]
    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder) / "clip.mp4"
        ten_seconds(video)
        for threads in threads_of:
            torch.set_num_threads(threads)
            torch.compiler.reset()
            runs = engines(prepared(video), Path(folder), threads, paddle_python)
            times, logits = measured(runs, lambda: prepared(video), rounds)
            part = table(times, logits, threads)
            print("\n".join(part), flush=True)
            lines += [*part, ""]
            for run in runs.values():
                if isinstance(run, Paddle):
                    lines[0] += f" Paddle {run.answer['version']}." if run.answer["version"] not in lines[0] else ""
                    run.close()
    if not asked.quick:
        command = f"python benchmarks/inference.py --rounds {rounds} --threads {' '.join(map(str, threads_of))}"
        command += " --paddle-python …" if paddle_python else ""
        write_section("inference", command, lines[:-1], beside=["onnxruntime", "av"])


if __name__ == "__main__":
    main()
