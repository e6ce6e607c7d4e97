"""Batches of noise to train a generator on, with real samples for validation and test alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import Dataset

from lit_distill.data.resumable import ResumableLoader
from lit_distill.data.samplers import EpochSampler, SampleKey, seeded

NOISE = "noise"
GENERATOR = "Generator"
"""The name of a model that makes samples of noise, unless it has another."""


def is_noise(batch: Any) -> bool:
    """Whether a batch is one of noise: a mapping with a tensor ``noise``.

    Example:
        >>> is_noise({"noise": torch.zeros(2, 8)}), is_noise((torch.zeros(2, 8), torch.zeros(2)))
        (True, False)
    """
    return isinstance(batch, Mapping) and isinstance(batch.get(NOISE), Tensor)


class NoiseDataset(Dataset[dict[str, Tensor]]):
    """Batches ``{"noise": (B, Z)}`` from the standard normal distribution, each a function of (seed, epoch, position).

    Args:
        size: Z.
        batches: how many there are in an epoch.
        batch_size: B.
        seed: of the numbers.

    Example:
        >>> NoiseDataset(size=8, batches=3, batch_size=4)[0]["noise"].shape
        torch.Size([4, 8])
    """

    def __init__(self, *, size: int, batches: int, batch_size: int, seed: int = 0) -> None:
        self.size, self.batches, self.batch_size, self.seed = size, batches, batch_size, seed

    def __len__(self) -> int:
        return self.batches

    def __getitem__(self, key: SampleKey | int) -> dict[str, Tensor]:
        """The batch of a key, or of a position in epoch 0."""
        epoch, position = key if isinstance(key, tuple) else (0, key)
        if not 0 <= position < self.batches:
            raise IndexError(position)
        generator = torch.Generator().manual_seed(seeded(NOISE, self.seed, epoch, position).getrandbits(63))
        return {NOISE: torch.randn(self.batch_size, self.size, generator=generator)}


class NoiseData(LightningDataModule):
    """Noise to train :class:`lit_distill.DataFreeModule` on, and the validation and test of another data module.

    The training data of that one are neither looked for nor read.

    Args:
        real: the data module whose validation and test batches are used.
        size: Z, how many numbers a sample of noise has, as the generator expects.
        batches: how many an epoch has, over all processes.
        batch_size: samples a batch, in each process.
        seed: of the noise.

    Raises:
        ValueError: a number is below 1.

    Example:
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.zeros(6, 3, 8, 8), torch.zeros(6, dtype=torch.long))
        >>> real = LightningDataModule.from_datasets(val_dataset=images, batch_size=2)
        >>> data = NoiseData(real, size=16, batches=5, batch_size=4)
        >>> len(data.train_dataloader()), len(data.val_dataloader())
        (5, 3)
        >>> next(iter(data.train_dataloader()))["noise"].shape
        torch.Size([4, 16])
    """

    def __init__(
        self, real: LightningDataModule, *, size: int, batches: int, batch_size: int = 256, seed: int = 0
    ) -> None:
        super().__init__()
        for name, number in (("size", size), ("batches", batches), ("batch_size", batch_size)):
            if isinstance(number, bool) or not isinstance(number, int) or number < 1:
                raise ValueError(f"NoiseData expects {name} to be a whole number of at least 1, got {number!r}")
        self.real = real
        self.noise = NoiseDataset(size=size, batches=batches, batch_size=batch_size, seed=seed)

    @property
    def num_classes(self) -> int | None:
        """Of the real data, where they say so."""
        return getattr(self.real, "num_classes", None)

    @property
    def class_names(self) -> tuple[str, ...] | None:
        """Of the real data, where they have names."""
        return getattr(self.real, "class_names", None)

    def prepare_data(self) -> None:
        """As the real data."""
        self.real.prepare_data()

    def setup(self, stage: str | None = None) -> None:
        """Look for the real data of validation or test."""
        self.real.trainer = self.trainer
        self.real.setup("validate" if stage == "fit" else stage)  # type: ignore[arg-type]

    def teardown(self, stage: str) -> None:
        """As the real data."""
        self.real.teardown("validate" if stage == "fit" else stage)

    def train_dataloader(self) -> ResumableLoader[dict[str, Tensor]]:
        """Noise, other noise in each epoch."""
        trainer = self.trainer
        replicas, rank = (1, 0) if trainer is None else (trainer.world_size, trainer.global_rank)
        sampler = EpochSampler(self.noise, num_replicas=replicas, rank=rank, seed=self.noise.seed)
        loader = ResumableLoader(self.noise, batch_size=None, sampler=sampler)
        if trainer is not None:
            loader.follow(trainer)
        return loader

    def val_dataloader(self) -> Any:
        """The real validation batches."""
        return self.real.val_dataloader()

    def test_dataloader(self) -> Any:
        """The real test batches."""
        return self.real.test_dataloader()

    def predict_dataloader(self) -> Any:
        """The real batches of prediction."""
        return self.real.predict_dataloader()

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the real data do with their batches."""
        return batch if is_noise(batch) else self.real.on_before_batch_transfer(batch, dataloader_idx)

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """As the real data do with their batches."""
        if is_noise(batch):
            return super().transfer_batch_to_device(batch, device, dataloader_idx)
        return self.real.transfer_batch_to_device(batch, device, dataloader_idx)

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """As the real data do with their batches."""
        return batch if is_noise(batch) else self.real.on_after_batch_transfer(batch, dataloader_idx)
