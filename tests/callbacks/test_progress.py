"""What the progress line counts."""

from __future__ import annotations

import re
from io import StringIO
from typing import Any, ClassVar

import pytest
import torch
from lightning import LightningModule, Trainer
from rich.console import Console
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill.callbacks import Progress


class Small(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        total: torch.Tensor = self.layer(torch.ones(1)).sum()
        return total

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(progress: Progress, module: LightningModule, batch: Any, *, batches: int) -> None:
    trainer = Trainer(
        max_epochs=1, callbacks=[progress], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False, limit_train_batches=4,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(torch.zeros(batches)), collate_fn=lambda _: batch))


@pytest.mark.parametrize(
    "batch",
    [
        (torch.zeros(4, 3), torch.zeros(4)),
        {"input_ids": torch.zeros(4, 7), "labels": torch.zeros(4)},
        {"noise": torch.zeros(4, 2)},
        torch.zeros(4, 3),
        ([torch.zeros(3, 5, 6)] * 4, [{"boxes": torch.zeros(1, 4)}] * 4),
    ],
    ids=["pair", "mapping", "noise", "inputs", "detection"],
)
def test_samples_of_batches_of_any_form_are_counted(batch: Any) -> None:
    progress = Progress()
    fit(progress, Small(), batch, batches=2)
    assert progress._samples == 8


@pytest.mark.parametrize("live", [True, False])
def test_a_line_fits_a_screen_of_80_columns(live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_distill.callbacks.progress._SECONDS_BETWEEN_LINES", 0.0)

    class Module(Small):
        last_terms: ClassVar = {"train/loss": 1234.5, **{f"train/term_{number}": 0.5 for number in range(9)}}

    output = StringIO()
    console = Console(file=output, width=80, force_terminal=live, color_system=None)
    fit(Progress(console=console), Module(), torch.zeros(4, 3), batches=1200)
    lines = [line for line in re.split(r"[\r\n]+", re.sub(r"\x1b\[[\d?;]*[A-Za-z]", "", output.getvalue())) if line]
    shown = [line.rstrip() for line in lines if "samples/s" in line]
    assert shown
    assert all(len(line) <= 80 and "loss 1234.500" in line for line in shown), shown
