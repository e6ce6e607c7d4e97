"""Keys are of the very tensors: the same for the same, whoever loads them, another for any other."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer

from lit_distill.data import CutMix, Mixup, VideoDataModule
from lit_distill.data.catalogue.quarantine import BadVideo, PartialBatch
from lit_distill.data.datasets import collate
from lit_distill.data.digests import InputKeys, KeyedInputs, batch_keys, collate_with_digests, row_digests
from lit_distill.data.mixing import Mix

from .test_datamodule import Recorder, make


class Keys(Recorder):
    """Keeps the keys of each batch beside its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.keys: list[tuple[bytes, ...]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        data: VideoDataModule = self.trainer.datamodule  # type: ignore[attr-defined]
        keys = data.keys_of(batch[0])
        assert keys is not None
        assert data.keys_of(batch[0].clone()) is None
        self.keys.append(keys.rows)
        return super().training_step(batch, batch_idx)


def run(data: VideoDataModule, epochs: int) -> Keys:
    data.with_keys = True
    module = Keys()
    trainer = Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, limit_val_batches=0, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, datamodule=data)
    return module


@pytest.mark.parametrize("mix", [None, Mixup(alpha=0.4), CutMix(alpha=1.0)])
def test_epochs_of_one_view_are_the_same_tensors_with_the_same_keys(videos: Path, mix: Any) -> None:
    seen = run(make(videos, views_per_sample=2, mix=mix), 5)
    keys, tensors = seen.keys, seen.batches["train"]
    for epoch in range(2, 5):
        for batch in range(3):
            here, there = 3 * epoch + batch, 3 * (epoch - 2) + batch
            assert keys[here] == keys[there]
            assert all(torch.equal(a, b) for a, b in zip(tensors[here], tensors[there], strict=True))
    assert len({key for batch in keys for key in batch}) == 2 * 12, "two views of twelve videos"
    if mix is None:
        assert run(make(videos, views_per_sample=2, num_workers=2), 2).keys == keys[:6]


def test_without_views_every_epoch_has_keys_of_its_own(videos: Path) -> None:
    assert len({key for batch in run(make(videos), 3).keys for key in batch}) == 36
    with pytest.raises(ValueError, match=r"data\.views_per_sample must be at least 1, got 0"):
        make(videos, views_per_sample=0)


def first_keys(root: Path, **arguments: Any) -> tuple[bytes, ...]:
    return run(make(root, views_per_sample=1, **arguments), 1).keys[0]


def test_whatever_changes_the_tensor_changes_the_key(videos: Path, tmp_path: Path) -> None:
    root = tmp_path / "videos"
    shutil.copytree(videos, root)
    before = first_keys(root)
    assert first_keys(root) == before
    others: dict[str, dict[str, Any]] = {
        "frames": {"num_frames": 3}, "size": {"size": 20}, "scale": {"scale": 40}, "seed": {"seed": 1},
        "flip": {"flip": 1.0}, "reader": {"resize": "exact"}, "mean": {"mean": (0.4, 0.4, 0.4)},
        "std": {"std": (0.2, 0.3, 0.2)}, "mixing": {"mix": Mixup()}, "order": {"sampling": "linspace"},
    }  # fmt: skip
    seen = dict.fromkeys(before, "nothing")
    for name, other in others.items():
        if name == "flip":
            other = {"flip": 1.0, "multi_scale": False}
            seen |= dict.fromkeys(first_keys(root, flip=0.0, multi_scale=False), "flip off")
        for key in first_keys(root, **other):
            assert key not in seen, f"another {name} has a key of {seen[key]}"
            seen[key] = name
    for file in root.glob("*/*.mp4"):  # another file under the same name
        shutil.copy(videos / "swim" / "3.mp4", file)
    changed = first_keys(root)
    assert sum(a == b for a, b in zip(before, changed, strict=True)) <= 1


def test_a_mixed_row_has_its_own_and_its_partners_bytes_in_its_key() -> None:
    digests = row_digests(torch.arange(4)[:, None])
    swapped = Mix(torch.tensor([1, 0, 3, 2]), torch.tensor(0.7))
    rows = dict.fromkeys(InputKeys.of(digests, None).rows, "plain")
    for name, mix in {
        "swapped": swapped,
        "weight": swapped._replace(weight=torch.tensor(0.70000005)),
        "partner": swapped._replace(partner=torch.tensor([2, 3, 0, 1])),
        "box": Mix(swapped.partner, swapped.weight, (0, 0, 2, 2)),  # type: ignore[arg-type]
        "other box": Mix(swapped.partner, swapped.weight, (0, 0, 2, 3)),  # type: ignore[arg-type]
    }.items():
        for key in InputKeys.of(digests, mix).rows:
            assert key not in rows, (name, rows[key])
            rows[key] = name
    again = InputKeys.of(digests[[1, 0]], Mix(torch.tensor([1, 0]), torch.tensor(0.7)))
    assert set(again.rows) == set(InputKeys.of(digests, swapped).rows[:2]), "of the row, wherever it stands"


def test_digests_are_of_type_shape_and_bytes() -> None:
    rows = torch.arange(12, dtype=torch.int32).view(2, 6)
    forms = [rows, rows.view(2, 2, 3), rows.view(torch.float32), rows.to(torch.int64), rows.bool(), rows.bfloat16()]
    digests = {row_digests(form)[0].numpy().tobytes() for form in forms}
    assert len(digests) == len(forms)
    channels_last = torch.arange(48).view(2, 3, 2, 4).to(memory_format=torch.channels_last)
    assert not torch.equal(row_digests(channels_last), row_digests(channels_last.contiguous())), (
        "kernels tell them apart"
    )
    assert torch.equal(row_digests(channels_last), row_digests(channels_last.clone()))
    assert row_digests(torch.arange(3)).shape == (3, 16)


def test_keys_of_a_batch_hold_for_its_rows_in_their_order() -> None:
    one, other = batch_keys([b"a", b"b"]), batch_keys([b"b", b"a"])
    assert len({*one, *other, *batch_keys([b"a", b"c"])}) == 6
    assert one == batch_keys([b"a", b"b"])


def test_what_could_not_be_read_leaves_the_others_their_digests() -> None:
    items: list[Any] = [(torch.full((1, 3, 2, 2), i, dtype=torch.uint8), i, i) for i in range(3)]
    whole: Any = collate_with_digests(items)
    assert torch.equal(whole[3], row_digests(whole[0]))
    bad = BadVideo(1, "b.mp4", "empty")
    partial = collate_with_digests([items[0], bad, items[2]])
    assert isinstance(partial, PartialBatch)
    assert partial.batch is not None
    assert torch.equal(partial.batch[3], whole[3][[0, 2]])  # type: ignore[misc]
    assert collate_with_digests([bad]) == collate([bad])


def test_keyed_inputs_are_forgotten_with_their_tensor() -> None:
    inputs = torch.zeros(2)
    keyed = KeyedInputs(inputs, InputKeys([b"a", b"b"]))
    view = inputs.view(2)
    assert keyed.keys_of(view) is None
    view.add_(1)  # through another name
    assert keyed.keys_of(inputs) is None
