"""Balanced trainings with TermGradients by any number of processes; writes what they ended with."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.balance import GradientNorm, Uncertainty
from lit_distill.callbacks import NonFinite, TermGradients


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, 3))


def run(folder: Path, processes: int, balance: str) -> dict[str, Any]:
    seed_everything(3, verbose=False)
    x = torch.randn(32, 4, dtype=torch.float64)
    train = TensorDataset(x, x[:, :3].argmax(dim=1))
    module = DistillModule(
        models={"Student": net(8), "Teacher": net(16)},
        frozen=["Teacher"],
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.5),
        },
        optimizer=partial(torch.optim.SGD, lr=0.1),
        balance=GradientNorm(every_n_steps=2) if balance == "gradnorm" else Uncertainty(),
    )
    gradients = TermGradients(every_n_steps=1)
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", precision="64-true",
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, enable_model_summary=False, callbacks=[NonFinite(), gradients],
        num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip
    rank = trainer.global_rank
    sampler: DistributedSampler[Any] = DistributedSampler(train, num_replicas=processes, rank=rank, shuffle=False)
    trainer.fit(module, DataLoader(train, batch_size=8 // processes, sampler=sampler))
    return {"rank": rank, "state": dict(module.state_dict()), "gradients": gradients.last}


def main(folder: Path, processes: int) -> None:
    runs = {balance: run(folder, processes, balance) for balance in ("uncertainty", "gradnorm")}
    torch.save(runs, folder / f"rank{runs['gradnorm']['rank']}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
