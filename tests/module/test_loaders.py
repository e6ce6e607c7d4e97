"""Several validation and test loaders: each has its own means and metrics, whatever a subclass passes on."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill._module.evaluated import default_metrics


class PassesNothingOn(DistillModule):
    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return super().validation_step(batch, batch_idx)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        return super().test_step(batch, batch_idx)


def loader(seed: int, samples: int = 7) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(seed)
    return DataLoader(
        TensorDataset(torch.randn(samples, 4, generator=generator), torch.randint(3, (samples,), generator=generator)),
        batch_size=4,
    )


def made(kind: type[DistillModule] = DistillModule, **more: Any) -> DistillModule:
    torch.manual_seed(0)
    return kind(
        {"Student": nn.Linear(4, 3), **more.pop("models", {})},
        {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")), **more.pop("losses", {})},
        optimizer=partial(torch.optim.SGD, lr=0.0),
        **more,
    )


def trainer(epochs: int = 1) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip


def wanted(module: DistillModule, of: DataLoader[Any]) -> tuple[float, float]:
    x, y = of.dataset.tensors  # type: ignore[attr-defined]
    with torch.no_grad():
        logits = module.models["Student"](x)
    return F.cross_entropy(logits, y).item(), (logits.argmax(1) == y).float().mean().item()


@pytest.mark.parametrize("kind", [DistillModule, PassesNothingOn])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("stage", ["val", "test", "fit"])
def test_each_loader_has_its_own_figures(kind: type[DistillModule], named: bool, stage: str) -> None:
    module, loaders = made(kind), [loader(1), loader(2, samples=5)]
    given: Any = dict(zip(("easy", "hard"), loaders, strict=True)) if named else loaders
    run = trainer(epochs=2)
    if stage == "fit":
        run.fit(module, loader(3), given)
    else:
        (run.validate if stage == "val" else run.test)(module, given, verbose=False)
    start = "test" if stage == "test" else "val"
    for name, of in zip(("easy", "hard") if named else ("0", "1"), loaders, strict=True):
        ce, top1 = wanted(module, of)
        assert run.callback_metrics[f"{start}/{name}/ce"].item() == pytest.approx(ce, rel=1e-5)
        assert run.callback_metrics[f"{start}/{name}/loss"].item() == pytest.approx(ce, rel=1e-5)
        assert run.callback_metrics[f"{start}/{name}/Student/top1"].item() == pytest.approx(top1)
    assert f"{start}/ce" not in run.callback_metrics


def test_a_data_module_may_name_its_loaders() -> None:
    class Data(LightningDataModule):
        def train_dataloader(self) -> Any:
            return loader(3)

        def val_dataloader(self) -> Any:
            return {"clean": loader(1), "noisy": loader(2)}

    module, run = made(), trainer()
    run.fit(module, datamodule=Data())
    assert {"val/clean/ce", "val/noisy/ce"} <= run.callback_metrics.keys()


@pytest.mark.parametrize("given", [lambda: loader(1), lambda: [loader(1)], lambda: {"only": loader(1)}])
def test_one_loader_has_the_plain_names(given: Any) -> None:
    run, module = trainer(), made()
    run.validate(module, given(), verbose=False)
    assert run.callback_metrics["val/ce"].item() == pytest.approx(wanted(module, loader(1))[0], rel=1e-5)


def test_the_best_peer_is_that_of_the_first_loader() -> None:
    peer = nn.Linear(4, 3)
    losses = {"peer": LossTerm(nn.CrossEntropyLoss(), pair=("Peer", "GroundTruth"))}
    module = made(models={"Peer": peer}, losses=losses, student="best", metrics=default_metrics)
    run = trainer()
    run.fit(module, loader(3), [loader(1), loader(2)])
    figures = run.callback_metrics
    best = max(("Student", "Peer"), key=lambda name: figures[f"val/0/{name}/top1"])
    assert module.student == best
    assert figures["val/1/best/top1"] == figures[f"val/1/{best}/top1"]


@pytest.mark.parametrize(("mode", "watched"), [("min", "val/0/loss"), ("max", "val/0/Student/top1")])
def test_a_plateau_is_that_of_the_first_loader(mode: Any, watched: str) -> None:
    module = made(scheduler=partial(torch.optim.lr_scheduler.ReduceLROnPlateau, mode=mode))
    given = trainer()
    given.fit(module, loader(0), [loader(1), loader(2)])
    assert given.lr_scheduler_configs[0].monitor == watched
