from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import Example, ITRDLoss, itrd_loss
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
    gradients,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: ITRDLoss(gather=True))]

STUDENT, TEACHER, OTHER = logits(6, 4, seed=1), logits(6, 4, seed=2), logits(6, 7, seed=3)
MASK = torch.tensor([True, False, True, True, False, True])


def published(student: Tensor, teacher: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Both parts."""
    s, t = ((x - x.mean(0)) / x.std(0) for x in (student, teacher))
    columns = (1 - torch.einsum("bd,bd->d", s, t) / len(s)).abs().pow(2 * alpha).sum().log2()
    s, t = F.normalize(student), F.normalize(teacher)
    g_s, g_t = s @ s.T, t @ t.T
    both = g_s * g_t
    relations = (g_s / g_s.trace()).square().sum() - (both / both.trace()).square().sum()
    return columns, relations


@pytest.mark.parametrize("alpha", [1.5, 1.01])
@pytest.mark.parametrize("shape", [(5, 3), (16, 31)])
def test_is_the_published_formula(shape: tuple[int, int], alpha: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    for number, weights in enumerate(({"mutual": 0.0, "correlation": 1.0}, {"mutual": 1.0, "correlation": 0.0})):
        ours = gradients(lambda s, t: itrd_loss(s, t, alpha=alpha, **weights), student, teacher)  # type: ignore[arg-type]  # noqa: B023
        theirs = gradients(lambda s, t: published(s, t, alpha)[number], student, teacher)  # noqa: B023
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


def test_parts_have_their_weights() -> None:
    columns, relations = published(STUDENT, TEACHER, 1.5)
    torch.testing.assert_close(itrd_loss(STUDENT, TEACHER), 2 * columns + relations)


def test_holds_to_the_checks() -> None:
    check_gradcheck(itrd_loss, STUDENT, TEACHER, wrt=(0, 1))
    both: list[Loss] = [itrd_loss, fresh(ITRDLoss)]
    for loss in both:
        check_half_precision(loss, STUDENT, TEACHER)
        check_finite_or_error(loss, STUDENT, TEACHER)
        check_nan_raises(loss, STUDENT, TEACHER)
        check_permutation_invariant(loss, STUDENT, TEACHER)


def test_relations_depend_on_neither_scale_nor_rotation() -> None:
    rotation, _ = torch.linalg.qr(logits(4, 4, seed=5))
    given = itrd_loss(STUDENT, OTHER, correlation=0.0)
    torch.testing.assert_close(itrd_loss(9 * STUDENT @ rotation, OTHER, correlation=0.0), given)


def test_directions_at_right_angles_share_all_there_is() -> None:
    check_zero_when_equal(lambda s, t: itrd_loss(s, t, correlation=0.0), torch.eye(4).double())


def test_rows_that_do_not_count_change_nothing() -> None:
    student, teacher = (x.masked_fill(~MASK[:, None], torch.nan) for x in (STUDENT, TEACHER))
    torch.testing.assert_close(itrd_loss(student, teacher, mask=MASK), itrd_loss(STUDENT[MASK], TEACHER[MASK]))
    weights = torch.tensor([1, 2, 1, 0, 1, 2])
    rows = torch.arange(6).repeat_interleave(weights)
    torch.testing.assert_close(itrd_loss(STUDENT, TEACHER, mask=weights), itrd_loss(STUDENT[rows], TEACHER[rows]))
    assert itrd_loss(STUDENT, TEACHER, mask=torch.zeros(6)) == 0


def test_the_student_is_projected_for_relations_only_where_widths_differ() -> None:
    loss = built(ITRDLoss, Example(STUDENT, TEACHER))
    assert loss.projection is not None
    expected = itrd_loss(loss.projection(STUDENT), TEACHER, mutual=0.0) + itrd_loss(STUDENT, TEACHER, correlation=0.0)
    torch.testing.assert_close(loss(STUDENT, TEACHER), expected)
    wide = built(ITRDLoss, Example(STUDENT, OTHER))
    assert wide.projection is not None
    torch.testing.assert_close(wide(STUDENT, OTHER), itrd_loss(wide.projection(STUDENT), OTHER))


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, OTHER)
    check_build_is_idempotent(ITRDLoss, example)
    check_state_dict_round_trip(ITRDLoss, example, lambda loss: loss(STUDENT, OTHER))


def test_compiles_whole() -> None:
    loss = built(ITRDLoss, Example(STUDENT, OTHER))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, OTHER, mask=MASK), loss(STUDENT, OTHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    check_shapes_named(itrd_loss, STUDENT, OTHER)
    check_shapes_named(lambda s, t: itrd_loss(s, t, correlation=0.0), STUDENT, OTHER[:3])
    with pytest.raises(ValueError, match="alpha must be a finite number above 0"):
        ITRDLoss(alpha=0.0)
