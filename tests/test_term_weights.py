"""Terms of weight 0: not computed, harmless, and back again, with everything else as if they were not there."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_distill import DistillMixin, DistillModule, LossComposer, LossTerm
from lit_distill.balance import GradientNorm, Uncertainty
from lit_distill.callbacks import Agreement, NonFinite
from lit_distill.losses import KDLoss
from lit_distill.schedules import Linear, Step

CE = LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))


class Counted(nn.Linear):
    def __init__(self) -> None:
        super().__init__(4, 3)
        self.runs = 0

    def forward(self, x: Tensor) -> Tensor:
        self.runs += 1
        return super().forward(x)


class Infinite(nn.Module):
    """Its value and its gradient are no numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        self.calls += 1
        return (student - student).sum().log() * 0 + (student.sum() - student.sum()).sqrt()


def data(samples: int = 12) -> DataLoader[Any]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 4, generator=generator)
    return DataLoader(TensorDataset(x, torch.arange(samples) % 3), batch_size=4)


def module(weight: Any, loss: Any = None, **more: Any) -> DistillModule:
    seed_everything(2, verbose=False)
    off = LossTerm(loss or KDLoss(), pair=("Student", "Teacher"), weight=weight)
    return DistillModule(
        {"Student": Counted(), "Teacher": Counted()},
        {"ce": CE, "off": off},
        **{"frozen": ["Teacher"], "optimizer": partial(torch.optim.SGD, lr=0.1, momentum=0.9), "metrics": None, **more},
    )


def fit(model: LightningModule, *callbacks: Callback, epochs: int = 1, val: bool = True, **more: Any) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, callbacks=list(callbacks),
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        **{"enable_checkpointing": False, **more},
    )  # fmt: skip
    trainer.fit(model, data(), data() if val else None)
    return trainer


def weights(model: DistillModule) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.models["Student"].parameters()])


@pytest.mark.parametrize("balance", [None, Uncertainty, GradientNorm], ids=["set", "uncertainty", "gradient norm"])
@pytest.mark.parametrize("weight", [0, 0.0, Linear(start=0, end=0, epochs=1)], ids=["0", "0.0", "schedule"])
def test_an_infinite_term_of_weight_0_changes_nothing(weight: Any, balance: Any) -> None:
    more = {} if balance is None else {"balance": balance()}
    model = module(weight, Infinite(), preflight=False, **more)
    trainer = fit(model, NonFinite())
    plain = module(weight, KDLoss(), **({} if balance is None else {"balance": balance()}))
    fit(plain)
    assert weights(model).isfinite().all()
    assert torch.equal(weights(model), weights(plain))
    assert model.composer.terms["off"].loss.calls == 0  # type: ignore[attr-defined]
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert math.isfinite(trainer.callback_metrics["val/loss"])
    assert "train/off" not in trainer.callback_metrics
    assert "val/off" not in trainer.callback_metrics


def test_a_model_that_no_term_needs_is_not_run() -> None:
    model = module(Step(milestones=[0], factor=1, start=0.0), preflight=False)
    trainer = fit(model)
    assert model.models["Teacher"].runs == 0
    assert model.models["Student"].runs == 6  # 3 batches of training, 3 of validation
    assert trainer.callback_metrics["train/off_weight"] == 0
    assert trainer.callback_metrics["train/off_weighted"] == 0


def test_it_runs_from_the_epoch_on_in_which_its_term_has_a_weight() -> None:
    model = module(lambda epoch: float(epoch >= 2), preflight=False)
    runs: list[Any] = []

    class Count(Callback):
        def on_train_epoch_end(self, *_: Any) -> None:
            runs.append(model.models["Teacher"].runs)

    trainer = fit(model, Count(), epochs=3, val=False)
    assert runs == [0, 0, 3]
    assert trainer.callback_metrics["train/off"] > 0


def test_a_validation_sees_the_terms_that_began_within_its_epoch() -> None:
    model = module(Linear(start=0.0, end=1.0, epochs=2))
    assert fit(model).callback_metrics["val/off"] > 0


@pytest.mark.parametrize(
    "callback",
    [
        partial(EarlyStopping, "val/off", patience=9),
        partial(ModelCheckpoint, monitor="val/off"),
    ],
)
def test_what_a_callback_monitors_is_computed(callback: Any, tmp_path: Path) -> None:
    model = module(0.0)
    trainer = fit(model, callback(), epochs=2, enable_checkpointing=True, default_root_dir=tmp_path)
    assert trainer.callback_metrics["val/off"] > 0


def test_a_monitored_infinite_term_does_not_reach_the_loss() -> None:
    model = module(0.0, Infinite(), preflight=False)
    watches = EarlyStopping("train/off", patience=9, check_finite=False, check_on_train_epoch_end=True)
    with pytest.warns(UserWarning, match="train/off is nan"):
        trainer = fit(model, watches, val=False)
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert trainer.callback_metrics["train/off"].isnan()
    assert weights(model).isfinite().all()


def test_what_val_losses_set_to_0_is_logged_and_does_not_count() -> None:
    watch = LossTerm(KDLoss(), pair=("Student", "Teacher"), weight=0)
    trainer = fit(module(1.0, val_losses={"ce": CE, "watch": watch}))
    figures = trainer.callback_metrics
    assert figures["val/watch"] > 0
    assert figures["val/loss"] == figures["val/ce"]


def test_models_with_metrics_and_those_that_callbacks_look_at_are_evaluated() -> None:
    from lit_distill._module.evaluated import default_metrics

    model = module(0.0, preflight=False, metrics=default_metrics)
    assert "val/Teacher/top1" in fit(model).callback_metrics
    assert model.models["Teacher"].runs == 3
    model = module(0.0, preflight=False)
    assert "val/Student-Teacher/agreement" in fit(model, Agreement()).callback_metrics


def test_all_terms_may_have_weight_0_at_first() -> None:
    seed_everything(0, verbose=False)
    model = DistillModule(
        {"Student": Counted()},
        {
            "ce": LossTerm(
                nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"), weight=Linear(start=0, end=1, epochs=1)
            )
        },
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    before = weights(model)
    fit(model)
    assert not torch.equal(before, weights(model))


class Hint(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3, 3)

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        difference: Tensor = self.project(student) - teacher
        return difference.square().mean()


def test_what_a_term_of_weight_0_would_teach_gets_gradients_of_0() -> None:
    """DDP waits for each of them, and an optimizer treats them as before the term was left out."""
    composer = LossComposer({"ce": CE, "hint": LossTerm(Hint(), pair=("Peer", "Student"), weight=0.0, detach=False)})
    models = {"Student": Counted(), "Peer": Counted()}
    x, y = torch.randn(5, 4), torch.zeros(5, dtype=torch.long)
    with composer.capture(models, epoch=0.0) as signals:
        models["Student"](x)
    result = composer(signals, y)
    torch.autograd.backward(result.total)
    for parameter in [*models["Peer"].parameters(), *composer.parameters()]:
        assert parameter.grad is not None
        assert not parameter.grad.any()
    assert result.skipped == {"hint"}
    assert sorted(result.unweighted) == sorted(result.weighted) == ["ce"]
    assert result.values.tolist()[1] == 0


def test_a_resumed_run_is_exact_across_the_beginning_of_a_term(tmp_path: Path) -> None:
    def weight(epoch: float) -> float:
        return 0.0 if epoch < 1 else 0.7

    whole = module(weight, GradientHint())
    fit(whole, epochs=3)
    first = module(weight, GradientHint())
    fit(first, epochs=1).save_checkpoint(tmp_path / "one.ckpt")
    second = module(weight, GradientHint())
    trainer = Trainer(
        accelerator="cpu", max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(second, data(), data(), ckpt_path=tmp_path / "one.ckpt")
    for key, value in whole.state_dict().items():
        assert torch.equal(value, second.state_dict()[key]), key


class GradientHint(Hint):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.project.reset_parameters()


class Yours(LightningModule):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.net, self.factor = Counted(), factor

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = nn.functional.cross_entropy(self.net(x), y) * self.factor
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Distilled(DistillMixin, Yours):
    pass


def distilled(weight: Any, *, own: Any = 1.0, factor: float = 1.0, loss: Any = None) -> tuple[Distilled, Counted]:
    seed_everything(3, verbose=False)
    teacher, model = Counted(), Distilled(factor)
    term = LossTerm(loss or KDLoss(), pair=("Student", "Teacher"), weight=weight)
    return model.distill(teacher, student="net", losses={"kd": term}, own_weight=own, preflight=False), teacher


def test_the_mixin_runs_no_teacher_that_no_term_needs() -> None:
    model, teacher = distilled(0.0, loss=Infinite())
    trainer = fit(model, val=False)
    assert teacher.runs == 0
    assert "distill/kd" not in trainer.callback_metrics
    assert model.net.weight.isfinite().all()


def test_an_own_loss_of_weight_0_may_be_infinite() -> None:
    model, _ = distilled(1.0, own=0.0, factor=math.inf)
    finite, _ = distilled(1.0, own=0.0)
    fit(model, val=False)
    fit(finite, val=False)
    assert torch.equal(model.net.weight, finite.net.weight)
    assert model.net.weight.isfinite().all()
