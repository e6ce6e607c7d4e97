from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import QualityFocalLoss, quality_focal_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(QualityFocalLoss)]

STUDENT, TEACHER = logits(4, 3, seed=1), logits(4, 3, seed=2)


def published(student: Tensor, teacher: Tensor, beta: float) -> Tensor:
    target = teacher.sigmoid()
    entropy = F.binary_cross_entropy_with_logits(student, target, reduction="none")
    return (entropy * (student.sigmoid() - target).abs().pow(beta)).sum() / len(student)


@pytest.mark.parametrize("beta", [1.0, 2.0])
def test_is_the_published_formula(beta: float) -> None:
    ours = gradients(lambda s, t: quality_focal_loss(s, t, beta=beta), STUDENT, TEACHER)
    theirs = gradients(lambda s, t: published(s, t, beta), STUDENT, TEACHER)
    torch.testing.assert_close(ours, theirs)


def test_every_check() -> None:
    check_all(quality_focal_loss, STUDENT, TEACHER, wrt=(0, 1))
    check_shapes_named(quality_focal_loss, STUDENT, TEACHER[:, :2])
    certain = torch.full((2, 3), 50.0).double()
    check_zero_when_equal(quality_focal_loss, certain)


def test_one_class_will_do() -> None:
    assert quality_focal_loss(STUDENT[:, :1], TEACHER[:, :1]) > 0
