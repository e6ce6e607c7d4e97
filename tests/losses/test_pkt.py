from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lit_distill.losses import PKTLoss, pkt_loss
from losses import relations
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: PKTLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize("eps", [1e-7, 1e-3])
@pytest.mark.parametrize("shape", [(1, 3), (7, 16), (40, 3), (5, 4, 3, 2)])
def test_is_the_published_formula(shape: tuple[int, ...], eps: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(shape[0], shape[1] + 1, seed=4)
    theirs = gradients(lambda s, t: relations.pkt(s, t.detach(), eps=eps), student, teacher)
    torch.testing.assert_close(gradients(PKTLoss(eps=eps), student, teacher), theirs)


def test_holds_to_the_checks() -> None:
    check_all(PKTLoss(), STUDENT, TEACHER)
    check_zero_when_equal(PKTLoss(), STUDENT, atol=1e-6)  # eps pulls the gradient off 0 a little, as published


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(1, 20), scale=st.floats(0, 6))
def test_is_not_negative_and_knows_no_rotation_and_almost_no_scale(seed: int, n: int, scale: float) -> None:
    student, teacher = logits(n, 5, seed=seed), logits(n, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=seed + 2))
    value = pkt_loss(student, teacher)
    assert value >= -1e-12
    torch.testing.assert_close(pkt_loss(10**scale * student @ rotation, teacher), value, rtol=1e-4, atol=1e-7)


def test_opposite_samples_are_no_neighbours() -> None:
    """A cosine of -1, below it by rounding, stays a probability."""
    for seed in range(20):
        row = logits(1, 300, seed=seed).float()
        assert pkt_loss(torch.cat([row, -row]), torch.cat([row, -3 * row])).isfinite()
        assert pkt_loss(torch.cat([row, -row]), torch.cat([row, row])).isfinite()


def test_zero_rows_give_a_finite_gradient() -> None:
    student = STUDENT.clone()
    student[2] = 0
    value, (slope, _) = gradients(PKTLoss(), student, TEACHER)
    assert value.isfinite()
    assert slope is not None
    assert slope.isfinite().all()


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(pkt_loss, logits(4, 3), logits(5, 3))
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        PKTLoss(eps=0)
