"""What DistillModule costs a training step: a two-network DML step beside a bare Trainer's and a hand-written loop's.

Then the same step by torchdistill's box, and what the protections of docs/reliability.md cost: everything that `train`
switches on, and off. Variants are interleaved in one process; each run must give the losses of the hand-written loop.
Medians over rounds with min and max. Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from typing import Any, NamedTuple, TypeAlias

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from results import left_out, missing, parser, write_section
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_distill import DistillModule, LossTerm
from lit_distill._command.command import conf_dir
from lit_distill.losses import DMLLoss, dml_loss
from lit_distill.models import PPTSMResNet, PPTSMv2

Nets = Callable[[], tuple[nn.Module, nn.Module]]


class Repeat(Dataset[tuple[Tensor, int]]):
    """One sample, again and again, so that no loading is measured."""

    def __init__(self, shape: tuple[int, ...], length: int) -> None:
        self.sample, self.length = torch.randn(shape), length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.sample, index % 3


class Run(NamedTuple):
    """CPU seconds a step between the first batch's end and the last's, so that set-up is left out; each step's loss."""

    seconds: float
    losses: list[Tensor]


class Clock(Callback):
    """Takes them down from a Trainer."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.losses: list[Tensor] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *args: Any) -> None:
        self.times.append(time.process_time())
        self.losses.append(outputs["loss"].detach())

    @property
    def run(self) -> Run:
        return Run((self.times[-1] - self.times[0]) / (len(self.times) - 1), self.losses)


class Bare(LightningModule):
    """The same step, written by hand in a LightningModule that logs nothing."""

    def __init__(self, student: nn.Module, teacher: nn.Module) -> None:
        super().__init__()
        self.student, self.teacher = student, teacher

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return dml_step(self.student, self.teacher, *batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3, momentum=0.9)


def dml_step(student: nn.Module, teacher: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    a, b = student(inputs), teacher(inputs)
    ce = nn.functional.cross_entropy
    return ce(a, target) + ce(b, target) + dml_loss(a, b)


def loop(nets: Nets, loader: DataLoader[Any]) -> Run:
    student, teacher = nets()
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=1e-3, momentum=0.9)
    times, losses = [], []
    for inputs, target in loader:
        optimizer.zero_grad()
        loss = dml_step(student, teacher, inputs, target)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.process_time())
        losses.append(loss.detach())
    return Run((times[-1] - times[0]) / (len(times) - 1), losses)


def fit(module: LightningModule, loader: DataLoader[Any]) -> Run:
    clock = Clock()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=50,
    )  # fmt: skip
    trainer.fit(module, loader)
    return clock.run


def protected(nets: Nets, loader: DataLoader[Any]) -> Run:
    """The same under all callbacks and the checkpoint writer of `train`, from its own configs."""
    with tempfile.TemporaryDirectory() as folder, initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = compose("train", ["experiment=dml_pptsmv2", f"run_dir={folder}", "callbacks.progress=null"])
        callbacks = [instantiate(node) for node in config.callbacks.values() if node is not None]
        clock = Clock()
        trainer = Trainer(
            max_epochs=1, accelerator="cpu", callbacks=[*callbacks, clock], logger=False, enable_progress_bar=False,
            enable_model_summary=False, log_every_n_steps=50, plugins=[instantiate(config.checkpoint_io)],
        )  # fmt: skip
        trainer.fit(distilled(nets), loader)
        return clock.run


def distilled(nets: Nets) -> DistillModule:
    student, teacher = nets()
    ce = nn.CrossEntropyLoss()
    return DistillModule(
        models={"Student": student, "Teacher": teacher},
        losses={
            "ce": LossTerm(ce, pair=("Student", "GroundTruth")),
            "ce_teacher": LossTerm(ce, pair=("Teacher", "GroundTruth")),
            "dml": LossTerm(DMLLoss(), pair=("Student", "Teacher")),
        },
        optimizer=partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    )


def tiny() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return tuple(nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2))  # type: ignore[return-value]


def real() -> tuple[nn.Module, nn.Module]:
    """Without dropout: all variants have the same losses."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"num_classes": 3, "num_frames": 8, "dropout": 0.0}
    return PPTSMv2(**sizes), PPTSMResNet(50, **sizes)


class Case(NamedTuple):
    """Networks and batches, how often they are run, and how their milliseconds are written."""

    name: str
    nets: Nets
    shape: tuple[int, ...]
    batch: int
    steps: int
    rounds: int
    digits: int

    def milliseconds(self, seconds: list[float]) -> str:
        return span(seconds, " ms", 1e3, self.digits)


Seconds: TypeAlias = dict[str, list[float]]


def measure(case: Case, torchdistill: bool) -> Seconds:
    """CPU seconds a step of each variant, round by round."""
    nets, loader = case.nets, DataLoader(Repeat(case.shape, case.batch * case.steps), batch_size=case.batch)
    variants: dict[str, Callable[[], Run]] = {
        "loop": lambda: loop(nets, loader),
        "bare": lambda: fit(Bare(*nets()), loader),
        "distill": lambda: fit(distilled(nets), loader),
        "protected": lambda: protected(nets, loader),
    }
    if torchdistill:
        by_box = import_module("torchdistill_step").run  # needs torchdistill
        variants["box"] = lambda: Run(*by_box(*nets(), loader, metrics=False))
        variants["box with meters"] = lambda: Run(*by_box(*nets(), loader, metrics=True))
    seconds: Seconds = {name: [] for name in variants}
    for repeat in range(case.rounds + 1):
        expected: Tensor | None = None
        for name, variant in variants.items():
            run = variant()
            losses = torch.stack(run.losses)
            expected = losses if expected is None else expected
            torch.testing.assert_close(
                losses, expected, msg=partial("{}: other losses than the loop's. {}".format, name)
            )
            if repeat:  # the first round warms up
                seconds[name].append(run.seconds)
    return seconds


def span(values: Iterable[float], unit: str, scale: float = 1.0, digits: int = 2) -> str:
    values = list(values)
    low, middle, high = (f"{scale * f(values):.{digits}f}" for f in (min, statistics.median, max))
    return f"{middle}{unit} ({low}-{high})"


def over(seconds: Seconds, name: str, base: str) -> str:
    """How many milliseconds more, of the same round."""
    return span((a - b for a, b in zip(seconds[name], seconds[base], strict=True)), " ms", 1e3)


def times(seconds: Seconds, name: str, base: str) -> str:
    """How many times as long, of the same round."""
    return span((a / b for a, b in zip(seconds[name], seconds[base], strict=True)), " x", 1.0, 3)


def table(measured: dict[Case, Seconds], columns: dict[str, Callable[[Case, Seconds], str]]) -> list[str]:
    rows = [[case.name, *(cell(case, seconds) for cell in columns.values())] for case, seconds in measured.items()]
    return [f"| {' | '.join(row)} |" for row in (["networks", *columns], ["---"] * (1 + len(columns)), *rows)]


def main() -> None:
    asked = parser(__doc__, quick="two layers, few rounds").parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    absent = missing({"torchdistill": partial(import_module, "torchdistill_step")}, asked)
    small = Case("two layers", tiny, (8,), 4, 400, 9, 2)
    large = Case("PP-TSMv2 + PP-TSM ResNet50, 2 x 8 x 3 x 64 x 64", real, (8, 3, 64, 64), 2, 8, 6, 0)
    cases = [small._replace(steps=50, rounds=2)] if asked.quick else [small, large]
    measured = {case: measure(case, not absent) for case in cases}

    def of(name: str) -> Callable[[Case, Seconds], str]:
        return lambda case, seconds: case.milliseconds(seconds[name])

    lines = [
        "A two-network DML step (CE + CE + DML), CPU time on one thread; median over interleaved rounds (min-max).",
        "Differences and ratios are of the same round. The losses of all variants are equal, step by step; no dropout.",
        "",
        *table(
            measured,
            {
                "hand-written loop": of("loop"),
                "bare Trainer": of("bare"),
                "DistillModule": of("distill"),
                "DistillModule over bare": lambda _, seconds: over(seconds, "distill", "bare"),
                "DistillModule / loop": lambda _, seconds: times(seconds, "distill", "loop"),
            },
        ),
        "",
        *left_out(absent),
    ]
    if not absent:
        lines += [
            "The same step by torchdistill's `DistillationBox`, its SGD, cross-entropy and data wrapper; our DML loss",
            "is in its `SimpleLossWrapper`, as it has none. With meters: in a loop that keeps loss, rate and pace in",
            "its `MetricLogger`, as its examples do; DistillModule keeps every term.",
            "",
            *table(
                measured,
                {
                    "the box alone": of("box"),
                    "the box with meters": of("box with meters"),
                    "DistillModule": of("distill"),
                    "over the box": lambda _, seconds: over(seconds, "distill", "box"),
                    "over the box with meters": lambda _, seconds: over(seconds, "distill", "box with meters"),
                    "DistillModule / the box": lambda _, seconds: times(seconds, "distill", "box"),
                    "/ with meters": lambda _, seconds: times(seconds, "distill", "box with meters"),
                },
            ),
            "",
        ]
    lines += [
        "The same step with everything that `python -m lit_distill.train` switches on: finite steps, ranks, resuming,",
        "seeds, signals, quarantine, verified checkpoints.",
        "",
        *table(
            measured,
            {
                "everything off": of("distill"),
                "everything on": of("protected"),
                "difference": lambda _, seconds: over(seconds, "protected", "distill"),
                "on / off": lambda _, seconds: times(seconds, "protected", "distill"),
            },
        ),
    ]
    print("\n".join(lines))
    if not asked.quick:
        write_section("overhead", "python benchmarks/overhead.py", lines, beside=["lightning", "torchdistill"])


if __name__ == "__main__":
    main()
