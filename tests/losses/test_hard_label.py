from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import HardLabelLoss, hard_label_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, gradients, logits

CASES = [Case(HardLabelLoss)]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_cross_entropy_with_the_teachers_class(shape: tuple[int, int]) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    value, given = gradients(HardLabelLoss(), student, teacher)
    expected, wanted = gradients(lambda s: F.cross_entropy(s, teacher.argmax(1)), student)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(given[0], wanted[0])
    assert given[1] is None


def test_holds_to_the_checks() -> None:
    check_all(HardLabelLoss(), STUDENT, TEACHER)


def test_only_the_decision_counts() -> None:
    torch.testing.assert_close(hard_label_loss(STUDENT, TEACHER * 100 + 3), hard_label_loss(STUDENT, TEACHER))
    sure = F.one_hot(TEACHER.argmax(1), 5).double() * 100
    assert hard_label_loss(sure, TEACHER) < 1e-12


def test_middle_dimensions_count_as_samples() -> None:
    maps_s, maps_t = logits(2, 5, 3, 4, seed=1), logits(2, 5, 3, 4, seed=2)
    expected = F.cross_entropy(maps_s, maps_t.argmax(1))
    torch.testing.assert_close(hard_label_loss(maps_s, maps_t, class_dim=1), expected)


def test_says_what_is_wrong() -> None:
    check_shapes_named(HardLabelLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="class_dim=1 for maps"):
        hard_label_loss(logits(2, 5, 3, 3), logits(2, 5, 3, 3))
    broken = TEACHER.clone()
    broken[2, 3] = torch.nan
    with pytest.raises(ValueError, match=r"hard_label_loss is nan: teacher \(6, 5\) holds 1 NaN"):
        hard_label_loss(STUDENT, broken)
