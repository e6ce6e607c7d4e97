from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distill import LossTerm
from lit_distill.losses import RKDLoss, rkd_angle_loss, rkd_distance_loss, rkd_loss
from lit_distill.losses.relation import _gram
from lit_distill.losses.relation._gram import Convention
from losses import relations
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: RKDLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize(("distance", "angle"), [(25.0, 50.0), (1.0, 2.0), (0.0, 1.0), (3.0, 0.0)])
@pytest.mark.parametrize("shape", [(7, 16), (50, 6)])
def test_is_the_published_sum(shape: tuple[int, int], distance: float, angle: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    theirs = gradients(
        lambda s, t: relations.both(s, t.detach(), distance_weight=distance, angle_weight=angle), student, teacher
    )
    ours = gradients(RKDLoss(distance=distance, angle=angle), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("convention", ["paper", "paddleclas"])
def test_is_the_sum_of_its_parts(convention: Convention) -> None:
    whole = RKDLoss(distance=2, angle=3, squared=True, eps=1e-3, convention=convention, target_size=1)
    student, teacher = logits(6, 4, 3, 3, seed=5), logits(6, 3, 2, 2, seed=6)
    distance = rkd_distance_loss(student, teacher, squared=True, eps=1e-3, convention=convention, target_size=1)
    angle = rkd_angle_loss(student, teacher, convention=convention, target_size=1)
    torch.testing.assert_close(whole(student, teacher), 2 * distance + 3 * angle)
    term = LossTerm(whole, pair=("Student", "Teacher"))
    assert term.detach == (convention == "paper"), "PaddleClas' form teaches the teacher through one term"


def test_makes_one_gram_matrix_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[torch.Size] = []
    forward = _gram._SquaredDistances.forward

    def counted(ctx: Any, rows: Tensor) -> Tensor:
        made.append(rows.shape)
        return forward(ctx, rows)

    monkeypatch.setattr(_gram._SquaredDistances, "forward", staticmethod(counted))
    rkd_loss(STUDENT, TEACHER)
    assert made == [(6, 4), (6, 5)]


def test_holds_to_the_checks() -> None:
    check_all(RKDLoss(), STUDENT, TEACHER)
    check_zero_when_equal(RKDLoss(), STUDENT)


def test_one_sample_has_no_relations() -> None:
    assert rkd_loss(logits(1, 4), logits(1, 5)) == 0


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(rkd_loss, logits(4, 3), logits(5, 3))
    bad: dict[str, Any]
    for bad in ({"distance": -1}, {"angle": float("nan")}, {"eps": 0}, {"target_size": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            RKDLoss(**bad)
