"""A LightningModule that keeps what it is given, and a quiet Trainer for it."""

from __future__ import annotations

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn


class Recorder(LightningModule):
    """Keeps the indices of its batches, an epoch's in a list of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: dict[str, list[list[list[int]]]] = {"train": [], "val": [], "test": []}

    def on_train_epoch_start(self) -> None:
        self.seen["train"].append([])

    def on_validation_epoch_start(self) -> None:
        self.seen["val"].append([])

    def on_test_epoch_start(self) -> None:
        self.seen["test"].append([])

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, _, index = batch
        assert len(inputs) == len(index)
        self.seen["train"][-1].append(index.tolist())
        return self.weight * torch.mean(inputs)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["val"][-1].append(batch[2].tolist())

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.seen["test"][-1].append(batch[2].tolist())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def quiet_trainer(**arguments: Any) -> Trainer:
    """A Trainer on one CPU that shows and writes nothing."""
    given = {
        "accelerator": "cpu",
        "devices": 1,
        "num_sanity_val_steps": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**{**given, **arguments})
