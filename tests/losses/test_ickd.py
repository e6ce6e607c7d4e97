from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import Example, ICKDLoss, ickd_loss
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
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(ICKDLoss, "maps"), Case(lambda: ICKDLoss(kernel=3), "map", note="through 3x3")]

STUDENT, TEACHER = logits(3, 4, 3, 3, seed=1), logits(3, 4, 5, 2, seed=2)
OTHER = logits(3, 6, 5, 2, seed=3)
MASK = torch.tensor([[1, 1, 0, 0, 1], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]], dtype=torch.bool)


def published(student: Tensor, teacher: Tensor) -> Tensor:
    """Sample by sample."""
    total = torch.zeros((), dtype=student.dtype)
    for s, t in zip(student.flatten(2), teacher.flatten(2), strict=True):
        total = total + (F.normalize(s @ s.T, dim=1) - F.normalize(t @ t.T, dim=1)).square().sum()
    return total / len(student) / student.shape[1]


@pytest.mark.parametrize("shape", [(1, 3, 2, 2), (5, 7, 4, 3), (2, 3, 2, 2, 3)])
def test_is_the_published_formula(shape: tuple[int, ...]) -> None:
    student, teacher = logits(*shape, seed=3), logits(*shape, seed=4)
    torch.testing.assert_close(gradients(ickd_loss, student, teacher), gradients(published, student, teacher))


def test_holds_to_the_checks() -> None:
    check_gradcheck(ickd_loss, STUDENT, TEACHER, wrt=(0, 1))
    check_half_precision(ickd_loss, STUDENT, TEACHER)
    check_finite_or_error(ickd_loss, STUDENT, TEACHER)
    check_nan_raises(ickd_loss, STUDENT, TEACHER)
    check_permutation_invariant(ickd_loss, STUDENT, TEACHER)
    check_zero_when_equal(ickd_loss, STUDENT)
    loss = fresh(ICKDLoss)
    check_half_precision(loss, STUDENT, OTHER)
    check_finite_or_error(loss, STUDENT, OTHER)
    check_nan_raises(loss, STUDENT, OTHER)


def test_neither_places_nor_scale_matter() -> None:
    value = ickd_loss(STUDENT, TEACHER)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    moved = STUDENT.flatten(2)[:, :, order].reshape(STUDENT.shape)
    torch.testing.assert_close(ickd_loss(7 * moved, TEACHER), value)
    torch.testing.assert_close(ickd_loss(STUDENT.flatten(2).mT, TEACHER.flatten(2).mT), value)


@pytest.mark.parametrize("kernel", [1, 3])
def test_its_connector_is_a_convolution_and_batch_normalization(kernel: int) -> None:
    loss = built(lambda: ICKDLoss(kernel=kernel), Example(STUDENT, OTHER))
    connector = loss.connectors[0]
    assert isinstance(connector, nn.Sequential)
    torch.testing.assert_close(loss(STUDENT, OTHER), ickd_loss(connector(STUDENT), OTHER))
    loss.eval()
    torch.testing.assert_close(loss(STUDENT, OTHER), ickd_loss(connector(STUDENT), OTHER))
    assert not connector[1].training


def test_layers_are_summed() -> None:
    loss = ICKDLoss(kernel=None)
    each = loss(STUDENT, TEACHER) + loss(2 * OTHER, OTHER + 1)
    torch.testing.assert_close(loss([STUDENT, 2 * OTHER], [TEACHER, OTHER + 1]), each)


def test_places_that_do_not_count_change_nothing() -> None:
    student, teacher = logits(3, 5, 4, seed=1), logits(3, 5, 6, seed=2)
    broken = student.masked_fill(~MASK[..., None], torch.nan), teacher.masked_fill(~MASK[..., None], torch.nan)
    each = [ickd_loss(student[b][MASK[b]][None], teacher[b, :, :4][MASK[b]][None]) for b in range(len(MASK))]
    torch.testing.assert_close(ickd_loss(broken[0], broken[1][..., :4], mask=MASK), torch.stack(each).mean())
    sample = torch.tensor([True, False, True])
    torch.testing.assert_close(ickd_loss(STUDENT, TEACHER, mask=sample), ickd_loss(STUDENT[sample], TEACHER[sample]))
    assert ickd_loss(STUDENT, TEACHER, mask=torch.zeros(3)) == 0


def test_the_statistics_of_the_connector_are_those_of_what_counts() -> None:
    student, teacher = logits(3, 4, 1, 5, seed=1), logits(3, 6, 1, 5, seed=2)
    mask = torch.tensor([[1.0, 1, 0, 0, 1]]).expand(3, 5)[:, None]
    kept = mask[0, 0] > 0
    loss, alone = (built(ICKDLoss, Example(student, teacher)) for _ in range(2))
    value = loss(student.masked_fill(mask[:, None] == 0, torch.nan), teacher, mask=mask)
    torch.testing.assert_close(value, alone(student[..., kept], teacher[..., kept]))
    norms = [x.connectors[0][1] for x in (loss, alone)]  # type: ignore[index]
    torch.testing.assert_close(norms[0].running_mean, norms[1].running_mean)
    torch.testing.assert_close(norms[0].running_var, norms[1].running_var)


def test_is_sized_once_and_saved() -> None:
    example = Example(STUDENT, OTHER)
    check_build_is_idempotent(ICKDLoss, example)
    check_state_dict_round_trip(ICKDLoss, example, lambda loss: loss.eval()(STUDENT, OTHER))


def test_compiles_whole() -> None:
    loss = built(ICKDLoss, Example(logits(3, 5, 4), logits(3, 5, 6)))
    compiled = torch.compile(loss, backend="eager", fullgraph=True)
    given = logits(3, 5, 4, seed=1), logits(3, 5, 6, seed=2)
    torch.testing.assert_close(compiled(*given, mask=MASK), loss(*given, mask=MASK))
    torch.testing.assert_close(compiled(*given), loss(*given))


def test_says_what_is_wrong() -> None:
    check_shapes_named(ickd_loss, STUDENT, OTHER)
    with pytest.raises(ValueError, match="kernel must be 1, 3, 5 or 7"):
        ICKDLoss(kernel=2)
    with pytest.raises(RuntimeError, match="sized from an example batch"):
        ICKDLoss()(STUDENT, OTHER)
    loss = built(ICKDLoss, Example(STUDENT, OTHER))
    with pytest.raises(ValueError, match=r"built for \(student, teacher\) channels \[\(4, 6\)\], got \[\(4, 4\)\]"):
        loss.build(Example(STUDENT, STUDENT))
    with pytest.raises(ValueError, match="as many student maps as teacher maps"):
        ICKDLoss(kernel=None)([STUDENT], [TEACHER, TEACHER])
