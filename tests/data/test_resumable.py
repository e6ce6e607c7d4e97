"""A loader begins behind the batches that are done, under any number of workers, and only then asks its sampler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import SequentialSampler

from lit_distill.data import EpochSampler, ResumableLoader, SampleKey


class Keys:
    def __len__(self) -> int:
        return 23

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


def test_a_sampler_that_cannot_begin_there_is_named() -> None:
    loader = ResumableLoader(range(4), sampler=SequentialSampler(range(4)))  # type: ignore[var-annotated,arg-type]
    assert len(list(loader)) == 4
    loader.position = lambda: 2
    with pytest.raises(ValueError, match="behind batch 2 of its epoch, but a SequentialSampler cannot"):
        list(loader)
