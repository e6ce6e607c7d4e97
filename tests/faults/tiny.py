"""A distillation so small that hundreds of its runs take seconds; shared by the fault tests of checkpoints."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm, SafeCheckpointIO


def net(width: int = 8) -> nn.Sequential:
    """A network with parameters and BatchNorm's buffers."""
    return nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, 3))


def loader(samples: int = 32, batch_size: int = 8) -> DataLoader[Any]:
    """Three classes of points (samples, 4), the same every time."""
    x = torch.randn(samples, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(x, x[:, :3].argmax(dim=1)), batch_size=batch_size)


def module(*, seed: int = 1, width: int = 16, **more: Any) -> DistillModule:
    """A Student of 8 hidden units that learns from a frozen Teacher."""
    torch.manual_seed(seed)
    defaults: dict[str, Any] = {
        "models": {"Student": net(), "Teacher": net(width)},
        "frozen": ["Teacher"],
        "losses": {
            "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
            "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.5),
        },
        "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=0.01),
    }
    return DistillModule(**{**defaults, **more})


def trainer(folder: Path, **more: Any) -> Trainer:
    """A quiet Trainer on the CPU that writes its checkpoints by SafeCheckpointIO."""
    defaults: dict[str, Any] = {
        "max_epochs": 2, "accelerator": "cpu", "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
        "default_root_dir": folder, "plugins": [SafeCheckpointIO()],
    }  # fmt: skip
    return Trainer(**{**defaults, **more})
