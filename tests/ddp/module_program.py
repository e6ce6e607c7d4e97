"""A DistillModule run by any number of processes; writes what it ended with. Run by test_module_ddp.py."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, Sampler, TensorDataset

from lit_distill import DistillModule, LossTerm


class EveryNth(Sampler[int]):
    """Every sample once over the ranks, so that ranks may have different numbers of batches."""

    def __init__(self, size: int, replicas: int, rank: int) -> None:
        self.indices = range(rank, size, replicas)

    def __iter__(self) -> Any:
        return iter(self.indices)

    def __len__(self) -> int:
        return len(self.indices)


def net(width: int, norm: bool) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width) if norm else nn.Tanh(), nn.Linear(width, 3))


def main(folder: Path, processes: int, norm: bool, frozen: bool) -> None:
    seed_everything(3)
    x = torch.randn(48, 4, dtype=torch.float64)
    y = x[:, :3].argmax(dim=1)
    train, val = TensorDataset(x[:32], y[:32]), TensorDataset(x[32:47], y[32:47])  # 15: two ranks have 8 and 7 batches
    losses = {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), detach=frozen),
    }
    if not frozen:
        losses["ce_teacher"] = LossTerm(nn.CrossEntropyLoss(), pair=("Teacher", "GroundTruth"))
    module = DistillModule(
        models={"Student": net(8, norm), "Teacher": net(16, norm)},
        frozen=["Teacher"] if frozen else [],
        losses=losses,
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    trainer = Trainer(
        accelerator="cpu", devices=processes, strategy="ddp" if processes > 1 else "auto", precision="64-true",
        max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        use_distributed_sampler=False, enable_model_summary=False,
        num_sanity_val_steps=0, log_every_n_steps=1, default_root_dir=folder,
    )  # fmt: skip
    rank = trainer.global_rank
    if frozen and rank:  # a frozen model is loaded by each rank itself: DDP must leave it alone
        with torch.no_grad():
            module.models["Teacher"].get_parameter("2.bias").add_(rank)
    sampler: DistributedSampler[Any] = DistributedSampler(train, num_replicas=processes, rank=rank, shuffle=False)
    loaders = (
        DataLoader(train, batch_size=8 // processes, sampler=sampler),
        DataLoader(val, batch_size=1, sampler=EveryNth(len(val), processes, rank)),
    )
    trainer.fit(module, *loaders)
    state: dict[str, Tensor] = dict(module.state_dict())
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    torch.save({"state": state, "metrics": metrics}, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "norm", sys.argv[4] == "frozen")
