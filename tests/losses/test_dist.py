from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import DISTLoss, dist_loss
from lit_distill.losses._normalized import EpsForm, _mean_correlations, mean_correlations
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: DISTLoss(gather=True))]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


def published(student: Tensor, teacher: Tensor, beta: float, gamma: float, t: float, eps_form: EpsForm) -> Tensor:
    def relation(a: Tensor, b: Tensor) -> Tensor:
        a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
        if eps_form == "floor":
            cosine = F.cosine_similarity(a, b, dim=1)
        else:
            cosine = (a * b).sum(1) / (a.square().sum(1).sqrt() * b.square().sum(1).sqrt() + 1e-8)
        return 1 - cosine.mean()

    p, q = (student / t).softmax(1), (teacher / t).softmax(1)
    return (beta * relation(p, q) + gamma * relation(p.T, q.T)) * t**2


@pytest.mark.parametrize("eps_form", ["added", "floor"])
@pytest.mark.parametrize(("beta", "gamma", "temperature"), [(1.0, 1.0, 1.0), (2.0, 0.5, 4.0), (0.0, 1.0, 0.5)])
@pytest.mark.parametrize("shape", [(2, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(
    shape: tuple[int, int], beta: float, gamma: float, temperature: float, eps_form: EpsForm
) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    loss = DISTLoss(beta=beta, gamma=gamma, temperature=temperature, eps_form=eps_form)
    theirs = gradients(lambda s, t: published(s, t, beta, gamma, temperature, eps_form), student, teacher)
    torch.testing.assert_close(gradients(loss, student, teacher), theirs, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("eps_form", ["added", "floor"])
def test_holds_to_the_checks(eps_form: EpsForm) -> None:
    check_all(DISTLoss(eps_form=eps_form), STUDENT, TEACHER, wrt=(0, 1))


def test_is_zero_for_equal_logits_and_bounded() -> None:
    check_zero_when_equal(DISTLoss(eps_form="floor"), STUDENT)
    assert DISTLoss()(STUDENT, STUDENT) < 1e-6
    for seed in range(20):
        assert 0 <= dist_loss(logits(4, 6, seed=seed), logits(4, 6, seed=seed + 50)) <= 4


def test_ignores_the_scale_of_probabilities_about_their_mean() -> None:
    """Rows: mixing each answer with the uniform one keeps the row's correlation, so the first part stays."""
    teacher, student = TEACHER.softmax(1), STUDENT.softmax(1)
    blurred = 0.25 * student + 0.75 / 5
    rows = DISTLoss(gamma=0.0)
    torch.testing.assert_close(rows(blurred.log(), teacher.log()), rows(STUDENT, TEACHER), rtol=1e-6, atol=1e-6)


def test_a_constant_row_or_column_has_no_correlation_and_no_gradient() -> None:
    value, given = gradients(DISTLoss(), torch.full((4, 3), 7.0).double(), TEACHER[:4, :3])
    assert value == 2.0
    assert given[0] is not None
    assert not given[0].any()


def test_maps_are_rows_of_pixels() -> None:
    maps_s, maps_t = logits(2, 5, 3, 4, seed=1), logits(2, 5, 3, 4, seed=2)
    rows = [x.permute(0, 2, 3, 1).reshape(24, 5) for x in (maps_s, maps_t)]
    torch.testing.assert_close(dist_loss(maps_s, maps_t, class_dim=1), dist_loss(*rows))


def test_gather_changes_nothing_in_one_process() -> None:
    torch.testing.assert_close(DISTLoss(gather=True)(STUDENT, TEACHER), DISTLoss()(STUDENT, TEACHER))


def test_says_what_is_wrong() -> None:
    check_shapes_named(DISTLoss(), logits(6, 5), logits(6, 4))
    with pytest.raises(ValueError, match="class_dim=1 for maps"):
        dist_loss(logits(2, 5, 3, 3), logits(2, 5, 3, 3))
    with pytest.raises(ValueError, match="gamma must be"):
        DISTLoss(gamma=-1.0)
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        DISTLoss(eps=0.0)
    with pytest.raises(ValueError, match="eps_form must be one of 'added', 'floor', got 'max'"):
        DISTLoss(eps_form="max")  # type: ignore[arg-type]
    assert "gather=True" in repr(DISTLoss(gather=True))


@pytest.mark.parametrize("eps_form", ["added", "floor"])
@pytest.mark.parametrize("kind", ["ordinary", "a constant row", "a constant column", "zeros"])
def test_the_fast_form_is_the_plain_one(kind: str, eps_form: EpsForm) -> None:
    """Values, gradients of both matrices, and the gradient's own gradient."""
    a, b = logits(6, 4, seed=1), logits(6, 4, seed=2)
    if kind == "a constant row":
        a[2] = 0.1
    elif kind == "a constant column":
        b[:, 1] = 7 / 3
    elif kind == "zeros":
        a.zero_()
    options = (0.7, 1.3, 1e-8, eps_form)

    def fast(x: Tensor, y: Tensor) -> Tensor:
        return mean_correlations(x, y, of_rows=0.7, of_columns=1.3, eps=1e-8, eps_form=eps_form)

    def plain(x: Tensor, y: Tensor) -> Tensor:
        return _mean_correlations(x, y, *options)

    torch.testing.assert_close(gradients(fast, a, b), gradients(plain, a, b), rtol=1e-9, atol=1e-12)
    if kind == "ordinary":
        assert torch.autograd.gradgradcheck(fast, (a.requires_grad_(), b.requires_grad_()))
