"""What the progress line counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill.callbacks import Progress


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
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            total: torch.Tensor = self.layer(torch.ones(1)).sum()
            return total

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    progress = Progress()
    trainer = Trainer(
        max_epochs=1, callbacks=[progress], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(), DataLoader(TensorDataset(torch.zeros(2)), collate_fn=lambda _: batch))
    assert progress._samples == 8
