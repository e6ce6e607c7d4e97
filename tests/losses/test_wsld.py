from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import WSLDLoss, soft_target_cross_entropy, wsld_loss
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

CASES = [Case(WSLDLoss)]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)


def weights(student: Tensor, teacher: Tensor, target: Tensor) -> Tensor:
    error_s, error_t = (F.cross_entropy(x.detach(), target, reduction="none") for x in (student, teacher))
    return 1 - (-error_s / (error_t + 1e-7)).exp()


def published(student: Tensor, teacher: Tensor, target: Tensor, t: float) -> Tensor:
    soft = -((teacher / t).softmax(1) * (student / t).log_softmax(1)).sum(1)
    return t**2 * (weights(student, teacher, target) * soft).mean()


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], temperature: float) -> None:
    student, teacher, target = logits(*shape, seed=3), logits(*shape, seed=4), labels(*shape, seed=5)
    ours = gradients(lambda s, t, y: wsld_loss(s, t, y, temperature=temperature), student, teacher, target)
    theirs = gradients(lambda s, t, y: published(s, t, y, temperature), student, teacher, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


def test_holds_to_the_checks() -> None:
    loss = WSLDLoss()
    # The weights get no gradient: differentiate with those of another student, one sample at a time.
    for i in range(3):
        one = slice(i, i + 1)
        weight = weights(STUDENT[one], TEACHER[one], TARGET[one])
        _, given = gradients(loss, STUDENT[one], TEACHER[one], TARGET[one])
        _, plain = gradients(lambda s, t: soft_target_cross_entropy(s, t, temperature=2.0), STUDENT[one], TEACHER[one])
        assert plain[0] is not None
        torch.testing.assert_close(given[0], weight * plain[0])
    check_half_precision(loss, STUDENT, TEACHER, TARGET)
    check_finite_or_error(loss, STUDENT, TEACHER, TARGET)
    check_nan_raises(loss, STUDENT, TEACHER, TARGET)
    check_permutation_invariant(loss, STUDENT, TEACHER, TARGET)


def test_gradcheck_where_the_weight_is_constant() -> None:
    """A teacher that is sure of the label makes every weight 1 to the last digit."""
    sure = F.one_hot(TARGET, 5).double() * 200
    check_gradcheck(WSLDLoss(), STUDENT, sure, TARGET)


def test_a_student_that_is_sure_of_the_label_learns_nothing_more() -> None:
    sure = F.one_hot(TARGET, 5).double() * 200
    value, given = gradients(WSLDLoss(), sure, TEACHER, TARGET)
    assert value.abs() < 1e-12
    assert given[0] is not None
    assert given[0].abs().max() < 1e-12


def test_mixed_labels_weigh_by_the_mixed_cross_entropy() -> None:
    one_hot = F.one_hot(TARGET, 5).double()
    torch.testing.assert_close(WSLDLoss()(STUDENT, TEACHER, one_hot), WSLDLoss()(STUDENT, TEACHER, TARGET))
    mixed = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
    torch.testing.assert_close(WSLDLoss()(STUDENT, TEACHER, mixed), published(STUDENT, TEACHER, mixed, 2.0))
    by_teacher = WSLDLoss(teacher_labels=True)(STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(by_teacher, WSLDLoss()(STUDENT, TEACHER, TEACHER.argmax(1)))


def test_says_what_is_wrong() -> None:
    check_shapes_named(WSLDLoss(), logits(6, 5), logits(6, 4), TARGET)
    with pytest.raises(ValueError, match="temperature must be"):
        WSLDLoss(temperature=0.0)
    with pytest.raises(ValueError, match="got a target"):
        WSLDLoss()(STUDENT, TEACHER, TARGET[:2])
    assert "temperature=2.0" in repr(WSLDLoss())
