"""What DistillModule costs a training step: a two-network DML step beside a bare Trainer's and a hand-written loop's.

Then what the protections of docs/reliability.md cost: the same step with everything that `train` switches on, and off.
Variants are interleaved in one process; medians over rounds with min and max. Run: python benchmarks/overhead.py
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from results import write_section
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_distill import DistillModule, LossTerm
from lit_distill._cli import conf_dir
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


class Clock(Callback):
    """CPU seconds a step between the first batch's end and the last's: set-up is left out."""

    first = last = 0.0
    steps = 0

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        self.last = time.process_time()
        self.steps = int(trainer.global_step)
        if self.steps == 1:
            self.first = self.last

    @property
    def seconds(self) -> float:
        return (self.last - self.first) / (self.steps - 1)


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


def loop(nets: Nets, loader: DataLoader[Any]) -> float:
    student, teacher = nets()
    optimizer = torch.optim.SGD([*student.parameters(), *teacher.parameters()], lr=1e-3, momentum=0.9)
    times = []
    for inputs, target in loader:
        optimizer.zero_grad()
        dml_step(student, teacher, inputs, target).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        times.append(time.process_time())
    return (times[-1] - times[0]) / (len(times) - 1)


def fit(module: LightningModule, loader: DataLoader[Any]) -> float:
    clock = Clock()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[clock], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=50,
    )  # fmt: skip
    trainer.fit(module, loader)
    return clock.seconds


def protected(nets: Nets, loader: DataLoader[Any]) -> float:
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
        return clock.seconds


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
    torch.manual_seed(0)
    return PPTSMv2(num_classes=3, num_frames=8), PPTSMResNet(50, num_classes=3, num_frames=8)


def measure(nets: Nets, shape: tuple[int, ...], batch: int, steps: int, rounds: int) -> dict[str, list[float]]:
    loader = DataLoader(Repeat(shape, batch * steps), batch_size=batch)
    variants: dict[str, Callable[[], float]] = {
        "loop": lambda: loop(nets, loader),
        "bare": lambda: fit(Bare(*nets()), loader),
        "distill": lambda: fit(distilled(nets), loader),
        "protected": lambda: protected(nets, loader),
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repeat in range(rounds + 1):
        for name, variant in variants.items():
            value = variant()
            if repeat:  # the first round warms up
                seconds[name].append(value)
    return seconds


def span(values: list[float], unit: str, scale: float = 1.0, digits: int = 2) -> str:
    low, middle, high = (round(scale * f(values), digits) for f in (min, statistics.median, max))
    return f"{middle:.{digits}f} {unit} ({low:.{digits}f}-{high:.{digits}f})".replace("  ", " ")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, nothing written")
    arguments = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rounds = 3 if arguments.quick else 9
    small = measure(tiny, (8,), 4, 400, rounds)
    large = measure(real, (8, 3, 64, 64), 2, 8, max(3, rounds // 2 + 2))
    over = [a - b for a, b in zip(small["distill"], small["bare"], strict=True)]
    ratio = [a / b for a, b in zip(large["distill"], large["loop"], strict=True)]
    kept = [a - b for a, b in zip(small["protected"], small["distill"], strict=True)]
    kept_ratio = [a / b for a, b in zip(large["protected"], large["distill"], strict=True)]
    lines = [
        "A two-network DML step (CE + CE + DML), CPU time on one thread; median over interleaved rounds (min-max).",
        "",
        "| networks | hand-written loop | bare Trainer | DistillModule | difference |",
        "|---|---|---|---|---|",
        f"| two layers | {span(small['loop'], 'ms', 1e3)} | {span(small['bare'], 'ms', 1e3)} "
        f"| {span(small['distill'], 'ms', 1e3)} | {span(over, 'ms over bare', 1e3)} |",
        f"| PP-TSMv2 + PP-TSM ResNet50, 2 x 8 x 3 x 64 x 64 | {span(large['loop'], 'ms', 1e3, 0)} "
        f"| {span(large['bare'], 'ms', 1e3, 0)} | {span(large['distill'], 'ms', 1e3, 0)} "
        f"| {span(ratio, 'x the loop', 1.0, 3)} |",
        "",
        "The same step with everything that `python -m lit_distill.train` switches on: finite steps, ranks, resuming,",
        "seeds, signals, quarantine, verified checkpoints.",
        "",
        "| networks | everything off | everything on | difference |",
        "|---|---|---|---|",
        f"| two layers | {span(small['distill'], 'ms', 1e3)} | {span(small['protected'], 'ms', 1e3)} "
        f"| {span(kept, 'ms', 1e3)} |",
        f"| PP-TSMv2 + PP-TSM ResNet50, 2 x 8 x 3 x 64 x 64 | {span(large['distill'], 'ms', 1e3, 0)} "
        f"| {span(large['protected'], 'ms', 1e3, 0)} | {span(kept_ratio, 'x', 1.0, 3)} |",
    ]
    print("\n".join(lines))
    if not arguments.quick:
        write_section("overhead", "python benchmarks/overhead.py", lines)


if __name__ == "__main__":
    main()
