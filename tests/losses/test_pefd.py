from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import Example, PEFDLoss, pefd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(PEFDLoss), Case(PEFDLoss, "map", note="of maps")]

STUDENT, TEACHER = logits(3, 5, seed=1), logits(3, 4, seed=2)


@pytest.mark.parametrize("q", [1, 2, 5])
def test_is_the_published_formula(q: int) -> None:
    loss = built(lambda: PEFDLoss(projectors=q), Example(STUDENT, TEACHER))
    projected = torch.stack([layer(STUDENT).relu() for layer in loss.layers]).mean(dim=0)
    torch.testing.assert_close(loss(STUDENT, TEACHER), (1 - F.cosine_similarity(projected, TEACHER)).mean())
    loss(STUDENT, TEACHER).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())


def test_holds_to_the_checks() -> None:
    loss = fresh(PEFDLoss)
    check_gradcheck(loss, STUDENT, TEACHER, wrt=(0, 1))
    check_half_precision(loss, STUDENT, TEACHER)
    check_finite_or_error(loss, STUDENT, TEACHER)
    check_nan_raises(loss, STUDENT, TEACHER)
    check_permutation_invariant(loss, STUDENT, TEACHER)
    example = Example(STUDENT, TEACHER)
    check_build_is_idempotent(PEFDLoss, example)
    check_state_dict_round_trip(PEFDLoss, example, lambda loss: loss(STUDENT, TEACHER))


def test_a_projection_of_zeros_has_no_direction() -> None:
    assert pefd_loss([-STUDENT.abs()], STUDENT) == 1


@pytest.mark.parametrize("pooled", [True, False])
def test_tokens_that_do_not_count_are_not_there(pooled: bool) -> None:
    student, teacher = logits(2, 6, 5, seed=1), logits(2, 6, 4, seed=2)
    loss = built(lambda: PEFDLoss(pooled=pooled, skip=1), Example(student, teacher))
    mask = torch.tensor([[True, False, True, True, False, True]] * 2)
    broken = student.masked_fill(~mask[..., None], torch.nan)
    kept = [x[:, mask[0]] for x in (student, teacher)]
    torch.testing.assert_close(loss(broken, teacher, mask=mask), loss(*kept))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher, mask=mask), loss(*kept))


def test_says_what_is_wrong() -> None:
    loss = built(PEFDLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) widths \(5, 4\), got \(4, 4\)"):
        loss.build(Example(TEACHER, TEACHER))
    with pytest.raises(ValueError, match="the same places"):
        built(lambda: PEFDLoss(pooled=False), Example(STUDENT, TEACHER))(logits(2, 3, 5), logits(2, 4, 4))
