from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import CrossKDLoss, Example, KDLoss, cross_kd_features, quality_focal_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_shapes_named,
    gradients,
    logits,
)

CASES = [Case(lambda: CrossKDLoss(teacher_head="Teacher.levels.2", gather=True), "hidden and prediction")]

STUDENT, TEACHER = logits(3, 4, 2, 3, seed=1), logits(3, 4, 2, 3, seed=2)
HEAD = nn.Sequential(nn.Conv2d(4, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 2, 1)).double()


def of_head(loss: CrossKDLoss) -> CrossKDLoss:
    loss.build(Example(STUDENT, [TEACHER, HEAD(TEACHER)], models={"Teacher": HEAD}))
    return loss


def crossed(student: Tensor, teacher: Tensor) -> Tensor:
    torch.manual_seed(0)
    head = nn.Conv2d(student.shape[1], 2, 1).to(torch.float64 if student.dtype == torch.float64 else torch.float32)
    loss = CrossKDLoss(teacher_head="Teacher")
    loss.build(Example(student, [teacher, teacher], models={"Teacher": head}))
    value: Tensor = loss(student, [teacher, logits(3, 2, 2, 3, seed=3)[: len(student)].to(student)])
    return value


def test_takes_the_statistics_of_the_teacher() -> None:
    taken = cross_kd_features(STUDENT, TEACHER)
    for statistic in (torch.mean, torch.std):
        torch.testing.assert_close(
            statistic(taken, dim=(0, 2, 3)), statistic(TEACHER, dim=(0, 2, 3)), rtol=1e-5, atol=1e-8
        )
    torch.testing.assert_close(cross_kd_features(3 * STUDENT - 1, TEACHER), taken, rtol=1e-5, atol=1e-5)


def test_the_rest_of_the_teachers_head_reads_the_students_feature() -> None:
    loss = of_head(CrossKDLoss(teacher_head=["Teacher.0", "Teacher.1", "Teacher.2"]))
    prediction = HEAD(TEACHER.relu()).detach()
    predicted = HEAD(cross_kd_features(STUDENT, TEACHER).relu())
    torch.testing.assert_close(
        loss(STUDENT, [TEACHER, prediction]), quality_focal_loss(predicted, prediction, class_dim=1)
    )
    assert not loss.state_dict()
    assert loss(TEACHER, [TEACHER, prediction]) < 1e-4


def test_any_loss_judges_the_prediction() -> None:
    kd = KDLoss(temperature=1.0, class_dim=1)
    loss = of_head(CrossKDLoss(teacher_head=["Teacher.0", "Teacher.1", "Teacher.2"], loss=kd))
    prediction = HEAD(TEACHER.relu()).detach()
    predicted = HEAD(cross_kd_features(STUDENT, TEACHER).relu())
    torch.testing.assert_close(loss(STUDENT, [TEACHER, prediction]), kd(predicted, prediction))


def test_holds_to_the_checks() -> None:
    check_gradcheck(crossed, STUDENT, TEACHER)
    check_half_precision(crossed, STUDENT, TEACHER)
    check_finite_or_error(crossed, STUDENT, TEACHER)
    check_nan_raises(crossed, STUDENT, TEACHER)
    check_shapes_named(cross_kd_features, STUDENT, TEACHER[..., :2])
    _, (slope, _) = gradients(lambda s, t: cross_kd_features(s, t).square().sum(), torch.zeros_like(STUDENT), TEACHER)
    assert slope is not None
    assert slope.isfinite().all()


def test_places_that_do_not_count_are_not_there() -> None:
    loss = of_head(CrossKDLoss(teacher_head="Teacher.2"))
    wide = [torch.cat([x, x[:, :1]], dim=1) for x in (STUDENT, TEACHER)]
    prediction = logits(3, 2, 2, 3, seed=3)
    mask = torch.tensor([[[True, False, True], [True, True, False]]] * 3)
    broken = wide[0].masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]][..., None] for x in (*wide, prediction)]
    masked = loss(broken, [wide[1], prediction], mask=mask)
    torch.testing.assert_close(masked, loss(kept[0], kept[1:]))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(broken, [wide[1], prediction], mask=mask), masked)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"teacher_head='Teacher\.7' names no module"):
        of_head(CrossKDLoss(teacher_head="Teacher.7"))
    with pytest.raises(ValueError, match="the teacher's feature and its prediction, got"):
        CrossKDLoss()(STUDENT, TEACHER)
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        CrossKDLoss(teacher_head="Teacher.2")(STUDENT, [TEACHER, TEACHER])
