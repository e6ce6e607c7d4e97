"""What `compile` saves of a training step: eager, the models compiled, and models and losses as one graph.

Three pairs of networks with taps, forward, backward and SGD, CPU time on one thread. Variants are interleaved in one
process, each begins with the same weights, and the losses of all must be close. A compiled variant's first two steps
are warm-up: the first runs eagerly, the second compiles, whose seconds are a column. Each pair has its section of
compile.md. Run: python benchmarks/compile.py
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from results import parser, write_section
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from lit_distill import LossComposer, LossTerm
from lit_distill.losses import AttentionTransferLoss, DMLLoss, FitNetLoss, KDLoss, RKDDistanceLoss
from lit_distill.models import PPTSMResNet, PPTSMv2
from lit_distill.signals import SignalCapture

FILE = Path(__file__).with_name("compile.md")
MODES = ("eager", "models", "step")


class Case(NamedTuple):
    """Networks, of which a frozen Teacher may be one, their terms and a batch."""

    name: str
    models: Callable[[], dict[str, nn.Module]]
    terms: Callable[[], dict[str, LossTerm]]
    shape: tuple[int, ...]
    classes: int
    steps: int


class Measured(NamedTuple):
    """CPU seconds a step in each round, seconds of compiling, graphs, and those after the second step."""

    seconds: list[float]
    compiling: float
    graphs: int
    later: int


def conv(width: int) -> nn.Module:
    blocks, inputs = [], 3
    for outputs in (width, 2 * width, 4 * width):
        blocks.append(
            nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(), nn.MaxPool2d(2))
        )
        inputs = outputs
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def conv_pair() -> dict[str, nn.Module]:
    return {"Student": conv(8), "Teacher": conv(16).requires_grad_(False).eval()}


def conv_terms() -> dict[str, LossTerm]:
    taps = [["Student.0", "Student.1", "Student.2"], ["Teacher.0", "Teacher.1", "Teacher.2"]]
    return {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "kd": LossTerm(KDLoss(), pair=("Student", "Teacher")),
        "attention": LossTerm(AttentionTransferLoss(), pair=taps),
        "hint": LossTerm(FitNetLoss(), pair=("Student.1", "Teacher.1")),
        "relations": LossTerm(RKDDistanceLoss(), pair=("Student.5:input", "Teacher.5:input")),
    }


def pptsm_pair() -> dict[str, nn.Module]:
    sizes: dict[str, Any] = {"num_classes": 10, "num_frames": 8, "dropout": 0.0}
    return {"Student": PPTSMv2(**sizes), "Teacher": PPTSMResNet(50, **sizes)}


def mutual_terms() -> dict[str, LossTerm]:
    return {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "ce_teacher": LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth")),
        "dml": LossTerm(DMLLoss(), pair=("Student", "Teacher")),
    }


def vit(width: int, layers: int) -> nn.Module:
    network: nn.Module = VisionTransformer(64, 8, layers, width // 32, width, 4 * width, num_classes=10)
    return network


def vit_pair() -> dict[str, nn.Module]:
    return {"Student": vit(64, 4), "Teacher": vit(128, 8).requires_grad_(False).eval()}


def vit_terms() -> dict[str, LossTerm]:
    return {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "kd": LossTerm(KDLoss(), pair=("Student", "Teacher")),
        "tokens": LossTerm(FitNetLoss(), pair=("Student.encoder.layers.2", "Teacher.encoder.layers.4")),
    }


CASES = {
    "conv": Case("conv pair, 16 x 3 x 32 x 32, eight taps", conv_pair, conv_terms, (16, 3, 32, 32), 10, 10),
    "pptsm": Case(
        "PP-TSMv2 + PP-TSM ResNet50, mutual, 2 x 8 x 3 x 112 x 112",
        pptsm_pair,
        mutual_terms,
        (2, 8, 3, 112, 112),
        10,
        1,
    ),
    "vit": Case("ViT pair, 8 x 3 x 64 x 64, two taps", vit_pair, vit_terms, (8, 3, 64, 64), 10, 4),
}


class Trainee:
    """One variant of a case: its networks, its optimizer, and one step after another."""

    def __init__(self, case: Case, mode: str, backend: str) -> None:
        torch.manual_seed(0)
        self.models, self.case = case.models(), case
        self.composer = LossComposer(case.terms())
        self.inputs, self.target = torch.randn(case.shape), torch.arange(case.shape[0]) % case.classes
        self.composer.build(self.models, self.inputs, self.target)
        learning = [p for model in self.models.values() for p in model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD([*learning, *self.composer.parameters()], lr=1e-3, momentum=0.9)
        how = {"scope": mode, "backend": backend}
        self.run = self._eagerly if mode == "eager" else self.composer.compiled(self.models, compile=how)

    def _eagerly(self, inputs: Tensor, target: Tensor) -> SignalCapture:
        with self.composer.capture(self.models) as signals:
            for model in self.models.values():
                with torch.set_grad_enabled(any(p.requires_grad for p in model.parameters())):
                    model(inputs)
        return signals

    def step(self) -> Tensor:
        torch.manual_seed(0)  # of dropout
        self.optimizer.zero_grad()
        total = self.composer(self.run(self.inputs, self.target), self.target).total
        total.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return total.detach()


def graphs() -> int:
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def measure(case: Case, rounds: int, backend: str) -> dict[str, Measured]:
    """Each mode of a case, in interleaved rounds."""
    trainees = {mode: Trainee(case, mode, backend) for mode in MODES}
    compiling, made = dict[str, float](), dict[str, int]()
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    for mode, trainee in trainees.items():
        trainee.step()
        started, before = time.perf_counter(), graphs()
        trainee.step()
        compiling[mode], made[mode] = time.perf_counter() - started, graphs() - before
    before = graphs()
    for _ in range(rounds):
        losses = []
        for mode, trainee in trainees.items():
            started = time.process_time()
            for _ in range(case.steps):
                loss = trainee.step()
            seconds[mode].append((time.process_time() - started) / case.steps)
            losses.append(loss)
        torch.testing.assert_close(torch.stack(losses), losses[0].expand(len(losses)), rtol=1e-3, atol=1e-4)
    later = graphs() - before
    return {mode: Measured(seconds[mode], compiling[mode], made[mode], later) for mode in MODES}


def span(values: Iterable[float], unit: str, scale: float = 1.0, digits: int = 1) -> str:
    low, middle, high = (f"{scale * f(list(values)):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle}{unit} ({low}-{high})"


def rows(case: Case, measured: dict[str, Measured]) -> list[str]:
    """The lines of the table for one pair."""
    found = []
    for mode, result in measured.items():
        ratios = [a / b for a, b in zip(measured["eager"].seconds, result.seconds, strict=True)]
        cells = [case.name, mode, span(result.seconds, " ms", 1e3), span(ratios, " x", digits=2)]
        compiled = (
            ["", "", ""] if mode == "eager" else [f"{result.compiling:.0f} s", str(result.graphs), str(result.later)]
        )
        found.append(f"| {' | '.join([*cells, *compiled])} |")
    return found


def main() -> None:
    """Measure the pairs and write the section."""
    options = parser(__doc__, quick="the conv pair, three rounds, a backend that optimizes nothing")
    options.add_argument("--pairs", nargs="+", choices=CASES, default=list(CASES), help="which")
    asked = options.parse_args()
    torch.set_num_threads(1)
    cases = ["conv"] if asked.quick else asked.pairs
    run = partial(measure, rounds=3 if asked.quick else 15, backend="eager" if asked.quick else "inductor")
    head = ["pair", "compile", "CPU time a step", "eager / it", "compiling", "graphs", "recompilations"]
    for name in cases:
        lines = [
            "A training step, CPU time on one thread; median of 15 interleaved rounds (min-max), ratios of the same",
            "round. Compiling is wall-clock time of the second step. A graph break would be an error in `step`;",
            "recompilations are those of all modes after the second step.",
            "",
            f"| {' | '.join(head)} |",
            f"|{'---|' * len(head)}",
            *rows(CASES[name], run(CASES[name])),
        ]
        print("\n".join(lines))
        if not asked.quick:
            command = f"python benchmarks/compile.py --pairs {name}"
            write_section(f"compile, {name}", command, lines, beside=["torchvision"], file=FILE)


if __name__ == "__main__":
    main()
