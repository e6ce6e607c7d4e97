"""TermGradients: norms and cosines in closed form, and a training that is the same with and without it."""

from __future__ import annotations

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill._command.command import conf_dir
from lit_distill.callbacks import NonFinite, StepSeed, TermGradients
from lit_distill.loggers import MetricsCSV
from lit_distill.losses import KDLoss


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Dropout(0.3), nn.Linear(8, 3))


def module(**more: Any) -> DistillModule:
    torch.manual_seed(0)
    terms = {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"), weight=0.5),
        "kd": LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher")),
        "hint": LossTerm(nn.MSELoss(), pair=("Student.0", "Teacher.0"), weight=lambda epoch: 1.0 + epoch),
    }
    return DistillModule(
        {"Student": net(), "Teacher": net()}, terms, frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.1, momentum=0.9), **more,
    )  # fmt: skip


def fit(module: DistillModule, folder: Path, *callbacks: Any, rows: int = 24, **more: Any) -> Trainer:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 4, generator=generator)
    loader = DataLoader(TensorDataset(x, x[:, :3].argmax(1)), batch_size=4)
    arguments: dict[str, Any] = {"max_epochs": 2, "log_every_n_steps": 3, **more}
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=MetricsCSV(folder), callbacks=[StepSeed(), *callbacks],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        num_sanity_val_steps=0, **arguments,
    )  # fmt: skip
    trainer.fit(module, loader)
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    "arguments",
    [{}, {"accumulate_grad_batches": 3}, {"precision": "bf16-mixed"}, {"gradient_clip_val": 0.1}],
    ids=["plain", "accumulated", "bf16", "clipped"],
)
def test_training_is_the_same_bit_for_bit(arguments: dict[str, Any], tmp_path: Path) -> None:
    plain, watched = module(), module()
    fit(plain, tmp_path / "plain", NonFinite(), **arguments)
    callback = TermGradients(every_n_steps=1)
    fit(watched, tmp_path / "watched", NonFinite(), callback, **arguments)
    assert callback.last["grad/kd"] > 0
    for name, value in plain.state_dict().items():
        assert torch.equal(value, watched.state_dict()[name]), name
    one, other = rows(tmp_path / "plain"), rows(tmp_path / "watched")
    for here in one:
        (there,) = (row for row in other if row["step"] == here["step"])
        assert {name: there[name] for name in here} == here


class Point(nn.Module):
    """Gives its two weights for every sample."""

    def __init__(self) -> None:
        super().__init__()
        self.place = nn.Parameter(torch.zeros(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.place.expand(len(x), 2)


class Slope(nn.Module):
    """Its gradient with respect to the place is the same everywhere."""

    def __init__(self, *direction: float) -> None:
        super().__init__()
        self.direction = torch.tensor(direction)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return student.mean(0) @ self.direction


def fixed_directions() -> DistillModule:
    """Terms whose gradients are (3, 4), (-4, 3) and (-6, -8), times weights 1, 2 and 0.5; and one of a peer's own."""
    return DistillModule(
        {"Student": Point(), "Peer": Point()},
        {
            "a": LossTerm(Slope(3.0, 4.0), pair=("Student", "GroundTruth")),
            "b": LossTerm(Slope(-4.0, 3.0), pair=("Student", "GroundTruth"), weight=2.0),
            "c": LossTerm(Slope(-6.0, -8.0), pair=("Student", "GroundTruth"), weight=0.5),
            "peer": LossTerm(nn.MSELoss(), pair=("Peer", "GroundTruth")),
        },
        optimizer=partial(torch.optim.SGD, lr=0.1), metrics=None,
    )  # fmt: skip


def test_norms_and_cosines_are_those_of_the_weighted_gradients(tmp_path: Path) -> None:
    distilled = fixed_directions()
    loader = DataLoader(TensorDataset(torch.randn(12, 2), torch.randn(12, 2)), batch_size=2)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=MetricsCSV(tmp_path), callbacks=[TermGradients(every_n_steps=2)],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=3,
    )  # fmt: skip
    trainer.fit(distilled, loader)
    measured = [row for row in rows(tmp_path) if row["grad/a"]]
    assert [row["step"] for row in measured] == ["1", "3", "5"], "every second step, in that step's row"
    wanted = {"grad/a": 5, "grad/b": 10, "grad/c": 5, "grad/peer": 0, "grad_cos/a/b": 0, "grad_cos/a/c": -1,
              "grad_cos/b/c": 0}  # fmt: skip
    for row in measured:
        found = {name: float(value) for name, value in row.items() if name.startswith("grad") and value}
        assert found == pytest.approx(wanted, abs=1e-6)
        assert sum(bool(value) for name, value in row.items() if name.startswith("train/")) in (0, 8)
    assert [row["step"] for row in rows(tmp_path) if row["train/loss"]] == ["2", "5"]


def test_of_an_accumulated_step_it_is_the_last_batch(tmp_path: Path) -> None:
    callback = TermGradients(every_n_steps=1)
    distilled = module()
    fit(distilled, tmp_path, callback, rows=8, accumulate_grad_batches=2, max_epochs=1)
    assert [row["step"] for row in rows(tmp_path) if row["grad/ce"]] == ["0"]
    # The same from the second batch alone, from the weights that no step has moved yet.
    again, gradients = module(), {}
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        again.models["Student"](x[:4])
    torch.manual_seed(0)
    StepSeed()._seed("train", Position(), 1)  # type: ignore[arg-type]
    with again.composer.capture(again.named) as signals:
        again.run_models(x[4:], signals)
    composed = again.composer(signals, x[4:, :3].argmax(1), epoch=0.5)
    for name, term in zip(composed.names, composed.terms, strict=True):
        again.zero_grad()
        term.backward(retain_graph=True)  # type: ignore[no-untyped-call]
        gradients[name] = torch.cat(
            [p.grad.flatten() for p in again.models["Student"].parameters() if p.grad is not None]
        )
    assert callback.last["grad/ce"] == pytest.approx(0.5 * float(gradients["ce"].norm()), rel=1e-5)
    assert callback.last["grad/hint"] == pytest.approx(1.5 * float(gradients["hint"].norm()), rel=1e-5)


class Position:
    current_epoch = global_rank = 0


def test_another_model_may_be_looked_at(tmp_path: Path) -> None:
    callback = TermGradients(every_n_steps=1, model="Peer")
    loader = DataLoader(TensorDataset(torch.randn(2, 2), torch.randn(2, 2)), batch_size=2)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(fixed_directions(), loader)
    assert callback.last["grad/peer"] > 0
    assert {name: value for name, value in callback.last.items() if name != "grad/peer"} == {
        "grad/a": 0, "grad/b": 0, "grad/c": 0,
    }  # fmt: skip


def test_a_skipped_step_is_not_logged(tmp_path: Path) -> None:
    distilled = module()
    x = torch.randn(8, 4)
    x[4:] = float("nan")  # the second step, which is the one that is due
    loader = DataLoader(TensorDataset(x, torch.zeros(8, dtype=torch.long)), batch_size=4)
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=MetricsCSV(tmp_path), enable_checkpointing=False,
        callbacks=[NonFinite(policy="skip"), TermGradients(every_n_steps=2)], enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    with pytest.warns(UserWarning, match="skipped, 1 of"):
        trainer.fit(distilled, loader)
    assert not any("grad/" in name for row in rows(tmp_path) for name in row)


@pytest.mark.parametrize(
    ("callback", "message"),
    [
        (lambda: TermGradients(every_n_steps=0), "every_n_steps is a number of optimizer steps from 1, got 0"),
        (lambda: TermGradients(model="Teacher"), r"model='Teacher' is none that learns; they are \['Student'\]"),
        (lambda: TermGradients(model="Tutor"), "model='Tutor' is none that learns"),
    ],
)
def test_what_cannot_be_measured_is_refused(callback: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        fit(module(), tmp_path, callback())


def test_sharded_parameters_are_refused() -> None:
    class Sharded:
        strategy = FSDPStrategy()

    with pytest.raises(ValueError, match="FSDPStrategy shards them"):
        TermGradients().on_train_start(Sharded(), module())  # type: ignore[arg-type]


class Edge(nn.Module):
    """0, with a gradient that is NaN."""

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return (0 * student).sum().sqrt()


def one_batch(distilled: DistillModule, callback: TermGradients, **more: Any) -> dict[str, float]:
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, callbacks=[callback], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, **more,
    )  # fmt: skip
    trainer.fit(distilled, DataLoader(TensorDataset(torch.zeros(2, 2), torch.zeros(2, 2)), batch_size=2))
    return callback.last


def test_a_gradient_that_is_not_finite_has_no_cosine() -> None:
    terms = {
        "edge": LossTerm(Edge(), pair=("Student", "GroundTruth")),
        "a": LossTerm(Slope(3.0, 4.0), pair=("Student", "GroundTruth")),
        "b": LossTerm(Slope(6.0, 8.0), pair=("Student", "GroundTruth"), weight=-1.0),
    }
    distilled = DistillModule({"Student": Point()}, terms, optimizer=partial(torch.optim.SGD, lr=0.1), metrics=None)
    found = one_batch(distilled, TermGradients(every_n_steps=1))
    assert found == pytest.approx({"grad/edge": math.nan, "grad/a": 5, "grad/b": 10, "grad_cos/a/b": -1}, nan_ok=True)


class HalfPoint(Point):
    """Its gradients pass through half precision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).half()


class WideSlope(Slope):
    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return (student.float().mean(0) * self.direction).sum()


def test_half_precision_holds_the_gradients_of_a_small_weight() -> None:
    terms = {
        "a": LossTerm(WideSlope(300.0, 400.0), pair=("Student", "GroundTruth"), weight=1e-3),
        "b": LossTerm(WideSlope(0.4, -0.3), pair=("Student", "GroundTruth")),
        "off": LossTerm(WideSlope(1e6, 1e6), pair=("Student", "GroundTruth"), weight=0.0),
    }
    distilled = DistillModule({"Student": HalfPoint()}, terms, optimizer=partial(torch.optim.SGD, lr=0.1), metrics=None)
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=65536.0))
    found = one_batch(distilled, TermGradients(every_n_steps=1), plugins=[scaled])
    wanted = {"grad/a": 0.5, "grad/b": 0.5, "grad/off": 0, "grad_cos/a/b": 0}
    assert found == pytest.approx(wanted, rel=1e-3, abs=1e-3)


@pytest.mark.parametrize("name", ["gradients", "media"])
def test_the_defaults_are_those_of_the_constructor_alone(name: str) -> None:
    config = OmegaConf.to_container(OmegaConf.load(conf_dir() / "callbacks" / f"{name}.yaml"))
    assert isinstance(config, dict)
    assert list(config[name]) == ["_target_"]
