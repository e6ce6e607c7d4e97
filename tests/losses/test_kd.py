from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lit_distill.losses import KDLoss, kd_loss
from lit_distill.losses.response._logits import Divergence
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, gradients, logits

CASES = [Case(KDLoss), Case(lambda: KDLoss(logit_standardization=True), note="standardized")]

STUDENT, TEACHER = logits(6, 5, seed=1), logits(6, 5, seed=2)


def published(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    log_q = F.log_softmax(student / temperature, dim=1)
    p = F.softmax(teacher / temperature, dim=1)
    return F.kl_div(log_q, p, reduction="batchmean") * temperature**2


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
@pytest.mark.parametrize("shape", [(1, 2), (7, 3), (16, 101)])
def test_is_the_published_formula(shape: tuple[int, int], temperature: float) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    ours = gradients(lambda s, t: kd_loss(s, t, temperature=temperature), student, teacher)
    theirs = gradients(lambda s, t: published(s, t, temperature), student, teacher)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("standardize", [False, True])
def test_holds_to_the_checks(standardize: bool) -> None:
    check_all(KDLoss(logit_standardization=standardize), STUDENT, TEACHER, wrt=(0, 1))


def test_is_zero_for_equal_logits_and_never_negative() -> None:
    check_zero_when_equal(KDLoss(), STUDENT)
    check_zero_when_equal(KDLoss(logit_standardization=True, temperature=2.0), STUDENT)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.1, 50.0), st.floats(0.0, 30.0))
def test_is_never_negative(seed: int, temperature: float, scale: float) -> None:
    student, teacher = logits(4, 6, seed=seed, scale=scale), logits(4, 6, seed=seed + 1, scale=scale)
    assert kd_loss(student, teacher, temperature=temperature) >= -1e-12 * temperature**2


def test_tends_to_half_the_mean_square_of_centered_differences_for_large_temperatures() -> None:
    difference = STUDENT - TEACHER
    limit = (difference - difference.mean(dim=1, keepdim=True)).square().mean() / 2
    errors = [abs(kd_loss(STUDENT, TEACHER, temperature=t) - limit).item() for t in (10.0, 100.0, 1000.0)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 1e-2 * limit


def test_ignores_what_softmax_ignores() -> None:
    shift = logits(6, 1, seed=9)
    torch.testing.assert_close(kd_loss(STUDENT + shift, TEACHER - shift), kd_loss(STUDENT, TEACHER))


def test_standardization_ignores_scale_and_shift_of_a_sample() -> None:
    loss = KDLoss(temperature=2.0, logit_standardization=True)
    scale, shift = torch.linspace(1, 40, 6).double()[:, None], logits(6, 1, seed=9)
    torch.testing.assert_close(loss(STUDENT * scale + shift, TEACHER), loss(STUDENT, TEACHER), rtol=1e-6, atol=0)


def test_middle_dimensions_count_as_samples() -> None:
    clips_s, clips_t = logits(2, 3, 5, seed=1), logits(2, 3, 5, seed=2)
    torch.testing.assert_close(kd_loss(clips_s, clips_t), kd_loss(clips_s.reshape(6, 5), clips_t.reshape(6, 5)))
    maps_s, maps_t = logits(2, 5, 3, 4, seed=1), logits(2, 5, 3, 4, seed=2)
    rows = [x.permute(0, 2, 3, 1).reshape(24, 5) for x in (maps_s, maps_t)]
    torch.testing.assert_close(kd_loss(maps_s, maps_t, class_dim=1), kd_loss(*rows))


@pytest.mark.parametrize("kind", ["reverse_kl", "js", "mean_kl"])
def test_other_divergences(kind: Divergence) -> None:
    def by_hand(student: Tensor, teacher: Tensor) -> Tensor:
        q, p = (student / 2).softmax(1), (teacher / 2).softmax(1)
        m = (p + q) / 2
        pairs = {"reverse_kl": [(q, p)], "js": [(p, m), (q, m)], "mean_kl": [(p, q), (q, p)]}[kind]
        return torch.stack([(a * (a / b).log()).sum(1).mean() for a, b in pairs]).mean() * 4

    loss = KDLoss(temperature=2.0, divergence=kind)
    ours, theirs = gradients(loss, STUDENT, TEACHER), gradients(by_hand, STUDENT, TEACHER)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    check_zero_when_equal(loss, STUDENT)
    if kind == "js":
        far = KDLoss(temperature=1.0, divergence="js")(100 * STUDENT, -100 * STUDENT)
        assert far <= math.log(2) + 1e-12


def test_says_what_is_wrong() -> None:
    check_shapes_named(KDLoss(), logits(6, 5), logits(6, 4))
    check_shapes_named(KDLoss(), logits(6), logits(6))
    check_shapes_named(KDLoss(), logits(0, 5), logits(0, 5))
    with pytest.raises(ValueError, match="class_dim=1 for maps"):
        kd_loss(logits(2, 5, 3, 3), logits(2, 5, 3, 3))
    with pytest.raises(ValueError, match="class_dim=2 names no class dimension"):
        KDLoss(class_dim=2)(STUDENT, TEACHER)
    for temperature in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="KDLoss: temperature must be a finite number above 0"):
            KDLoss(temperature=temperature)
    assert "temperature=3.0" in repr(KDLoss(temperature=3.0))
