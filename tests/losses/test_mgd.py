from __future__ import annotations

from typing import get_args

import pytest
import torch
from torch import nn

from lit_distill.losses import Example, MGDLoss, mgd_loss
from lit_distill.losses.feature.mgd import Mask
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: MGDLoss(mask_ratio=0.0), "map")]  # its masks are drawn by each process for itself

STUDENT, TEACHER = checks.logits(3, 4, 3, 2, seed=1, scale=1.0), checks.logits(3, 6, 3, 2, seed=2, scale=1.0)


def test_value_is_the_plain_formula() -> None:
    generated, teacher = checks.logits(3, 4, 2, 2, seed=0), checks.logits(3, 4, 2, 2, seed=1)
    expected = 0.3 * nn.MSELoss(reduction="sum")(generated, teacher) / 3
    torch.testing.assert_close(mgd_loss(generated, teacher, alpha=0.3), expected)


def test_the_function_is_held_to_every_check() -> None:
    student, teacher = checks.logits(3, 4, 2, 2, seed=0), checks.logits(3, 4, 2, 2, seed=1)
    checks.check_all(mgd_loss, student, teacher, wrt=(0, 1))
    checks.check_zero_when_equal(mgd_loss, student)
    checks.check_shapes_named(mgd_loss, student, teacher[:, :2])


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mask", get_args(Mask))
def test_the_module_masks_generates_and_compares(mask: Mask, training: bool) -> None:
    loss = built(lambda: MGDLoss(mask=mask, mask_ratio=0.4), Example(STUDENT, TEACHER)).train(training)
    torch.manual_seed(11)
    value = loss(STUDENT, TEACHER)
    assert loss.align is not None
    aligned = loss.align(STUDENT)
    torch.manual_seed(11 if training else 0)  # in eval mode the mask has a seed of its own, whatever the global one is
    drawn = torch.rand((3, 6, 1, 1) if mask == "channel" else (3, 1, 3, 2))
    expected = 7e-5 * (loss.generation(aligned * (drawn >= 0.4)) - TEACHER).square().sum() / 3
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize(("mask_ratio", "share"), [(0.0, 1.0), (1.0, 0.0), (0.65, 0.35)])
def test_the_share_of_masked_channels(mask_ratio: float, share: float) -> None:
    loss = MGDLoss(mask_ratio=mask_ratio)
    torch.manual_seed(0)
    mask = loss._draw_mask(torch.zeros(64, 256, 2, 2))
    assert mask.shape == (64, 256, 1, 1)
    assert bool(((mask == 0) | (mask == 1)).all())
    assert mask.mean().item() == pytest.approx(share, abs=0.02)


def test_masks_follow_the_global_seed_in_training_only() -> None:
    loss = built(MGDLoss, Example(STUDENT, TEACHER))
    torch.manual_seed(3)
    first, other = loss(STUDENT, TEACHER), loss(STUDENT, TEACHER)
    torch.manual_seed(3)
    again = loss(STUDENT, TEACHER)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    loss.eval()
    assert torch.equal(loss(STUDENT, TEACHER), loss(STUDENT, TEACHER))
    assert torch.equal(state, torch.get_rng_state())


def test_alignment_only_where_channels_differ() -> None:
    assert isinstance(built(MGDLoss, Example(STUDENT, TEACHER)).align, nn.Conv2d)
    same = built(MGDLoss, Example(TEACHER, TEACHER))
    assert same.align is None
    assert same(TEACHER, TEACHER).isfinite()


def test_the_module_is_held_to_every_check() -> None:
    loss = fresh(MGDLoss)
    checks.check_gradcheck(loss, STUDENT, TEACHER)
    checks.check_half_precision(loss, STUDENT, TEACHER)
    checks.check_finite_or_error(loss, STUDENT, TEACHER)
    checks.check_nan_raises(loss, STUDENT, TEACHER)
    checks.check_permutation_invariant(fresh(lambda: MGDLoss(mask_ratio=0.0)), STUDENT, TEACHER)


def test_every_parameter_learns() -> None:
    loss = built(MGDLoss, Example(STUDENT, TEACHER))
    loss(STUDENT, TEACHER).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER)
    check_state_dict_round_trip(MGDLoss, example, lambda loss: loss(STUDENT, TEACHER))
    check_build_is_idempotent(MGDLoss, example)


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        MGDLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"one spatial size .*\(3, 4, 3, 2\).*\(3, 6, 2, 2\)"):
        MGDLoss().build(Example(STUDENT, TEACHER[:, :, :2]))
    with pytest.raises(ValueError, match="one reference each"):
        MGDLoss().build(Example([STUDENT], [TEACHER]))
    loss = built(MGDLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"built for .*\(4, 6\).* got \[\(2, 6\)\]"):
        loss(STUDENT[:, :2], TEACHER)
    with pytest.raises(ValueError, match="mask_ratio must be a number from 0 to 1"):
        MGDLoss(mask_ratio=1.5)
    with pytest.raises(ValueError, match="mask must be one of 'channel', 'spatial'"):
        MGDLoss(mask="pixel")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="alpha"):
        MGDLoss(alpha=-1.0)
