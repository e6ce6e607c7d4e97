"""The account of a run: equal ones are of the same samples in the same order, whatever learned from them."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill.callbacks import Account


class Line(LightningModule):
    def __init__(self, width: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.layers(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loader(*, seed: int = 0, scale: float = 1.0, index: bool = True) -> DataLoader[Any]:
    inputs = torch.arange(36.0).reshape(12, 3) * scale
    parts = [inputs, torch.arange(12) % 2, *([torch.arange(12)] if index else [])]
    return DataLoader(TensorDataset(*parts), batch_size=4, shuffle=True, generator=torch.Generator().manual_seed(seed))


def account(
    folder: Path,
    data: DataLoader[Any],
    *,
    width: int = 1,
    epochs: int = 2,
    ckpt: Path | None = None,
    callbacks: Sequence[Callback] = (),
) -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(
            max_epochs=epochs, accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[Account(folder=folder), *callbacks],
        )  # fmt: skip
        trainer.fit(Line(width), data, ckpt_path=ckpt, weights_only=True)
    trainer.save_checkpoint(folder / "last.ckpt")
    found: dict[str, Any] = json.loads((folder / "account.json").read_text())
    return found


def test_the_same_samples_give_the_same_account_whatever_learns(tmp_path: Path) -> None:
    one, other = account(tmp_path / "a", loader()), account(tmp_path / "b", loader(), width=5)
    assert (one["order"], one["pixels"]) == (other["order"], other["pixels"])
    assert (one["steps"], one["batches"], one["epochs"]) == (6, 6, 2)
    assert one["seconds"] > 0
    assert one["cpu_seconds"] > 0
    assert one["peak_mib"] > 50
    assert (one["peak_cuda_mib"] is None) != torch.cuda.is_available()


def test_another_order_another_augmentation_and_fewer_epochs_show(tmp_path: Path) -> None:
    first = account(tmp_path / "a", loader())
    shuffled = account(tmp_path / "b", loader(seed=1))
    assert shuffled["order"] != first["order"]
    changed = account(tmp_path / "c", loader(scale=2.0))
    assert changed["order"] == first["order"]
    assert changed["pixels"] != first["pixels"]
    assert account(tmp_path / "d", loader(), epochs=1)["order"] != first["order"]


def test_without_an_index_the_targets_stand_for_the_order(tmp_path: Path) -> None:
    one, same = account(tmp_path / "a", loader(index=False)), account(tmp_path / "b", loader(index=False), width=2)
    assert one["order"] == same["order"]
    assert one["order"] != account(tmp_path / "c", loader(seed=3, index=False))["order"]


def test_a_resumed_run_adds_up(tmp_path: Path) -> None:
    data = loader()
    begun = account(tmp_path / "a", data, epochs=1)
    resumed = account(tmp_path / "b", data, ckpt=tmp_path / "a" / "last.ckpt")  # the generator is at its second epoch
    whole = account(tmp_path / "c", loader())
    assert (resumed["order"], resumed["pixels"], resumed["batches"]) == (whole["order"], whole["pixels"], 6)
    assert resumed["seconds"] > begun["seconds"]
    assert resumed["peak_mib"] >= begun["peak_mib"]


def test_every_batch_counts_and_its_place(tmp_path: Path) -> None:
    def digest(*places: int) -> str:
        callback = Account(folder=tmp_path)
        for number, place in enumerate(places):
            batch = (torch.zeros(1), torch.zeros(1), torch.tensor([place]))
            callback.on_train_batch_start(Trainer(logger=False, accelerator="cpu"), LightningModule(), batch, number)
            callback.on_train_batch_end()
        return str(callback.state_dict()["order"])

    assert digest(1, 2, 3) == digest(1, 2, 3)
    assert len({digest(*places) for places in [(1, 2, 3), (2, 1, 3), (4, 2, 3), (2, 3), (1, 2, 3, 3)]}) == 5


@pytest.mark.parametrize("batch", [{"b": torch.ones(2), "a": (torch.zeros(1), "text")}, torch.ones(2)])
def test_inputs_of_any_form_are_taken_in(batch: Any, tmp_path: Path) -> None:
    callback = Account(folder=tmp_path)
    module = LightningModule()
    callback.on_train_batch_start(Trainer(logger=False, accelerator="cpu"), module, (batch, torch.ones(2)), 0)
    callback.on_train_batch_end()
    assert len(callback.state_dict()["pixels"]) == 64


def test_a_run_that_ends_before_a_batch_is_stepped_counts_it_once(tmp_path: Path) -> None:
    """As Preemption ends one: at the start of a batch, with a checkpoint; the resumed run begins with that batch."""

    class Ends(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "ended.ckpt")
                raise KeyboardInterrupt

    data: DataLoader[Any] = DataLoader(loader().dataset, batch_size=4)
    whole = account(tmp_path / "whole", data)
    with pytest.raises(SystemExit):
        account(tmp_path / "parts", data, callbacks=[Ends()])
    resumed = account(tmp_path / "parts", data, ckpt=tmp_path / "ended.ckpt")
    assert [resumed[key] for key in ("order", "pixels", "batches")] == [
        whole[key] for key in ("order", "pixels", "batches")
    ]
