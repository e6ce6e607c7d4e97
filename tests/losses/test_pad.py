from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distill.losses import Example, PADLoss, pad_loss
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
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(PADLoss, "map")]

STUDENT, TEACHER, VARIANCE = (logits(4, 5, seed=seed, scale=1.0) for seed in (1, 2, 3))


def published(student: Tensor, teacher: Tensor, log_variance: Tensor) -> Tensor:
    return ((teacher - student) ** 2 / (1e-6 + log_variance.exp()) + log_variance).mean(dim=1).mean()


def test_is_the_published_formula() -> None:
    torch.testing.assert_close(
        gradients(pad_loss, STUDENT, TEACHER, VARIANCE), gradients(published, STUDENT, TEACHER, VARIANCE)
    )


def test_the_best_variance_is_the_squared_error() -> None:
    best = (STUDENT - TEACHER).square().log()
    _, (*_, slope) = gradients(pad_loss, STUDENT, TEACHER, best)
    assert slope is not None
    assert slope.abs().max() < 1e-4


def test_the_function_holds_to_the_checks() -> None:
    given = STUDENT, TEACHER, VARIANCE
    check_gradcheck(pad_loss, *given, wrt=(0, 1, 2))
    check_half_precision(pad_loss, *given)
    wide = torch.float64, torch.float32  # gradients of 10^7 and more have no place in float16
    check_finite_or_error(pad_loss, *given, dtypes=wide)
    check_finite_or_error(lambda v, s, t: pad_loss(s, t, v), VARIANCE, STUDENT, TEACHER, dtypes=wide)
    check_nan_raises(pad_loss, *given)
    check_permutation_invariant(pad_loss, *given)
    with pytest.raises(ValueError, match=r"of one shape, got log-variances \(4, 5\) and: got student \(4, 3\)"):
        pad_loss(STUDENT[:, :3], *given[1:])


def test_places_that_do_not_count_are_not_there() -> None:
    mask = torch.tensor([True, False, True, True])
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[mask] for x in (STUDENT, TEACHER, VARIANCE)]
    torch.testing.assert_close(pad_loss(broken, TEACHER, VARIANCE, mask=mask), pad_loss(*kept))


@pytest.mark.parametrize("width", [5, 7])
def test_the_module_pools_projects_and_learns(width: int) -> None:
    teacher = logits(4, width, 2, 2, seed=2)
    example = Example(STUDENT, teacher)
    loss = built(PADLoss, example)
    assert (loss.projector is None) == (width == 5)
    assert loss.variance is not None
    ours = STUDENT if loss.projector is None else loss.projector(STUDENT)
    value = loss(STUDENT, teacher)
    torch.testing.assert_close(value, pad_loss(ours, teacher.mean(dim=(2, 3)), loss.variance(ours)))
    value.backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_build_is_idempotent(PADLoss, example)
    check_state_dict_round_trip(PADLoss, example, lambda loss: loss(STUDENT, teacher))
    check_gradcheck(fresh(PADLoss), STUDENT, teacher)
    check_half_precision(fresh(PADLoss), STUDENT, teacher)


def test_compiles_whole_and_says_what_is_wrong() -> None:
    loss = built(PADLoss, Example(STUDENT, TEACHER))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), loss(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) widths \(5, 5\), got \(5, 3\)"):
        loss.build(Example(STUDENT, TEACHER[:, :3]))
