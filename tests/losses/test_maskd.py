from __future__ import annotations

from typing import Any

import pytest
import torch

from lit_distill.losses import Example, MasKDLoss, maskd_loss
from lit_distill.losses.feature._prompts import overlap
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

CASES = [Case(MasKDLoss, "maps"), Case(lambda: MasKDLoss(weighted=True, frozen=False), "map", note="weighted")]

STUDENT, TEACHER = logits(3, 4, 2, 3, seed=1), logits(3, 5, 2, 3, seed=2)
MASKS = logits(3, 2, 2, 3, seed=3).sigmoid()


def test_is_a_loop_over_samples_and_masks() -> None:
    teacher = logits(3, 4, 2, 3, seed=2)
    regions = [
        (m * (s - t)).square().sum(dim=(1, 2)).mean() / m.sum()
        for s, t, masks in zip(STUDENT, teacher, MASKS, strict=True)
        for m in masks
    ]
    errors = torch.stack(regions).reshape(3, 2)
    torch.testing.assert_close(maskd_loss(STUDENT, teacher, MASKS), errors.mean())
    weights = torch.tensor([0.25, 0.75]).double().expand(3, 2)
    torch.testing.assert_close(maskd_loss(STUDENT, teacher, MASKS, weights), (errors @ weights[0]).mean())


def test_places_that_do_not_count_are_not_there() -> None:
    teacher = logits(3, 4, 2, 3, seed=2)
    mask = torch.tensor([[[True, False, True], [True, True, False]]] * 3)
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]][..., None] for x in (STUDENT, teacher, MASKS)]
    torch.testing.assert_close(maskd_loss(broken, teacher, MASKS, mask=mask), maskd_loss(*kept))


def test_overlap_is_the_mean_of_dice_coefficients() -> None:
    first, second, third = MASKS[0, 0], MASKS[0, 1], MASKS[1, 0]
    pairs = [(first, second), (first, third), (second, third)]
    dice = [2 * (a * b).sum() / (a.square().sum() + b.square().sum()) for a, b in pairs]
    masks = torch.stack([first, second, third])[None]
    torch.testing.assert_close(overlap(masks), torch.stack(dice).mean()[None])
    assert overlap(masks[:, :1]) == 0


@pytest.mark.parametrize("frozen", [True, False])
def test_the_error_trains_tokens_and_head_only_where_they_are_not_frozen(frozen: bool) -> None:
    loss = built(lambda: MasKDLoss(weighted=True, frozen=frozen, diversity=0.0), Example(STUDENT, TEACHER))
    loss(STUDENT, TEACHER).backward()
    own = [loss.prompts[0], *loss.heads.parameters()]
    assert [bool(p.grad is not None and p.grad.any()) for p in own] == [not frozen] * len(own)
    diverse = built(MasKDLoss, Example(STUDENT, TEACHER))
    diverse(STUDENT, TEACHER).backward()
    assert diverse.prompts[0].grad is not None
    assert diverse.prompts[0].grad.any()


def test_the_student_has_a_say_after_the_warmup() -> None:
    loss = built(lambda: MasKDLoss(diversity=0.0), Example(STUDENT, TEACHER))
    early = loss(STUDENT, TEACHER)
    loss.set_epoch(1.0)
    late = loss(STUDENT, TEACHER)
    assert not torch.equal(early, late)
    loss.set_epoch(0.0)
    torch.testing.assert_close(loss.eval()(STUDENT, TEACHER), late)


def test_the_module_holds_to_the_checks() -> None:
    example = Example(STUDENT, TEACHER)
    loss = built(MasKDLoss, example)
    loss(STUDENT, TEACHER).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(MasKDLoss), STUDENT, TEACHER)
    check_half_precision(fresh(MasKDLoss), STUDENT, TEACHER)
    check_finite_or_error(fresh(MasKDLoss), STUDENT, TEACHER)
    check_nan_raises(fresh(MasKDLoss), STUDENT, TEACHER)
    check_permutation_invariant(fresh(MasKDLoss), STUDENT, TEACHER)
    check_build_is_idempotent(MasKDLoss, example)
    check_state_dict_round_trip(MasKDLoss, example, lambda loss: loss(STUDENT, TEACHER))


def test_a_masked_sample_does_not_count_and_it_compiles_whole() -> None:
    loss = built(MasKDLoss, Example(STUDENT, TEACHER)).eval()
    mask = torch.tensor([True, False, True])
    broken = STUDENT.masked_fill(~mask[:, None, None, None], torch.nan)
    kept = loss(STUDENT[mask], TEACHER[mask])
    torch.testing.assert_close(loss(broken, TEACHER, mask=mask), kept)
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(broken, TEACHER, mask=mask), kept)
    assert loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_says_what_is_wrong() -> None:
    check_shapes_named(lambda s, t: maskd_loss(s, t, MASKS), STUDENT, TEACHER)
