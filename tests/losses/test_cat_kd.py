from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import CATKDLoss, Example, cat_kd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    check_zero_when_equal,
    gradients,
    logits,
)

CASES = [Case(lambda: CATKDLoss(student_classifier="Student.fc", teacher_classifier="Teacher.fc"), "last map")]

STUDENT, TEACHER = logits(3, 4, 6, 6, seed=1), logits(3, 4, 8, 8, seed=2)


def published(student: Tensor, teacher: Tensor, resolution: int, normalize: bool, binarize: bool) -> Tensor:
    if binarize:
        teacher = (teacher > teacher.abs().mean(dim=(2, 3), keepdim=True)).double()
    first, second = (F.adaptive_avg_pool2d(x, (resolution, resolution)) for x in (student, teacher))
    if normalize:
        first, second = (x / torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True) for x in (first, second))
    return F.mse_loss(first, second)


@pytest.mark.parametrize("binarize", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("resolution", [1, 2, 4])
def test_is_the_published_formula(resolution: int, normalize: bool, binarize: bool) -> None:
    loss = CATKDLoss(resolution=resolution, normalize=normalize, binarize=binarize)
    ours = gradients(loss, STUDENT, TEACHER)
    theirs = gradients(lambda s, t: published(s, t, resolution, normalize, binarize), STUDENT, TEACHER)
    torch.testing.assert_close(ours[0], theirs[0])
    torch.testing.assert_close(ours[1][0], theirs[1][0], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [CATKDLoss(), CATKDLoss(normalize=True), CATKDLoss(binarize=True)], ids=repr)
def test_holds_to_the_checks(loss: CATKDLoss) -> None:
    check_gradcheck(loss, STUDENT, TEACHER)
    check_half_precision(loss, STUDENT, TEACHER)
    check_finite_or_error(loss, STUDENT, TEACHER)
    check_nan_raises(loss, STUDENT, TEACHER)
    check_permutation_invariant(loss, STUDENT, TEACHER)


def test_is_zero_for_equal_maps_and_for_scaled_ones_when_normalized() -> None:
    check_zero_when_equal(CATKDLoss(), STUDENT)
    assert cat_kd_loss(STUDENT, 7 * STUDENT, normalize=True) < 1e-12


def test_the_classifiers_make_the_maps_and_learn() -> None:
    models = {
        "Student": nn.Linear(3, 4).double(),
        "Teacher": nn.Sequential(nn.Linear(7, 9), nn.ReLU(), nn.Linear(9, 4)),
    }
    models["Teacher"].double()
    ours, theirs = logits(2, 3, 4, 4, seed=5), logits(2, 7, 4, 4, seed=6)
    loss = CATKDLoss(student_classifier="Student", teacher_classifier=["Teacher.0", "Teacher.1", "Teacher.2"])
    loss.build(Example(ours, theirs, models=models))
    maps = [models[name](x.movedim(1, -1)).movedim(-1, 1) for name, x in (("Student", ours), ("Teacher", theirs))]
    value = loss(ours, theirs)
    torch.testing.assert_close(value, cat_kd_loss(*maps))
    value.backward()
    assert all(parameter.grad is not None for parameter in models["Student"].parameters())
    assert not loss.state_dict()


def test_a_masked_sample_does_not_count() -> None:
    mask = torch.tensor([True, False, True])
    broken = STUDENT.masked_fill(~mask[:, None, None, None], torch.nan)
    torch.testing.assert_close(cat_kd_loss(broken, TEACHER, mask=mask), cat_kd_loss(STUDENT[mask], TEACHER[mask]))


def test_compiles_whole() -> None:
    compiled = torch.compile(CATKDLoss(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(STUDENT, TEACHER), CATKDLoss()(STUDENT, TEACHER))


def test_says_what_is_wrong() -> None:
    check_shapes_named(CATKDLoss(), logits(3, 4), logits(3, 4))
    with pytest.raises(ValueError, match="same shape"):
        cat_kd_loss(STUDENT, TEACHER[:, :3])
    with pytest.raises(ValueError, match=r"teacher_classifier='Teacher\.fc' names no module"):
        CATKDLoss(teacher_classifier="Teacher.fc").build(Example(STUDENT, TEACHER, models={}))
