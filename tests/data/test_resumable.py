"""A loader begins behind the batches that are done, under any number of workers, and only then asks its sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch.utils.data import SequentialSampler

from lit_distill.callbacks import ExactResume
from lit_distill.data import EpochSampler, ResumableLoader, SampleKey


class Keys:
    def __init__(self, samples: int = 23) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, key: SampleKey) -> tuple[int, int]:
        return key.epoch, key.position


def batches(workers: int, done: int, epoch: int = 2, **more: Any) -> list[Any]:
    data: Any = Keys()
    sampler = EpochSampler(data, num_replicas=2, rank=1, seed=4)
    loader = ResumableLoader(data, batch_size=2, sampler=sampler, drop_last=True, num_workers=workers, **more)
    iterator = iter(loader)  # as Lightning does, before it knows where it is
    sampler.set_epoch(epoch)
    loader.position = lambda: done
    assert len(loader) == 5, "of the whole epoch"
    return list(iterator)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("done", [0, 1, 4, 5])
def test_what_is_left_is_the_end_of_the_whole(workers: int, done: int) -> None:
    whole, left = batches(0, 0), batches(workers, done)
    assert len(left) == 5 - done
    for one, other in zip(whole[done:], left, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_the_next_epoch_is_whole_again() -> None:
    data: Any = Keys()
    loader = ResumableLoader(data, batch_size=2, sampler=EpochSampler(data))
    done = [3, 0]
    loader.position = lambda: done.pop(0)
    assert [len(list(loader)), len(list(loader))] == [9, 12]


def test_a_loader_beside_a_longer_one_begins_again_within_an_epoch(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    class Both(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            seen.append((int(batch["short"][1][0]), int(batch["long"][1][0])))
            return self.weight * 1.0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    def loader(samples: int) -> ResumableLoader[Any]:
        data: Any = Keys(samples)
        return ResumableLoader(data, batch_size=2, sampler=EpochSampler(data))

    loaders = {"short": loader(6), "long": loader(16)}
    trainer = Trainer(
        max_epochs=2, callbacks=[ExactResume()], accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Both(), loaders)
    assert len(seen) == 16
    for epoch in (seen[:8], seen[8:]):
        short, long = zip(*epoch, strict=True)
        assert len(set(long)) == 8
        assert len(set(short)) == 3
        assert short == (*short[:3], *short[:3], *short[:2])
    assert [len(list(each)) for each in loaders.values()] == [3, 8], "whole again once training is over"


def test_a_sampler_that_cannot_begin_there_is_named() -> None:
    loader = ResumableLoader(range(4), sampler=SequentialSampler(range(4)))  # type: ignore[var-annotated,arg-type]
    assert len(list(loader)) == 4
    loader.position = lambda: 2
    with pytest.raises(ValueError, match="behind batch 2 of its epoch, but a SequentialSampler cannot"):
        list(loader)
