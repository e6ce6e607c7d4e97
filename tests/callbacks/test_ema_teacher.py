"""The EMA teacher is the average that its formula says, takes no gradients, and stands in the checkpoint."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from faults.tiny import loader, module, net, trainer
from lit_distill import DistillModule
from lit_distill.callbacks import EMATeacher, LastCheckpoint
from lit_distill.checkpoints import read_checkpoint


class Steps(Callback):
    """The student's and the teacher's states after every batch."""

    def __init__(self) -> None:
        self.student: list[dict[str, Tensor]] = []
        self.teacher: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, DistillModule)
        for name, states in (("Student", self.student), ("Teacher", self.teacher)):
            states.append({key: value.clone() for key, value in pl_module.models[name].state_dict().items()})


def fitted(folder: Path, **more: Any) -> tuple[DistillModule, Steps]:
    ema, steps, trained = EMATeacher(**{"decay": 0.6, **more}), Steps(), module(width=8)
    accumulate = {"accumulate_grad_batches": 2} if more.get("decay") == 0.5 else {}
    last = LastCheckpoint(folder)
    trainer(folder, callbacks=[ema, steps, last], enable_checkpointing=True, **accumulate).fit(trained, loader())
    return trained, steps


@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("buffers", ["copy", "average"])
def test_after_each_step_it_is_the_average(tmp_path: Path, warmup: bool, buffers: str) -> None:
    start = module(width=8).models["Student"].state_dict()
    _, steps = fitted(tmp_path, warmup=warmup, buffers=buffers)
    expected = {key: value.double() for key, value in start.items()}
    for step, (student, teacher) in enumerate(zip(steps.student, steps.teacher, strict=True), 1):
        decay = min(0.6, step / (step + 1)) if warmup else 0.6
        for key, value in student.items():
            averaged = key.endswith(("weight", "bias")) or (buffers == "average" and value.is_floating_point())
            expected[key] = decay * expected[key] + (1 - decay) * value.double() if averaged else value.double()
            torch.testing.assert_close(teacher[key].double(), expected[key], rtol=1e-5, atol=1e-6)


def test_accumulated_batches_move_it_once(tmp_path: Path) -> None:
    _, steps = fitted(tmp_path, decay=0.5)
    weights = [state["0.weight"] for state in steps.teacher]
    moved = [not torch.equal(one, other) for one, other in pairwise(weights)]
    assert moved == [True, False] * 3 + [True], "8 batches, two of them a step"


def test_it_takes_no_gradients_and_is_in_the_checkpoint(tmp_path: Path) -> None:
    trained, steps = fitted(tmp_path)
    teacher = trained.models["Teacher"]
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not teacher.training
    stored = read_checkpoint(tmp_path / "last.ckpt")
    assert torch.equal(stored["state_dict"]["models.Teacher.0.weight"], steps.teacher[-1]["0.weight"])
    assert "Teacher" not in stored["lit_distill"]["frozen_records"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {"Student": net(), "Teacher": net(9)}}, "same architecture; they differ in .* such as 0.bias"),
        ({"frozen": []}, "must be frozen"),
    ],
)
def test_other_teachers_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, callbacks=[EMATeacher()]).fit(module(width=8, **change), loader())


@pytest.mark.parametrize("wrong", [{"decay": 1.0}, {"decay": -0.1}, {"buffers": "none"}, {"teacher": "Student"}])
def test_arguments_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="EMATeacher"):
        EMATeacher(**wrong)


def test_names_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model 'Mean'"):
        trainer(tmp_path, callbacks=[EMATeacher(teacher="Mean")]).fit(module(width=8), loader())


def test_a_batch_norm_of_the_teacher_follows(tmp_path: Path) -> None:
    trained, _ = fitted(tmp_path)
    ours, theirs = (trained.models[name][1] for name in ("Teacher", "Student"))  # type: ignore[index]
    assert isinstance(ours, nn.BatchNorm1d)
    assert torch.equal(ours.state_dict()["running_mean"], theirs.state_dict()["running_mean"])
