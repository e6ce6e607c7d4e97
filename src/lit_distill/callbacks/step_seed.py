"""What a step draws (dropout, negatives, a user's own noise) follows from its place in the run, not from its past."""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback


class StepSeed(Callback):
    """Seeds torch, numpy and random before every batch from (seed, stage, epoch, batch, rank).

    A resumed run so draws what the uninterrupted one would have drawn, though no generator's state is stored.

    Args:
        seed: of the run.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[StepSeed(seed=7)], accelerator="cpu", logger=False)
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed a training step."""
        self._seed("train", trainer, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Seed a validation step."""
        self._seed(f"val{dataloader_idx}", trainer, batch_idx)

    def _seed(self, stage: str, trainer: Trainer, batch: int) -> None:
        seed = seed_of(self.seed, stage, trainer.current_epoch, batch, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users' code draws from
        random.seed(seed)


def seed_of(*parts: object) -> int:
    """A number below 2^63, the same on every machine for the same parts.

    Example:
        >>> seed_of(0, "train", 3, 17, 0) == seed_of(0, "train", 3, 17, 0) != seed_of(0, "train", 3, 17, 1)
        True
    """
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1
