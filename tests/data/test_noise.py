"""Noise is a function of seed, epoch and position, and the real data's training split is never looked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch import Tensor

from lit_distill.data import NoiseData


class Real(LightningDataModule):
    num_classes = 4
    class_names = ("a", "b", "c", "d")

    def __init__(self) -> None:
        super().__init__()
        self.stages: list[str] = []

    def setup(self, stage: str) -> None:
        self.stages.append(stage)

    def train_dataloader(self) -> Any:
        raise AssertionError("the training data are not to be had")

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return ("real", batch)


def batches(data: NoiseData, epoch: int) -> list[Tensor]:
    loader = data.train_dataloader()
    loader.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
    return [batch["noise"] for batch in loader]


def test_batches_are_a_function_of_seed_and_epoch() -> None:
    data, again = (NoiseData(Real(), size=3, batches=4, batch_size=2, seed=1) for _ in range(2))
    first = batches(data, 0)
    assert all(map(torch.equal, first, batches(again, 0)))
    assert first[0].shape == (2, 3)
    for other in (batches(data, 1), batches(NoiseData(Real(), size=3, batches=4, batch_size=2, seed=2), 0)):
        assert not any(torch.equal(one, two) for one in first for two in other)


def test_the_real_data_are_asked_for_validation_and_test_alone() -> None:
    data = NoiseData(real := Real(), size=3, batches=4)
    data.setup("fit")
    data.setup("test")
    assert real.stages == ["validate", "test"]
    assert data.num_classes == 4
    assert data.class_names == ("a", "b", "c", "d")
    noise = {"noise": torch.zeros(2, 3)}
    assert data.on_after_batch_transfer(noise, 0) is noise
    assert data.on_after_batch_transfer(1, 0) == ("real", 1)


@pytest.mark.parametrize("name", ["size", "batches", "batch_size"])
def test_numbers_below_one_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"expects {name} to be"):
        NoiseData(Real(), **{"size": 3, "batches": 4, name: 0})
