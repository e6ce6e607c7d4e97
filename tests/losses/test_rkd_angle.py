from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_distill.losses import RKDAngleLoss, rkd_angle_loss, rkd_distance_loss
from lit_distill.losses.relation import _angles
from losses import relations
from losses.cases import Case
from losses.checks import (
    check_all,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    gradients,
    logits,
)

CASES = [Case(lambda: RKDAngleLoss(gather=True))]

STUDENT, TEACHER = logits(6, 4, seed=1), logits(6, 5, seed=2)


def assert_same(student: Tensor, teacher: Tensor, *, rtol: float = 1e-9) -> None:
    """Value and gradient against the published form in float64, which forms the differences themselves."""
    value, (slope, none) = gradients(RKDAngleLoss(), student, teacher)
    wanted, (expected, _) = gradients(relations.angle, student, teacher)
    assert none is None
    assert slope is not None
    assert expected is not None
    torch.testing.assert_close(value, wanted, rtol=rtol, atol=1e-15)
    assert (slope - expected).norm() <= rtol * expected.norm() + 1e-10


@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (7, 16), (33, 2), (40, 3), (65, 30), (130, 8)])
def test_is_the_published_formula(shape: tuple[int, int]) -> None:
    assert_same(logits(*shape, seed=3), logits(shape[0], shape[1] + 1, seed=4))


@pytest.mark.parametrize("dimensions", [1, 2, 3, 12, 200])
@pytest.mark.parametrize("panel", [64 * 70, 1 << 16])
@pytest.mark.parametrize(
    ("few", "many"), [(0, 1.0), (1000, 0.0), (0, 0.0)], ids=["multiplied", "summed", "multiplied until too many"]
)
def test_all_ways_of_computing_agree(
    dimensions: int, panel: int, few: int, many: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From one dimension (half of the cosines differ by 2) to many (none differs by 1), in one panel and in several."""
    monkeypatch.setattr(_angles, "_FEW", few)
    monkeypatch.setattr(_angles, "_MANY", many)
    monkeypatch.setattr(_angles, "_PANEL", panel)
    assert_same(logits(70, dimensions, seed=5), logits(70, dimensions, seed=6))


def test_tiles_of_samples_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    student, teacher = logits(40, 3, seed=7), logits(40, 3, seed=8)
    for slab in (40 * 7, 40 * 40 * 3):
        monkeypatch.setattr(_angles, "_SLAB", slab)
        assert_same(student, teacher)
        with monkeypatch.context() as patch:
            patch.setattr(_angles, "_FEW", 1000)
            assert_same(student, teacher)


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 1e-8])
@pytest.mark.parametrize("who", [(0,), (1,), (0, 1)])
def test_close_samples_keep_their_digits(apart: float, who: tuple[int, ...]) -> None:
    """Pairs that a Gram matrix alone would cancel, far from the origin, beside ordinary samples."""
    networks = [logits(40, 6, seed=9) + 30, logits(40, 8, seed=10) - 20]
    for index in who:
        networks[index][1] = networks[index][0] + apart * logits(networks[index].shape[1], seed=11)
        networks[index][5] = networks[index][4] + 2 * apart * logits(networks[index].shape[1], seed=12)
    assert_same(networks[0], networks[1], rtol=max(1e-9, 1e-14 / apart))


def test_collapsed_classes_keep_their_digits() -> None:
    classes = torch.arange(48) % 4
    student = logits(4, 8, seed=13)[classes] + 1e-3 * logits(48, 8, seed=14)
    teacher = logits(4, 8, seed=15)[classes] + 1e-5 * logits(48, 8, seed=16)
    assert_same(student, teacher)


@pytest.mark.parametrize("n", [6, 50])
def test_coincident_samples_have_a_gradient_of_true_size(n: int) -> None:
    """Angles at two samples that are one are constant, all others count."""
    student, teacher = logits(n, 4, seed=17), logits(n, 5, seed=18)
    student[1] = student[0]
    teacher[3] = teacher[2]
    assert_same(student, teacher)
    assert_same(student.float().double(), teacher)
    _, (slope, _) = gradients(RKDAngleLoss(), student, teacher, dtype=torch.float32)
    assert slope is not None
    assert slope.abs().max() < 1


def test_holds_to_the_checks() -> None:
    check_all(RKDAngleLoss(), STUDENT, TEACHER)
    check_all(RKDAngleLoss(convention="paddleclas"), STUDENT, TEACHER, wrt=(0, 1))


def test_holds_to_the_checks_where_matrices_are_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_angles, "_FEW", 0)
    check_all(RKDAngleLoss(convention="paddleclas"), STUDENT, TEACHER, wrt=(0, 1))
    check_permutation_invariant(RKDAngleLoss(), logits(40, 2, seed=19), logits(40, 2, seed=20))


@pytest.mark.parametrize("n", [3, 40])
def test_is_zero_for_what_the_teacher_gives_moved_rotated_and_scaled(n: int) -> None:
    student = logits(n, 5, seed=21)
    check_zero_when_equal(RKDAngleLoss(), student)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=22))
    value, (slope, _) = gradients(RKDAngleLoss(), student, 7 * student @ rotation + 3)
    assert 0 <= value < 1e-15
    assert slope is not None
    assert slope.abs().max() < 1e-9


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**20), n=st.integers(3, 40), scale=st.floats(-6, 6), shift=st.floats(-5, 5))
def test_moving_rotating_and_scaling_change_nothing(seed: int, n: int, scale: float, shift: float) -> None:
    student, teacher = logits(n, 5, seed=seed), logits(n, 3, seed=seed + 1)
    rotation, _ = torch.linalg.qr(logits(5, 5, seed=seed + 2))
    value = rkd_angle_loss(student, teacher)
    assert 0 <= value <= 1.5
    moved = 10**scale * student @ rotation + shift
    torch.testing.assert_close(rkd_angle_loss(moved, teacher), value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-9, 1e30])
def test_any_scale_of_finite_embeddings_will_do(scale: float) -> None:
    student, teacher = logits(40, 3, seed=23), logits(40, 3, seed=24)
    wanted, (slope, _) = gradients(RKDAngleLoss(), student, teacher)
    value, (given, _) = gradients(RKDAngleLoss(), scale * student, teacher)
    assert slope is not None
    assert given is not None
    torch.testing.assert_close(value, wanted)
    torch.testing.assert_close(given * scale, slope)


@pytest.mark.parametrize("n", [1, 2])
def test_one_or_two_samples_span_no_angle(n: int) -> None:
    value, (slope, _) = gradients(RKDAngleLoss(), logits(n, 4), logits(n, 5))
    assert value == 0
    assert slope is not None
    assert not slope.any()


def test_identical_samples_are_no_relation() -> None:
    teacher = logits(5, 4, seed=25)
    for student in (torch.ones(5, 3), torch.zeros(5, 3)):
        value, (slope, _) = gradients(RKDAngleLoss(), student, teacher)
        assert value > 0
        assert slope is not None
        assert not slope.any()


def test_maps_are_flattened_or_pooled() -> None:
    student, teacher = logits(5, 4, 6, 6, seed=26), logits(5, 8, 3, 3, seed=27)
    assert rkd_angle_loss(student, teacher) == rkd_angle_loss(student.flatten(1), teacher.flatten(1))
    pooled = rkd_angle_loss(student.mean(dim=(2, 3)), teacher.mean(dim=(2, 3)))
    torch.testing.assert_close(RKDAngleLoss(target_size=1)(student, teacher), pooled)


def test_only_paddleclas_convention_teaches_the_teacher() -> None:
    assert not RKDAngleLoss().teaches_both
    assert RKDAngleLoss(convention="paddleclas").teaches_both
    value, (of_student, of_teacher) = gradients(RKDAngleLoss(convention="paddleclas"), STUDENT, TEACHER)
    swapped, (_, expected) = gradients(RKDAngleLoss(convention="paddleclas"), TEACHER, STUDENT)
    torch.testing.assert_close(value, swapped)
    torch.testing.assert_close(of_student, expected)
    assert of_teacher is not None


@pytest.mark.parametrize("loss", [rkd_angle_loss, rkd_distance_loss])
def test_can_not_be_differentiated_twice(loss: Callable[[Tensor, Tensor], Tensor]) -> None:
    student = STUDENT.clone().requires_grad_()
    (slope,) = torch.autograd.grad(loss(student, TEACHER), student, create_graph=True)
    with pytest.raises(RuntimeError, match="can not be differentiated again"):
        slope.sum().backward()  # type: ignore[no-untyped-call]


def test_extra_memory_is_of_the_order_of_pairs() -> None:
    """No tensor of the computation, forward or backward, holds more than the pairs or a slab."""
    largest = 0

    class Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for x in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(x, Tensor):
                    largest = max(largest, x.untyped_storage().nbytes() // 8)
            return out

    n, d = 150, 64
    student = logits(n, d, seed=28)
    with Watch():  # type: ignore[no-untyped-call]
        gradients(rkd_angle_loss, student, logits(n, 2, seed=29))
    assert largest <= max(n * n, n * d, _angles._SLAB)


def test_hyperparameters_and_shapes_are_checked() -> None:
    check_shapes_named(rkd_angle_loss, logits(4, 3), logits(5, 3))
    check_shapes_named(rkd_angle_loss, logits(4), logits(4, 3))
    with pytest.raises(ValueError, match="convention must be one of 'paper', 'paddleclas'"):
        RKDAngleLoss(convention="mine")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="target_size"):
        RKDAngleLoss(target_size=0)
