from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import KDLoss, TTMLoss, ttm_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(TTMLoss), Case(lambda: TTMLoss(weighted=True, gamma=0.2), note="weighted")]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


def published(student: Tensor, teacher: Tensor, gamma: float, weighted: bool) -> Tensor:
    powers = teacher.softmax(dim=1) ** gamma
    total = powers.sum(dim=1, keepdim=True)
    per_sample = F.kl_div(student.log_softmax(dim=1), powers / total, reduction="none").sum(dim=1)
    return (per_sample * total[:, 0] if weighted else per_sample).mean()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("gamma", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], gamma: float, weighted: bool) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours = gradients(TTMLoss(gamma=gamma, weighted=weighted), student, teacher)
    theirs = gradients(lambda s, t: published(s, t, gamma, weighted), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_holds_to_the_checks(weighted: bool) -> None:
    check_all(TTMLoss(weighted=weighted), STUDENT, TEACHER, wrt=(0, 1))


def test_without_a_power_it_is_hintons_loss() -> None:
    torch.testing.assert_close(ttm_loss(STUDENT, TEACHER, gamma=1.0), KDLoss(temperature=1.0)(STUDENT, TEACHER))
    weighted = ttm_loss(STUDENT, TEACHER, gamma=1.0, weighted=True)  # probabilities sum to 1
    torch.testing.assert_close(weighted, ttm_loss(STUDENT, TEACHER, gamma=1.0))
    check_zero_when_equal(TTMLoss(gamma=1.0), STUDENT)


def test_the_student_that_matches_has_the_powers_logits() -> None:
    assert ttm_loss(0.3 * TEACHER, TEACHER, gamma=0.3) < 1e-12


def test_smooth_samples_weigh_more() -> None:
    sure, unsure = torch.tensor([[20.0, 0.0, 0.0]]), torch.zeros(1, 3)
    ratios = [ttm_loss(STUDENT[:1, :3], t.double(), weighted=True) / ttm_loss(STUDENT[:1, :3], t.double())
              for t in (sure, unsure)]  # fmt: skip
    torch.testing.assert_close(ratios[1], torch.tensor(3**0.9).double())
    assert 1 < ratios[0] < ratios[1]


def test_says_what_is_wrong() -> None:
    check_shapes_named(TTMLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="TTMLoss: gamma must be a finite number above 0"):
        TTMLoss(gamma=0.0)
    assert "weighted=True" in repr(TTMLoss(weighted=True))
