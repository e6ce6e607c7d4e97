from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_distill.losses import CorrelationLoss, correlation_loss
from lit_distill.losses.relation.correlation import Kernel
from losses.cases import Case
from losses.checks import (
    check_all,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    gradients,
    logits,
)

CASES = [Case(lambda: CorrelationLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


def gaussian(rows: Tensor, gamma: float, order: int) -> Tensor:
    gram = rows @ rows.T
    return torch.stack(
        [math.exp(-2 * gamma) * (2 * gamma) ** p / math.factorial(p) * gram**p for p in range(order + 1)]
    ).sum(0)


@pytest.mark.parametrize(("gamma", "order"), [(0.4, 2), (1.5, 1), (0.7, 5)])
@pytest.mark.parametrize("shape", [(1, 3), (7, 16), (40, 3), (5, 4, 3, 2)])
def test_is_the_papers_formula(shape: tuple[int, ...], gamma: float, order: int) -> None:
    def paper(student: Tensor, teacher: Tensor) -> Tensor:
        one, two = (gaussian(F.normalize(x.flatten(1), dim=1), gamma, order) for x in (student, teacher.detach()))
        return torch.dist(one, two).square() / len(student) ** 2

    student, teacher = logits(*shape, seed=3), logits(shape[0], shape[1] + 1, seed=4)
    ours = gradients(CorrelationLoss(gamma=gamma, order=order), student, teacher)
    torch.testing.assert_close(ours, gradients(paper, student, teacher))


def test_the_series_tends_to_the_gaussian_kernel() -> None:
    student, teacher = F.normalize(STUDENT, dim=1), F.normalize(TEACHER, dim=1)
    kernels = [(-0.4 * torch.cdist(x, x).square()).exp() for x in (student, teacher)]
    torch.testing.assert_close(correlation_loss(STUDENT, TEACHER, order=20), F.mse_loss(kernels[0], kernels[1]))


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_unsquared_form_of_rows_as_they_come(kernel: str) -> None:
    hyper: dict[str, Any] = {"kernel": kernel, "normalize": False, "squared": False}

    def published(student: Tensor, teacher: Tensor) -> Tensor:
        make = (lambda x: gaussian(x, 0.4, 2)) if kernel == "gaussian" else (lambda x: x @ x.T)
        return torch.dist(make(student), make(teacher.detach())) / len(student) ** 2

    ours = gradients(CorrelationLoss(**hyper), STUDENT, TEACHER)
    torch.testing.assert_close(ours, gradients(published, STUDENT, TEACHER))


def test_consecutive_form_depends_on_the_order() -> None:
    teacher = logits(6, 4, seed=5)
    loss = CorrelationLoss(kernel="consecutive", normalize=False)
    apart = (STUDENT - teacher).abs()
    torch.testing.assert_close(loss(STUDENT, teacher), (apart[:-1] * apart[1:]).sum(1).mean())
    order = torch.tensor([0, 2, 4, 1, 3, 5])
    assert abs(loss(STUDENT[order], teacher[order]) - loss(STUDENT, teacher)) > 0.1
    assert loss(STUDENT[:1], teacher[:1]) == 0
    check_gradcheck(loss, STUDENT, teacher)
    check_half_precision(loss, STUDENT, teacher)
    check_finite_or_error(loss, STUDENT, teacher)
    check_nan_raises(loss, STUDENT, teacher)
    check_shapes_named(loss, STUDENT, TEACHER)


@pytest.mark.parametrize("hyper", [{}, {"kernel": "bilinear"}, {"squared": False}])
def test_holds_to_the_checks(hyper: dict[str, Any]) -> None:
    check_all(CorrelationLoss(**hyper), STUDENT, TEACHER)
    check_zero_when_equal(CorrelationLoss(**hyper), STUDENT)


@pytest.mark.parametrize("kernel", ["gaussian", "bilinear"])
def test_rows_as_they_come_hold_to_the_checks(kernel: Kernel) -> None:
    """Their gradient grows with the cube of the values and more: at 1e4 it is beyond float16, but not float32."""
    loss = CorrelationLoss(kernel=kernel, normalize=False)
    check_gradcheck(loss, STUDENT, TEACHER)
    check_half_precision(loss, STUDENT / 4, TEACHER / 4)
    check_finite_or_error(loss, STUDENT, TEACHER, dtypes=(torch.float64, torch.float32))
    check_nan_raises(loss, STUDENT, TEACHER)
    check_permutation_invariant(loss, STUDENT, TEACHER)
    check_zero_when_equal(loss, STUDENT)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 20), scale=st.floats(-4, 6))
def test_rotating_and_scaling_change_nothing(seed: int, n: int, scale: float) -> None:
    student, teacher = logits(n, 5, seed=seed), logits(n, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=seed + 2))
    value = correlation_loss(student, teacher)
    assert 0 <= value <= 1
    torch.testing.assert_close(correlation_loss(10**scale * student @ rotation, teacher), value)


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(correlation_loss, logits(4, 3), logits(5, 3))
    bad: dict[str, Any]
    for bad in ({"kernel": "cubic"}, {"gamma": 0.0}, {"order": 0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            CorrelationLoss(**bad)
