from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from lit_distill.data import SampleKey, VideoDataModule
from lit_distill.data import datasets as datasets_module
from lit_distill.data.catalogue.quarantine import Batch
from lit_distill.data.catalogue.samples import Member, Sample, SampleTable
from lit_distill.data.datasets import Item, collate
from lit_distill.data.loading import SampleDataModule, Split

from .test_datamodule import make


class Self:
    """Items that tell which process made them, and on how many threads."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, key: SampleKey | int) -> Item:
        return torch.full((1, 3, 2, 2), torch.get_num_threads(), dtype=torch.uint8), os.getpid(), 0


class SelfModule(SampleDataModule[Self]):
    layout = ""

    def __init__(self, **arguments: Any) -> None:
        given = {"num_classes": 1, "mix": None, "batch_size": 2, "eval_batch_size": 2, "num_workers": 2, "seed": 0}
        super().__init__(root=".", mean=(0.5,) * 3, std=(0.5,) * 3, **{**given, **arguments})

    def _dataset(self, split: Split) -> Self:
        return Self()

    def _read_class_names(self) -> None:
        return None


def epochs(data: VideoDataModule) -> Iterator[list[Tensor]]:
    train, val = data.train_dataloader(), data.val_dataloader()
    for epoch in range(2):
        train.sampler.set_epoch(epoch)  # type: ignore[attr-defined]
        for loader in (train, val):
            yield from loader


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_whole_epochs_are_the_same_under_any_number_of_workers(videos: Path, workers: int) -> None:
    alone = epochs(make(videos, num_workers=0, views="center"))
    helped = epochs(make(videos, num_workers=workers, prefetch=workers, views="center"))
    count = 0
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        count += 1
    assert count == 2 * (3 + 2)


@pytest.mark.parametrize("split", ["train", "val"])
def test_workers_live_on_and_keep_to_one_thread(split: str) -> None:
    data = SelfModule()
    loader = data.train_dataloader() if split == "train" else data.val_dataloader()
    seen = []
    for _ in range(3):
        batches = list(loader)
        seen.append({pid for _, pids, _ in batches for pid in pids.tolist()})
        assert all(bool((threads == 1).all()) for threads, _, _ in batches)
    assert seen[0] == seen[1] == seen[2]
    assert len(seen[0]) == 2
    assert os.getpid() not in seen[0]


def test_a_worker_stacks_into_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [(torch.full((4, 3, 5, 6), i, dtype=torch.uint8), i, i) for i in range(3)]
    plain = cast("Batch", collate(items))
    assert not plain[0].untyped_storage().is_shared()
    monkeypatch.setattr(datasets_module, "get_worker_info", lambda: object())
    shared = cast("Batch", collate(items))
    assert shared[0].untyped_storage().is_shared()
    assert shared[0].is_contiguous()
    assert all(torch.equal(a, b) for a, b in zip(plain, shared, strict=True))


def test_a_worker_decodes_into_the_memory_that_it_hands_over(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(videos)
    data.setup("fit")
    dataset = data.datasets["train"]
    keys = [SampleKey(2, index) for index in (5, 0, 7)]
    plain = cast("Batch", collate([dataset[key] for key in keys]))
    monkeypatch.setattr(datasets_module, "get_worker_info", lambda: object())
    monkeypatch.setattr(torch, "stack", None)  # nothing is left to stack
    items = dataset.__getitems__(keys)
    batch = cast("Batch", collate(items))
    assert batch[0].untyped_storage().is_shared()
    assert batch[0].data_ptr() == cast("Item", items[0])[0].data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(plain, batch, strict=True))


def test_a_part_of_what_a_worker_decoded_is_stacked_anew(videos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = make(videos)
    data.setup("fit")
    dataset = data.datasets["train"]
    monkeypatch.setattr(datasets_module, "get_worker_info", lambda: object())
    items = dataset.__getitems__(range(3))
    for some in ([items[0], items[2]], [items[1], items[0], items[2]], [items[1], items[2]], items[:2]):
        batch = cast("Batch", collate(some))
        assert len(batch[0].untyped_storage()) == batch[0].numel()
        for clip, item in zip(batch[0], some, strict=True):
            assert torch.equal(clip, cast("Item", item)[0])


def test_prefetch(videos: Path) -> None:
    assert make(videos, num_workers=2, prefetch=5).train_dataloader().prefetch_factor == 5
    assert make(videos, num_workers=0, prefetch=5).train_dataloader().prefetch_factor is None
    with pytest.raises(ValueError, match=r"data\.prefetch must be at least 1, got 0"):
        make(videos, prefetch=0)


def test_a_table_reads_like_the_list_it_was_made_from() -> None:
    samples = [
        Sample("a/ü 1.mp4", 3),
        Sample("frames", 0, 17),
        Sample("b.tar", 1, member=Member("x/k.mp4", 512, 0)),
        Sample("b.tar", 2, member=Member("x/ł.mp4", 2048, 7)),
        Sample("a/ü 1.mp4", 4),
        Sample("bad\udcff.mp4", 5),
    ]
    table = SampleTable(samples)
    assert list(table) == samples == table[:] == [table[i - len(samples)] for i in range(len(samples))]
    assert table[1:5:2] == samples[1:5:2]
    assert table.groups.tolist() == [0, 1, 2, 2, 0, 3]
    assert samples[2] in table
    with pytest.raises(IndexError):
        table[6]
    assert list(SampleTable([])) == []
