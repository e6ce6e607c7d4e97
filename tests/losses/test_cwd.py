from __future__ import annotations

import itertools
from typing import Any, get_args

import pytest
import torch
import torch.nn.functional as F

from lit_distill.losses import CWDLoss, cwd_loss
from lit_distill.losses.feature.cwd import Distance, Over
from losses.cases import Case
from losses.checks import check_all, check_shapes_named, check_zero_when_equal, logits

CASES = [Case(CWDLoss, "equal maps"), Case(lambda: CWDLoss(over="channels"), "equal map", note="over channels")]

STUDENT, TEACHER = logits(3, 4, 2, 5, seed=1), logits(3, 4, 2, 5, seed=2)
ALL = [
    CWDLoss(over=over, distance=distance) for over, distance in itertools.product(get_args(Over), get_args(Distance))
]


def test_is_a_loop_over_samples_and_channels() -> None:
    divergences = [
        F.kl_div(F.log_softmax(s.flatten() / 4, 0), F.softmax(t.flatten() / 4, 0), reduction="sum")
        for sample in zip(STUDENT, TEACHER, strict=True)
        for s, t in zip(*sample, strict=True)
    ]
    torch.testing.assert_close(cwd_loss(STUDENT, TEACHER), 16 * torch.stack(divergences).mean())


def test_over_channels_is_the_divergence_of_each_position() -> None:
    s, t = (x.movedim(1, -1).reshape(-1, 4) / 2 for x in (STUDENT, TEACHER))
    expected = 4 * F.kl_div(s.log_softmax(1), t.softmax(1), reduction="batchmean")
    torch.testing.assert_close(cwd_loss(STUDENT, TEACHER, temperature=2.0, over="channels"), expected)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_every_check(loss: CWDLoss) -> None:
    check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    check_zero_when_equal(loss, STUDENT)


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_positions_that_do_not_count_are_not_there(loss: CWDLoss) -> None:
    mask = torch.tensor([[True, False, True, True, False], [True, True, False, True, False]])
    broken = STUDENT.masked_fill(~mask, torch.nan)
    kept = [x[:, :, mask].mT for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss(broken, TEACHER, mask=mask.expand(3, 2, 5)), loss(*kept))
    samples = torch.tensor([1, 0, 2])
    repeated = [x[[0, 2, 2]] for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss(STUDENT, TEACHER, mask=samples), loss(*repeated))
    assert loss(STUDENT, TEACHER, mask=torch.zeros(3)) == 0


@pytest.mark.parametrize("loss", ALL, ids=repr)
def test_takes_tokens_layers_and_compiles_whole(loss: CWDLoss) -> None:
    tokens = [x.flatten(2).mT for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss(*tokens), loss(STUDENT, TEACHER))
    torch.testing.assert_close(loss([STUDENT, TEACHER], [TEACHER, STUDENT]), loss(*tokens) + loss(*tokens[::-1]))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([1, 0, 1])
    torch.testing.assert_close(compiled(STUDENT, TEACHER, mask=mask), loss(STUDENT, TEACHER, mask=mask))


def test_says_what_is_wrong() -> None:
    check_shapes_named(CWDLoss(), STUDENT, TEACHER[:, :2])
    with pytest.raises(ValueError, match="at least two positions"):
        CWDLoss()(logits(3, 4), logits(3, 4))
