from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import Example, VIDLoss, vid_loss
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(VIDLoss, "maps")]

STUDENT, TEACHER = checks.logits(3, 4, 4, 6, seed=1, scale=1.0), checks.logits(3, 6, 4, 6, seed=2, scale=1.0)
LOG_SCALE = torch.tensor([-3.0, -1.0, 0.0, 0.5, 2.0, 7.0], dtype=torch.float64)


def likelihood(mean: Tensor, teacher: Tensor) -> Tensor:
    scale = LOG_SCALE if mean.dtype == torch.float64 else LOG_SCALE.float()
    return vid_loss(mean, teacher, log_scale=scale[: mean.shape[1]])


def test_it_is_the_negative_log_likelihood_of_a_normal_distribution() -> None:
    mean = checks.logits(3, 6, 4, 6, seed=3)
    deviation = (LOG_SCALE.exp().log1p() + 1e-5).sqrt().reshape(1, -1, 1, 1)
    density = (-((mean - TEACHER) / deviation).square() / 2).exp() / (deviation * math.sqrt(2 * math.pi))
    torch.testing.assert_close(likelihood(mean, TEACHER), -density.log().mean() - math.log(2 * math.pi) / 2)


def test_the_function_is_held_to_every_check() -> None:
    mean = checks.logits(3, 6, 2, 2, seed=3)
    checks.check_all(likelihood, mean, TEACHER[:, :, :2, :2].clone(), wrt=(0, 1))
    checks.check_shapes_named(likelihood, mean, TEACHER)


def test_the_best_mean_is_the_teacher_and_the_best_variance_that_of_the_error() -> None:
    mean = checks.logits(3, 6, 4, 6, seed=3)
    assert likelihood(TEACHER, TEACHER) < likelihood(mean, TEACHER)
    error = (mean - TEACHER).square().mean(dim=(0, 2, 3))
    best = (error.expm1()).log().requires_grad_()  # softplus of it is the error
    vid_loss(mean, TEACHER, log_scale=best, eps=1e-12).backward()  # type: ignore[no-untyped-call]
    assert best.grad is not None
    assert best.grad.abs().max() < 1e-10


@pytest.mark.parametrize("log_scale", [-1e4, -50.0, 50.0, 1e3, 1e30])
def test_extreme_variances_stay_finite(log_scale: float) -> None:
    scale = torch.full((6,), log_scale, requires_grad=True)
    value = vid_loss(TEACHER.float(), TEACHER.float() + 0.5, log_scale=scale)
    value.backward()  # type: ignore[no-untyped-call]
    assert value.isfinite()
    assert scale.grad is not None
    assert scale.grad.isfinite().all()


@pytest.mark.parametrize("variance", [1e-3, 5.0, 900.0])
def test_the_variance_starts_where_told(variance: float) -> None:
    loss = built(lambda: VIDLoss(init_pred_var=variance), Example(STUDENT, TEACHER))
    (scale,) = loss.log_scales
    torch.testing.assert_close(F.softplus(scale) + loss.eps, torch.full_like(scale, variance), rtol=1e-4, atol=0)


def test_the_module_predicts_and_pools() -> None:
    student = checks.logits(3, 4, 8, 12, seed=4)
    loss = built(lambda: VIDLoss(mid_channels=5), Example([student, STUDENT], [TEACHER, TEACHER]))
    widths = [tuple(c.weight.shape[:2]) for c in loss.regressors[0].modules() if isinstance(c, nn.Conv2d)]
    assert widths == [(5, 4), (5, 5), (6, 5)]
    expected = torch.zeros((), dtype=torch.float64)
    for s, regressor, scale in zip((student, STUDENT), loss.regressors, loss.log_scales, strict=True):
        mean = regressor(F.adaptive_avg_pool2d(s, (4, 6)))
        expected += vid_loss(mean, TEACHER, log_scale=scale)
    torch.testing.assert_close(loss([student, STUDENT], [TEACHER, TEACHER]), expected)


def test_the_module_is_held_to_every_check() -> None:
    checks.check_all(fresh(VIDLoss), STUDENT[:, :, :2, :2].clone(), TEACHER[:, :, :2, :2].clone())


def test_every_parameter_learns() -> None:
    loss = built(VIDLoss, Example(STUDENT, TEACHER))
    loss(STUDENT, TEACHER).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in loss.parameters())


def test_state_dict_and_build() -> None:
    example = Example(STUDENT, TEACHER)
    check_state_dict_round_trip(VIDLoss, example, lambda loss: loss(STUDENT, TEACHER))
    check_build_is_idempotent(VIDLoss, example)


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        VIDLoss()(STUDENT, TEACHER)
    with pytest.raises(ValueError, match=r"one batch size.*\(2, 4, 4, 6\).*\(3, 6, 4, 6\)"):
        VIDLoss().build(Example(STUDENT[:2], TEACHER))
    loss = built(VIDLoss, Example(STUDENT, TEACHER))
    with pytest.raises(ValueError, match=r"channels \[\(4, 6\)\], got \[\(2, 6\)\]"):
        loss(STUDENT[:, :2], TEACHER)
    with pytest.raises(ValueError, match="init_pred_var must be above eps"):
        VIDLoss(init_pred_var=1e-6)
    with pytest.raises(ValueError, match="eps"):
        VIDLoss(eps=0.0)
    with pytest.raises(ValueError, match="mid_channels"):
        VIDLoss(mid_channels=0)
