"""Agreement: its figures are those over all samples, whatever the batches, and training is the same with it."""

from __future__ import annotations

import csv
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import Agreement, StepSeed
from lit_distill.loggers import MetricsCSV

VAL = torch.randn(7, 4, generator=torch.Generator().manual_seed(2))


def module(*names: str, classes: int = 3, **more: Any) -> DistillModule:
    torch.manual_seed(0)
    models = {name: nn.Linear(4, 3 if name != "Odd" else classes) for name in names}
    terms = {
        name: LossTerm(nn.CrossEntropyLoss(), pair=(name, "GroundTruth"))
        for name in names
        if name in ("Student", "Peer")
    }
    return DistillModule(models, terms, optimizer=partial(torch.optim.SGD, lr=0.5), **more)


def fit(module: LightningModule, folder: Path, *callbacks: Any) -> list[dict[str, str]]:
    x = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    train, val = (TensorDataset(inputs, inputs[:, :3].argmax(1)) for inputs in (x, VAL))
    trainer = Trainer(
        accelerator="cpu", devices=1, logger=MetricsCSV(folder), callbacks=[StepSeed(), *callbacks], max_epochs=2,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        log_every_n_steps=2,
    )  # fmt: skip
    trainer.fit(module, DataLoader(train, batch_size=4), DataLoader(val, batch_size=3))
    with (folder / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_figures_are_those_over_all_samples(tmp_path: Path) -> None:
    trained = module("Student", "Teacher", frozen=["Teacher"])
    rows = fit(trained, tmp_path, Agreement())
    logits = {name: trained.models[name](VAL).detach() for name in ("Student", "Teacher")}
    probabilities = {name: value.double().softmax(1) for name, value in logits.items()}
    s, t = probabilities["Student"], probabilities["Teacher"]
    same = (s.argmax(1) == t.argmax(1)).double().mean().item()
    assert 0 < same < 1
    assert float(rows[-1]["val/Student-Teacher/agreement"]) == pytest.approx(same)
    assert float(rows[-1]["val/Student-Teacher/kl"]) == pytest.approx(
        (t * (t / s).log()).sum(1).mean().item(), rel=1e-5
    )
    logged = [row["val/Student-Teacher/kl"] for row in rows if row["val/Student-Teacher/kl"]]
    assert len(set(logged)) == 2, "another one each epoch"


def test_training_is_the_same_with_it(tmp_path: Path) -> None:
    with_it, without = (module("Student", "Teacher", frozen=["Teacher"]) for _ in range(2))
    rows = fit(with_it, tmp_path / "with", Agreement())
    plain = fit(without, tmp_path / "without")
    for key, value in with_it.state_dict().items():
        assert torch.equal(value, without.state_dict()[key])
    assert [{k: v for k, v in row.items() if "-" not in k} for row in rows] == plain


def test_every_pair_with_a_candidate(tmp_path: Path) -> None:
    rows = fit(module("Student", "Peer", "Teacher", frozen=["Teacher"], student="best"), tmp_path, Agreement())
    pairs = {name.split("/")[1] for name in rows[0] if name.endswith("/kl")}
    assert pairs == {"Student-Peer", "Student-Teacher", "Peer-Teacher"}


@pytest.mark.parametrize("names", [("Student",), ("Student", "Odd")])
def test_where_there_is_nothing_to_compare_nothing_is_logged(names: tuple[str, ...], tmp_path: Path) -> None:
    rows = fit(module(*names, classes=5, frozen=[name for name in names if name == "Odd"]), tmp_path, Agreement())
    assert not [name for name in rows[0] if name.endswith(("/agreement", "/kl"))]
    assert [name for name in rows[0] if name.endswith("/top1")]


def test_another_module_is_told(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="Agreement is of the models of a DistillModule, got a LightningModule"):
        Agreement().on_validation_start(Trainer(logger=False, barebones=True), LightningModule())
