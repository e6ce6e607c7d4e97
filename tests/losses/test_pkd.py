from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import PKDLoss, pkd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    logits,
)

CASES = [Case(lambda: PKDLoss(gather=True), "equal maps")]

STUDENT, TEACHER = logits(3, 4, 2, 4, seed=1), logits(3, 4, 2, 4, seed=2)


def test_is_one_minus_pearson() -> None:
    correlations = [
        torch.corrcoef(torch.stack([s.flatten(), t.flatten()]))[0, 1]
        for s, t in zip(STUDENT.movedim(1, 0), TEACHER.movedim(1, 0), strict=True)
    ]
    expected = (1 - torch.stack(correlations).mean()) * 23 / 24
    torch.testing.assert_close(pkd_loss(STUDENT, TEACHER), expected, rtol=1e-5, atol=0)


def test_mean_and_size_of_a_channel_do_not_matter() -> None:
    factor, shift = logits(4, 1, 1, seed=3).abs() + 0.5, logits(4, 1, 1, seed=4)
    torch.testing.assert_close(
        pkd_loss(STUDENT * factor + shift, TEACHER), pkd_loss(STUDENT, TEACHER), rtol=1e-5, atol=0
    )


@pytest.mark.parametrize("resize", ["student", "teacher"])
def test_sizes_are_matched_bilinearly(resize: Any) -> None:
    large = logits(3, 4, 4, 8, seed=3)
    if resize == "student":
        expected = pkd_loss(F.interpolate(STUDENT, (4, 8), mode="bilinear"), large)
    else:
        expected = pkd_loss(STUDENT, F.interpolate(large, (2, 4), mode="bilinear"))
    torch.testing.assert_close(pkd_loss(STUDENT, large, resize=resize), expected)


def test_every_check() -> None:
    check_gradcheck(pkd_loss, STUDENT, TEACHER, wrt=(0, 1))
    check_half_precision(pkd_loss, STUDENT, TEACHER)
    check_finite_or_error(pkd_loss, STUDENT, TEACHER)
    check_nan_raises(pkd_loss, STUDENT, TEACHER)
    check_permutation_invariant(pkd_loss, STUDENT, TEACHER)
    check_zero_when_equal(pkd_loss, STUDENT)
    check_shapes_named(pkd_loss, STUDENT, TEACHER[:, :2])


def test_places_that_do_not_count_are_not_there() -> None:
    mask = torch.rand(3, 2, 4, generator=torch.Generator().manual_seed(0)) < 0.6
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x.movedim(1, -1)[mask] for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(pkd_loss(broken, TEACHER, mask=mask), pkd_loss(*kept))
    twice = [torch.cat([x, x]) for x in kept]
    torch.testing.assert_close(pkd_loss(broken, TEACHER, mask=2 * mask), pkd_loss(*twice))
    assert pkd_loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_sums_layers_and_compiles_whole() -> None:
    loss = PKDLoss()
    both = [STUDENT, STUDENT.flatten(2).mT], [TEACHER, TEACHER.flatten(2).mT]
    torch.testing.assert_close(loss(*both), 2 * loss(STUDENT, TEACHER))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=mask), loss(STUDENT, TEACHER, mask=mask))
