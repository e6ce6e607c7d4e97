from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses import AffinityLoss, Example, affinity_loss
from losses.cases import Case
from losses.checks import (
    check_all,
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_shapes_named,
    check_zero_when_equal,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [
    Case(AffinityLoss, "maps"),
    Case(lambda: AffinityLoss(of="channels", connect=False), "equal map", note="of channels"),
]

STUDENT, TEACHER = logits(3, 4, 2, 3, seed=1), logits(3, 4, 2, 3, seed=2)
KINDS = [AffinityLoss(of=of, connect=False) for of in ("positions", "channels")]


def outer(channel: Tensor) -> Tensor:
    unit = F.normalize(channel.flatten(), dim=0)
    return unit[:, None] * unit


def test_of_positions_is_the_distance_of_cosines() -> None:
    cosines = [F.cosine_similarity(f[:, :, None], f[:, None], dim=0) for x in (STUDENT, TEACHER) for f in x.flatten(2)]
    expected = torch.stack([(cosines[n] - cosines[n + 3]).norm() / 6 for n in range(3)]).mean()
    torch.testing.assert_close(affinity_loss(STUDENT, TEACHER), expected)


def test_of_channels_is_a_sum_over_channels() -> None:
    distances = [
        (outer(s) - outer(t)).norm() / 6
        for sample in zip(STUDENT, TEACHER, strict=True)
        for s, t in zip(*sample, strict=True)
    ]
    torch.testing.assert_close(affinity_loss(STUDENT, TEACHER, of="channels"), torch.stack(distances).sum() / 3)
    zero = STUDENT * (torch.arange(4) > 0)[:, None, None]
    expected = affinity_loss(STUDENT[:, 1:], TEACHER[:, 1:], of="channels") + 1 / 6
    torch.testing.assert_close(affinity_loss(zero, TEACHER, of="channels"), expected)


@pytest.mark.parametrize("loss", KINDS, ids=repr)
def test_every_check(loss: AffinityLoss) -> None:
    check_all(loss, STUDENT, TEACHER, wrt=(0, 1))
    check_zero_when_equal(loss, STUDENT, atol=1e-8)
    check_shapes_named(loss, STUDENT, TEACHER[:, :, :1])


@pytest.mark.parametrize("loss", KINDS, ids=repr)
def test_places_that_do_not_count_are_not_there(loss: AffinityLoss) -> None:
    mask = torch.tensor([[[True, False, True], [True, True, False]]] * 3)
    broken = STUDENT.masked_fill(~mask[:, None], torch.nan)
    kept = [x[:, :, mask[0]].mT for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss(broken, TEACHER, mask=mask), loss(*kept))
    repeated = [x[[0, 2, 2]] for x in (STUDENT, TEACHER)]
    torch.testing.assert_close(loss(STUDENT, TEACHER, mask=torch.tensor([1, 0, 2])), loss(*repeated))
    assert loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_the_module_connects_and_holds_to_the_checks() -> None:
    student, teacher = logits(3, 3, 2, 2, seed=1), logits(3, 4, 2, 2, seed=2)
    example = Example(student, teacher)
    loss = built(AffinityLoss, example)
    torch.testing.assert_close(loss(student, teacher), affinity_loss(loss.connectors[0](student), teacher))
    loss(student, teacher).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(AffinityLoss), student, teacher)
    check_half_precision(fresh(AffinityLoss), student, teacher)
    check_finite_or_error(fresh(AffinityLoss), student, teacher)
    check_nan_raises(fresh(AffinityLoss), student, teacher)
    check_build_is_idempotent(AffinityLoss, example)
    check_state_dict_round_trip(AffinityLoss, example, lambda loss: loss(student, teacher))
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    mask = torch.tensor([True, False, True])
    torch.testing.assert_close(compiled(student, teacher, mask=mask), loss(student, teacher, mask=mask))
