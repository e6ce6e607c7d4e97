from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lit_distill.losses import DISTPlusLoss, dist_loss, dist_plus_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    gradients,
    logits,
)

CASES = [Case(lambda: DISTPlusLoss(gather=True), "equal logits and map")]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)
OURS, THEIRS = logits(6, 4, 3, 2, seed=3), logits(6, 4, 3, 2, seed=4)


def loss(student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor, **settings: float) -> Tensor:
    return dist_plus_loss([student, ours], [teacher, theirs], **settings)  # type: ignore[arg-type]


def correlation(a: Tensor, b: Tensor) -> Tensor:
    return torch.corrcoef(torch.stack([a, b]))[0, 1]


def test_is_a_loop_over_samples_and_places() -> None:
    a, b = OURS.flatten(2), THEIRS.flatten(2)
    channels = torch.stack([correlation(a[i, :, p], b[i, :, p]) for i in range(6) for p in range(6)]).mean()
    samples = torch.stack([correlation(a[:, :, p].sum(1), b[:, :, p].sum(1)) for p in range(6)]).mean()
    expected = dist_loss(STUDENT, TEACHER, beta=3.0, gamma=2.0) + 5 * (1 - channels) + 7 * (1 - samples)
    ours = loss(STUDENT, TEACHER, OURS, THEIRS, beta=3.0, gamma=2.0, iota=5.0, kappa=7.0)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=0)
    slip = loss(STUDENT, TEACHER, OURS, THEIRS, beta=3.0, gamma=2.0, iota=5.0, kappa=7.0, added=True)
    torch.testing.assert_close(slip, expected + 5 * (2 * channels - 1), rtol=1e-6, atol=0)


def test_holds_to_the_checks() -> None:
    given = STUDENT, TEACHER, OURS, THEIRS
    check_gradcheck(loss, *given, wrt=(0, 2))
    check_half_precision(loss, *given)
    check_nan_raises(loss, *given)
    check_permutation_invariant(loss, *given)
    check_finite_or_error(lambda a, b: loss(STUDENT[: len(a)], TEACHER[: len(a)], a, b), OURS, THEIRS)
    check_finite_or_error(loss, *given)


def test_equal_networks_have_no_loss_and_no_gradient() -> None:
    value, given = gradients(lambda s, m: loss(s, s.detach(), m, m.detach()), STUDENT, OURS)
    assert value.abs() < 1e-6
    assert all(gradient is not None and gradient.abs().max() < 1e-6 for gradient in given)


def test_a_map_may_be_scaled_and_shifted() -> None:
    torch.testing.assert_close(
        loss(STUDENT, TEACHER, 7 * OURS - 2, THEIRS), loss(STUDENT, TEACHER, OURS, THEIRS), rtol=1e-6, atol=0
    )
    tokens = [x.flatten(2).mT for x in (OURS, THEIRS)]
    torch.testing.assert_close(loss(STUDENT, TEACHER, *tokens), loss(STUDENT, TEACHER, OURS, THEIRS))


def test_samples_that_do_not_count_change_nothing() -> None:
    mask = torch.tensor([True, False, True, True, False, True])
    broken = [x.masked_fill(~mask.reshape(-1, *[1] * (x.ndim - 1)), torch.nan) for x in (STUDENT, OURS)]
    kept = loss(STUDENT[mask], TEACHER[mask], OURS[mask], THEIRS[mask])
    torch.testing.assert_close(dist_plus_loss(broken, [TEACHER, THEIRS], mask=mask), kept)
    assert dist_plus_loss([STUDENT, OURS], [TEACHER, THEIRS], mask=torch.zeros(6)) == 0


def test_compiles_whole() -> None:
    module = DISTPlusLoss()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True, True, False, True])
    given = [STUDENT, OURS], [TEACHER, THEIRS]
    torch.testing.assert_close(compiled(*given, mask=mask), module(*given, mask=mask))


def test_says_what_is_wrong() -> None:
    for other in ([TEACHER], [TEACHER, THEIRS[:, :3]]):
        with pytest.raises(ValueError, match=r"logits \(B, C\) and a feature map of each network.*\(6, 4, 3, 2\)"):
            DISTPlusLoss()([STUDENT, OURS], other)
    with pytest.raises(ValueError, match="kappa must be a finite number of at least 0"):
        DISTPlusLoss(kappa=-1.0)
