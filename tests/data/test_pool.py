"""Samples without labels in training batches: which they are, how batches are made, what is refused."""

from __future__ import annotations

import itertools
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from image_folders import write_images
from lit_distill.callbacks import Quarantine
from lit_distill.data import Mixup, MovingDigits, Sample, VideoMix, read_list
from lit_distill.data.mixing import Mix, class_probabilities
from lit_distill.data.pool import PoolSampler, batch_share, hide_labels, within_kinds

from .conftest import write_lines
from .recorder import quiet_trainer
from .test_datamodule import Recorder, fit, make
from .test_images import fit as fit_images
from .test_images import make as make_images

SAMPLES = [Sample(f"{i}.mp4", i % 3) for i in range(60)]


# Hidden labels --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "each"), [(0.2, 4), (0.01, 1), (0.5, 10), (1.0, 20)])
def test_each_class_keeps_its_share(share: float, each: int) -> None:
    samples = hide_labels(SAMPLES, share)
    kept = samples[: 3 * each]
    assert Counter(sample.label for sample in kept) == {0: each, 1: each, 2: each}
    assert {sample.label for sample in samples[3 * each :]} <= {-1}
    assert sorted(sample.path for sample in samples) == sorted(sample.path for sample in SAMPLES)
    assert all(sample in SAMPLES for sample in kept)


def test_which_are_kept_follows_from_the_samples_alone() -> None:
    few, more = ({s.path for s in hide_labels(SAMPLES, share) if s.label >= 0} for share in (0.2, 0.4))
    assert few < more
    assert hide_labels(SAMPLES, 0.2) == hide_labels(SAMPLES, 0.2)
    assert few != {sample.path for sample in SAMPLES[: len(few)]}


# Batches --------------------------------------------------------------------------------------------------------------


def batches(sampler: PoolSampler, size: int) -> list[list[int]]:
    positions = [key.position for key in sampler]
    return [positions[start : start + size] for start in range(0, len(positions), size)]


def test_a_batch_has_the_labelled_first_and_as_many_as_told() -> None:
    sampler = PoolSampler(range(50), labelled=10, batch_size=5, unlabelled=3, seed=2)
    made = batches(sampler, 5)
    assert len(sampler) == 25
    assert all([position >= 10 for position in batch] == [False] * 2 + [True] * 3 for batch in made)
    assert sorted(itertools.chain(*(batch[:2] for batch in made))) == list(range(10))


def test_the_pool_is_gone_through_once_before_any_comes_again() -> None:
    sampler = PoolSampler(range(40), labelled=10, batch_size=4, unlabelled=2)  # 10 of 30 an epoch
    seen: list[int] = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        seen += [key.position for key in sampler if key.position >= 10]
    assert sorted(seen[:30]) == sorted(seen[30:]) == list(range(10, 40))
    assert seen[:30] != seen[30:]


def test_views_come_again() -> None:
    sampler = PoolSampler(range(40), labelled=10, batch_size=4, unlabelled=2, views=2)
    keys = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        keys.append(list(sampler))
    assert keys[0] == keys[2] != keys[1] == keys[3]


def test_a_small_pool_comes_several_times_in_an_epoch() -> None:
    sampler = PoolSampler(range(13), labelled=10, batch_size=3, unlabelled=2)
    drawn = [key.position for key in sampler if key.position >= 10]
    assert len(drawn) == 20
    assert all(sorted(drawn[i : i + 3]) == [10, 11, 12] for i in range(0, 18, 3))


def test_two_processes_of_a_half_batch_have_the_batches_of_one() -> None:
    whole = batches(PoolSampler(range(50), labelled=14, batch_size=6, unlabelled=4), 6)
    halves = [
        batches(PoolSampler(range(50), labelled=14, batch_size=3, unlabelled=2, num_replicas=2, rank=rank), 3)
        for rank in (0, 1)
    ]
    assert [set(a) | set(b) for a, b in zip(*halves, strict=True)] == [set(batch) for batch in whole]


def test_excluded_samples_are_left_out_and_the_others_keep_their_order() -> None:
    def pool_of(excluded: frozenset[int]) -> list[int]:
        sampler = PoolSampler(range(30), labelled=6, batch_size=3, unlabelled=2, excluded=lambda epoch: excluded)
        keys = [key.position for key in sampler]
        assert len(keys) == len(sampler)
        return [position for position in keys if position >= 6]

    before = pool_of(frozenset())
    gone = frozenset({before[1], 3})
    assert not gone & set(pool_of(gone))
    assert pool_of(gone)[:9] == [position for position in before if position not in gone][:9]


def test_batches_of_the_pool_alone() -> None:
    sampler = PoolSampler(range(20), labelled=4, batch_size=3, unlabelled=3)
    assert len(sampler) == 15
    assert len({key.position for key in sampler}) == 15
    assert all(key.position >= 4 for key in sampler)


def test_a_pool_too_small_for_a_batch_is_told() -> None:
    with pytest.raises(ValueError, match="2 samples without labels are fewer than 3 of each batch on 1 processes"):
        list(PoolSampler(range(12), labelled=10, batch_size=4, unlabelled=3))


@pytest.mark.parametrize(("batch", "share"), [(4, 0.05), (2, 0.9)])
def test_a_share_of_no_whole_sample_is_told(batch: int, share: float) -> None:
    with pytest.raises(ValueError, match=r"data\.unlabelled_share=.* of a batch of .* is .* samples: set a share from"):
        batch_share(batch, 10, 10, share)


# Targets --------------------------------------------------------------------------------------------------------------


def test_what_has_no_label_has_no_probabilities() -> None:
    soft = class_probabilities(torch.tensor([1, -1]), 4, smoothing=0.2)
    torch.testing.assert_close(soft, torch.tensor([[0.05, 0.85, 0.05, 0.05], [0.0, 0.0, 0.0, 0.0]]))


def test_samples_are_mixed_within_their_kind() -> None:
    target = torch.tensor([2, 0, 1, 1, -1, -1, -1])
    for seed in range(20):
        drawn = VideoMix().draw(7, 8, 8, random.Random(seed))
        mix = within_kinds(drawn, target)
        assert sorted(mix.partner.tolist()) == list(range(7))
        assert all((i < 4) == (partner < 4) for i, partner in enumerate(mix.partner.tolist()))
        assert (mix.weight, mix.box) == (drawn.weight, drawn.box)
        _, soft = mix(torch.zeros(7, 1, 3, 8, 8), target, 3)
        torch.testing.assert_close(soft.sum(1), torch.tensor([1.0] * 4 + [0.0] * 3))
    drawn = Mix(torch.tensor([1, 0]), torch.tensor(0.5))
    assert within_kinds(drawn, torch.tensor([0, 1])) is drawn


# Data modules ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def listed(videos: Path, tmp_path: Path) -> dict[str, Any]:
    """3 labelled videos; the other 9 in a list without labels."""
    labelled = [f"{name}/0.mp4 {label}" for label, name in enumerate(("jump", "run", "swim"))]
    others = [f"{name}/{number}.mp4" for name in ("jump", "run", "swim") for number in (1, 2, 3)]
    write_lines(tmp_path / "few.txt", labelled)
    write_lines(tmp_path / "pool.txt", others)
    return {"train_list": tmp_path / "few.txt", "unlabelled": tmp_path / "pool.txt", "unlabelled_share": 0.75}


@pytest.mark.parametrize("mix", [None, "mixup"])
def test_batches_hold_both_kinds(videos: Path, listed: dict[str, Any], mix: Any) -> None:
    data = make(videos, mix=mix, **listed)
    assert data.has_unlabelled
    made = fit(data).batches
    assert len(made["train"]) == 2 * 3
    for clips, target, index in made["train"]:
        assert len(clips) == 4
        assert (index >= 3).tolist() == [False, True, True, True]
        known = target >= 0 if mix is None else target.sum(1) > 0
        assert torch.equal(known, index < 3)
    assert sorted(i for _, _, index in made["train"][:3] for i in index.tolist()) == list(range(12))
    assert all((target >= 0).all() for _, target, _ in made["val"])


def test_workers_change_nothing(videos: Path, listed: dict[str, Any]) -> None:
    alone, helped = (fit(make(videos, num_workers=n, mix=Mixup(), **listed)).batches["train"] for n in (0, 2))
    for one, other in zip(alone, helped, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_resumed_within_an_epoch_gives_the_rest(videos: Path, listed: dict[str, Any], workers: int) -> None:
    def epoch(done: int) -> list[Any]:
        loader: Any = make(videos, num_workers=workers, **listed).train_dataloader()
        loader.sampler.set_epoch(1)
        loader.position = lambda: done
        return list(loader)

    whole, rest = epoch(0), epoch(2)
    assert [len(whole), len(rest)] == [3, 1]
    assert all(torch.equal(a, b) for a, b in zip(whole[2], rest[0], strict=True))


def test_hidden_labels_and_the_baseline_without_them(videos: Path) -> None:
    data = make(videos, labelled_share=0.25, batch_size=3)
    targets = torch.cat([target for _, target, _ in fit(data).batches["train"]])
    assert set(targets.tolist()) == {-1, 0, 1, 2}
    alone = make(videos, labelled_share=0.25, unlabelled_share=0, batch_size=3)
    assert not alone.has_unlabelled
    made = fit(alone).batches["train"]
    assert [sorted(target.tolist()) for _, target, _ in made] == [[0, 1, 2]] * 2
    paths = [{s.path for s in d.datasets["train"].samples if s.label >= 0} for d in (data, alone)]
    assert paths[0] == paths[1]


def test_a_video_of_the_pool_that_cannot_be_read(videos: Path, listed: dict[str, Any], tmp_path: Path) -> None:
    root = shutil.copytree(videos, tmp_path / "videos")
    (root / "run" / "2.mp4").write_bytes(b"no video")
    data = make(root, on_bad="quarantine", max_bad=1, **{**listed, "root": root})
    recorder = Recorder()
    quiet_trainer(max_epochs=2, callbacks=[Quarantine(folder=tmp_path)]).fit(recorder, datamodule=data)
    assert data.quarantine is not None
    assert [entry.path for entry in data.quarantine.entries] == ["run/2.mp4"]
    assert len(recorder.batches["train"]) == 6
    assert sum(len(index) for _, _, index in recorder.batches["train"]) == 2 * 12 - 1


def test_the_index_is_of_the_pool_too(videos: Path, listed: dict[str, Any]) -> None:
    found = make(videos, **listed).listed()
    assert [len(samples) for samples in found.values()] == [3, 7, 9]


def test_a_missing_pool_is_told(videos: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no list .*nowhere\.txt, set data\.unlabelled=<file>"):
        make(videos, unlabelled="nowhere.txt").setup("fit")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unlabelled_share": 0.5}, "no sample is without a label"),
        ({"unlabelled_share": 1.5, "unlabelled": "a.txt"}, r"share of a batch from 0 to 1, got 1\.5"),
        ({"labelled_share": 0.0}, r"data\.labelled_share must be above 0"),
        ({"format": "shards", "unlabelled": "a.txt"}, r"not of data\.format=shards"),
        ({"format": "shards", "labelled_share": 0.5, "shuffle": "shards"}, r"set data\.shuffle=samples"),
    ],
)
def test_what_can_not_be_is_refused(videos: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(videos, **arguments)


def test_moving_digits_hide_labels(tmp_path: Path) -> None:
    data = MovingDigits(
        root=tmp_path, clips=(16, 8, 8), digits=(1, 8), motions=("left", "up"), length=6, side=32, num_frames=4,
        size=32, scale=32, multi_scale=False, labelled_share=0.25, batch_size=4, num_workers=0,
    )  # fmt: skip
    data.prepare_data()
    data.setup("fit")
    assert [sample.label for sample in data.datasets["train"].samples][:4] == [0, 1, 2, 3]
    assert {sample.label for sample in data.datasets["train"].samples[4:]} == {-1}
    labelled, hidden = data.kinds()
    assert [*labelled, *hidden] == list(data.datasets["train"].samples)


def test_images_without_labels(tmp_path: Path) -> None:
    root = write_images(tmp_path / "images")
    shutil.copytree(root / "val", root / "pool")
    (root / "pool" / "notes.txt").write_text("no image")
    write_lines(root / "pool.txt", [f"pool/dog/{i}.jpg" for i in (0, 1)])
    for unlabelled, size in (("pool", 6), ("pool.txt", 2)):
        data = make_images(root, unlabelled=unlabelled, unlabelled_share=0.25)
        made = fit_images(data, epochs=1)["train"]
        assert len(data.datasets["train"].samples) == 12 + size
        assert [(target >= 0).tolist() for _, target, _ in made] == [[True] * 3 + [False]] * 4
    write_lines(root / "few.txt", ["train/cat/0.jpg 0", "train/emu/1.jpg 2 0.75"])
    listed_images = make_images(root, train="few.txt", unlabelled="pool.txt", labelled_share=1.0)
    labelled, others = listed_images.kinds()
    assert [(sample.path, sample.label) for sample in labelled] == [
        (str(root / "train" / "cat" / "0.jpg"), 0), (str(root / "train" / "emu" / "1.jpg"), 2)
    ]  # fmt: skip
    assert [sample.label for sample in others] == [-1, -1]
    assert len(listed_images.evaluated()) == 2 * 6
    with pytest.raises(FileNotFoundError, match=r"no images without labels in .*nothing, set data\.unlabelled="):
        make_images(root, unlabelled="nothing").setup("fit")


# List files -----------------------------------------------------------------------------------------------------------


def test_lists_without_labels(tmp_path: Path) -> None:
    write_lines(tmp_path / "pool.txt", ["a b.mp4", "c.mp4 4", "d.mp4,17", "e.mp4 3 0.75"])
    samples = read_list(tmp_path / "pool.txt", root=tmp_path, num_classes=2, labelled=False)
    assert [sample.path for sample in samples] == [
        str(tmp_path / name) for name in ("a b.mp4", "c.mp4", "d.mp4", "e.mp4")
    ]
    assert {sample.label for sample in samples} == {-1}
    write_lines(tmp_path / "frames.txt", ["a 12", "b 30 4"])
    folders = read_list(tmp_path / "frames.txt", root=tmp_path, num_classes=2, counted=True, labelled=False)
    assert [sample.frames for sample in folders] == [12, 30]
    write_lines(tmp_path / "frames.txt", ["a"])
    with pytest.raises(ValueError, match="expected 'dir frames', got 'a'"):
        read_list(tmp_path / "frames.txt", root=tmp_path, num_classes=2, counted=True, labelled=False)


def test_a_score_after_the_label_is_passed_over(tmp_path: Path) -> None:
    write_lines(tmp_path / "list.txt", ["a 2.mp4 1 0.931", "b.mp4,0,0.5", "c 0.25.mp4 1"])
    samples = read_list(tmp_path / "list.txt", root=tmp_path, num_classes=2)
    assert [(Path(s.path).name, s.label) for s in samples] == [("a 2.mp4", 1), ("b.mp4", 0), ("c 0.25.mp4", 1)]
    write_lines(tmp_path / "list.txt", ["a.mp4 0.5"])
    with pytest.raises(ValueError, match="expected 'path label'"):
        read_list(tmp_path / "list.txt", root=tmp_path, num_classes=2)
