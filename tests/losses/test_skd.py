from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import SKDLoss, skd_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, gradients, labels, logits

CASES = [Case(SKDLoss)]

STUDENT, TEACHER, TARGET = logits(6, 5, seed=1), logits(6, 5, seed=2), labels(6, 5)


def published(
    student: Tensor, teacher: Tensor, target: Tensor, temperature: float, multiplier: float, alpha: float
) -> Tensor:
    def sphere(x: Tensor) -> Tensor:
        variance = x.var(1, keepdim=True, correction=0)
        return multiplier * (x - x.mean(1, keepdim=True)) / (variance + 1e-7).sqrt()

    student, teacher = sphere(student), sphere(teacher)
    soft = -((teacher / temperature).softmax(1) * (student / temperature).log_softmax(1)).sum(1).mean()
    return alpha * temperature**2 * soft + (1 - alpha) * F.cross_entropy(student, target)


@pytest.mark.parametrize(
    ("temperature", "multiplier", "alpha"), [(1.0, 2.0, 0.9), (4.0, 10.0, 0.5), (2.0, 1.0, 0.0), (0.5, 3.0, 1.0)]
)
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], temperature: float, multiplier: float, alpha: float) -> None:
    student, teacher, target = logits(*shape, seed=3), logits(*shape, seed=4), labels(*shape, seed=5)
    loss = SKDLoss(temperature=temperature, multiplier=multiplier, alpha=alpha)
    theirs = gradients(lambda s, t, y: published(s, t, y, temperature, multiplier, alpha), student, teacher, target)
    torch.testing.assert_close(gradients(loss, student, teacher, target), theirs, rtol=1e-8, atol=1e-11)


def test_holds_to_the_checks() -> None:
    check_all(SKDLoss(), STUDENT, TEACHER, TARGET, wrt=(0, 1))


def test_ignores_scale_and_shift_of_either_network() -> None:
    scale, shift = torch.linspace(1, 30, 6).double()[:, None], logits(6, 1, seed=9)
    plain = skd_loss(STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(skd_loss(STUDENT * scale + shift, TEACHER, TARGET), plain, rtol=1e-6, atol=0)
    torch.testing.assert_close(skd_loss(STUDENT, TEACHER * scale + shift, TARGET), plain, rtol=1e-6, atol=0)


def test_mixed_labels() -> None:
    one_hot = F.one_hot(TARGET, 5).double()
    mixed = 0.7 * one_hot + 0.3 * one_hot.roll(1, 0)
    expected = published(STUDENT, TEACHER, mixed, 1.0, 2.0, 0.9)
    torch.testing.assert_close(skd_loss(STUDENT, TEACHER, mixed), expected, rtol=1e-6, atol=0)
    by_teacher = SKDLoss(teacher_labels=True)(STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(by_teacher, SKDLoss()(STUDENT, TEACHER, TEACHER.argmax(1)))


def test_says_what_is_wrong() -> None:
    check_shapes_named(SKDLoss(), logits(6, 5), logits(6, 4), TARGET)
    for alpha in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha must be a number from 0 to 1"):
            SKDLoss(alpha=alpha)
    with pytest.raises(ValueError, match="multiplier must be"):
        SKDLoss(multiplier=0.0)
    assert "multiplier=2.0" in repr(SKDLoss())
