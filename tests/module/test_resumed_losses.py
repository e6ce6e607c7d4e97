"""A resumed run uses the losses as the code sets them, and says what differs from the checkpoint."""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossTerm
from lit_distill.balance import GradientNorm
from lit_distill.losses import DKDLoss, KDLoss
from lit_distill.schedules import Constant, Linear

torch.manual_seed(0)
LOADER = DataLoader(TensorDataset(torch.randn(8, 4), torch.arange(8) % 3), batch_size=4)
PAIR = ("Student", "GroundTruth")
BOTH = ("Student", "Teacher")


class Margin(nn.Module):
    """A loss of a user: a margin and class weights as plain attributes, and a state that training moves."""

    mean: Tensor

    def __init__(self, margin: float = 1.0, weights: tuple[float, ...] = (1.0, 2.0, 3.0)) -> None:
        super().__init__()
        self.margin, self.weights = margin, torch.tensor(weights)
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        if self.training:
            self.mean += 1
        return (nn.functional.cross_entropy(student, target, weight=self.weights) - self.margin).abs()


def ce(*weights: float, **more: Any) -> LossTerm:
    weight = torch.tensor(weights) if weights else None
    return LossTerm(nn.CrossEntropyLoss(weight=weight, **more), pair=PAIR)


def made(term: LossTerm, **more: Any) -> DistillModule:
    torch.manual_seed(0)
    return DistillModule(
        {"Student": nn.Linear(4, 3), "Teacher": nn.Linear(4, 3)},
        {"term": term, "kd": LossTerm(KDLoss(), pair=BOTH)},
        **{"frozen": ["Teacher"], "optimizer": partial(torch.optim.SGD, lr=0.1), **more},
    )


def fit(module: LightningModule, epochs: int, **more: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, LOADER, **more)
    return trainer


CASES: dict[str, tuple[Any, Any, str]] = {
    "class weights": (lambda: ce(1.0, 1, 1), lambda: ce(5.0, 1, 1), r"losses.term: weight \[5.0, 1.0, 1.0\] \(the"),
    "pos_weight": (
        lambda: LossTerm(Multi(torch.ones(3)), pair=PAIR), lambda: LossTerm(Multi(torch.full((3,), 2.0)), pair=PAIR),
        r"losses.term: bce.pos_weight \[2.0, 2.0, 2.0\] \(the checkpoint: \[1.0, 1.0, 1.0\]\)",
    ),
    "smoothing": (ce, lambda: ce(label_smoothing=0.1), r"losses.term: label_smoothing 0.1 \(the checkpoint: 0.0\)"),
    "temperature": (
        lambda: LossTerm(KDLoss(temperature=4.0), pair=BOTH), lambda: LossTerm(KDLoss(temperature=2.0), pair=BOTH),
        r"losses.term: temperature 2.0 \(the checkpoint: 4.0\)",
    ),
    "margin": (
        lambda: LossTerm(Margin(), pair=PAIR), lambda: LossTerm(Margin(2.0), pair=PAIR), r"term: margin 2.0 \(the"
    ),
    "a tensor": (
        lambda: LossTerm(Margin(), pair=PAIR), lambda: LossTerm(Margin(weights=(1.0, 1.0, 1.0)), pair=PAIR),
        r"losses.term: weights \[1.0, 1.0, 1.0\] \(the checkpoint: \[1.0, 2.0, 3.0\]\)",
    ),
    "weight": (
        lambda: LossTerm(KDLoss(), pair=BOTH, weight=0.5), lambda: LossTerm(KDLoss(), pair=BOTH, weight=0.9),
        r"losses.term: weight of the term 0.9 \(the checkpoint: 0.5\)",
    ),
    "schedule": (
        lambda: LossTerm(KDLoss(), pair=BOTH, weight=Constant(0.5)),
        lambda: LossTerm(KDLoss(), pair=BOTH, weight=Linear(start=0.1, end=1, epochs=3)),
        r"weight of the term Linear\(start=0.1.* \(the checkpoint: Constant\(value=0.5\)\)",
    ),
    "a function's argument": (
        lambda: LossTerm(partial(nn.functional.cross_entropy, label_smoothing=0.1), pair=PAIR),
        lambda: LossTerm(partial(nn.functional.cross_entropy, label_smoothing=0.2), pair=PAIR),
        r"losses.term: label_smoothing 0.2 \(the checkpoint: 0.1\)",
    ),
    "a function that a function made": (
        lambda: LossTerm(scaled(2.0), pair=BOTH), lambda: LossTerm(scaled(3.0), pair=BOTH),
        r"losses.term: by 3.0 \(the checkpoint: 2.0\)",
    ),
    "a default of a function": (
        lambda: LossTerm(scaled(2.0, power=1.0), pair=BOTH), lambda: LossTerm(scaled(2.0, power=2.0), pair=BOTH),
        r"losses.term: power 2.0 \(the checkpoint: 1.0\)",
    ),
    "a method": (
        lambda: LossTerm(Scaled(2.0).loss, pair=BOTH), lambda: LossTerm(Scaled(3.0).loss, pair=BOTH),
        r"losses.term: by 3.0 \(the checkpoint: 2.0\)",
    ),
    "a function for a weight": (
        lambda: LossTerm(nn.MSELoss(), pair=BOTH, weight=lambda epoch: 1.0),
        lambda: LossTerm(nn.MSELoss(), pair=BOTH, weight=lambda epoch: 1.0 + 0.1 * epoch),
        r"losses.term: weight of the term \[1.0, 1.05, 1.1, .* \(the checkpoint: \[1.0, 1.0, 1.0",
    ),
    "another loss": (
        lambda: LossTerm(nn.MSELoss(), pair=BOTH), lambda: LossTerm(nn.L1Loss(), pair=BOTH),
        r"losses.term: loss torch.*L1",
    ),
}  # fmt: skip


class Scaled:
    def __init__(self, by: float) -> None:
        self.by = by

    def loss(self, student: Tensor, teacher: Tensor) -> Tensor:
        return self.by * (student - teacher).square().mean()


def scaled(by: float, power: float = 2.0) -> Any:
    def loss(student: Tensor, teacher: Tensor, power: float = power) -> Tensor:
        return by * (student - teacher).abs().pow(power).mean()

    return loss


class Multi(nn.Module):
    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.bce = nn.BCEWithLogitsLoss(pos_weight=weight)

    def forward(self, student: Tensor, target: Tensor) -> Tensor:
        return self.bce(student, nn.functional.one_hot(target, 3).float())  # type: ignore[no-any-return]


@pytest.mark.parametrize("case", CASES)
def test_what_differs_is_said_and_the_present_one_is_used(case: str, tmp_path: Path) -> None:
    before, after, text = CASES[case]
    fit(made(before()), 1).save_checkpoint(tmp_path / "a.ckpt")
    same = made(before())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the losses are set to other values")
        fit(same, 2, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    other = made(after())
    with pytest.warns(UserWarning, match=text):
        fit(other, 2, ckpt_path=tmp_path / "a.ckpt", weights_only=True)
    now, new = (dict(module.composer.losses.named_buffers()) for module in (other, made(after())))
    for name in now.keys() - {"term.mean"}:
        assert torch.equal(now[name], new[name])
    assert not torch.equal(same.models["Student"].weight, other.models["Student"].weight)  # type: ignore[arg-type]


def test_a_state_of_a_loss_is_the_checkpoints() -> None:
    """What training moves is no hyperparameter, wherever it started."""
    first = made(LossTerm(Margin(), pair=PAIR))
    trainer = fit(first, 1)
    checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    second = made(LossTerm(Margin(), pair=PAIR))
    second.composer.terms["term"].loss.mean.fill_(-5)  # type: ignore[attr-defined]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the losses are set to other values")
        second.on_load_checkpoint(checkpoint)
    second.load_state_dict(checkpoint["state_dict"])
    assert second.composer.losses["term"].mean == first.composer.losses["term"].mean == 2


def test_a_warm_up_within_a_loss_is_no_difference(tmp_path: Path) -> None:
    def dkd(**more: Any) -> LossTerm:
        return LossTerm(DKDLoss(warmup_epochs=4, **more), pair=BOTH, target="GroundTruth")

    fit(made(dkd()), 2).save_checkpoint(tmp_path / "a.ckpt")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the losses are set to other values")
        fit(made(dkd()), 3, ckpt_path=tmp_path / "a.ckpt")
    with pytest.warns(UserWarning, match=r"losses.term: beta 2.0 \(the checkpoint: 8.0\)$"):
        fit(made(dkd(beta=2.0)), 3, ckpt_path=tmp_path / "a.ckpt")


def test_terms_of_validation_and_the_loss_weighting_are_compared_too(tmp_path: Path) -> None:
    given = {"val_losses": {"ce": ce(1.0, 1, 1)}, "balance": GradientNorm(momentum=0.5)}
    fit(made(ce(), **given), 1).save_checkpoint(tmp_path / "a.ckpt")
    other = {"val_losses": {"ce": ce(1.0, 1, 4)}, "balance": GradientNorm(momentum=0.25)}
    module = made(ce(), **other)
    with pytest.warns(UserWarning, match=r"losses: momentum of .*GradientNorm 0.25 .*; val_losses.ce: weight \[1.0, 1"):
        fit(module, 2, ckpt_path=tmp_path / "a.ckpt")
    assert dict(module.val_composer.losses.named_buffers())["ce.weight"].tolist() == [1, 1, 4]


class Yours(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Linear(4, 3)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Yours):
    pass


def test_the_mixin_compares_them_as_well(tmp_path: Path) -> None:
    losses = {"kd": LossTerm(KDLoss(), pair=BOTH)}

    def module(*weights: float) -> Distilled:
        return Distilled().distill(
            nn.Linear(4, 3), student="net", losses={"ce": ce(*weights), **losses}, replaced_teachers=True
        )

    fit(module(1.0, 1, 1), 1).save_checkpoint(tmp_path / "a.ckpt")
    other = module(7.0, 1, 1)
    with pytest.warns(UserWarning, match=r"losses.ce: weight \[7.0, 1.0, 1.0\] \(the checkpoint: \[1.0, 1.0, 1.0\]\)"):
        fit(other, 2, ckpt_path=tmp_path / "a.ckpt")
    assert dict(other.distillation.losses.named_buffers())["ce.weight"].tolist() == [7, 1, 1]


def test_the_weight_of_the_own_step_is_compared(tmp_path: Path) -> None:
    def module(weight: Any) -> Distilled:
        losses = {"kd": LossTerm(KDLoss(), pair=BOTH)}
        return Distilled().distill(nn.Linear(4, 3), student="net", losses=losses, own_weight=weight)

    before = module(lambda epoch: 0.5)
    before._distill_record_teachers()
    before.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    checkpoint: dict[str, Any] = {"state_dict": {}}
    before.on_save_checkpoint(checkpoint)
    after = module(0.25)
    after._distill_record = before._distill_record
    after._distill_teachers = before._distill_teachers
    with pytest.warns(UserWarning, match=r"own_weight 0.25 \(the checkpoint: \[0.5, 0.5"):
        after.on_load_checkpoint(checkpoint)
