from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import NKDLoss, nkd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    gradients,
    labels,
    logits,
)

CASES = [Case(NKDLoss)]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)


def published(student: Tensor, teacher: Tensor, target: Tensor, gamma: float, t: float) -> Tensor:
    target_part = torch.zeros((), dtype=student.dtype)
    rest_part = torch.zeros((), dtype=student.dtype)
    for s, z, y in zip(student, teacher, target.tolist(), strict=True):
        target_part = target_part - z.softmax(0)[y].detach() * s.log_softmax(0)[y]
        others = [c for c in range(len(s)) if c != y]
        rest_part = rest_part - ((z[others] / t).softmax(0) * (s[others] / t).log_softmax(0)).sum()
    return (target_part + gamma * t**2 * rest_part) / len(student)


@pytest.mark.parametrize(("gamma", "temperature"), [(1.5, 1.0), (0.5, 4.0), (0.0, 1.0)])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], gamma: float, temperature: float) -> None:
    student, teacher, target = logits(*shape, seed=3), logits(*shape, seed=4), labels(*shape, seed=5)
    ours = gradients(NKDLoss(gamma=gamma, temperature=temperature), student, teacher, target)
    theirs = gradients(lambda s, t, y: published(s, t, y, gamma, temperature), student, teacher, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_holds_to_the_checks() -> None:
    loss = NKDLoss(temperature=2.0)
    check_gradcheck(loss, STUDENT, TEACHER, TARGET)
    check_half_precision(loss, STUDENT, TEACHER, TARGET)
    check_finite_or_error(loss, STUDENT, TEACHER, TARGET)
    check_nan_raises(loss, STUDENT, TEACHER, TARGET)
    check_permutation_invariant(loss, STUDENT, TEACHER, TARGET)


def test_the_rest_is_least_for_equal_logits() -> None:
    """Its gradient for the student then vanishes outside the target class."""
    _, given = gradients(NKDLoss(), STUDENT, STUDENT.clone(), TARGET)
    _, target_alone = gradients(NKDLoss(gamma=0.0), STUDENT, STUDENT.clone(), TARGET)
    torch.testing.assert_close(given[0], target_alone[0], rtol=1e-9, atol=1e-12)


def test_the_rest_does_not_see_the_target_logit() -> None:
    """It is normalized among the other classes: the teacher's own confidence in the target does not scale it."""
    raised = STUDENT.scatter_add(1, TARGET[:, None], torch.full((6, 1), 3.0).double())
    rest = [
        nkd_loss(s, TEACHER, TARGET, gamma=1.0) - nkd_loss(s, TEACHER, TARGET, gamma=0.0) for s in (STUDENT, raised)
    ]
    torch.testing.assert_close(rest[0], rest[1])


def test_the_rest_may_hold_the_target_as_well() -> None:
    """As in the copy of the program of SDD, whose mask leaves no class out."""
    rest = nkd_loss(STUDENT, TEACHER, TARGET, gamma=1.0, temperature=2.0, rest="all")
    expected = -((TEACHER / 2).softmax(1) * (STUDENT / 2).log_softmax(1)).sum(1).mean() * 4
    torch.testing.assert_close(rest - nkd_loss(STUDENT, TEACHER, TARGET, gamma=0.0), expected)


def test_mixed_labels_count_by_their_dominant_class() -> None:
    mixed = 0.7 * F.one_hot(TARGET, 5) + 0.3 * F.one_hot(TARGET.roll(1), 5)
    torch.testing.assert_close(NKDLoss()(STUDENT, TEACHER, mixed), NKDLoss()(STUDENT, TEACHER, TARGET))


def test_says_what_is_wrong() -> None:
    check_shapes_named(NKDLoss(), logits(6, 5), logits(6, 4), TARGET)
    with pytest.raises(ValueError, match="gamma must be"):
        NKDLoss(gamma=-1.0)
    with pytest.raises(ValueError, match="temperature must be"):
        NKDLoss(temperature=0.0)
    assert "gamma=1.5" in repr(NKDLoss())
