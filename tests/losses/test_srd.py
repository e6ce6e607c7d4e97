from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import Example, SRDLoss, srd_loss
from lit_distill.losses.relation.srd import Form
from losses.cases import Case
from losses.checks import (
    Loss,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    gradients,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [
    Case(lambda: SRDLoss(gather=True)),
    Case(lambda: SRDLoss(form="correlations", bn_eps=0.0, eps=1e-5, gather=True), note="of DeiT"),
]
FORMS: tuple[Form, ...] = ("differences", "correlations")

STUDENT, TEACHER, OTHER = logits(6, 4, seed=1), logits(6, 4, seed=2), logits(6, 7, 2, 3, seed=3)


def published(student: Tensor, teacher: Tensor, form: str, exponent: float, eps: float) -> Tensor:
    """By torch's batch normalization."""
    norm = nn.BatchNorm1d(student.shape[1], eps=1e-4, affine=False).double()
    s, t = norm(student), norm(teacher)
    if form == "differences":
        return torch.log(eps + (s - t).abs().pow(exponent).sum())
    return torch.log(eps + (1 - (s * t).mean(dim=0)).abs().pow(exponent).sum())


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("exponent", "eps"), [(4.0, 0.0), (2.5, 0.0), (4.0, 1e-2)])
@pytest.mark.parametrize("shape", [(5, 3), (16, 31)])
def test_is_the_published_formula(shape: tuple[int, int], exponent: float, eps: float, form: Form) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours = gradients(lambda s, t: srd_loss(s, t, form=form, exponent=exponent, eps=eps), student, teacher)
    theirs = gradients(lambda s, t: published(s, t, form, exponent, eps), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("form", FORMS)
def test_holds_to_the_checks(form: Form) -> None:
    both: list[Loss] = [lambda s, t: srd_loss(s, t, form=form), fresh(lambda: SRDLoss(form=form))]
    for loss in both:
        check_gradcheck(loss, STUDENT, TEACHER)
        check_half_precision(loss, STUDENT, TEACHER)
        check_finite_or_error(loss, STUDENT, TEACHER)
        check_nan_raises(loss, STUDENT, TEACHER)
        check_permutation_invariant(loss, STUDENT, TEACHER)


def test_equal_features_have_no_gradient() -> None:
    value, given = gradients(srd_loss, STUDENT, STUDENT.clone())
    assert value < -1000
    assert given[0] is not None
    assert not given[0].any()
    bounded = srd_loss(STUDENT, STUDENT.clone(), form="correlations", bn_eps=0.0, eps=1e-5)
    torch.testing.assert_close(bounded.item(), math.log(1e-5))


@pytest.mark.parametrize("form", FORMS)
def test_scaling_and_shifting_a_column_changes_nothing(form: Form) -> None:
    value = srd_loss(STUDENT, TEACHER, form=form, bn_eps=0.0)
    scale = torch.tensor([1e-6, 2.0, 3.0, 1e4])
    torch.testing.assert_close(srd_loss(STUDENT * scale - 3, TEACHER, form=form, bn_eps=0.0), value, rtol=1e-6, atol=0)


def test_powers_do_not_overflow() -> None:
    value = srd_loss(torch.full((2, 2), 1e20), -torch.full((2, 2), 1e20), bn_eps=None)
    torch.testing.assert_close(value.item(), math.log(4) + 4 * math.log(2e20), rtol=1e-6, atol=0)


@pytest.mark.parametrize("form", FORMS)
def test_rows_that_do_not_count_change_nothing(form: Form) -> None:
    mask = torch.tensor([True, False, True, True, False, True])
    student, teacher = (x.masked_fill(~mask[:, None], torch.nan) for x in (STUDENT, TEACHER))
    kept = srd_loss(STUDENT[mask], TEACHER[mask], form=form)
    torch.testing.assert_close(srd_loss(student, teacher, mask=mask, form=form), kept)
    weights = torch.tensor([1, 2, 1, 0, 1, 2])
    rows = torch.arange(6).repeat_interleave(weights)
    torch.testing.assert_close(
        srd_loss(STUDENT, TEACHER, mask=weights, form=form), srd_loss(STUDENT[rows], TEACHER[rows], form=form)
    )
    assert srd_loss(STUDENT, TEACHER, mask=torch.zeros(6), form=form) == 0


def test_the_module_pools_and_projects() -> None:
    loss = built(SRDLoss, Example(STUDENT, OTHER))
    assert loss.projection is not None
    expected = srd_loss(loss.projection(STUDENT), OTHER.mean(dim=(2, 3)))
    torch.testing.assert_close(loss(STUDENT, OTHER), expected)
    tokens = OTHER.flatten(2).mT
    torch.testing.assert_close(loss(STUDENT, tokens), expected)


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, OTHER)
    check_build_is_idempotent(SRDLoss, example)
    check_state_dict_round_trip(SRDLoss, example, lambda loss: loss(STUDENT, OTHER))


def test_compiles_whole() -> None:
    loss = built(SRDLoss, Example(STUDENT, OTHER))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True, True, False, True])
    torch.testing.assert_close(compiled(STUDENT, OTHER, mask=mask), loss(STUDENT, OTHER, mask=mask))


def test_says_what_is_wrong() -> None:
    check_shapes_named(srd_loss, STUDENT, OTHER)
    with pytest.raises(ValueError, match="exponent must be a finite number of at least 1"):
        SRDLoss(exponent=0.5)
    with pytest.raises(ValueError, match=r"without a projector needs equal widths, got \(4, 7\)"):
        SRDLoss(projector=None).build(Example(STUDENT, OTHER))
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        SRDLoss()(STUDENT, OTHER)
    loss = built(SRDLoss, Example(STUDENT, OTHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) widths \(4, 7\), got \(4, 4\)"):
        loss.build(Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match="built for a student of width 4, got 7"):
        loss(OTHER, OTHER)
    with pytest.raises(ValueError, match="one feature of the student with one of the teacher"):
        loss([STUDENT, STUDENT], OTHER)
