from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from lit_distill.losses import DMLLoss, dml_loss
from lit_distill.losses.response.dml import Activation, Form
from losses.cases import Case
from losses.checks import (
    check_all,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    gradients,
    logits,
)

CASES = [Case(DMLLoss)]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)
PROBABILITIES = [x.sigmoid().bfloat16().double() for x in (STUDENT, TEACHER)]
FORMS: list[tuple[Activation, Form]] = list(itertools.product(("softmax", "sigmoid"), ("symmetric", "one_sided")))


def of_paddle(x: Tensor, target: Tensor, activation: Activation, eps: float) -> Tensor:
    if activation is not None:
        x, target = (z.softmax(-1) if activation == "softmax" else z.sigmoid() for z in (x, target))
    there = target * ((target + eps) / (x + eps)).log()
    back = x * ((x + eps) / (target + eps)).log()
    return ((there + back) / 2 * x.shape[-1]).mean()


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
@pytest.mark.parametrize("eps", [1e-12, 1e-6, 0.1])
@pytest.mark.parametrize("scale", [1.0, 6.0, 30.0])
def test_symmetric_is_the_origins_formula(activation: Activation, eps: float, scale: float) -> None:
    student, teacher = logits(7, 4, seed=3, scale=scale), logits(7, 4, seed=4, scale=scale)
    if activation is None:
        student, teacher = student.sigmoid(), teacher.sigmoid()
        student[0, 0] = teacher[1, 1] = 0.0
    ours = gradients(lambda s, t: dml_loss(s, t, activation=activation, eps=eps), student, teacher)
    theirs = gradients(lambda s, t: of_paddle(s, t, activation, eps), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 6.0, 30.0])
def test_one_sided_is_the_authors_formula(scale: float) -> None:
    def published(s: Tensor, t: Tensor) -> Tensor:
        q, p = s.softmax(1), t.softmax(1)
        return (p * (1e-8 + p / (q + 1e-8)).log()).sum() / len(s)

    student, teacher = logits(7, 4, seed=3, scale=scale), logits(7, 4, seed=4, scale=scale)
    ours = gradients(lambda s, t: dml_loss(s, t, mutual="one_sided"), student, teacher)
    torch.testing.assert_close(ours, gradients(published, student, teacher), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("activation", "mutual"), FORMS)
@pytest.mark.parametrize("eps", [None, 0.0])
def test_holds_to_the_checks(activation: Activation, mutual: Form, eps: float | None) -> None:
    finite_at_infinity = activation == "sigmoid"  # whose value there is 1
    values = (math.nan,) if finite_at_infinity else (math.nan, math.inf)
    loss = DMLLoss(activation=activation, mutual=mutual, eps=eps)
    check_all(loss, STUDENT, TEACHER, wrt=(0, 1), not_finite=values)


@pytest.mark.parametrize("mutual", ["symmetric", "one_sided"])
def test_holds_to_the_checks_on_probabilities(mutual: Form) -> None:
    loss = DMLLoss(activation=None, mutual=mutual)
    student, teacher = PROBABILITIES
    check_gradcheck(loss, student, teacher, wrt=(0, 1))
    check_nan_raises(loss, student, teacher)
    check_permutation_invariant(loss, student, teacher)
    check_half_precision(DMLLoss(activation=None, mutual=mutual, eps=1e-3), student, teacher)
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        value, given = gradients(loss, (student > 0.5).double(), (teacher > 0.5).double(), dtype=dtype)
        assert value.isfinite()
        assert all(g is not None and g.isfinite().all() for g in given)


@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_symmetric_is_zero_for_equal_peers_symmetric_and_never_negative(activation: Activation) -> None:
    loss = DMLLoss(activation=activation)
    check_zero_when_equal(loss, STUDENT)
    torch.testing.assert_close(loss(STUDENT, TEACHER), loss(TEACHER, STUDENT))
    for seed, scale in itertools.product(range(20), (0.01, 1.0, 100.0)):
        assert loss(logits(3, 4, seed=seed, scale=scale), logits(3, 4, seed=seed + 99, scale=scale)) >= 0


def test_one_sided_without_eps_is_zero_for_equal_peers() -> None:
    check_zero_when_equal(DMLLoss(mutual="one_sided", eps=0.0), STUDENT)


def test_eps_bounds_the_loss_and_no_eps_keeps_the_gradient() -> None:
    student, teacher = torch.tensor([[1e4, -1e4]]), torch.tensor([[-1e4, 1e4]])
    for mutual, bound in (("symmetric", 27.631), ("one_sided", 18.4207)):
        form: Form = "symmetric" if mutual == "symmetric" else "one_sided"
        value, _ = gradients(DMLLoss(mutual=form), student, teacher)
        assert value.item() == pytest.approx(bound, rel=1e-4)
        value, given = gradients(DMLLoss(mutual=form, eps=0.0), student, teacher)
        assert value.item() == pytest.approx(2e4)
        assert given[0] is not None
        assert given[0][0, 0] > 0.4
        assert given[0][0, 1] < -0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize(("activation", "mutual"), [form for form in FORMS if form != ("sigmoid", "one_sided")])
def test_the_gradient_never_points_away_from_the_peer(activation: Activation, mutual: Form, dtype: torch.dtype) -> None:
    """Two classes, logits from agreement to ±1e4: the student's sure class is never pushed up, nor the other down."""
    loss = DMLLoss(activation=activation, mutual=mutual)
    for gap in (0.5, 2.0, 8.0, 20.0, 60.0, 1e3, 1e4):
        value, given = gradients(loss, torch.tensor([[gap, -gap]]), torch.tensor([[-gap, gap]]), dtype=dtype)
        assert value > 0
        assert given[0] is not None
        assert given[0][0, 0] >= 0
        assert given[0][0, 1] <= 0


def test_both_are_taught_unless_told_otherwise() -> None:
    assert DMLLoss().teaches_both
    assert not DMLLoss(detach_peer=True).teaches_both
    assert not DMLLoss(mutual="one_sided").teaches_both
    _, (to_student, to_teacher) = gradients(DMLLoss(), STUDENT, TEACHER)
    _, (alone, nothing) = gradients(DMLLoss(detach_peer=True), STUDENT, TEACHER)
    assert to_teacher is not None
    assert nothing is None
    torch.testing.assert_close(alone, to_student)


def test_middle_dimensions_and_the_sum_over_classes() -> None:
    clips_s, clips_t = logits(2, 3, 5, seed=1), logits(2, 3, 5, seed=2)
    flat = dml_loss(clips_s.reshape(6, 5), clips_t.reshape(6, 5))
    torch.testing.assert_close(dml_loss(clips_s, clips_t), flat)
    torch.testing.assert_close(dml_loss(clips_s, clips_t, sum_over_classes=True), 5 * flat)


def test_says_what_is_wrong() -> None:
    check_shapes_named(DMLLoss(), logits(6, 5), logits(3, 5))
    with pytest.raises(ValueError, match=r"expects probabilities and no NaN, got -.*softmax"):
        dml_loss(STUDENT, TEACHER, activation=None)
    with pytest.raises(ValueError, match="needs an eps above 0"):
        DMLLoss(activation=None, eps=0.0)
    with pytest.raises(ValueError, match="eps must be a finite number of at least 0, or None, got -1"):
        DMLLoss(eps=-1.0)
    with pytest.raises(ValueError, match="'symmetric', 'one_sided', got 'both'"):
        DMLLoss(mutual="both")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="activation must be one of 'softmax', 'sigmoid', or None"):
        DMLLoss(activation="relu")  # type: ignore[arg-type]
    assert "mutual='symmetric'" in repr(DMLLoss())
