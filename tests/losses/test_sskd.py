from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import SSKDLoss, sskd_loss
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    gradients,
    labels,
    logits,
)

CASES = [Case(lambda: SSKDLoss(gather=True), "equal logits and map")]

STUDENT, TEACHER = logits(12, 5, seed=1), logits(12, 5, seed=2)
OURS, THEIRS = logits(12, 6, seed=3), logits(12, 7, seed=4)
TARGET = labels(3, 5)


def loss(student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor, **settings: float) -> Tensor:
    return sskd_loss([student, ours], [teacher, theirs], TARGET, **settings)  # type: ignore[arg-type]


def kept(scores: Tensor, truth: list[int], share: float) -> list[int]:
    """Row by row."""
    ranks = [int((row > row[y]).sum()) for row, y in zip(scores, truth, strict=True)]
    right = [j for j, rank in enumerate(ranks) if rank == 0]
    wrong = sorted((j for j, rank in enumerate(ranks) if rank > 0), key=lambda j: ranks[j])
    return sorted(right + wrong[: int(len(wrong) * share)])


def published(
    student: Tensor, teacher: Tensor, ours: Tensor, theirs: Tensor, shares: tuple[float, float], views: int = 4
) -> Tensor:
    first = list(range(0, len(student), views))
    other = [j for j in range(len(student)) if j % views]

    def divergence(s: Tensor, t: Tensor, temperature: float) -> Tensor:
        log_q, log_p = (s / temperature).log_softmax(1), (t / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)

    total = F.cross_entropy(student[first], TARGET) + 0.9 * divergence(student[first], teacher[first], 4.0)
    a_s, a_t = (F.normalize(x[other]) @ F.normalize(x[first]).T for x in (ours, theirs))
    rows = kept(a_t, [j // views for j in other], shares[0])
    total = total + 10 * divergence(a_s[rows], a_t[rows].detach(), 0.5)
    truth = [int(TARGET[j // views]) for j in other]
    rows = kept(teacher[other], truth, shares[1])
    return total + 2.7 * divergence(student[other][rows], teacher[other][rows], 4.0)


@pytest.mark.parametrize("shares", [(0.75, 1.0), (1.0, 0.3), (0.5, 0.5)])
def test_is_the_published_formula(shares: tuple[float, float]) -> None:
    given = STUDENT, TEACHER, OURS, THEIRS
    ours = gradients(lambda *x: loss(*x, contrast_share=shares[0], transformed_share=shares[1]), *given)
    theirs = gradients(lambda a, b, c, d: published(a, b, c, d, shares), *given)
    torch.testing.assert_close(ours, theirs)


def test_holds_to_the_checks() -> None:
    given = STUDENT, TEACHER, OURS, THEIRS
    check_gradcheck(loss, *given, wrt=(0, 2))
    check_half_precision(loss, *given)
    check_nan_raises(loss, *given)
    check_nan_raises(lambda a, b: loss(STUDENT, TEACHER, a, b), OURS, THEIRS)
    check_finite_or_error(loss, *given)
    check_finite_or_error(lambda a, b: loss(STUDENT, TEACHER, a, b), OURS, THEIRS)


def test_the_order_of_samples_does_not_matter() -> None:
    order = torch.tensor([2, 0, 1])
    rows = (4 * order[:, None] + torch.arange(4)).flatten()
    given = [x[rows] for x in (STUDENT, TEACHER, OURS, THEIRS)]
    moved = sskd_loss([given[0], given[2]], [given[1], given[3]], TARGET[order], contrast_share=1.0)
    torch.testing.assert_close(moved, loss(STUDENT, TEACHER, OURS, THEIRS, contrast_share=1.0))


def test_labels_may_stand_at_every_row() -> None:
    every = sskd_loss([STUDENT, OURS], [TEACHER, THEIRS], TARGET.repeat_interleave(4))
    torch.testing.assert_close(every, loss(STUDENT, TEACHER, OURS, THEIRS))


def test_without_other_views_it_is_distillation() -> None:
    target = labels(12, 5)
    ours = sskd_loss([STUDENT, OURS], [TEACHER, THEIRS], target, views=1)
    kl = F.kl_div((STUDENT / 4).log_softmax(1), (TEACHER / 4).softmax(1), reduction="batchmean") * 16
    torch.testing.assert_close(ours, F.cross_entropy(STUDENT, target) + 0.9 * kl)


def test_logits_of_samples_alone_have_no_part_of_views() -> None:
    whole = loss(STUDENT, TEACHER, OURS, THEIRS, transformed=0.0)
    torch.testing.assert_close(sskd_loss([STUDENT[::4], OURS], [TEACHER[::4], THEIRS], TARGET), whole)


def test_compiles_whole() -> None:
    module = SSKDLoss()
    compiled = torch.compile(module, backend="eager", fullgraph=True)
    given = [STUDENT, OURS], [TEACHER, THEIRS], TARGET
    torch.testing.assert_close(compiled(*given), module(*given))


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"logits \(N, C\) and a feature of each network"):
        SSKDLoss()([STUDENT], [TEACHER], TARGET)
    with pytest.raises(ValueError, match=r"groups of views=5.*a target \(3,\)"):
        SSKDLoss(views=5)([STUDENT, OURS], [TEACHER, THEIRS], TARGET)
    with pytest.raises(ValueError, match="contrast_share must be a number from 0 to 1"):
        SSKDLoss(contrast_share=2.0)
