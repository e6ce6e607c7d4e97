from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from lit_distill.losses import DKDLoss, Example, KDLoss, NKDLoss, SDDLoss, StandardizedLoss, kd_loss, sdd_loss
from losses.cases import Case
from losses.checks import check_all, gradients, labels, logits

CASES = [Case(lambda: SDDLoss(student_classifier="Student.fc", teacher_classifier="Teacher.fc"), "last map")]

REGIONS, N, C = 5, 6, 4
STUDENT, TEACHER, TARGET = logits(N, C, REGIONS, seed=1), logits(N, C, REGIONS, seed=2), labels(N, C)


def by_hand(student: Tensor, teacher: Tensor, target: Tensor, beta: float) -> Tensor:
    total = torch.zeros((), dtype=student.dtype)
    for s, t, y in zip(student, teacher, target.tolist(), strict=True):
        whole = t[:, 0].argmax() == y
        for r in range(s.shape[1]):
            weight = beta if (t[:, r].argmax() == y) != whole else 1.0
            total = total + weight * kd_loss(s[None, :, r], t[None, :, r])
    return total / student.shape[0] / student.shape[2]


@pytest.mark.parametrize("beta", [2.0, 0.5])
def test_is_a_loop_over_regions(beta: float) -> None:
    ours = gradients(SDDLoss(complementary=beta), STUDENT, TEACHER, TARGET)
    theirs = gradients(lambda s, t, y: by_hand(s, t, y, beta), STUDENT, TEACHER, TARGET)
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("loss", [None, DKDLoss(), NKDLoss(rest="all"), StandardizedLoss(loss=DKDLoss())])
def test_holds_to_the_checks(loss: nn.Module | None) -> None:
    check_all(SDDLoss(loss=loss), STUDENT[..., :2], TEACHER[..., :2], TARGET)


def test_one_region_is_the_loss_itself() -> None:
    for loss in (KDLoss(), DKDLoss(), NKDLoss()):
        given = [] if isinstance(loss, KDLoss) else [TARGET]
        expected = loss(STUDENT[..., 0], TEACHER[..., 0], *given)
        torch.testing.assert_close(sdd_loss(STUDENT[..., :1], TEACHER[..., :1], TARGET, loss=loss), expected)


def test_a_linear_classifier_before_or_after_the_pooling_is_the_same() -> None:
    """So class maps need no classifier; regions are the whole image, then each grid row by row."""
    models = {"Student": nn.Sequential(nn.Linear(3, C)).double(), "Teacher": nn.Sequential(nn.Linear(7, C)).double()}
    ours, theirs = logits(N, 3, 8, 8, seed=5), logits(N, 7, 4, 4, seed=6)
    loss = SDDLoss(scales=(1, 2), student_classifier="Student.0", teacher_classifier=["Teacher.0"])
    loss.build(Example(ours, theirs, TARGET, models=models))
    assert not list(loss.parameters())
    maps = [models[name][0](x.movedim(1, -1)).movedim(-1, 1) for name, x in (("Student", ours), ("Teacher", theirs))]
    value = loss(ours, theirs, TARGET)
    torch.testing.assert_close(value, SDDLoss(scales=(1, 2))(*maps, TARGET))
    regions = [torch.cat([nn.functional.adaptive_avg_pool2d(x, s).flatten(2) for s in (1, 2)], dim=2) for x in maps]
    torch.testing.assert_close(value, sdd_loss(regions[0], regions[1], TARGET))
    value.backward()
    assert all(parameter.grad is not None for model in models.values() for parameter in model.parameters())


def test_frames_are_averaged_over_their_clip() -> None:
    clips, teachers = logits(N, 3, C, 4, 4, seed=5), logits(N, 2, C, 4, 4, seed=6)
    value = SDDLoss()(clips.flatten(0, 1), teachers.flatten(0, 1), TARGET)
    torch.testing.assert_close(value, SDDLoss()(clips.mean(dim=1), teachers.mean(dim=1), TARGET))


def test_a_masked_sample_counts_in_no_region() -> None:
    mask = torch.tensor([True, False, True, True, False, True])
    kept = sdd_loss(STUDENT[mask], TEACHER[mask], TARGET[mask])
    broken = STUDENT.masked_fill(~mask[:, None, None], torch.nan)
    torch.testing.assert_close(sdd_loss(broken, TEACHER, TARGET, mask=mask), kept)
    assert sdd_loss(STUDENT, TEACHER, TARGET, mask=mask & False) == 0


def test_compiles_whole() -> None:
    given = (logits(N, C, 4, 4, seed=5), logits(N, C, 4, 4, seed=6), TARGET)
    compiled = torch.compile(SDDLoss(), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*given), SDDLoss()(*given))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"scales must begin with 1, the whole image, and divide grid=4, got \(2, 4\)"):
        SDDLoss(scales=(2, 4))
    with pytest.raises(ValueError, match=r"regions \(N, C, R\).*\(6, 4\)"):
        sdd_loss(STUDENT[..., 0], TEACHER[..., 0], TARGET)
    with pytest.raises(ValueError, match=r"for the 6 samples of the target.*\(5, 4, 4, 4\)"):
        SDDLoss()(logits(5, C, 4, 4), logits(5, C, 4, 4), TARGET)
    lost = SDDLoss(student_classifier="Student.head")
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        lost(STUDENT, TEACHER, TARGET)
    with pytest.raises(ValueError, match=r"student_classifier='Student\.head' names no module.*the models are Student"):
        lost.build(Example(STUDENT, TEACHER, models={"Student": nn.Sequential()}))
