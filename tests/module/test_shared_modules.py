"""A frozen model and one that learns: what they share must not be meant to learn."""

from __future__ import annotations

import copy
import warnings
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from lit_distill import DistillMixin, DistillModule, LossTerm
from lit_distill.losses import KDLoss


class Adapted(nn.Module):
    """A base and what stands on it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base = base
        self.adapter = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.adapter(self.base(x))  # type: ignore[no-any-return]


def base() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, affine=False), nn.Dropout(0.5))


def module(
    student: nn.Module, teacher: nn.Module, frozen: tuple[str, ...] = ("Teacher",), **more: Any
) -> DistillModule:
    losses = {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "mse": LossTerm(nn.MSELoss(), pair=("Student", "Teacher"), detach=bool(frozen)),
    }
    return DistillModule({"Student": student, "Teacher": teacher}, losses, frozen=frozen,
                         optimizer=partial(torch.optim.SGD, lr=0.1), **more)  # fmt: skip


def test_a_shared_base_that_should_learn_is_refused() -> None:
    shared = base()
    with pytest.raises(
        ValueError, match=r"Teacher is frozen and shares .*Student: base.0.weight.*train_only=\[Student"
    ):
        module(Adapted(shared), Adapted(shared))
    assert all(p.requires_grad for p in shared.parameters()), "nothing was frozen"


def test_one_network_for_both_is_refused_and_a_copy_is_not() -> None:
    network = Adapted(base())
    with pytest.raises(ValueError, match=r"copy\.deepcopy"):
        module(network, network)
    module(network, copy.deepcopy(network))


def test_weights_in_the_same_memory_are_shared_too() -> None:
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    teacher.weight.data = student.weight.data
    with pytest.raises(ValueError, match=r"shares 1 tensors or dropouts with Student: weight"):
        module(student, teacher)


@pytest.mark.parametrize("part", [nn.BatchNorm1d(4, affine=False), nn.Dropout(0.5)])
def test_a_part_without_parameters_whose_mode_matters_is_shared(part: nn.Module) -> None:
    student, teacher = (nn.Sequential(part, nn.Linear(4, 3)) for _ in range(2))
    if isinstance(part, nn.Dropout):
        with pytest.warns(UserWarning, match=r"shares 1 tensors or dropouts with Student: 0; they are in eval mode"):
            module(student, teacher)
    else:
        with pytest.raises(ValueError, match=r"Student: 0.running_mean"):
            module(student, teacher)


def test_activations_may_be_shared() -> None:
    act = nn.ReLU()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module(nn.Sequential(act, nn.Linear(4, 3)), nn.Sequential(act, nn.Linear(4, 3)))


def test_a_base_with_adapters_is_said_by_train_only() -> None:
    shared = base()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = module(Adapted(shared), Adapted(shared), train_only=["Student.adapter"])
    assert [name for name, p in made.models["Student"].named_parameters() if p.requires_grad] == [
        "adapter.weight", "adapter.bias",
    ]  # fmt: skip
    assert made.models["Student"].training
    assert not any(part.training for part in shared.modules())


def test_a_base_that_was_frozen_by_hand_is_said_in_a_warning() -> None:
    shared = base().requires_grad_(False)
    with pytest.warns(UserWarning, match=r"in eval mode in both"):
        module(Adapted(shared), Adapted(shared))


def test_models_that_learn_may_share() -> None:
    shared = base()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = module(Adapted(shared), Adapted(shared), frozen=())
    optimizer = made.make_optimizer()
    (group,) = optimizer.param_groups
    assert len(group["params"]) == len({id(p) for p in group["params"]}) == 6


class Own(DistillMixin):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.net = network


def test_the_mixin_sees_shared_memory_and_buffers_too() -> None:
    norm = nn.BatchNorm1d(4, affine=False)
    term = LossTerm(nn.MSELoss(), pair=("Student", "Teacher"))
    with pytest.raises(
        ValueError, match=r"Teacher shares parameters, buffers or dropouts with Own: net.0.running_mean"
    ):
        Own(nn.Sequential(norm, nn.Linear(4, 3))).distill(
            nn.Sequential(norm, nn.Linear(4, 3)), student="net", losses={"mse": term}
        )


def test_a_part_that_is_called_and_not_held_is_said() -> None:
    student, head = nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 3)

    class Hides(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.head, self.hidden = nn.Linear(3, 3), [part]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.hidden[0](x))  # type: ignore[no-any-return]

    batch = (torch.zeros(2, 4), torch.tensor([0, 1]))
    terms = {
        "ce": LossTerm(nn.CrossEntropyLoss(), pair=("Student", "GroundTruth")),
        "kd": LossTerm(KDLoss(), pair=("Student", "Teacher")),
    }
    for teacher in (Hides(student[0]), lambda x: head(student[0](x))):
        made = DistillModule({"Student": student, "Teacher": teacher}, terms, frozen=["Teacher"])
        with pytest.warns(UserWarning, match=r"Teacher is frozen, but calls Student.0, which it does not hold") as said:
            made.build(batch)
        assert len(said) == 1
        made.build(batch)  # which says it no more: a warning of this package would fail
    other = copy.deepcopy(student)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for teacher in (Hides(other[0]), lambda x: head(other[0](x))):
            DistillModule({"Student": student, "Teacher": teacher}, terms, frozen=["Teacher"]).build(batch)
