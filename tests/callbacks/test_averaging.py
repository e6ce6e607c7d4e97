"""Lightning's averaging callbacks beside frozen teachers: they average the student alone, and end with it."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    EMAWeightAveraging,
    LearningRateFinder,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import Tensor, nn

from faults import tiny
from lit_distill import DistillModule, LossTerm
from lit_distill.balance import Uncertainty
from lit_distill.callbacks import EMATeacher
from lit_distill.checkpoints import read_checkpoint
from lit_distill.losses import FitNetLoss


def plain(width: int = 8) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, width), nn.Identity(), nn.ReLU(), nn.Linear(width, 3))


def module(norms: bool = True, **more: Any) -> DistillModule:
    torch.manual_seed(1)
    net = tiny.net if norms else plain
    return tiny.module(models={"Student": net(), "Teacher": net(16)}, **more)


def parameters(model: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()]).clone()


class Averages(Callback):
    """The student's weights after every step, and their average as the callback under test should have it."""

    def __init__(self, decay: float | None = None) -> None:
        self.decay, self.average, self.count = decay, torch.zeros(()), 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        now = parameters(pl_module.models["Student"])
        if not self.count:
            self.average = now
        elif self.decay is None:
            self.average = self.average + (now - self.average) / (self.count + 1)
        else:
            self.average = self.decay * self.average + (1 - self.decay) * now
        self.count += 1


@pytest.mark.parametrize("norms", [True, False], ids=["BatchNorm", "none"])
@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("kind", ["ema", "mean"])
def test_weight_averaging_leaves_the_teacher_and_ends_with_the_averaged_student(
    kind: str, norms: bool, use_buffers: bool, tmp_path: Path
) -> None:
    given = module(norms)
    teacher = {name: value.clone() for name, value in given.models["Teacher"].state_dict().items()}
    averaging = (
        EMAWeightAveraging(decay=0.9, use_buffers=use_buffers)
        if kind == "ema"
        else WeightAveraging(use_buffers=use_buffers)
    )
    wanted = Averages(0.9 if kind == "ema" else None)
    fit = tiny.trainer(
        tmp_path, max_epochs=3, enable_checkpointing=True,
        callbacks=[averaging, wanted, ModelCheckpoint(tmp_path, filename="a")],
    )  # fmt: skip
    fit.fit(given, tiny.loader(), tiny.loader())
    assert all(torch.equal(value, teacher[name]) for name, value in given.models["Teacher"].state_dict().items())
    torch.testing.assert_close(parameters(given.models["Student"]), wanted.average)
    stored = read_checkpoint(tmp_path / "a.ckpt")
    for key in ("state_dict", "current_model_state"):
        assert not [name for name in stored[key] if "Teacher" in name], key
    size = sum(value.numel() for value in stored["state_dict"].values())
    assert size == sum(value.numel() for value in given.models["Student"].state_dict().values())


def test_a_resumed_average_is_that_of_the_whole_run(tmp_path: Path) -> None:
    def run(epochs: int, **more: Any) -> DistillModule:
        given = module(val_losses=None)
        fit = tiny.trainer(tmp_path, max_epochs=epochs, callbacks=[EMAWeightAveraging(decay=0.9)])
        fit.fit(given, tiny.loader(), tiny.loader(), **more)
        return given

    whole = run(3)
    given = module()
    fit = tiny.trainer(
        tmp_path, max_epochs=2, enable_checkpointing=True,
        callbacks=[EMAWeightAveraging(decay=0.9), ModelCheckpoint(tmp_path, filename="part")],
    )  # fmt: skip
    fit.fit(given, tiny.loader(), tiny.loader())
    resumed = run(3, ckpt_path=tmp_path / "part.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def maps(width: int = 8) -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, width, 1), nn.ReLU(), nn.Flatten(), nn.Linear(width, 3)
    )


def test_losses_with_parameters_are_averaged_in_their_place(tmp_path: Path) -> None:
    """They are made after the callback has copied the module."""
    losses = {
        "hint": LossTerm(FitNetLoss(), pair=("Student.1", "Teacher.1")),
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
    }
    torch.manual_seed(0)
    given = tiny.module(models={"Student": maps(), "Teacher": maps(16)}, losses=losses, balance=Uncertainty())
    every: list[dict[str, Tensor]] = []

    class Keep(Callback):
        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
            every.append({name: p.detach().clone() for name, p in pl_module.named_parameters() if p.requires_grad})

    averaging = WeightAveraging(use_buffers=False)
    tiny.trainer(tmp_path, max_epochs=2, callbacks=[averaging, Keep()]).fit(given, tiny.loader(), tiny.loader())
    assert any(name.startswith("composer.losses.hint") for name in every[0])
    for name, parameter in given.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.detach(), torch.stack([each[name] for each in every]).mean(0))


@pytest.mark.parametrize("norms", [True, False], ids=["BatchNorm", "none"])
def test_stochastic_weight_averaging_leaves_the_teacher(norms: bool, tmp_path: Path) -> None:
    given = module(norms)
    before = parameters(given.models["Student"])
    teacher = copy.deepcopy(given.models["Teacher"].state_dict())
    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    tiny.trainer(tmp_path, max_epochs=3, callbacks=[swa]).fit(given, tiny.loader(), tiny.loader())
    assert all(torch.equal(value, teacher[name]) for name, value in given.models["Teacher"].state_dict().items())
    average: Any = swa._average_model
    torch.testing.assert_close(parameters(given.models["Student"]), parameters(average.models["Student"]))
    assert not torch.equal(parameters(given.models["Student"]), before)


def test_only_a_student_with_batch_norm_costs_an_epoch_more(tmp_path: Path) -> None:
    given = tiny.module(models={"Student": plain(), "Teacher": tiny.net(16)})
    epochs: list[int] = []

    class Count(Callback):
        def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
            epochs.append(trainer.current_epoch)

    swa = StochasticWeightAveraging(swa_lrs=0.05, swa_epoch_start=1)
    tiny.trainer(tmp_path, max_epochs=2, callbacks=[swa, Count()]).fit(given, tiny.loader())
    assert epochs == [0, 1]


def test_a_mean_teacher_beside_an_averaged_student_stays_in_checkpoints(tmp_path: Path) -> None:
    def run(epochs: int, **more: Any) -> DistillModule:
        torch.manual_seed(7)
        given = tiny.module(models={"Student": tiny.net(), "Teacher": tiny.net()})
        fit = tiny.trainer(
            tmp_path, max_epochs=epochs, enable_checkpointing=True,
            callbacks=[
                EMATeacher(decay=0.9), EMAWeightAveraging(decay=0.5),
                ModelCheckpoint(tmp_path, filename=f"to{epochs}"),
            ],
        )  # fmt: skip
        fit.fit(given, tiny.loader(), tiny.loader(), **more)
        return given

    whole = run(3)
    run(2)
    assert [name for name in read_checkpoint(tmp_path / "to2.ckpt")["state_dict"] if "Teacher" in name]
    resumed = run(3, ckpt_path=tmp_path / "to2.ckpt")
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name


def test_pruning_a_frozen_model_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="ModelPruning would prune Teacher, which is frozen: give the layers of the student"
    ):
        tiny.trainer(tmp_path, callbacks=[ModelPruning("l1_unstructured", amount=0.5)]).fit(
            tiny.module(), tiny.loader()
        )
    given = tiny.module()
    layers = [(given.models["Student"][0], "weight")]  # type: ignore[index]
    pruning = ModelPruning("l1_unstructured", parameters_to_prune=layers, amount=0.5)
    tiny.trainer(tmp_path, callbacks=[pruning]).fit(given, tiny.loader())
    assert (given.models["Student"][0].weight == 0).float().mean() > 0.4  # type: ignore[index]


class Tuned(DistillModule):
    lr = 1e-3
    batch_size = 4

    def train_dataloader(self) -> Any:
        return tiny.loader(batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return self.train_dataloader()


@pytest.mark.parametrize(
    "finder", [partial(LearningRateFinder, num_training_steps=8), partial(BatchSizeFinder, max_trials=2)]
)
def test_finders_raise_no_alarm(finder: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    given = Tuned(
        {"Student": tiny.net(), "Teacher": tiny.net(16)},
        {"mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))},
        frozen=["Teacher"],
        optimizer=partial(torch.optim.SGD, lr=0.1),
    )
    tiny.trainer(tmp_path, callbacks=[finder()], max_epochs=1).fit(given)
