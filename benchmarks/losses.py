"""Relational losses beside the published formulas and torchdistill's classes: forward and backward, time and memory.

Time is CPU time on one thread: variants are interleaved on the same inputs, medians with min-max over repeats. Memory
is how far a forked process's peak resident set rises over what it held with the inputs made and all kernels loaded.
Run: python benchmarks/losses.py
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from multiprocessing.connection import Connection
from typing import TypeAlias

import torch
import torch.nn.functional as F
from results import left_out, missing, parser, write_section
from torch import Tensor

from lit_distill import losses

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Size: TypeAlias = tuple[int, int]

OURS, PUBLISHED, TORCHDISTILL = "lit_distill", "published", "torchdistill"
THEIRS = "torchdistill.losses.mid_level"
PEER = {TORCHDISTILL: partial(import_module, THEIRS)}
LIMIT = 4 << 30
"""No variant is run where its N x N x D tensors would need more memory than this."""


def published_angle(student: Tensor, teacher: Tensor) -> Tensor:
    def cosines(rows: Tensor) -> Tensor:
        directions = F.normalize(rows.unsqueeze(0) - rows.unsqueeze(1), p=2, dim=2)
        return torch.bmm(directions, directions.transpose(1, 2)).view(-1)

    with torch.no_grad():
        of_teacher = cosines(teacher)
    return F.smooth_l1_loss(cosines(student), of_teacher)


def published_distance(student: Tensor, teacher: Tensor) -> Tensor:
    def relative(rows: Tensor) -> Tensor:
        squares = rows.pow(2).sum(dim=1)
        distances = (squares.unsqueeze(1) + squares.unsqueeze(0) - 2 * rows @ rows.t()).clamp(min=1e-12).sqrt()
        distances = distances.clone()
        distances[range(len(rows)), range(len(rows))] = 0
        return distances / distances[distances > 0].mean()

    with torch.no_grad():
        of_teacher = relative(teacher)
    return F.smooth_l1_loss(relative(student), of_teacher)


def published_rkd(student: Tensor, teacher: Tensor) -> Tensor:
    return 25 * published_distance(student, teacher) + 50 * published_angle(student, teacher)


def published_similarity(student: Tensor, teacher: Tensor) -> Tensor:
    student, teacher = (F.normalize(torch.mm(x, x.t())) for x in (student, teacher))
    return (teacher - student).square().sum() / len(student) ** 2


def published_pkt(student: Tensor, teacher: Tensor) -> Tensor:
    def affinities(rows: Tensor) -> Tensor:
        rows = rows / (torch.sqrt(torch.sum(rows**2, dim=1, keepdim=True)) + 1e-7)
        rows[rows != rows] = 0
        cosines = (torch.mm(rows, rows.t()) + 1) / 2
        return cosines / torch.sum(cosines, dim=1, keepdim=True)

    student, teacher = affinities(student), affinities(teacher)
    return torch.mean(teacher * torch.log((teacher + 1e-7) / (student + 1e-7)))


def published_correlation(student: Tensor, teacher: Tensor) -> Tensor:
    def matrix(rows: Tensor) -> Tensor:
        gram = F.normalize(rows, dim=1) @ F.normalize(rows, dim=1).t()
        return torch.exp(torch.tensor(-0.8)) * (1 + 0.8 * gram + 0.8**2 / 2 * gram**2)

    return (matrix(student) - matrix(teacher)).square().sum() / len(student) ** 2


def published_dist(student: Tensor, teacher: Tensor) -> Tensor:
    def correlation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1).unsqueeze(1), b - b.mean(1).unsqueeze(1)
        return (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt() + 1e-8)

    student, teacher = student.softmax(dim=1), teacher.softmax(dim=1)
    rows, columns = correlation(student, teacher), correlation(student.t(), teacher.t())
    return 1 - rows.mean() + 1 - columns.mean()


def torchdistill(name: str, *arguments: object, **options: object) -> Loss | None:
    """torchdistill's class of that name as a function of two tensors, or None where it can't be used."""
    if missing(PEER):
        return None
    loss = getattr(import_module(THEIRS), name)(*arguments, **options)

    def apply(student: Tensor, teacher: Tensor) -> Tensor:
        value: Tensor = loss({"s": {"output": student, "input": student}}, {"t": {"output": teacher, "input": teacher}})
        return value

    return apply


def embeddings(size: Size) -> tuple[Tensor, Tensor]:
    """Seeded normal embeddings; half of the student's variance is the teacher's."""
    student, teacher = torch.randn(2, *size, generator=torch.Generator().manual_seed(0))
    return student + teacher, teacher


def few_directions(size: Size) -> tuple[Tensor, Tensor]:
    """Unrelated embeddings that spread in 4 directions: cosines that differ by more than 1 are common."""
    parts = torch.randn(2, size[0], 4, generator=torch.Generator().manual_seed(0))
    return parts[0] @ torch.randn(4, size[1]), parts[1] @ torch.randn(4, size[1])


@dataclass
class Method:
    name: str
    ours: Loss
    published: Loss
    torchdistill: Loss | None
    sizes: list[Size]
    large: list[Size] = field(default_factory=list)
    cubic: bool = False  # the published form builds N x N x D tensors
    make: Callable[[Size], tuple[Tensor, Tensor]] = embeddings

    def inputs(self, size: Size) -> tuple[Tensor, Tensor]:
        student, teacher = self.make(size)
        return student.requires_grad_(), teacher

    def variants(self, size: Size) -> dict[str, Loss]:
        """All that can be run at this size."""
        found = {OURS: self.ours}
        if not self.cubic or 6 * 4 * size[0] ** 2 * size[1] <= LIMIT:
            found[PUBLISHED] = self.published
            if self.torchdistill is not None:
                found[TORCHDISTILL] = self.torchdistill
        return found


def methods(quick: bool) -> list[Method]:
    angles: list[Size] = [(16, 512), (64, 512), (128, 512)]
    pairs: list[Size] = [(64, 512)]
    large: list[Size] = []
    if not quick:
        angles += [(256, 512), (256, 2048)]
        pairs += [(256, 512), (256, 2048), (1024, 512)]
        large += [(512, 2048), (1024, 2048), (4096, 512)]
    rkd, both, angle = (torchdistill("RKDLoss", "s", "t", *weights, "mean") for weights in ((1, 0), (25, 50), (0, 1)))
    sp, pkt = torchdistill("SPKDLoss", "s", "t", "batchmean"), torchdistill("PKTLoss", "s", "output", "t", "output")
    cc = torchdistill("CCKDLoss", "s", "t", {"type": "gaussian", "gamma": 0.4, "max_p": 2}, "batchmean")
    dist = torchdistill("DISTLoss", "s", "output", "t", "output")
    return [
        Method("RKD angle", losses.rkd_angle_loss, published_angle, angle, angles, large, cubic=True),
        Method(
            "RKD angle, 4 directions", losses.rkd_angle_loss, published_angle, angle, pairs[:2], cubic=True,
            make=few_directions,
        ),
        Method("RKD distance + angle", losses.rkd_loss, published_rkd, both, pairs[:2], cubic=True),
        Method("RKD distance", losses.rkd_distance_loss, published_distance, rkd, pairs),
        Method("SP", losses.similarity_loss, published_similarity, sp, pairs),
        Method("PKT", losses.pkt_loss, published_pkt, pkt, pairs),
        Method("CC", losses.correlation_loss, published_correlation, cc, pairs),
        Method("DIST", losses.dist_loss, published_dist, dist, pairs),
    ]  # fmt: skip


def step(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    student.grad = None
    loss(student, teacher).backward()  # type: ignore[no-untyped-call]


def seconds(method: Method, size: Size, repeats: int) -> dict[str, list[float]]:
    """CPU seconds of a step of each variant, each repeat long enough for the clock."""
    variants, pair = method.variants(size), method.inputs(size)
    counts: dict[str, int] = {}
    times: dict[str, list[float]] = {name: [] for name in variants}
    for name, loss in variants.items():
        begin = time.process_time()
        step(loss, *pair)
        spent = time.process_time() - begin
        counts[name] = max(1, min(50, int(0.03 / max(spent, 1e-4))))
        if spent > 0.5:
            times[name].append(spent)  # too long to be spent on warming up
    enough = {name: 3 if times[name] else repeats for name in variants}
    for _ in range(repeats):
        for name, loss in variants.items():
            if len(times[name]) < enough[name]:
                begin = time.process_time()
                for _ in range(counts[name]):
                    step(loss, *pair)
                times[name].append((time.process_time() - begin) / counts[name])
    return times


def _resident_peak() -> int:
    """Bytes; Linux counts ru_maxrss in KiB, macOS in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _measure_memory(method: Method, variant: str, size: Size, connection: Connection) -> None:
    loss = method.variants(size)[variant]
    step(loss, *method.inputs((64, 8)))
    pair = method.inputs(size)
    before, begin = _resident_peak(), time.process_time()
    step(loss, *pair)
    connection.send((_resident_peak() - before, time.process_time() - begin))


def memory_and_seconds(method: Method, variant: str, size: Size) -> tuple[int, float]:
    """Peak extra bytes, and CPU seconds, of one step in a process of its own."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measure_memory, args=(method, variant, size, send))
    process.start()
    send.close()
    result: tuple[int, float] = receive.recv()
    process.join()
    return result


def span(values: list[float]) -> str:
    low, middle, high = (1e3 * f(values) for f in (min, statistics.median, max))
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    return f"{middle:.{digits}f} ({low:.{digits}f}-{high:.{digits}f})"


def megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 2**20:.1f}" if value < 10 << 20 else f"{value / 2**20:.0f}"


def row(method: Method, size: Size, memory: dict[str, int], repeats: int) -> str:
    times = seconds(method, size, repeats)
    middle = {name: statistics.median(values) for name, values in times.items()}
    cells = [method.name, f"{size[0]} x {size[1]}", span(times[OURS])]
    for name in (PUBLISHED, TORCHDISTILL):
        cells += [span(times[name]), f"**{middle[name] / middle[OURS]:.1f}**"] if name in times else ["-", "-"]
    cells += [megabytes(memory.get(name)) for name in (OURS, PUBLISHED, TORCHDISTILL)]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    asked = parser(__doc__, quick="small sizes, few repeats").parse_args()
    torch.set_num_threads(1)
    absent = missing(PEER, asked)
    every = methods(asked.quick)

    # Memory first, from a parent that has not grown: a forked process begins with what its parent holds.
    memory: dict[tuple[str, Size], dict[str, int]] = {}
    large: list[str] = []
    for method in every:
        for size in method.sizes:
            memory[method.name, size] = {
                name: memory_and_seconds(method, name, size)[0] for name in method.variants(size)
            }
        for size in method.large:
            extra, spent = memory_and_seconds(method, OURS, size)
            large.append(
                f"| {method.name} | {size[0]} x {size[1]} | {spent * 1e3:.0f} | {megabytes(extra)} "
                f"| {4 * size[0] ** 2 * size[1] / 2**20:.0f} |"
            )

    lines = [
        "Forward and backward of a float32 batch N x D on one thread: CPU milliseconds, median (min-max), and peak "
        "extra MiB.",
        f"`x` is how many times longer than {OURS} the published formula and torchdistill's class take.",
        "",
        *left_out(absent),
        f"| method | N x D | {OURS} ms | published ms | x | torchdistill ms | x | {OURS} MiB | published MiB "
        "| torchdistill MiB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print("\n".join(lines), flush=True)
    for method in every:
        for size in method.sizes:
            lines.append(row(method, size, memory[method.name, size], 3 if asked.quick else 7))
            print(lines[-1], flush=True)
    if large:
        tail = [
            "",
            "Beyond the published form's memory; the last column is one of its several N x N x D tensors.",
            "",
            f"| method | N x D | {OURS} ms | {OURS} MiB | N x N x D MiB |",
            "|---|---|---|---|---|",
            *large,
        ]
        lines += tail
        print("\n".join(tail))
    if not asked.quick:
        write_section("losses", "python benchmarks/losses.py", lines, beside=["torchdistill"])


if __name__ == "__main__":
    main()
