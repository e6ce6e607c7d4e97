from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import DKDLoss, dkd_loss, kd_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, labels, logits

CASES = [Case(DKDLoss)]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)


def published(student: Tensor, teacher: Tensor, target: Tensor, alpha: float, beta: float, t: float) -> Tensor:
    mask = F.one_hot(target, student.shape[1]).bool()
    p, q = (teacher / t).softmax(1), (student / t).softmax(1)
    of_target = [torch.stack([(x * mask).sum(1), (x * ~mask).sum(1)], dim=1) for x in (p, q)]
    target_part = F.kl_div(of_target[1].log(), of_target[0], reduction="sum")
    log_rest = [(x / t - 1000.0 * mask).log_softmax(1) for x in (teacher, student)]
    rest_part = F.kl_div(log_rest[1], log_rest[0].exp(), reduction="sum")
    return (alpha * target_part + beta * rest_part) * t**2 / len(student)


@pytest.mark.parametrize(("alpha", "beta", "temperature"), [(1.0, 8.0, 4.0), (1.0, 0.5, 1.0), (0.3, 0.0, 2.0)])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], alpha: float, beta: float, temperature: float) -> None:
    student, teacher, target = logits(*shape, seed=3), logits(*shape, seed=4), labels(*shape, seed=5)
    ours = gradients(
        lambda s, t, y: dkd_loss(s, t.detach(), y, alpha=alpha, beta=beta, temperature=temperature),
        student,
        teacher,
        target,
    )
    theirs = gradients(lambda s, t, y: published(s, t.detach(), y, alpha, beta, temperature), student, teacher, target)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


def test_holds_to_the_checks() -> None:
    check_all(DKDLoss(), STUDENT, TEACHER, TARGET, wrt=(0, 1))
    check_zero_when_equal(DKDLoss(), STUDENT, TARGET)


def test_stays_exact_where_the_published_form_is_infinite() -> None:
    """p_target rounds to 1 in float64, so log(1 - p_target) does not exist; the log-sum-exp of the others does."""
    student, teacher = torch.tensor([[60.0, 0.0, 1.0]]).double(), torch.tensor([[2.0, 0.0, 1.0]]).double()
    value = dkd_loss(student, teacher, torch.tensor([0]), alpha=1.0, beta=0.0, temperature=1.0)
    p = teacher.softmax(1)[0, 0]
    log_rest = torch.tensor([0.0, 1.0]).double().logsumexp(0) - 60.0
    expected = p * p.log() + (1 - p) * ((1 - p).log() - log_rest)
    torch.testing.assert_close(value, expected)


def test_is_hintons_divergence_when_the_rest_weighs_what_the_teacher_gives_it() -> None:
    """KD = TCKD + (1 - p_target) NCKD, the identity that the paper decouples."""
    one = STUDENT[:1], TEACHER[:1], TARGET[:1]
    rest = 1 - (one[1] / 4.0).softmax(1)[0, one[2]].item()
    torch.testing.assert_close(
        dkd_loss(*one, alpha=1.0, beta=rest, temperature=4.0), kd_loss(*one[:2], temperature=4.0)
    )


def test_mixed_labels_count_by_their_dominant_class() -> None:
    mixed = 0.7 * F.one_hot(TARGET, 5) + 0.3 * F.one_hot(TARGET.roll(1), 5)
    torch.testing.assert_close(DKDLoss()(STUDENT, TEACHER, mixed), DKDLoss()(STUDENT, TEACHER, TARGET))
    by_teacher = DKDLoss(teacher_labels=True)(STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(by_teacher, DKDLoss()(STUDENT, TEACHER, TEACHER.argmax(1)))


def test_warms_up_linearly_with_the_fractional_epoch() -> None:
    loss = DKDLoss(warmup_epochs=4.0)
    full = loss(STUDENT, TEACHER, TARGET)
    for epoch, factor in ((0.0, 0.0), (1.5, 0.375), (4.0, 1.0), (9.0, 1.0)):
        loss.set_epoch(epoch)
        torch.testing.assert_close(loss(STUDENT, TEACHER, TARGET), factor * full)
    without = DKDLoss(warmup_epochs=0)
    without.set_epoch(0.0)
    torch.testing.assert_close(without(STUDENT, TEACHER, TARGET), full)


def test_says_what_is_wrong() -> None:
    check_shapes_named(DKDLoss(), logits(6, 5), logits(6, 4), TARGET)
    with pytest.raises(ValueError, match=r"class indices int64 \(12,\).*target \(6,\)"):  # of every row of a clip
        dkd_loss(logits(6, 2, 5), logits(6, 2, 5), TARGET)
    for target in (TARGET[:5], TARGET[:, None], TARGET.double(), torch.zeros(6, 4)):
        with pytest.raises(ValueError, match=r"class indices int64 \(6,\) or class probabilities \(6, 5\)"):
            DKDLoss()(STUDENT, TEACHER, target)
    with pytest.raises(ValueError, match="class indices from 0 to 4, got 0 to 5"):
        DKDLoss()(STUDENT, TEACHER, torch.tensor([0, 1, 2, 3, 4, 5]))
    with pytest.raises(ValueError, match="class indices from 0 to 4, got -100 to 4"):
        DKDLoss()(STUDENT, TEACHER, torch.tensor([0, 1, 2, 3, 4, -100]))
    with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
        DKDLoss(beta=-1.0)
    with pytest.raises(ValueError, match="warmup_epochs must be"):
        DKDLoss(warmup_epochs=-1.0)
    assert "warmup_epochs=20.0" in repr(DKDLoss())
