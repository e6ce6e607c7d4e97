from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import KDLoss, StreamlinedKDLoss, streamlined_kd_loss
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: StreamlinedKDLoss(gather=True))]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


def published(student: Tensor, teacher: Tensor, tikhonov: float) -> Tensor:
    """The part of the relations."""
    s, t = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
    d = s @ s.T - t @ t.T
    inverse = torch.linalg.inv(torch.cov(d.T) + tikhonov * torch.eye(len(d), dtype=d.dtype))
    return torch.einsum("ij,jk,ik->i", d, inverse, d).sqrt().mean()


@pytest.mark.parametrize("tikhonov", [0.1, 2.0])
@pytest.mark.parametrize("shape", [(2, 3), (7, 3), (16, 31)])
def test_is_the_published_formula(shape: tuple[int, int], tikhonov: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours = gradients(StreamlinedKDLoss(instance=0.0, tikhonov=tikhonov), student, teacher)
    theirs = gradients(lambda s, t: published(s, t, tikhonov), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_its_parts_have_their_own_weights() -> None:
    first, second = (streamlined_kd_loss(STUDENT, TEACHER, instance=a, direction=b) for a, b in ((1, 0), (0, 1)))
    torch.testing.assert_close(streamlined_kd_loss(STUDENT, TEACHER, instance=2, direction=3), 2 * first + 3 * second)
    torch.testing.assert_close(first, KDLoss(temperature=4.0)(STUDENT, TEACHER) / 16)  # without T²


def test_holds_to_the_checks() -> None:
    check_all(StreamlinedKDLoss(), STUDENT, TEACHER, wrt=(0, 1))


def test_equal_networks_have_no_loss_and_no_gradient() -> None:
    check_zero_when_equal(StreamlinedKDLoss(), STUDENT)


def test_relations_ignore_the_size_of_a_samples_logits() -> None:
    loss = StreamlinedKDLoss(instance=0.0)
    torch.testing.assert_close(loss(STUDENT * torch.arange(1, 7)[:, None], TEACHER), loss(STUDENT, TEACHER))


def test_one_sample_has_no_relations() -> None:
    value, given = gradients(StreamlinedKDLoss(instance=0.0), STUDENT[:1], TEACHER[:1])
    assert value < 1e-12
    assert given[0] is not None
    assert given[0].abs().max() < 1e-12


def test_says_what_is_wrong() -> None:
    check_shapes_named(StreamlinedKDLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="tikhonov must be a finite number above 0"):
        StreamlinedKDLoss(tikhonov=0.0)
