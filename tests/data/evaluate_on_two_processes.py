"""Run by test_distributed.py: validate and train on two processes that get different numbers of evaluation steps."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn

from lit_distill.data import VideoDataModule, ViewsBatch, average_views


class Probe(LightningModule):
    """Sums what evaluation saw over the processes; its BatchNorm has buffers that DDP would exchange."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.BatchNorm3d(4), nn.Flatten(), nn.LazyLinear(3))
        self.net(torch.zeros(2, 4, 3, 28, 28))
        self.seen: list[list[int]] = []
        self.steps: list[int] = []
        self.trained: list[int] = []
        self.log_probabilities: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, target, index = batch
        assert type(batch) is tuple
        self.trained += index.tolist()
        return nn.functional.cross_entropy(self.net(inputs), target)

    def on_validation_epoch_start(self) -> None:
        self.seen.append([])
        self.steps.append(0)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        inputs, _, index = batch
        assert isinstance(batch, ViewsBatch)
        self.seen[-1] += index.tolist()
        self.steps[-1] += 1
        self.log_probabilities += average_views(self.net, inputs).tolist()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(root: str, report: str) -> None:
    data = VideoDataModule(
        root=root,
        train_list="train.txt",
        val_list="val.txt",
        num_classes=3,
        num_frames=4,
        size=28,
        scale=32,
        batch_size=3,
        eval_batch_size=3,
        num_workers=0,
        views="dense",
    )
    probe = Probe()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=1,
    )
    trainer.fit(probe, datamodule=data)
    weights = float(sum(parameter.sum() for parameter in probe.parameters()))
    told = {"seen": probe.seen, "steps": probe.steps, "trained": probe.trained, "weights": weights}
    Path(f"{report}.{trainer.global_rank}").write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
