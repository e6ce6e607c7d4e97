"""Distil with DDP, a process a device. On this machine: `python several_processes.py`; on two machines, on each:

torchrun --nnodes=2 --nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=<host>:29500 several_processes.py --nodes 2
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning import Trainer, seed_everything
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill.losses import KDLoss, RKDDistanceLoss


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def main() -> Trainer:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, default=2, help="of each machine")
    parser.add_argument("--nodes", type=int, default=1, help="machines")
    parser.add_argument("--accelerator", default="cpu", help="cpu (gloo) or gpu (nccl)")
    given = parser.parse_args()

    seed_everything(0, workers=True, verbose=False)  # the same weights on every rank
    inputs = torch.randn(64, 8)
    data = TensorDataset(inputs, inputs[:, :3].argmax(dim=1))
    module = DistillModule(
        models={"Student": net(16), "Teacher": net(64)},
        frozen=["Teacher"],  # each rank has its own: DDP neither reduces nor broadcasts it
        losses={
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "kd": LossTerm(KDLoss(temperature=2.0), pair=("Student", "Teacher"), weight=0.5),
            # relations between all samples of a step, those of other ranks too
            "rkd": LossTerm(RKDDistanceLoss(gather=True), pair=("Student.3:input", "Teacher.3:input")),
        },
        optimizer=partial(torch.optim.Adam, lr=1e-2),
    )
    trainer = Trainer(
        accelerator=given.accelerator, devices=given.devices, num_nodes=given.nodes, strategy="ddp",
        max_epochs=2, logger=False, enable_checkpointing=False, enable_model_summary=False,
    )  # fmt: skip
    loader = DataLoader(data, batch_size=8, shuffle=True)  # of each process; Lightning splits the data among them
    trainer.fit(module, loader, DataLoader(data, batch_size=8))
    return trainer


if __name__ == "__main__":
    trainer = main()
    if trainer.is_global_zero:
        print(f"{trainer.world_size} processes, {trainer.global_step} steps")
        print({k: round(float(v), 4) for k, v in trainer.callback_metrics.items()})
