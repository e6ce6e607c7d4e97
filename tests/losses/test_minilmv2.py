from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import MiniLMv2Loss, minilmv2_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_zero_when_equal,
    logits,
)

CASES = [Case(lambda: MiniLMv2Loss(relation_heads=1), "map")]

STUDENT, TEACHER = ([logits(3, 5, width, seed=n + width) for n in range(3)] for width in (6, 12))
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])


def one(student: Tensor, teacher: Tensor, heads: int = 3) -> Tensor:
    return minilmv2_loss(student, teacher, relation_heads=heads)


def published(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], heads: int) -> Tensor:
    """Sequence by sequence, cut to its real length, head by head."""
    total = []
    for n, length in enumerate(MASK.sum(dim=1).tolist()):
        of_heads = []
        for h in range(heads):
            rows = []
            for x, y in (a, b):
                d = x.shape[2] // heads
                x_h, y_h = (z[n, :length, h * d : (h + 1) * d] for z in (x, y))
                rows.append((x_h @ y_h.T / d**0.5).log_softmax(1))
            of_heads.append(F.kl_div(rows[0], rows[1], reduction="batchmean", log_target=True))
        total.append(torch.stack(of_heads).mean())
    return torch.stack(total).mean()


@pytest.mark.parametrize("heads", [1, 2, 6])
def test_is_the_published_formula_of_what_counts(heads: int) -> None:
    expected = [published((s, s), (t, t), heads) for s, t in zip(STUDENT, TEACHER, strict=True)]
    broken = [[x.masked_fill(MASK[..., None] == 0, torch.nan) for x in side] for side in (STUDENT, TEACHER)]
    ours = minilmv2_loss(*broken, mask=MASK, relation_heads=heads)
    torch.testing.assert_close(ours, torch.stack(expected).mean())


def test_any_two_signals_may_be_related() -> None:
    (q, k, v), (q_t, k_t, v_t) = STUDENT, TEACHER
    expected = 0.5 * published((q, k), (q_t, k_t), 2) + 2 * published((v, v), (v_t, v_t), 2)
    ours = MiniLMv2Loss(relation_heads=2, pairs=[[0, 1], [2, 2]], weights=[0.5, 2.0])
    torch.testing.assert_close(ours(STUDENT, TEACHER, mask=MASK), expected)


def test_holds_to_the_checks() -> None:
    student, teacher = STUDENT[0], TEACHER[0]
    check_gradcheck(one, student, teacher)
    check_half_precision(one, student, teacher)
    check_finite_or_error(one, student, teacher)
    check_nan_raises(one, student, teacher)
    check_permutation_invariant(one, student, teacher)
    check_zero_when_equal(one, student)


def test_padding_gets_no_gradient() -> None:
    leaves = [x.masked_fill(MASK[..., None] == 0, torch.inf).requires_grad_() for x in STUDENT]
    minilmv2_loss(leaves, TEACHER, mask=MASK, relation_heads=3).backward()  # type: ignore[no-untyped-call]
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        assert not leaf.grad[MASK == 0].any()
    assert minilmv2_loss(STUDENT, TEACHER, mask=0 * MASK, relation_heads=3) == 0
    sample = torch.tensor([True, False, True])
    torch.testing.assert_close(
        minilmv2_loss(STUDENT, TEACHER, mask=sample, relation_heads=3),
        minilmv2_loss([x[sample] for x in STUDENT], [x[sample] for x in TEACHER], relation_heads=3),
    )


def test_places_of_a_map_are_tokens() -> None:
    maps = [x.mT.reshape(3, -1, 5, 1) for x in (STUDENT[0], TEACHER[0])]
    torch.testing.assert_close(one(maps[0], maps[1]), one(STUDENT[0], TEACHER[0]))


def test_compiles_whole() -> None:
    loss = MiniLMv2Loss(relation_heads=3)
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=MASK), loss(STUDENT, TEACHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"relation_heads=48 parts.*choose a number that divides both widths"):
        MiniLMv2Loss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="as many signals of the student as of the teacher"):
        minilmv2_loss(STUDENT[:2], TEACHER, relation_heads=1)
    with pytest.raises(ValueError, match="as many tokens in all signals"):
        minilmv2_loss(STUDENT[0][:, :4], TEACHER[0], relation_heads=1)
    with pytest.raises(ValueError, match=r"of the 3 signals given, got pairs \[\(0, 3\)\]"):
        minilmv2_loss(STUDENT, TEACHER, relation_heads=1, pairs=[[0, 3]])
    with pytest.raises(ValueError, match="pairs must be pairs of positions"):
        MiniLMv2Loss(pairs=[[0]])
