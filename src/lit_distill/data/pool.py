"""Samples without labels: which of a training set they are, and how batches are made of both kinds."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence, Sized

import torch
from torch import Tensor

from lit_distill.data.catalogue.samples import UNLABELLED, Sample
from lit_distill.data.mixing import Mix
from lit_distill.data.samplers import EpochSampler, Excluded, SampleKey, seeded, view_of


def hide_labels(samples: Sequence[Sample], share: float) -> list[Sample]:
    """Take the labels of all but a share of each class away.

    Which ones keep theirs is a function of the samples' order and the share alone, and of no seed: a teacher of another
    seed has seen the same labels. Of each class round(share * size) are kept, at least one; a larger share keeps those
    of a smaller one too.

    Those that keep their label come first, then the others, each in their order.

    Example:
        >>> samples = [Sample(f"{i}.mp4", i % 2) for i in range(8)]
        >>> [sample.label for sample in hide_labels(samples, 0.25)]
        [0, 1, -1, -1, -1, -1, -1, -1]
    """
    classes: defaultdict[int, list[int]] = defaultdict(list)
    for position, sample in enumerate(samples):
        classes[sample.label].append(position)
    kept: set[int] = set()
    for label, positions in classes.items():
        seeded("labelled", label).shuffle(positions)
        kept.update(positions[: max(1, math.floor(share * len(positions) + 0.5))])
    hidden = [sample._replace(label=UNLABELLED) for i, sample in enumerate(samples) if i not in kept]
    return [sample for i, sample in enumerate(samples) if i in kept] + hidden


def labelled_count(samples: Sequence[Sample]) -> int:
    """How many of the samples have labels; those stand before the others."""
    return sum(sample.label != UNLABELLED for sample in samples)


def batch_share(batch_size: int, labelled: int, unlabelled: int, share: float | None) -> int:
    """How many samples of each batch have no label.

    Args:
        batch_size: of a process.
        labelled: number of samples with a label.
        unlabelled: number of samples without one.
        share: wanted of a batch, from 0 to 1; None for that of all samples, but at least one of each kind.

    Raises:
        ValueError: the share is out of its range, or no whole number of samples comes near it.

    Example:
        >>> batch_share(16, 100, 300, None), batch_share(16, 100, 300, 0.5), batch_share(16, 1, 3000, None)
        (12, 8, 15)
    """
    if share is None:
        natural = round(batch_size * unlabelled / (labelled + unlabelled))
        if batch_size < 2:
            raise ValueError(f"a batch of {batch_size} can't hold samples with and without labels: set data.batch_size")
        return min(max(natural, 1), batch_size - 1)
    count = round(batch_size * share)
    if 0 < share < 1 and not 0 < count < batch_size:
        raise ValueError(
            f"data.unlabelled_share={share} of a batch of {batch_size} is {batch_size * share:g} samples: set a share "
            f"from {1 / batch_size:g} to {1 - 1 / batch_size:g}, 0 or 1, or a larger data.batch_size"
        )
    return count


class PoolSampler(EpochSampler):
    """Training order of batches with samples of both kinds: in each, first the labelled ones, then those of the pool.

    An epoch goes once through the labelled samples, as :class:`EpochSampler` does, and meanwhile on through the pool:
    pass after pass, each in an order of its own, where the epoch before stopped. So a large pool is gone through over
    several epochs, and a small one several times in one. Every process has equally many of both kinds in every batch:
    global batch k is the same for any number of processes with the same product of processes and batch size.

    Which samples an epoch has is a function of (seed, epoch, what it excludes).

    Args:
        dataset: what is sampled: ``labelled`` samples with labels, then those without; only its length matters.
        labelled: how many have a label.
        batch_size: of a process.
        unlabelled: how many of each batch have none; all of them for an epoch that is one pass through the pool alone.
        num_replicas: number of processes.
        rank: of this process, from 0.
        seed: of the order.
        excluded: the positions that an epoch leaves out; none for none.
        views: after so many epochs order and pool start again, see :class:`EpochSampler`; none for never.

    Raises:
        ValueError: the pool, or what is left of it, is smaller than its part of a batch of all processes.

    Example:
        >>> sampler = PoolSampler(range(10), labelled=4, batch_size=3, unlabelled=1)
        >>> [[key.position >= 4 for key in batch] for batch in zip(*[iter(sampler)] * 3)]
        [[False, False, True], [False, False, True]]
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        labelled: int,
        batch_size: int,
        unlabelled: int,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        excluded: Excluded | None = None,
        views: int | None = None,
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed, excluded=excluded, views=views)
        self.labelled, self.pool = labelled, self.samples - labelled
        self.of_pool, self.of_labelled = unlabelled, batch_size - unlabelled

    def __len__(self) -> int:
        """Number of this process's keys in this epoch."""
        return self._batches(self._left_out_of_labelled()) * (self.of_labelled + self.of_pool)

    def __iter__(self) -> Iterator[SampleKey]:
        """Keys of this process in this epoch, batch by batch."""
        left_out = self._left_out()
        batches = self._batches(self._left_out_of_labelled())
        order = list(range(self.labelled))
        seeded("order", self.seed, self._view).shuffle(order)
        labelled = self._mine([index for index in order if index not in left_out], batches * self.of_labelled)
        pool = self._mine(self._drawn(batches * self.of_pool * self.num_replicas), batches * self.of_pool)
        mine = [
            index
            for batch in range(batches)
            for kind, size in ((labelled, self.of_labelled), (pool, self.of_pool))
            for index in kind[batch * size : (batch + 1) * size]
        ]
        return (SampleKey(self._view, index) for index in mine[self.start :])

    @property
    def _view(self) -> int:
        return view_of(self.epoch, self.views)

    def _mine(self, order: Sequence[int], count: int) -> Sequence[int]:
        return order[self.rank : count * self.num_replicas : self.num_replicas]

    def _left_out_of_labelled(self) -> int:
        return sum(index < self.labelled for index in self._left_out())

    def _batches(self, left_out: int) -> int:
        """Of an epoch; of all labelled samples, or of the pool where batches are of it alone."""
        there = self.labelled - left_out if self.of_labelled else self.pool - (len(self._left_out()) - left_out)
        return there // ((self.of_labelled or self.of_pool) * self.num_replicas)

    def _drawn(self, count: int) -> list[int]:
        """This epoch's stretch of the pool's passes."""
        left_out = self._left_out()
        there = self.pool - (len(left_out) - self._left_out_of_labelled())
        if there < self.of_pool * self.num_replicas:
            raise ValueError(
                f"{there} samples without labels are fewer than {self.of_pool} of each batch on {self.num_replicas} "
                "processes: set a smaller data.unlabelled_share or data.batch_size"
            )
        whole = self.labelled if self.of_labelled else self.pool
        usual = whole // ((self.of_labelled or self.of_pool) * self.num_replicas) * self.of_pool * self.num_replicas
        turn, at = divmod(self._view * usual, self.pool)
        drawn: list[int] = []
        while len(drawn) < count:
            order = list(range(self.labelled, self.samples))
            seeded("pool", self.seed, turn).shuffle(order)
            drawn += [index for index in order[at:] if index not in left_out]
            turn, at = turn + 1, 0
        return drawn[:count]


def within_kinds(mix: Mix, target: Tensor) -> Mix:
    """The same mixing, with partners of a sample's own kind: with a label, or without.

    A label would mean half of what it says for a sample that is mixed with one of an unknown label. Each kind's
    partners are a permutation of it, in the order that the drawn one has them.

    Example:
        >>> mix = Mix(torch.tensor([3, 2, 1, 0]), torch.tensor(0.5))
        >>> within_kinds(mix, torch.tensor([0, 2, -1, -1])).partner.tolist()
        [1, 0, 3, 2]
    """
    known = target != UNLABELLED
    if bool(known.all()):
        return mix
    partner = torch.empty_like(mix.partner)
    for kind in (known, ~known):
        partner[kind] = mix.partner[kind[mix.partner]]
    return mix._replace(partner=partner)
