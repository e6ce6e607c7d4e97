from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import Example, TinyBERTLoss, attention_scores_loss
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
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip

CASES = [Case(TinyBERTLoss)]

SCORES = logits(3, 2, 4, 4, seed=0), logits(3, 2, 4, 4, seed=1)
STATES = logits(3, 4, 5, seed=3), logits(3, 4, 6, seed=4)
STUDENT, TEACHER = [SCORES[0], STATES[0], 2 * STATES[0]], [SCORES[1], STATES[1], STATES[1] - 1]
MASK = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.bool)


def test_scores_that_the_network_masked_are_equal_and_count() -> None:
    student, teacher = (x.clone() for x in SCORES)
    student[..., 3], teacher[..., 3] = -1e4, -3e38
    expected = F.mse_loss(student[..., :3], teacher[..., :3]) * 3 / 4
    torch.testing.assert_close(attention_scores_loss(student, teacher), expected)
    torch.testing.assert_close(attention_scores_loss(*SCORES, floor=None), F.mse_loss(*SCORES))


def test_holds_to_the_checks() -> None:
    check_gradcheck(attention_scores_loss, *SCORES, wrt=(0, 1))
    check_half_precision(attention_scores_loss, *SCORES)
    check_finite_or_error(attention_scores_loss, *SCORES)
    check_nan_raises(attention_scores_loss, *SCORES)
    check_permutation_invariant(attention_scores_loss, *SCORES)
    check_zero_when_equal(attention_scores_loss, SCORES[0])


def test_is_the_sum_over_layers_with_one_projection() -> None:
    loss = built(lambda: TinyBERTLoss(attention=2.0, hidden=3.0), Example(STUDENT, TEACHER))
    (layer,) = loss.regression.projectors
    states = F.mse_loss(layer(STUDENT[1]), TEACHER[1]) + F.mse_loss(layer(STUDENT[2]), TEACHER[2])
    torch.testing.assert_close(loss(STUDENT, TEACHER), 2 * F.mse_loss(*SCORES) + 3 * states)


def test_padding_counts_on_neither_side() -> None:
    loss = built(TinyBERTLoss, Example(STUDENT, TEACHER))
    (layer,) = loss.regression.projectors
    kept = MASK[:, None, :, None] & MASK[:, None, None, :]
    scores = F.mse_loss(SCORES[0][kept.expand_as(SCORES[0])], SCORES[1][kept.expand_as(SCORES[1])])
    states = sum(F.mse_loss(layer(s[MASK]), t[MASK]) for s, t in zip(STUDENT[1:], TEACHER[1:], strict=True))
    broken = [x.masked_fill(~(kept if x.ndim == 4 else MASK[..., None]), torch.nan).requires_grad_() for x in STUDENT]
    value = loss(broken, TEACHER, mask=MASK)
    torch.testing.assert_close(value, scores + states)
    value.backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in broken)
    assert loss(STUDENT, TEACHER, mask=torch.zeros(3)) == 0


def test_a_side_may_lack_scores_or_states() -> None:
    assert TinyBERTLoss(projector=False)(SCORES[:1], SCORES[1:]) == F.mse_loss(*SCORES)
    only_scores = built(TinyBERTLoss, Example(SCORES[:1], SCORES[1:]))
    assert only_scores.is_built
    torch.testing.assert_close(only_scores(SCORES[:1], SCORES[1:]), F.mse_loss(*SCORES))


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, TEACHER)
    for given in (example, Example(STUDENT[1:], TEACHER[1:])):
        loss = built(TinyBERTLoss, given)
        state = {name: value.clone() for name, value in loss.state_dict().items()}
        loss.build(given)
        assert all(torch.equal(value, state[name]) for name, value in loss.state_dict().items())
    check_build_is_idempotent(TinyBERTLoss, Example(*STATES))
    check_state_dict_round_trip(TinyBERTLoss, Example(*STATES), lambda loss: loss(*STATES))


def test_compiles_whole() -> None:
    loss = built(TinyBERTLoss, Example(STUDENT, TEACHER))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=MASK), loss(STUDENT, TEACHER, mask=MASK))


def test_says_what_is_wrong() -> None:
    check_shapes_named(attention_scores_loss, SCORES[0], SCORES[1][:, :1])
    with pytest.raises(ValueError, match="in the same order on both sides"):
        TinyBERTLoss().build(Example(STUDENT, TEACHER[::-1]))
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        TinyBERTLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match="shared projector needs layers of one width"):
        TinyBERTLoss().build(Example([STATES[0], STATES[1]], [STATES[1], STATES[1]]))
