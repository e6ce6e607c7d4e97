from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import Example, TokenRelationLoss, token_relation_loss
from losses.cases import Case
from losses.checks import (
    Loss,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(TokenRelationLoss, "map")]

STUDENT, TEACHER, OTHER = logits(3, 4, 5, seed=1), logits(3, 4, 5, seed=2), logits(3, 4, 6, seed=3)
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)


def test_is_a_loop_over_samples() -> None:
    total = torch.zeros((), dtype=torch.float64)
    for s, t in zip(STUDENT, OTHER, strict=True):
        log_q, log_p = ((F.normalize(x) @ F.normalize(x).T / 0.5).log_softmax(1) for x in (s, t))
        total = total + F.kl_div(log_q, log_p, reduction="sum", log_target=True)
    torch.testing.assert_close(token_relation_loss(STUDENT, OTHER, temperature=0.5), total / 12)


def test_holds_to_the_checks() -> None:
    check_gradcheck(token_relation_loss, STUDENT, OTHER, wrt=(0, 1))
    check_zero_when_equal(token_relation_loss, STUDENT)
    both: list[Loss] = [token_relation_loss, fresh(TokenRelationLoss)]
    for loss in both:
        check_half_precision(loss, STUDENT, OTHER)
        check_finite_or_error(loss, STUDENT, TEACHER)
        check_nan_raises(loss, STUDENT, OTHER)
        check_permutation_invariant(loss, STUDENT, OTHER)


def test_neither_length_nor_rotation_matters() -> None:
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=5))
    scale = torch.arange(1, 13).reshape(3, 4, 1)
    torch.testing.assert_close(
        token_relation_loss(scale * STUDENT @ rotation, OTHER), token_relation_loss(STUDENT, OTHER)
    )


def test_tokens_that_do_not_count_are_neither_rows_nor_columns() -> None:
    broken = [x.masked_fill(~MASK[..., None], torch.nan) for x in (STUDENT, OTHER)]
    each = [token_relation_loss(s[m][None], t[m][None]) * m.sum() for s, t, m in zip(STUDENT, OTHER, MASK, strict=True)]
    student = broken[0].requires_grad_()
    value = token_relation_loss(student, broken[1], mask=MASK)
    torch.testing.assert_close(value, torch.stack(each).sum() / MASK.sum())
    value.backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert not student.grad[~MASK].any()
    assert student.grad[MASK].isfinite().all()
    weights = torch.tensor([[1, 2, 0, 1]])
    rows = torch.arange(4).repeat_interleave(weights[0])
    torch.testing.assert_close(
        token_relation_loss(STUDENT[:1], OTHER[:1], mask=weights),
        token_relation_loss(STUDENT[:1, rows], OTHER[:1, rows]),
    )
    assert token_relation_loss(STUDENT, OTHER, mask=torch.zeros(3)) == 0


def test_maps_are_projected_then_resized() -> None:
    student, teacher = logits(2, 4, 3, 3, seed=1), logits(2, 6, 4, 5, seed=2)
    loss = built(TokenRelationLoss, Example(student, teacher))
    assert loss.projection is not None
    projected = loss.projection(student.movedim(1, -1)).movedim(-1, 1)
    resized = F.interpolate(projected, (4, 5), mode="bilinear")
    torch.testing.assert_close(loss(student, teacher), token_relation_loss(resized, teacher))


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, OTHER)
    check_build_is_idempotent(TokenRelationLoss, example)
    check_state_dict_round_trip(TokenRelationLoss, example, lambda loss: loss(STUDENT, OTHER))


def test_compiles_whole() -> None:
    loss = built(TokenRelationLoss, Example(STUDENT, OTHER))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, OTHER, mask=MASK), loss(STUDENT, OTHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    check_shapes_named(token_relation_loss, STUDENT, OTHER[:, :3])
    with pytest.raises(ValueError, match="temperature must be a finite number above 0"):
        TokenRelationLoss(temperature=0.0)
