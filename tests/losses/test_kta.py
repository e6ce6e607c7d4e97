from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_distill.losses import Example, KTALoss, kta_loss
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

CASES = [Case(KTALoss, "maps"), Case(lambda: KTALoss(p=2, connect=False), "equal map", note="without an adapter")]

STUDENT, TEACHER = logits(3, 4, 2, 5, seed=1), logits(3, 4, 2, 5, seed=2)


@pytest.mark.parametrize("q", [1, 2, 3])
@pytest.mark.parametrize("p", [1, 2, 3])
def test_is_a_loop_over_samples(p: int, q: int) -> None:
    distances = [(s / s.norm(q) - t / t.norm(q)).norm(p) for s, t in zip(STUDENT, TEACHER, strict=True)]
    torch.testing.assert_close(kta_loss(STUDENT, TEACHER, p=p, q=q), torch.stack(distances).mean())


@pytest.mark.parametrize("loss", [KTALoss(p=p, connect=False) for p in (1, 2)], ids=repr)
def test_every_check(loss: KTALoss) -> None:
    check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    check_zero_when_equal(loss, STUDENT)
    check_shapes_named(loss, STUDENT, TEACHER[:, :2])
    torch.testing.assert_close(loss(1e-7 * STUDENT, 1e5 * TEACHER), loss(STUDENT, TEACHER))


@pytest.mark.parametrize("p", [1, 2])
def test_places_that_do_not_count_are_not_there(p: int) -> None:
    mask = torch.tensor([[[True, False, True, True, False]] * 2] * 3)
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]].mT for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(kta_loss(broken, TEACHER, mask=mask, p=p), kta_loss(*kept, p=p))
    repeated = [x[[0, 2, 2]] for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(kta_loss(STUDENT, TEACHER, mask=torch.tensor([1, 0, 2]), p=p), kta_loss(*repeated, p=p))
    assert kta_loss(broken, TEACHER, mask=torch.zeros(3), p=p) == 0


def test_the_module_connects_and_holds_to_the_checks() -> None:
    student, teacher = logits(3, 3, 2, 2, seed=1), logits(3, 4, 2, 2, seed=2)
    example = Example(student, teacher)
    loss = built(KTALoss, example)
    torch.testing.assert_close(loss(student, teacher), kta_loss(loss.connectors[0](student), teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(KTALoss), student, teacher)
    check_half_precision(fresh(KTALoss), student, teacher)
    check_finite_or_error(fresh(KTALoss), student, teacher)
    check_nan_raises(fresh(KTALoss), student, teacher)
    check_build_is_idempotent(KTALoss, example)
    check_state_dict_round_trip(KTALoss, example, lambda loss: loss(student, teacher))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(student, teacher, mask=mask), loss(student, teacher, mask=mask))
