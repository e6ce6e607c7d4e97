from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import MLLDLoss, kd_loss, mlld_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: MLLDLoss(gather=True))]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)
TEMPERATURES = (2.0, 3.0, 4.0, 5.0, 6.0)


def published(student: Tensor, teacher: Tensor) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for t in TEMPERATURES:
        q, p = (student / t).softmax(1), (teacher / t).softmax(1)
        instance = F.kl_div(q.log(), p, reduction="none").sum(1).mean() * t**2
        batch = ((p @ p.T - q @ q.T) ** 2).sum() / len(q)
        classes = ((p.T @ p - q.T @ q) ** 2).sum() / q.shape[1]
        total = total + instance + batch + classes
    return total


@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_papers_formula(shape: tuple[int, int]) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours, theirs = gradients(MLLDLoss(), student, teacher), gradients(published, student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quantile", [None, 0.5])
def test_holds_to_the_checks(quantile: float | None) -> None:
    check_all(MLLDLoss(confidence_quantile=quantile), STUDENT, TEACHER)


def test_is_zero_for_equal_logits() -> None:
    check_zero_when_equal(MLLDLoss(), STUDENT)


def test_the_levels_have_their_own_weights() -> None:
    parts = [
        mlld_loss(STUDENT, TEACHER, instance=a, batch=b, classes=c) for a, b, c in ((1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    torch.testing.assert_close(parts[0] + 2 * parts[1] + 3 * parts[2], mlld_loss(STUDENT, TEACHER, batch=2, classes=3))
    torch.testing.assert_close(
        parts[0], torch.stack([kd_loss(STUDENT, TEACHER, temperature=t) for t in TEMPERATURES]).sum()
    )


def test_the_order_of_classes_does_not_matter() -> None:
    order = torch.tensor([3, 1, 4, 0, 2])
    torch.testing.assert_close(mlld_loss(STUDENT[:, order], TEACHER[:, order]), mlld_loss(STUDENT, TEACHER))


def test_confidence_selects_the_least_sure_samples_and_classes() -> None:
    confidence = TEACHER.softmax(1).amax(1)
    low = confidence <= confidence.median()
    assert low.sum() == 3
    ours = mlld_loss(STUDENT, TEACHER, batch=0, classes=0, confidence_quantile=0.5)
    kept = mlld_loss(STUDENT[low], TEACHER[low], batch=0, classes=0) * 3 / 6
    torch.testing.assert_close(ours, kept)
    all_of_them = mlld_loss(STUDENT, TEACHER, confidence_quantile=1.0)
    torch.testing.assert_close(all_of_them, mlld_loss(STUDENT, TEACHER))
    _, given = gradients(MLLDLoss(batch=0, classes=0, confidence_quantile=0.5), STUDENT, TEACHER)
    assert given[0] is not None
    assert not given[0][~low].any()


def test_gather_changes_nothing_in_one_process() -> None:
    torch.testing.assert_close(MLLDLoss(gather=True)(STUDENT, TEACHER), MLLDLoss()(STUDENT, TEACHER))


def test_says_what_is_wrong() -> None:
    check_shapes_named(MLLDLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="one or more finite numbers above 0"):
        MLLDLoss(temperatures=())
    with pytest.raises(ValueError, match=r"temperatures must be one or more finite numbers above 0, got \(1.0, 0.0\)"):
        MLLDLoss(temperatures=(1.0, 0.0))
    with pytest.raises(ValueError, match="confidence_quantile must be a number from 0 to 1, or None, got 50"):
        MLLDLoss(confidence_quantile=50)
    with pytest.raises(ValueError, match="batch must be"):
        MLLDLoss(batch=-1.0)
    assert "temperatures=(2.0, 3.0" in repr(MLLDLoss())
