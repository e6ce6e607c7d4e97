from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import Example, ReviewKDLoss, review_kd_loss
from lit_distill.losses.feature.review_kd import AttentionFusion
from losses import checks
from losses.cases import Case
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: ReviewKDLoss(max_channels=8), "maps")]

STUDENTS = [checks.logits(3, 4, 6, 4, seed=1, scale=1.0), checks.logits(3, 6, 3, 2, seed=2, scale=1.0)]
TEACHERS = [checks.logits(3, 5, 7, 5, seed=3, scale=1.0), checks.logits(3, 7, 4, 3, seed=4, scale=1.0)]


def plain_hcl(student: Tensor, teacher: Tensor, levels: tuple[int, ...]) -> Tensor:
    """The published loop, pooling both maps."""
    loss, weight, total = F.mse_loss(student, teacher), 1.0, 1.0
    for level in levels:
        if level < student.shape[2]:
            weight /= 2
            s, t = (F.adaptive_avg_pool2d(x, (level, level)) for x in (student, teacher))
            loss = loss + weight * F.mse_loss(s, t)
            total += weight
    return loss / total


def fusions_of(loss: ReviewKDLoss) -> list[AttentionFusion]:
    return [fusion for fusion in loss.fusions if isinstance(fusion, AttentionFusion)]


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (5, 9), (4, 4), (3, 3), (2, 6), (1, 1)])
@pytest.mark.parametrize("levels", [(4, 2, 1), (1,), (), (3, 5)])
def test_hcl_is_the_plain_formula(size: tuple[int, int], levels: tuple[int, ...]) -> None:
    student, teacher = (checks.logits(2, 3, *size, seed=seed) for seed in (0, 1))
    ours = review_kd_loss(student, teacher, levels=levels)
    torch.testing.assert_close(ours, plain_hcl(student, teacher, levels), rtol=1e-12, atol=1e-14)


def test_hcl_of_lists_is_the_sum() -> None:
    teachers = [torch.zeros_like(s) for s in STUDENTS]
    total = sum(review_kd_loss(s, t) for s, t in zip(STUDENTS, teachers, strict=True))
    torch.testing.assert_close(review_kd_loss(STUDENTS, teachers), total)


def test_hcl_is_held_to_every_check() -> None:
    student, teacher = (checks.logits(4, 3, 6, 6, seed=seed) for seed in (0, 1))
    checks.check_all(review_kd_loss, student, teacher, wrt=(0, 1))
    checks.check_zero_when_equal(review_kd_loss, student)
    checks.check_shapes_named(review_kd_loss, student, teacher[:, :2])


def test_one_level_is_the_transformed_student_against_the_teacher() -> None:
    student, teacher = STUDENTS[0], TEACHERS[0]
    loss = built(ReviewKDLoss, Example([student], [teacher]))
    (fusion,) = fusions_of(loss)
    resized = F.interpolate(fusion.reduce(student), teacher.shape[2:], mode="nearest")
    assert fusion.attention is None
    torch.testing.assert_close(loss([student], [teacher]), review_kd_loss(fusion.expand(resized), teacher))


def test_two_levels_are_fused_by_the_gates() -> None:
    loss = built(ReviewKDLoss, Example(STUDENTS, TEACHERS)).eval()
    shallow, deep = fusions_of(loss)
    assert shallow.attention is not None
    deep_residual = F.interpolate(deep.reduce(STUDENTS[1]), TEACHERS[1].shape[2:], mode="nearest")
    here, below = shallow.reduce(STUDENTS[0]), F.interpolate(deep_residual, STUDENTS[0].shape[2:], mode="nearest")
    gates = shallow.attention(torch.cat([here, below], dim=1))
    fused = F.interpolate(here * gates[:, [0]] + below * gates[:, [1]], TEACHERS[0].shape[2:], mode="nearest")
    expected = review_kd_loss([shallow.expand(fused), deep.expand(deep_residual)], TEACHERS)
    torch.testing.assert_close(loss(STUDENTS, TEACHERS), expected)


def test_a_shallow_teacher_level_teaches_the_deep_student_level() -> None:
    deep = STUDENTS[1].clone().requires_grad_()
    loss = built(ReviewKDLoss, Example(STUDENTS, TEACHERS))
    for parameter in fusions_of(loss)[1].expand.parameters():
        parameter.detach().zero_()  # the deep level's own output no longer depends on it
    loss([STUDENTS[0], deep], TEACHERS).backward()
    assert deep.grad is not None
    assert deep.grad.abs().sum() > 0


def test_embeddings_are_maps_of_one_pixel() -> None:
    students, teachers = [*STUDENTS, checks.logits(3, 9)], [*TEACHERS, checks.logits(3, 11, seed=7)]
    loss = built(ReviewKDLoss, Example(students, teachers))
    value = loss(students, teachers)
    as_maps = [[*levels[:2], levels[2][..., None, None]] for levels in (students, teachers)]
    assert value.isfinite()
    torch.testing.assert_close(value, loss(*as_maps))


def test_the_residual_is_as_wide_as_the_deepest_student_level_up_to_a_limit() -> None:
    for make, width in ((ReviewKDLoss, 6), (lambda: ReviewKDLoss(max_channels=4), 4)):
        fusions = fusions_of(built(make, Example(STUDENTS, TEACHERS)))
        assert [f.reduce(level).shape[1] for f, level in zip(fusions, STUDENTS, strict=True)] == [width, width]


def test_the_module_is_held_to_every_check() -> None:
    checks.check_all(fresh(lambda: ReviewKDLoss(max_channels=3)), STUDENTS[0][:, :2], TEACHERS[0][:, :2])


def test_gradients_of_a_deep_level_and_of_every_parameter() -> None:
    loss = built(ReviewKDLoss, Example(STUDENTS, TEACHERS))
    checks.check_gradcheck(lambda *levels: loss(levels[:2], levels[2:]), *STUDENTS, *TEACHERS, wrt=(1,))
    loss(STUDENTS, TEACHERS).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())


def test_state_dict_and_build() -> None:
    example = Example(STUDENTS, TEACHERS)
    check_state_dict_round_trip(ReviewKDLoss, example, lambda loss: loss(STUDENTS, TEACHERS))
    check_build_is_idempotent(ReviewKDLoss, example)


def test_errors_say_what_came() -> None:
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        ReviewKDLoss()(STUDENTS, TEACHERS)
    loss = built(ReviewKDLoss, Example(STUDENTS, TEACHERS))
    with pytest.raises(ValueError, match="as many student layers as teacher layers, got 2 and 1"):
        loss(STUDENTS, TEACHERS[:1])
    with pytest.raises(ValueError, match=r"built for .*\(4, 5\), \(6, 7\).* got \[\(6, 7\), \(4, 5\)\]"):
        loss(STUDENTS[::-1], TEACHERS[::-1])
    with pytest.raises(ValueError, match=r"one batch size.* \(2, 4, 6, 4\)"):
        ReviewKDLoss().build(Example([STUDENTS[0][:2]], [TEACHERS[0]]))
    with pytest.raises(ValueError, match="at least 1, got \\(4, 0\\)"):
        ReviewKDLoss(levels=(4, 0))
    with pytest.raises(ValueError, match="max_channels"):
        ReviewKDLoss(max_channels=0)
