from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_distill.losses import Example, FreeKDLoss, freekd_loss
from lit_distill.losses.feature.freekd import _haar
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(FreeKDLoss, "maps"), Case(lambda: FreeKDLoss(frozen=False, levels=1), "map", note="with free prompts")]

STUDENT, TEACHER = logits(3, 4, 8, 6, seed=1), logits(3, 5, 8, 6, seed=2)


def test_wavelets_keep_the_energy_and_odd_sides_end_in_zeros() -> None:
    low, high = _haar(STUDENT)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), STUDENT.square().sum())
    low, high = _haar(STUDENT[..., :7, :5])
    assert low.shape == (3, 4, 4, 3)
    torch.testing.assert_close(low.square().sum() + high.square().sum(), STUDENT[..., :7, :5].square().sum())


def test_is_a_loop_over_levels() -> None:
    student, teacher = STUDENT, logits(3, 4, 8, 6, seed=2)
    prompts = logits(2, 3, 4, seed=3, scale=0.1)
    expected = torch.zeros(()).double()
    ours, theirs = student, teacher
    for level in prompts:
        (ours, s), (theirs, t) = _haar(ours), _haar(theirs)
        masks = torch.stack([(prompt[:, None, None] * t.sum(dim=2)).sum(dim=1).sigmoid() for prompt in level], dim=1)
        expected += (masks[:, :, None, None] * (s - t)[:, None]).abs().mean()
    torch.testing.assert_close(freekd_loss(student, teacher, prompts, diversity=0.0), expected)


def test_low_frequencies_do_not_matter() -> None:
    teacher, prompts = logits(3, 4, 8, 8, seed=2), logits(3, 2, 4, seed=3)
    student = teacher + torch.arange(4)[:, None, None]
    assert freekd_loss(student, teacher, prompts, diversity=0.0) < 1e-12


@pytest.mark.parametrize("frozen", [True, False])
def test_the_difference_trains_prompts_only_where_they_are_not_frozen(frozen: bool) -> None:
    loss = built(lambda: FreeKDLoss(frozen=frozen, diversity=0.0), Example(STUDENT, TEACHER))
    loss(STUDENT, TEACHER).backward()
    assert loss.tokens[0].grad is not None
    assert bool(loss.tokens[0].grad.any()) != frozen


def test_the_module_holds_to_the_checks() -> None:
    example = Example(STUDENT, TEACHER)
    loss = built(FreeKDLoss, example)
    loss(STUDENT, TEACHER).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(FreeKDLoss), logits(2, 3, 4, 4, seed=1), logits(2, 4, 4, 4, seed=2))
    check_half_precision(fresh(FreeKDLoss), STUDENT, TEACHER)
    check_finite_or_error(fresh(FreeKDLoss), STUDENT, TEACHER)
    check_nan_raises(fresh(FreeKDLoss), STUDENT, TEACHER)
    check_permutation_invariant(fresh(FreeKDLoss), STUDENT, TEACHER)
    check_build_is_idempotent(FreeKDLoss, example)
    check_state_dict_round_trip(FreeKDLoss, example, lambda loss: loss(STUDENT, TEACHER))


def test_a_masked_sample_does_not_count_and_it_compiles_whole() -> None:
    loss = built(FreeKDLoss, Example(STUDENT, TEACHER)).eval()
    mask = torch.tensor([True, False, True])
    broken = STUDENT.masked_fill(~mask[:, None, None, None], torch.nan)
    kept = loss(STUDENT[mask], TEACHER[mask])
    torch.testing.assert_close(loss(broken, TEACHER, mask=mask), kept)
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(broken, TEACHER, mask=mask), kept)
    assert loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_says_what_is_wrong() -> None:
    check_shapes_named(lambda s, t: freekd_loss(s, t, torch.zeros(1, 2, 4)), STUDENT, TEACHER)
