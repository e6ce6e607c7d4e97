"""Training parts of models: the named ones learn, all else stands still, and a name that means nothing is told."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from lit_distill import DistillModule, LossTerm
from lit_distill.optim import paddle_momentum


def net() -> nn.Sequential:
    torch.manual_seed(0)
    layers = [nn.Linear(6, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Dropout(0.5), nn.Linear(5, 5), nn.LayerNorm(5)]
    body = nn.Sequential(*layers)
    return nn.Sequential(body, nn.Linear(5, 3))


def module(train_only: list[str], *, frozen: list[str] | None = None, published: bool = False) -> DistillModule:
    frozen = ["Teacher"] if frozen is None else frozen
    ce = nn.CrossEntropyLoss()
    losses = {"ce": LossTerm(ce, pair=("Student", "GroundTruth"))}
    if "Teacher" not in frozen:
        losses["ce_teacher"] = LossTerm(ce, pair=("Teacher", "GroundTruth"))
    optimizer = partial(paddle_momentum, lr=0.1) if published else partial(torch.optim.SGD, lr=0.1)
    return DistillModule(
        models={"Student": net(), "Teacher": net()}, losses=losses, frozen=frozen, optimizer=optimizer,
        train_only=train_only,
    )  # fmt: skip


def step(distill: DistillModule, published: bool = False) -> set[str]:
    """Names of the Student's tensors that a training step changes."""
    student = distill.models["Student"]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    optimizer = distill.make_optimizer()
    inputs, target = torch.randn(8, 6), torch.arange(8) % 3
    loss: Tensor = nn.functional.cross_entropy(student(inputs), target)
    torch.autograd.backward(loss)
    optimizer.step()
    return {name for name, value in student.state_dict().items() if not torch.equal(value, before[name])}


STATISTICS = {"0.2.running_mean", "0.2.running_var", "0.2.num_batches_tracked"}
NORMS = {"0.2.weight", "0.2.bias", "0.5.weight", "0.5.bias", *STATISTICS}


@pytest.mark.parametrize(
    ("names", "moved"),
    [
        (["Student.1"], {"1.weight", "1.bias"}),
        (["Student.1.bias"], {"1.bias"}),
        (["Student.0.*.bias"], {"0.0.bias", "0.2.bias", "0.4.bias", "0.5.bias", *STATISTICS}),
        (["Student:norms"], NORMS),
        (["Student.1", "Student:norms"], {"1.weight", "1.bias", *NORMS}),
    ],
)
@pytest.mark.parametrize("published", [False, True])
def test_a_step_moves_what_is_named_and_nothing_else(names: list[str], moved: set[str], published: bool) -> None:
    assert step(module(names, published=published)) == moved


def test_a_whole_model_is_named_by_its_name() -> None:
    assert step(module(["Student"])) == step(module([])) == set(net().state_dict())


def test_what_stands_still_is_in_eval_mode_however_often_train_is_called() -> None:
    distill = module(["Student.1"])
    for mode in (True, False, True):
        distill.train(mode)
        training = {name for name, part in distill.models["Student"].named_modules() if part.training}
        assert training == ({"", "1"} if mode else set())


def test_what_stands_still_gives_the_same_answers_in_training() -> None:
    distill = module(["Student.1"])
    body, inputs = distill.models["Student"][0], torch.randn(8, 6)  # type: ignore[index]
    distill.train()
    assert torch.equal(body(inputs), body(inputs)), "no dropout, no batch statistics"


@pytest.mark.parametrize(
    ("names", "frozen", "message"),
    [
        (["Student.fc"], ["Teacher"], r"train_only names \['Student.fc'\], where there is nothing to train"),
        (["Student.1", "Teacher.1"], ["Teacher"], r"train_only names \['Teacher.1'\].*learn are \['Student'\]"),
        (["Student.1"], [], r"train_only leaves nothing of Teacher to train: add it, or say frozen=\[Teacher\]"),
        ("Student.1", ["Teacher"], r"train_only is a list of names, got the text 'Student.1'"),
    ],
)
def test_a_name_that_means_nothing_is_told(names: list[str], frozen: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        module(names, frozen=frozen)


def parts_in_training(distill: DistillModule, name: str) -> set[str]:
    return {path for path, part in distill.models[name].named_modules() if part.training}


def test_what_has_no_parameters_goes_with_what_is_around_it() -> None:
    distill = module(["Student", "Teacher.1"], frozen=[])
    everything = {path for path, _ in distill.models["Student"].named_modules()}
    assert parts_in_training(distill, "Student") == everything, "all of it is trained: its dropout is on"
    assert parts_in_training(distill, "Teacher") == {"", "1"}
    assert parts_in_training(module(["Student.0.4"]), "Student") == {"", "0", "0.1", "0.3", "0.4"}


def test_statistics_without_parameters_stand_still_beside_what_does() -> None:
    def training(*names: str) -> bool:
        models = {"Student": nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 3))}
        losses = {"ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth"))}
        distill = DistillModule(models, losses, optimizer=partial(torch.optim.SGD, lr=0.1), train_only=names)
        return "1" in parts_in_training(distill, "Student")

    assert training("Student.0", "Student.2")
    assert not training("Student.2")
