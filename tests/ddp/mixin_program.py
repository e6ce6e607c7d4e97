"""A module with DistillMixin run by any number of processes; writes what it ended with. Run by test_mixin_ddp.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_distill import DistillMixin, LossTerm


class Yours(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Yours):
    pass


def main(folder: Path, processes: int) -> None:
    seed_everything(3, verbose=False)
    x = torch.randn(32, 4, dtype=torch.float64)
    data = TensorDataset(x, x[:, :3].argmax(dim=1))
    teacher = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.Linear(16, 3))
    term = LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))
    module = Distilled().distill(teacher, student="net", losses={"mse": term})
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", precision="64-true",
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, enable_model_summary=False, default_root_dir=folder, log_every_n_steps=1,
    )  # fmt: skip
    rank = trainer.global_rank
    sampler: DistributedSampler[Any] = DistributedSampler(data, num_replicas=processes, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(data, batch_size=8 // processes, sampler=sampler))
    torch.save({"state": dict(module.state_dict()), "teacher": dict(teacher.state_dict())}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
