"""A Hydra app of yours, with its own main and config, that takes config groups of lit_distill: losses, optimizers, …

python app.py                                           # as conf/app.yaml says
python app.py loss@losses.kd.loss=dist optimizer=adamw  # any of those groups, by name
python app.py -m width=8,16 losses.kd.weight=0.5,1      # Hydra's sweeps
"""

from __future__ import annotations

import hydra
import torch
from hydra.utils import instantiate
from lightning import Trainer, seed_everything
from omegaconf import DictConfig
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule


def net(width: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 3))


@hydra.main(version_base="1.3", config_path="conf", config_name="app")
def main(config: DictConfig) -> float:
    seed_everything(config.seed, verbose=False)
    inputs = torch.randn(64, 8)
    loader = DataLoader(TensorDataset(inputs, inputs[:, :3].argmax(dim=1)), batch_size=16)
    module = DistillModule(
        models={"Student": net(config.width), "Teacher": net(64)},  # yours
        frozen=["Teacher"],
        losses=instantiate(config.losses),
        optimizer=instantiate(config.optimizer),
        scheduler=instantiate(config.scheduler),
    )
    trainer: Trainer = instantiate(config.trainer)
    trainer.fit(module, loader, loader)
    print({name: round(float(value), 4) for name, value in trainer.callback_metrics.items()})
    return float(trainer.callback_metrics["val/Student/top1"])  # for a sweeper


if __name__ == "__main__":
    main()
