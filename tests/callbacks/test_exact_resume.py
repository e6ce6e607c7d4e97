"""The table of what a checkpoint holds, against a real checkpoint."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

import lit_distill
from faults.tiny import loader, module, trainer
from lit_distill import SafeCheckpointIO
from lit_distill.callbacks import (
    Account,
    EMATeacher,
    ExactResume,
    LastCheckpoint,
    MediaLogger,
    NonFinite,
    Preemption,
    Quarantine,
    RankGuard,
    StepSeed,
    TermGradients,
    exact_resume,
)
from lit_distill.data.catalogue.quarantine import QuarantineList
from lit_distill.loggers import MetricsCSV
from lit_distill.schedules import Linear


def rows() -> list[tuple[str, ...]]:
    """What, held by, key, restored: the table of the module's docstring."""
    lines = (exact_resume.__doc__ or "").splitlines()
    first, second, last = (number for number, line in enumerate(lines) if line.startswith("==="))
    starts = [0, *(at + 1 for at in range(len(lines[first])) if lines[first][at : at + 2] == " =")]
    ends = [*(start for start in starts[1:]), None]
    assert second == first + 2
    return [tuple(line[a:b].strip() for a, b in zip(starts, ends, strict=True)) for line in lines[second + 1 : last]]


def keys_of(checkpoint: dict[str, Any]) -> set[str]:
    """Its keys, those of ``lit_distill`` and ``callbacks`` one by one; a callback's without its arguments."""
    nested = ("lit_distill", "callbacks")
    inner = {f"{name}.{key.split('{')[0]}" for name in nested for key in checkpoint[name]}
    return {key for key in checkpoint if key not in nested} | inner


class Data(LightningDataModule):
    """Points, and a list of unreadable videos."""

    def __init__(self) -> None:
        super().__init__()
        self.quarantine = QuarantineList(max_bad=1, root=".")
        self.admissions: dict[str, Any] = {}

    def train_dataloader(self) -> DataLoader[Any]:
        return loader()

    def val_dataloader(self) -> DataLoader[Any]:
        return loader()


def test_the_table_has_the_keys_of_a_real_checkpoint(tmp_path: Path) -> None:
    fit = trainer(
        tmp_path, max_steps=2, val_check_interval=1, logger=MetricsCSV(tmp_path), enable_checkpointing=True,
        plugins=[SafeCheckpointIO(), MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))],
        callbacks=[
            Account(folder=tmp_path), Quarantine(), MediaLogger(clips=0), NonFinite(), RankGuard(), ExactResume(),
            StepSeed(), EMATeacher(), TermGradients(every_n_steps=1), Preemption(), LastCheckpoint(tmp_path),
            ModelCheckpoint(tmp_path / "best", monitor="val/loss"),
        ],
    )  # fmt: skip
    fit.fit(module(width=8, scheduler=Linear(start=1.0, end=0.0, epochs=2)), datamodule=Data())
    checkpoint = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2
    told = {key for _, _, keys, _ in rows() for key in keys.split(", ") if key != "-"}
    assert told == keys_of(checkpoint)
    assert checkpoint["callbacks"]["ExactResume"].keys() == {"callback_metrics", "logged_metrics", "loggers"}


def test_whoever_holds_state_is_named_by_its_class() -> None:
    package = Path(lit_distill.__file__).parent
    classes = {
        node.name
        for file in package.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.ClassDef)
    }
    assert {holder for _, holder, _, _ in rows()} - classes == {"Lightning"}
    assert all(all(row) for row in rows())
