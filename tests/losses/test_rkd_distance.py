from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_distill.losses import RKDDistanceLoss, rkd_distance_loss
from lit_distill.losses.relation import _gram
from lit_distill.losses.relation._gram import Convention, NarrowDistances, squared_distances
from losses import relations
from losses.cases import Case
from losses.checks import check_all, check_gradcheck, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(lambda: RKDDistanceLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("eps", [1e-12, 1e-3])
@pytest.mark.parametrize("shape", [(2, 3), (7, 16), (40, 3), (5, 4, 3, 3)])
def test_is_the_published_formula(shape: tuple[int, ...], eps: float, squared: bool) -> None:
    student, teacher = logits(*shape, seed=3), logits(shape[0], shape[1] + 1, seed=4)
    loss = RKDDistanceLoss(squared=squared, eps=eps)
    value, (slope, none) = gradients(loss, student, teacher)
    wanted, (expected, _) = gradients(lambda s, t: relations.distance(s, t, squared=squared, eps=eps), student, teacher)
    assert none is None
    torch.testing.assert_close((value, slope), (wanted, expected), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("eps", [1e-12, 1e-2])
def test_paddleclas_convention_keeps_the_diagonal_and_teaches_the_teacher(eps: float) -> None:
    loss = RKDDistanceLoss(convention="paddleclas", eps=eps)
    assert loss.teaches_both
    assert not RKDDistanceLoss().teaches_both
    theirs = gradients(lambda s, t: relations.distance(s, t, eps=eps, paddleclas=True), STUDENT, TEACHER)
    torch.testing.assert_close(gradients(loss, STUDENT, TEACHER), theirs, rtol=1e-9, atol=1e-12)
    assert loss(STUDENT, TEACHER) != RKDDistanceLoss(eps=eps)(STUDENT, TEACHER)


def test_holds_to_the_checks() -> None:
    check_all(RKDDistanceLoss(), STUDENT, TEACHER)
    check_all(RKDDistanceLoss(squared=True), STUDENT, TEACHER)
    check_all(RKDDistanceLoss(convention="paddleclas"), STUDENT, TEACHER, wrt=(0, 1))


@pytest.mark.parametrize("apart", [1e-3, 1e-5, 1e-7])
def test_close_samples_far_from_the_origin_keep_their_digits(apart: float) -> None:
    """Where x² + y² - 2xy cancels: the gradient of the close pair is right too."""
    student, teacher = logits(12, 6, seed=5) + 100, logits(12, 8, seed=6)
    student[1:6] = student[0] + apart * logits(5, 6, seed=7)
    value, (slope, _) = gradients(RKDDistanceLoss(), student, teacher)
    wanted, (expected, _) = gradients(relations.distance, student, teacher)
    torch.testing.assert_close((value, slope), (wanted, expected), rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_close_samples_are_right_in_the_precision_they_come_in(dtype: torch.dtype) -> None:
    student = (logits(1, 16, seed=8).to(dtype) + 0.01 * logits(10, 16, seed=9).to(dtype)).requires_grad_()
    exact = student.detach().double().requires_grad_()
    teacher = logits(10, 16, seed=10)
    rkd_distance_loss(student, teacher.to(dtype)).backward()  # type: ignore[no-untyped-call]
    relations.distance(exact, teacher.to(dtype).double()).backward()  # type: ignore[no-untyped-call]
    assert student.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(student.grad, exact.grad.to(dtype))


def test_squared_distances_are_differentiable_twice() -> None:
    rows = logits(5, 3, seed=11)
    rows[1] = rows[0] + 1e-3  # from the difference itself
    check_gradcheck(lambda x: squared_distances(x).square().sum(), rows)
    assert torch.autograd.gradgradcheck(squared_distances, rows.requires_grad_())


def test_squared_distances_in_small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = logits(1, 7, seed=12) + 1e-6 * logits(30, 7, seed=13)
    rows[10:] += 5
    monkeypatch.setattr(_gram, "_CHUNK", 40)
    squares = squared_distances(rows)
    torch.testing.assert_close(squares, relations.differences(rows).square().sum(2), rtol=1e-9, atol=0)
    assert not squares.diagonal().any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(2, 40), scale=st.floats(-4, 6), shift=st.floats(-5, 5))
def test_moving_rotating_and_scaling_change_nothing(seed: int, n: int, scale: float, shift: float) -> None:
    student, teacher = logits(n, 5, seed=seed), logits(n, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=seed + 2))
    value = rkd_distance_loss(student, teacher)
    assert value >= 0
    moved = 10**scale * student @ rotation + shift
    torch.testing.assert_close(rkd_distance_loss(moved, teacher), value, rtol=1e-6, atol=1e-12)


def test_is_zero_for_what_the_teacher_gives_scaled() -> None:
    check_zero_when_equal(RKDDistanceLoss(), STUDENT)
    assert rkd_distance_loss(STUDENT, 1000 * STUDENT) < 1e-15


def test_one_sample_has_no_pairs() -> None:
    for convention in ("paper", "paddleclas"):
        value, (slope, _) = gradients(RKDDistanceLoss(convention=convention), logits(1, 4), logits(1, 5))
        assert value == 0
        assert slope is not None
        assert not slope.any()
    with pytest.raises(ValueError, match="NaN"):
        rkd_distance_loss(torch.full((1, 4), torch.nan), torch.ones(1, 4))


def test_identical_samples_count_as_published_and_give_no_gradient() -> None:
    student = torch.ones(5, 3, dtype=torch.float64)
    value, (slope, _) = gradients(RKDDistanceLoss(), student, logits(5, 4, seed=14))
    torch.testing.assert_close(value, relations.distance(student, logits(5, 4, seed=14)))
    assert slope is not None
    assert not slope.any()


def test_maps_are_pooled_to_the_target_size() -> None:
    student, teacher = logits(5, 4, 6, 6, seed=15), logits(5, 8, 3, 3, seed=16)
    pooled = rkd_distance_loss(student.mean(dim=(2, 3)), teacher.mean(dim=(2, 3)))
    torch.testing.assert_close(RKDDistanceLoss(target_size=1)(student, teacher), pooled)


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(rkd_distance_loss, logits(4, 3), logits(5, 3))
    check_shapes_named(rkd_distance_loss, logits(4, 0), logits(4, 3))
    with pytest.raises(ValueError, match="eps must be a finite number above 0"):
        RKDDistanceLoss(eps=0)
    with pytest.raises(ValueError, match="convention must be one of"):
        RKDDistanceLoss(convention="mine")  # type: ignore[arg-type]


def float32_errors(student: Tensor, teacher: Tensor) -> tuple[float, float]:
    """Relative errors of value and gradient for float32 rows against the published form in float64."""
    value, (slope, _) = gradients(rkd_distance_loss, student, teacher)
    wanted, (expected, _) = gradients(relations.distance, student.double(), teacher.double())
    assert slope is not None
    assert expected is not None
    assert value.dtype == slope.dtype == torch.float32
    return (
        float((value.double() - wanted).abs() / wanted),
        float((slope.double() - expected).norm() / expected.norm()),
    )


@pytest.mark.parametrize("apart", [1.0, 1e-2, 1e-4, 0.0])
def test_float32_rows_are_right_however_close(apart: float) -> None:
    student, teacher = logits(40, 16, seed=20).float() + 30, logits(40, 9, seed=21).float()
    student[1] = student[0] + apart * logits(16, seed=22).float()
    teacher[3] = teacher[2] + apart * logits(9, seed=23).float()
    assert NarrowDistances.of(student) is not None
    assert max(float32_errors(student, teacher)) < (5e-5 if apart == 1e-4 else 1e-5)


def test_float32_is_left_where_it_is_not_enough() -> None:
    """Many close pairs, as of collapsed classes, and norms beyond float32."""
    classes = torch.arange(40) % 3
    student, teacher = (logits(3, 16, seed=24)[classes] + 1e-2 * logits(40, 16, seed=s) for s in (25, 26))
    for scale in (1.0, 1e18):
        assert NarrowDistances.of((scale * student).float()) is None
        assert max(float32_errors((scale * student).float(), teacher.float())) < 1e-5
    assert NarrowDistances.of(1e18 * logits(40, 16, seed=27).float()) is None


@pytest.mark.parametrize("squared", [False, True])
@pytest.mark.parametrize("convention", ["paper", "paddleclas"])
def test_float32_rows_under_both_conventions(squared: bool, convention: Convention) -> None:
    student, teacher = logits(12, 16, seed=28), logits(12, 9, seed=29)
    loss = RKDDistanceLoss(squared=squared, convention=convention)
    narrow, wide = gradients(loss, student, teacher, dtype=torch.float32), gradients(loss, student, teacher)
    torch.testing.assert_close(narrow, wide, rtol=1e-5, atol=1e-6, check_dtype=False)
