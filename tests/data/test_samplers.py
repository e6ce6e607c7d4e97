from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

from lit_distill.data import EpochSampler, EvalSampler, SampleKey
from lit_distill.data.samplers import seeded

sizes = st.integers(1, 60)
worlds = st.integers(1, 7)


def training(size: int, world: int, epoch: int, seed: int = 0) -> list[list[SampleKey]]:
    samplers = [EpochSampler(range(size), num_replicas=world, rank=rank, seed=seed) for rank in range(world)]
    for sampler in samplers:
        sampler.set_epoch(epoch)
        assert len(sampler) == len(list(sampler))
    return [list(sampler) for sampler in samplers]


@given(size=sizes, world=worlds, epoch=st.integers(0, 5))
def test_training_gives_every_rank_equally_many_and_none_twice(size: int, world: int, epoch: int) -> None:
    ranks = training(size, world, epoch)
    assert {len(keys) for keys in ranks} == {size // world}
    positions = [key.position for keys in ranks for key in keys]
    assert len(set(positions)) == len(positions) == size // world * world
    assert {key.epoch for keys in ranks for key in keys} <= {epoch}


@given(size=sizes, world=worlds)
def test_evaluation_gives_every_sample_once(size: int, world: int) -> None:
    if size < world:
        with pytest.raises(ValueError, match=f"evaluation of {size} samples on {world} processes"):
            EvalSampler(range(size), num_replicas=world, rank=0)
        return
    samplers = [EvalSampler(range(size), num_replicas=world, rank=rank) for rank in range(world)]
    ranks = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(keys) for keys in ranks]
    assert sorted(key.position for keys in ranks for key in keys) == list(range(size))
    assert max(map(len, ranks)) - min(map(len, ranks)) <= 1


def test_global_batches_do_not_depend_on_the_number_of_processes() -> None:
    alone = [key.position for key in training(24, 1, epoch=2)[0]]
    for world in (2, 3, 4):
        ranks = training(24, world, epoch=2)
        together = [keys[step].position for step in range(24 // world) for keys in ranks]
        assert together == alone


def test_order_changes_with_epoch_and_seed_only() -> None:
    assert training(30, 2, epoch=1) == training(30, 2, epoch=1)
    orders = [tuple(key.position for key in training(30, 1, epoch, seed)[0]) for epoch in range(3) for seed in range(3)]
    assert len(set(orders)) == 9


def test_what_training_leaves_out_changes() -> None:
    left_out = {frozenset(range(5)) - {k.position for keys in training(5, 2, e) for k in keys} for e in range(20)}
    assert left_out == {frozenset({i}) for i in range(5)}


def test_lightning_leaves_them_in_place() -> None:
    assert issubclass(EpochSampler, DistributedSampler)
    assert issubclass(EvalSampler, DistributedSampler)


def test_seeded_is_fixed_for_good() -> None:
    assert seeded("clip", 1, 2, 3).randint(0, 10**6) == 98266


def test_excluded_samples_leave_the_order_of_the_others() -> None:
    def keys(excluded: frozenset[int], rank: int, replicas: int) -> list[int]:
        sampler = EpochSampler(
            range(23), num_replicas=replicas, rank=rank, seed=5, excluded=lambda epoch: excluded if epoch > 1 else ()
        )
        sampler.set_epoch(2)
        positions = [key.position for key in sampler]
        assert len(positions) == len(sampler)
        return positions

    whole, left = keys(frozenset(), 0, 1), keys(frozenset({3, 19}), 0, 1)
    assert left == [position for position in whole if position not in (3, 19)]
    first, second = keys(frozenset({3, 19}), 0, 2), keys(frozenset({3, 19}), 1, 2)
    assert len(first) == len(second) == 10
    assert [position for pair in zip(first, second, strict=True) for position in pair] == left[:20]


def test_excluded_samples_are_not_evaluated_and_the_others_once() -> None:
    samplers = [EvalSampler(range(7), num_replicas=2, rank=rank, excluded=lambda epoch: {2, 5}) for rank in (0, 1)]
    assert [[key.position for key in sampler] for sampler in samplers] == [[0, 3, 6], [1, 4]]
    assert [len(sampler) for sampler in samplers] == [3, 2]
