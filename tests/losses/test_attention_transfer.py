from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import AttentionTransferLoss, attention_transfer_loss
from losses import checks
from losses.cases import Case

CASES = [Case(AttentionTransferLoss, "maps")]

STUDENT, TEACHER = checks.logits(3, 4, 5, 4, seed=1), checks.logits(3, 6, 5, 4, seed=2)


def code(student: Tensor, teacher: Tensor) -> Tensor:
    def attention(f: Tensor) -> Tensor:
        return F.normalize(f.pow(2).mean(1).flatten(1))

    return (attention(student) - attention(teacher)).pow(2).mean()


def paper(student: Tensor, teacher: Tensor) -> Tensor:
    return attention_transfer_loss(student, teacher, mode="paper")


def test_the_published_code() -> None:
    torch.testing.assert_close(attention_transfer_loss(STUDENT, TEACHER), code(STUDENT, TEACHER))


def test_the_paper_takes_lengths_of_absolute_powers() -> None:
    maps = [F.normalize(f.abs().pow(3).sum(1).flatten(1)) for f in (STUDENT, TEACHER)]
    expected = (maps[0] - maps[1]).norm(dim=1).mean()
    torch.testing.assert_close(attention_transfer_loss(STUDENT, TEACHER, p=3, mode="paper"), expected)


def test_an_odd_power_keeps_the_sign_in_code() -> None:
    maps = [F.normalize(f.pow(3).mean(1).flatten(1)) for f in (STUDENT, TEACHER)]
    torch.testing.assert_close(attention_transfer_loss(STUDENT, TEACHER, p=3), (maps[0] - maps[1]).pow(2).mean())


@pytest.mark.parametrize("size", [(10, 8), (7, 4), (3, 2), (10, 2)])
def test_the_larger_map_is_pooled(size: tuple[int, int]) -> None:
    student = checks.logits(3, 4, *size, seed=3)
    smaller = min(size, (5, 4))  # by height first, as published; the width follows
    expected = code(F.adaptive_avg_pool2d(student, smaller), F.adaptive_avg_pool2d(TEACHER, smaller))
    torch.testing.assert_close(attention_transfer_loss(student, TEACHER), expected)


def test_layers_are_summed() -> None:
    shallow = checks.logits(3, 2, 9, 9, seed=4)
    total = AttentionTransferLoss()([shallow, STUDENT], [TEACHER, TEACHER])
    single = [attention_transfer_loss(s, TEACHER) for s in (shallow, STUDENT)]
    torch.testing.assert_close(total, single[0] + single[1])


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("factor", [1e-7, 1e-3, 1e5, 1e12])
def test_the_scale_of_either_network_does_not_matter(mode: str, factor: float) -> None:
    loss = AttentionTransferLoss(mode=mode)  # type: ignore[arg-type]
    expected = loss(STUDENT.float(), TEACHER.float())
    torch.testing.assert_close(loss(STUDENT.float() * factor, TEACHER.float()), expected, rtol=1e-4, atol=0)
    torch.testing.assert_close(loss(STUDENT.float(), TEACHER.float() * factor), expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("loss", [attention_transfer_loss, paper])
def test_every_check(loss: checks.Loss) -> None:
    checks.check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    checks.check_zero_when_equal(loss, STUDENT)
    checks.check_shapes_named(loss, STUDENT, TEACHER[:2])
    checks.check_shapes_named(loss, STUDENT[0], TEACHER[0])


def test_errors_say_what_came() -> None:
    with pytest.raises(ValueError, match="as many student layers as teacher layers, got 2 and 1"):
        attention_transfer_loss([STUDENT, STUDENT], [TEACHER])
    with pytest.raises(ValueError, match="mode must be one of 'code', 'paper'"):
        AttentionTransferLoss(mode="official")  # type: ignore[arg-type]
    for p in (0, 1.5):
        with pytest.raises(ValueError, match="p must be a whole number"):
            AttentionTransferLoss(p=p)  # type: ignore[arg-type]
