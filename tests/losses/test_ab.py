from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from lit_distill.losses import ABLoss, Example, ab_loss
from losses.cases import Case
from losses.checks import (
    check_all,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_shapes_named,
    gradients,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(ABLoss, "maps"), Case(lambda: ABLoss(connect=False), "equal maps", note="without a connector")]

STUDENT, TEACHER = logits(3, 4, 2, 5, seed=1, scale=2.0), logits(3, 4, 2, 5, seed=2)


def published(student: Tensor, teacher: Tensor, margin: float = 1.0) -> Tensor:
    pushed_up = (student - margin) ** 2 * ((student <= margin) & (teacher > 0))
    pushed_down = (student + margin) ** 2 * ((student > -margin) & (teacher <= 0))
    return (pushed_up + pushed_down).sum() / len(student)


@pytest.mark.parametrize("margin", [0.0, 0.5, 1.0])
def test_is_the_published_formula(margin: float) -> None:
    teacher = TEACHER.relu()  # 0 is inactive
    ours = gradients(lambda s, t: ab_loss(s, t, margin=margin), STUDENT, teacher)
    theirs = gradients(lambda s, t: published(s, t, margin), STUDENT, teacher)
    torch.testing.assert_close(ours, theirs)
    assert ours[1][1] is None or not ours[1][1].any()


def test_a_student_beyond_the_margin_has_no_loss() -> None:
    assert ab_loss(TEACHER.sign() * 1.5, TEACHER) == 0


def test_the_function_holds_to_every_check() -> None:
    check_all(ab_loss, STUDENT, TEACHER)
    check_shapes_named(ab_loss, STUDENT, TEACHER[:, :2])


def test_the_module_connects_and_holds_to_the_checks() -> None:
    student, teacher = logits(3, 3, 2, 2, seed=1), logits(3, 5, 2, 2, seed=2)
    loss = built(ABLoss, Example(student, teacher))
    torch.testing.assert_close(loss(student, teacher), ab_loss(loss.connectors[0](student), teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(ABLoss), student, teacher)
    check_half_precision(fresh(ABLoss), student, teacher)
    check_finite_or_error(fresh(ABLoss), student, teacher)
    check_nan_raises(fresh(ABLoss), student, teacher)
    example = Example(student, teacher)
    check_build_is_idempotent(ABLoss, example)
    check_state_dict_round_trip(ABLoss, example, lambda loss: loss(student, teacher))


def test_places_that_do_not_count_are_not_there() -> None:
    mask = torch.tensor([[[True, False, True, True, False]] * 2] * 3)
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]] for x in (STUDENT, TEACHER)]
    scale = 10 / 6  # of 10 places 6 count
    torch.testing.assert_close(ab_loss(broken, TEACHER, mask=mask), scale * published(kept[0], kept[1]))
    samples = torch.tensor([1, 0, 2])
    torch.testing.assert_close(
        ab_loss(STUDENT, TEACHER, mask=samples), published(STUDENT[[0, 2, 2]], TEACHER[[0, 2, 2]])
    )
    assert ab_loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_compiles_whole() -> None:
    loss: ABLoss = built(ABLoss, Example(STUDENT, TEACHER))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=mask), loss(STUDENT, TEACHER, mask=mask))
