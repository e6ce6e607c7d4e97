"""One answer to when an optimizer step ends: windows of batches, a short last one, a step that is dropped."""

from __future__ import annotations

import csv
import math
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.balance import GradientNorm
from lit_distill.callbacks import EMATeacher, LastCheckpoint, NonFinite, TermGradients
from lit_distill.loggers import MetricsCSV
from lit_distill.schedules import Cosine

EPOCHS = 2
SCHEDULE = Cosine(start=1.0, end=0.0, epochs=EPOCHS)


class Numbered(nn.Module):
    """A term whose value on a batch is the batch's number in the run, from 1; NaN on one of them."""

    def __init__(self, bad: int | None) -> None:
        super().__init__()
        self.bad, self.calls = bad, count()

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        number = next(self.calls)
        slope = student.sum() - student.sum().detach()  # a gradient, and no value
        return slope + (math.nan if number == self.bad else float(number + 1))


class Watched(Callback):
    """After each batch: whether student and teacher have moved, and the schedule's factor."""

    def __init__(self) -> None:
        self.moved: dict[str, list[bool]] = {"Student": [], "Teacher": []}
        self.rates: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        self.before = {name: pl_module.models[name].weight.clone() for name in self.moved}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        for name, seen in self.moved.items():
            seen.append(not torch.equal(self.before[name], pl_module.models[name].weight))
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


class Saves(LastCheckpoint):
    """Notes the step of each save."""

    steps: list[int]

    def save(self, trainer: Trainer) -> Path:
        self.steps = [*getattr(self, "steps", []), trainer.global_step]
        return super().save(trainer)


class Measured(GradientNorm):
    """Notes the batch, from 0 in the run, of each measurement."""

    def observe(self, terms: Any, *args: Any, **more: Any) -> None:
        self.values = [*getattr(self, "values", []), float(terms[1])]
        super().observe(terms, *args, **more)


def windows(accumulate: int, batches: int) -> list[list[int]]:
    """The batches of each optimizer step, from 0 in the run, by the definition: chunks of each epoch."""
    epochs = [range(epoch * batches, (epoch + 1) * batches) for epoch in range(EPOCHS)]
    return [list(epoch[at : at + accumulate]) for epoch in epochs for at in range(0, batches, accumulate)]


@pytest.mark.parametrize("dropped", ["none", "a window in the middle", "the last window of an epoch"])
@pytest.mark.parametrize("batches", [6, 5, 4], ids=["whole windows", "5 batches", "4 batches"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.filterwarnings("ignore:step .* is not finite")
def test_everything_that_acts_once_a_step_agrees(accumulate: int, batches: int, dropped: str, tmp_path: Path) -> None:
    steps = windows(accumulate, batches)
    per_epoch = math.ceil(batches / accumulate)
    lost = {"none": None, "a window in the middle": 1, "the last window of an epoch": per_epoch - 1}[dropped]
    bad = None if lost is None else steps[lost][0]
    torch.manual_seed(0)
    balance = Measured(every_n_steps=1)
    module = DistillModule(
        {"Student": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)}, frozen=["Teacher"], balance=balance,
        losses={
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "GroundTruth")),
            "number": LossTerm(Numbered(bad), pair=("Student", "GroundTruth")),
        },
        optimizer=partial(torch.optim.SGD, lr=1.0), scheduler=SCHEDULE, preflight=False,
    )  # fmt: skip
    watched, saves = Watched(), Saves(tmp_path, every_n_steps=1)
    trainer = Trainer(
        max_epochs=EPOCHS, accumulate_grad_batches=accumulate, accelerator="cpu", logger=MetricsCSV(tmp_path),
        log_every_n_steps=1, enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        callbacks=[NonFinite(policy="skip"), EMATeacher(), TermGradients(every_n_steps=1), watched, saves],
    )  # fmt: skip
    data = TensorDataset(torch.randn(batches, 4), torch.randn(batches, 3))
    trainer.fit(module, DataLoader(data, batch_size=1))

    kept = [step for number, step in enumerate(steps) if number != lost]
    assert trainer.global_step == len(steps), "a dropped step is counted"
    ends = {step[-1] for step in kept}
    moved = [batch in ends for batch in range(EPOCHS * batches)]
    assert watched.moved["Student"] == moved
    assert watched.moved["Teacher"] == moved
    rate = [SCHEDULE((number + 1) / per_epoch) for number in range(len(steps))]
    at_ends = [watched.rates[step[-1]] for step in steps]
    assert at_ends == pytest.approx(rate), "schedules go on with a dropped step"
    assert saves.steps == [*range(1, len(steps) + 1)]
    measured = [step[-1] + 1.0 for step in steps]
    assert [value for value in balance.values if value == value] == [v for v in measured if v - 1 != bad]

    with (tmp_path / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    logged = {int(row["step"]): float(row["train/number"]) for row in rows if row["train/number"]}
    logged.pop(-1 if lost is None else lost, None)  # beside train/skipped_steps Lightning repeats the values before
    means = {number: sum(step) / len(step) + 1.0 for number, step in enumerate(steps) if number != lost}
    assert logged == pytest.approx(means), "a row a step, of its own batches"
    assert [int(row["step"]) for row in rows if row["grad/mse"]] == sorted(means)
