from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import NSTLoss, nst_loss
from losses import checks
from losses.cases import Case

CASES = [Case(NSTLoss, "map")]

SHAPES = [((3, 4, 3, 2), (3, 6, 3, 2)), ((3, 2, 5, 4), (3, 3, 5, 4))]
"""With few positions, and with few channels: two ways to compute the same."""


def pair(index: int) -> tuple[Tensor, Tensor]:
    student, teacher = SHAPES[index]
    return checks.logits(*student, seed=1), checks.logits(*teacher, seed=2)


def plain(student: Tensor, teacher: Tensor) -> Tensor:
    def kernel(a: Tensor, b: Tensor) -> Tensor:
        return (a.unsqueeze(1) * b.unsqueeze(2)).sum(-1).pow(2).mean()

    s, t = (F.normalize(x.flatten(2), dim=2) for x in (student, teacher))
    return kernel(t, t) + kernel(s, s) - 2 * kernel(s, t)


@pytest.mark.parametrize("index", [0, 1])
def test_the_published_formula(index: int) -> None:
    student, teacher = pair(index)
    s, r = student.clone().requires_grad_(), student.clone().requires_grad_()
    value, expected = nst_loss(s, teacher), plain(r, teacher)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(torch.autograd.grad(value, s), torch.autograd.grad(expected, r))


@pytest.mark.parametrize("index", [0, 1])
def test_every_check(index: int) -> None:
    student, teacher = pair(index)
    checks.check_all(nst_loss, student, teacher, wrt=(0, 1))
    checks.check_zero_when_equal(nst_loss, student)
    checks.check_shapes_named(nst_loss, student, teacher[:2])


@pytest.mark.parametrize("index", [0, 1])
def test_order_and_scale_of_channels_do_not_matter(index: int) -> None:
    student, teacher = pair(index)
    order = torch.randperm(student.shape[1], generator=torch.Generator().manual_seed(0))
    scale = torch.linspace(0.1, 30, student.shape[1], dtype=torch.float64).reshape(1, -1, 1, 1)
    torch.testing.assert_close(nst_loss(student[:, order] * scale, teacher), nst_loss(student, teacher))
    assert nst_loss(student[:, order], student).abs() < 1e-12


def test_it_is_never_negative() -> None:
    for seed in range(20):
        student, teacher = checks.logits(2, 5, 3, 3, seed=seed), checks.logits(2, 5, 3, 3, seed=seed + 100)
        assert nst_loss(student, teacher) >= 0


def test_sizes_are_pooled_and_layers_summed() -> None:
    student, teacher = checks.logits(2, 3, 8, 8, seed=1), checks.logits(2, 4, 4, 4, seed=2)
    expected = plain(F.adaptive_avg_pool2d(student, 4), teacher)
    torch.testing.assert_close(nst_loss(student, teacher), expected)
    torch.testing.assert_close(NSTLoss()([student, teacher], [teacher, student]), 2 * expected)
