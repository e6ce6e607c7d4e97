"""Means over an epoch weigh batches by their samples: with and without labels, in training and evaluation."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning import Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lit_distill import DistillModule, LossTerm
from lit_distill._module.step import batch_size

MSE = LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))
CE = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


def inputs(samples: int) -> Tensor:
    values = torch.randn(samples, 4, generator=torch.Generator().manual_seed(3))
    values[-1] *= 10  # a last sample alone that weighs too much where batches count alike
    return values


class Unlabelled(Dataset[Any]):
    def __init__(self, form: str, samples: int = 17) -> None:
        self.x, self.form = inputs(samples), form

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> Any:
        return {"clip": self.x[index]} if self.form == "dict" else (self.x[index], index)


class Module(DistillModule):
    def unpack(self, batch: Any) -> Any:
        return (batch["clip"], None, None) if isinstance(batch, dict) else (batch[0], None, batch[1])


def models() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"Student": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)}


def trainer(**more: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, **more,
    )  # fmt: skip


def made(kind: type[DistillModule] = DistillModule, losses: Any = None, lr: float = 0.0, **more: Any) -> DistillModule:
    return kind(models(), losses or {"mse": MSE}, frozen=["Teacher"], optimizer=partial(torch.optim.SGD, lr=lr), **more)


@pytest.mark.parametrize("form", ["dict", "index"])
def test_without_labels_batches_weigh_by_their_samples(form: str) -> None:
    data = Unlabelled(form)
    loader = DataLoader(data, batch_size=16)
    module = made(Module)
    with torch.no_grad():
        wanted = F.mse_loss(module.models["Student"](data.x), module.models["Teacher"](data.x)).item()
    run = trainer()
    run.fit(module, loader, loader)
    for name in ("train/mse", "train/loss", "val/mse", "val/loss"):
        assert run.callback_metrics[name].item() == pytest.approx(wanted, rel=1e-5), name
    found = trainer().test(module, loader, verbose=False)[0]
    assert found["test/mse"] == pytest.approx(wanted, rel=1e-5)


def test_labelled_and_accumulated_batches_weigh_by_their_samples() -> None:
    x = inputs(9)
    y = torch.arange(9) % 3
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    module = made(losses={"ce": CE, "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), weight=0.5)})
    with torch.no_grad():
        ce = F.cross_entropy(module.models["Student"](x), y).item()
        mse = F.mse_loss(module.models["Student"](x), module.models["Teacher"](x)).item()
    run = trainer(accumulate_grad_batches=2)
    run.fit(module, loader, loader)
    for stage in ("train", "val"):
        assert run.callback_metrics[f"{stage}/ce"].item() == pytest.approx(ce, rel=1e-5)
        assert run.callback_metrics[f"{stage}/loss"].item() == pytest.approx(ce + mse / 2, rel=1e-5)
    assert run.callback_metrics["train/mse_weighted"].item() == pytest.approx(mse / 2, rel=1e-5)


def test_terms_on_labels_are_means_over_the_labelled_samples() -> None:
    x = inputs(10)
    y = torch.tensor([0, -1, -1, -1, 1, 2, -1, 0, -1, -1])  # 1, 3 and 0 of each batch of 4
    known = y >= 0
    loader = DataLoader(TensorDataset(x, y), batch_size=4)
    module = made(losses={"ce": CE, "mse": MSE}, unlabelled=True)
    with torch.no_grad():
        outputs = module.models["Student"](x)
        ce = F.cross_entropy(outputs[known], y[known]).item()
        mse = F.mse_loss(outputs, module.models["Teacher"](x)).item()
        top1 = (outputs.argmax(1) == y)[known].float().mean().item()
    run = trainer()
    run.fit(module, loader, loader)
    for stage in ("train", "val"):
        assert run.callback_metrics[f"{stage}/ce"].item() == pytest.approx(ce, rel=1e-5), stage
        assert run.callback_metrics[f"{stage}/mse"].item() == pytest.approx(mse, rel=1e-5), stage
    assert run.callback_metrics["val/Student/top1"].item() == pytest.approx(top1)


def test_a_validation_without_any_label_logs_no_term_on_labels() -> None:
    loader = DataLoader(TensorDataset(inputs(6), torch.full((6,), -1)), batch_size=4)
    run = trainer()
    run.fit(made(losses={"ce": CE, "mse": MSE}, unlabelled=True), loader, loader)
    assert "val/ce" not in run.callback_metrics
    assert "train/ce" not in run.callback_metrics
    assert "val/Student/top1" not in run.callback_metrics
    assert run.callback_metrics["val/mse"] > 0


def test_the_size_of_a_batch_of_any_form() -> None:
    assert batch_size(torch.tensor(1.0), torch.zeros(5, 2)) == 5
    assert batch_size({"boxes": torch.zeros(9, 4)}, [torch.zeros(7, 3), torch.zeros(7, 2)]) == 7
    boxes = [{"boxes": torch.zeros(1, 4)}, {"boxes": torch.zeros(5, 4)}]
    assert batch_size(boxes, [torch.zeros(3, 8, 8), torch.zeros(3, 9, 9)]) == 2
    assert batch_size(None, "text", {"logits": torch.zeros(4, 2)}) == 4
    assert batch_size(None, None) == 1
