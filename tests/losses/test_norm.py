from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import Example, NORMLoss, norm_loss
from losses.cases import Case
from losses.checks import (
    check_all,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_shapes_named,
    check_zero_when_equal,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: NORMLoss(groups=2), "maps")]

STUDENT, TEACHER = logits(3, 8, 2, 4, seed=1), logits(3, 4, 2, 4, seed=2)


def two_groups() -> NORMLoss:
    return NORMLoss(groups=2)


def test_is_a_sum_over_groups() -> None:
    groups = [F.mse_loss(STUDENT[:, start : start + 4], TEACHER) for start in (0, 4)]
    torch.testing.assert_close(norm_loss(STUDENT, TEACHER), groups[0] + groups[1])


@pytest.mark.parametrize("size", [(4, 8), (1, 2)])
def test_the_larger_map_is_max_pooled(size: tuple[int, int]) -> None:
    teacher = logits(3, 4, *size, seed=2)
    if size[0] == 4:
        pooled = F.max_pool2d(teacher, 2)
        torch.testing.assert_close(norm_loss(STUDENT, teacher), norm_loss(STUDENT, pooled))
    else:
        torch.testing.assert_close(norm_loss(STUDENT, teacher), norm_loss(F.max_pool2d(STUDENT, 2), teacher))


def test_the_function_holds_to_every_check() -> None:
    check_all(norm_loss, STUDENT, TEACHER, wrt=(0, 1))
    check_zero_when_equal(norm_loss, TEACHER)
    check_shapes_named(norm_loss, STUDENT[:, :6], TEACHER)


def test_places_that_do_not_count_are_not_there() -> None:
    mask = torch.tensor([[[True, False, True, True], [True, True, False, False]]] * 3)
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]][..., None] for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(norm_loss(broken, TEACHER, mask=mask), norm_loss(*kept))
    assert norm_loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_the_module_connects_and_holds_to_the_checks() -> None:
    student, teacher = logits(3, 3, 2, 2, seed=1), logits(3, 4, 2, 2, seed=2)
    example = Example(student, teacher)
    loss = built(two_groups, example)
    torch.testing.assert_close(loss(student, teacher), norm_loss(loss.connectors[0](student), teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(two_groups), student, teacher)
    check_half_precision(fresh(two_groups), student, teacher)
    check_finite_or_error(fresh(two_groups), student, teacher)
    check_nan_raises(fresh(two_groups), student, teacher)
    check_build_is_idempotent(two_groups, example)
    check_state_dict_round_trip(two_groups, example, lambda loss: loss(student, teacher))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(student, teacher, mask=mask), loss(student, teacher, mask=mask))
