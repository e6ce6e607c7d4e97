"""Which samples a process sees, in which order: a function of seed and epoch alone, whatever the number of workers."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Iterator, Sequence, Sized
from typing import NamedTuple, TypeAlias, cast

from torch.utils.data import Dataset
from torch.utils.data.distributed import DistributedSampler

Excluded: TypeAlias = Callable[[int], Collection[int]]
"""The positions that an epoch leaves out: a function of the epoch, the same in every process."""


class SampleKey(NamedTuple):
    """What a sampler hands to a data set: the epoch (or its view) goes along, so workers that live on know it too."""

    epoch: int
    position: int


def seeded(*parts: object) -> random.Random:
    """A generator of its own for what ``parts`` name, the same on every machine and in every process.

    Args:
        parts: such as a purpose, the seed, the epoch, the sample's index.

    Returns:
        a generator seeded by a hash of their text.

    Example:
        >>> seeded("clip", 0, 3, 17).random() == seeded("clip", 0, 3, 17).random()
        True
    """
    return random.Random("/".join(map(str, parts)))


def view_of(epoch: int, views: int | None) -> int:
    """Which epoch an epoch looks like: itself, or with so many views that are gone through in turn, one of the first.

    Example:
        >>> [view_of(epoch, 3) for epoch in range(5)], view_of(4, None)
        ([0, 1, 2, 0, 1], 4)
    """
    return epoch if views is None else epoch % views


class _KeySampler(DistributedSampler[SampleKey]):
    """Common ground: a :class:`DistributedSampler`, so that Lightning leaves it in place, that yields keys."""

    def __init__(
        self, dataset: Sized, *, num_replicas: int, rank: int, seed: int, drop_last: bool, excluded: Excluded | None
    ) -> None:
        super().__init__(
            cast("Dataset[object]", dataset),
            num_replicas=num_replicas,
            rank=rank,
            shuffle=False,
            seed=seed,
            drop_last=drop_last,
        )
        self.samples = len(dataset)
        self.excluded = excluded

    def _left_out(self) -> Collection[int]:
        return () if self.excluded is None else self.excluded(self.epoch)


class EpochSampler(_KeySampler):
    """Training order: all samples shuffled by (seed, epoch), dealt out to the processes in turn.

    Global batch k is the k-th stretch of the shuffled samples for any number of processes. The last samples that do not
    give every process one more are left out of this epoch, others of the next: all processes have equally many.

    Excluded samples are taken out after the shuffle: the others keep their order, which so is a function of (seed,
    epoch, what the epoch excludes).

    Attributes:
        start: how many keys of this process the next iteration leaves out, those of batches that are done; its length
            remains the whole epoch's.

    Args:
        dataset: what is sampled; only its length matters.
        num_replicas: number of processes.
        rank: of this process, from 0.
        seed: of the order.
        excluded: the positions that an epoch leaves out; none for none.
        order: gives all positions in the order of an epoch, such as
            :class:`lit_distill.data.sources.shards.ShardOrder`; none
            shuffles them.
        views: after so many epochs their order, and the epoch of their keys, starts again; none for never.

    Example:
        >>> sampler = EpochSampler(range(5), num_replicas=2, rank=0)
        >>> sampler.set_epoch(7)
        >>> len(sampler), {key.epoch for key in sampler}
        (2, {7})
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        excluded: Excluded | None = None,
        order: Callable[[int], list[int]] | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed, drop_last=True, excluded=excluded)
        self.order, self.views = order, views
        self.start = 0

    def __len__(self) -> int:
        """Number of this process's keys in this epoch."""
        return (self.samples - len(self._left_out())) // self.num_replicas

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this process in this epoch."""
        view = view_of(self.epoch, self.views)
        if self.order is None:
            order = list(range(self.samples))
            seeded("order", self.seed, view).shuffle(order)
        else:
            order = self.order(view)
        left_out = self._left_out()
        if left_out:
            order = [index for index in order if index not in left_out]
        stop = len(self) * self.num_replicas
        mine = order[self.rank : stop : self.num_replicas]
        return (SampleKey(view, index) for index in mine[self.start :])


class EvalSampler(_KeySampler):
    """Evaluation order: every sample once, in one process only, the samples dealt out in turn without padding.

    Processes may differ by one sample, and so by one step. That is safe: after the first evaluation step
    DistributedDataParallel exchanges nothing in forward passes without gradients, and metrics are exchanged at the
    end. Each process must have a sample, for that first step.

    Args:
        dataset: what is sampled; only its length matters.
        num_replicas: number of processes.
        rank: of this process, from 0.
        excluded: the positions that an epoch leaves out; none for none.

    Raises:
        ValueError: there are fewer samples than processes.

    Example:
        >>> [[key.position for key in EvalSampler(range(5), num_replicas=2, rank=rank)] for rank in (0, 1)]
        [[0, 2, 4], [1, 3]]
    """

    def __init__(
        self, dataset: Sized, *, num_replicas: int = 1, rank: int = 0, excluded: Excluded | None = None
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=0, drop_last=False, excluded=excluded)
        if self.samples < num_replicas:
            raise ValueError(
                f"evaluation of {self.samples} samples on {num_replicas} processes leaves some without any: "
                f"use at most trainer.devices={self.samples}"
            )

    def __len__(self) -> int:
        """Number of this process's keys."""
        return len(self._positions())

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this process; evaluation draws nothing, so their epoch is always 0."""
        return (SampleKey(0, index) for index in self._positions())

    def _positions(self) -> Sequence[int]:
        left_out = self._left_out()
        there = [index for index in range(self.samples) if index not in left_out] if left_out else range(self.samples)
        return there[self.rank :: self.num_replicas]
