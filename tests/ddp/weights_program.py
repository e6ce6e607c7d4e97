"""Two ranks with batches of different sizes, and a peer that no term teaches in the first epoch."""

from __future__ import annotations

import os
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.callbacks import RankGuard

SIZES = ((4, 4, 4), (1, 4, 2))  # of the batches of each rank


def samples(rank: int) -> TensorDataset:
    count = sum(SIZES[rank])
    x = torch.randn(count, 4, generator=torch.Generator().manual_seed(rank)) * (1 + 5 * rank)
    return TensorDataset(x, torch.arange(count) % 3 - (torch.arange(count) % 5 == 0).long() * 9)


def loader(rank: int) -> DataLoader[object]:
    ends = torch.tensor([0, *SIZES[rank]]).cumsum(0).tolist()
    batches = [list(range(start, end)) for start, end in pairwise(ends)]
    return DataLoader(samples(rank), batch_sampler=batches)


def module() -> DistillModule:
    torch.manual_seed(0)
    return DistillModule(
        {"Student": nn.Linear(4, 3), "Peer": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)},
        {
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher")),
            "late": LossTerm(nn.MSELoss(), pair=("Peer", "Student"), weight=late),  # all that teaches the peer
        },
        frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.0),
        unlabelled=True,
        metrics=None,
    )


def late(epoch: float) -> float:
    return 0.0 if epoch < 1 else 0.5


def main(folder: Path) -> None:
    rank = int(os.environ["LOCAL_RANK"])
    model = module()
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp", max_epochs=2, logger=False, callbacks=[RankGuard()],
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0,
        use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(model, loader(rank), loader(rank))
    torch.save({name: float(value) for name, value in trainer.callback_metrics.items()}, folder / f"{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
