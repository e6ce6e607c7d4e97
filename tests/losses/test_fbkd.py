from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_distill.losses import Example, FBKDLoss, fbkd_loss
from lit_distill.losses.feature.fbkd import _NonLocal
from losses.cases import Case
from losses.checks import (
    check_finite_or_error,
    check_gradcheck,
    check_half_precision,
    check_nan_raises,
    check_permutation_invariant,
    check_shapes_named,
    logits,
)
from losses.sized import built, check_build_is_idempotent, check_state_dict_round_trip, fresh

CASES = [Case(lambda: FBKDLoss(gather=True), "maps")]

STUDENT, TEACHER = logits(3, 4, 2, 3, seed=1), logits(3, 5, 2, 3, seed=2)


def activity(maps: Tensor) -> Tensor:
    shares = [6 * (sample.abs().mean(dim=0).flatten() / 0.5).softmax(dim=0).reshape(1, 2, 3) for sample in maps]
    return torch.stack(shares)


def test_errors_count_where_both_are_active() -> None:
    adapted = logits(3, 5, 2, 3, seed=3)
    weights = ((activity(STUDENT) + activity(TEACHER)) / 2).sqrt()
    torch.testing.assert_close(fbkd_loss(STUDENT, TEACHER, adapted), (weights * (TEACHER - adapted)).norm())
    check_gradcheck(fbkd_loss, STUDENT, TEACHER, adapted, wrt=(2,))


def test_the_module_is_the_sum_of_four_lengths() -> None:
    loss = built(FBKDLoss, Example(STUDENT, TEACHER))
    layers: Any = loss.layers[0]
    nn.init.normal_(layers.student_block.out[1].weight)
    parts = [
        7e-5 * fbkd_loss(STUDENT, TEACHER, layers.adaptation(STUDENT)),
        4e-3 * (TEACHER.mean(dim=(2, 3)) - layers.channel(STUDENT.mean(dim=(2, 3)))).norm(),
        4e-3 * (TEACHER.mean(dim=1) - layers.spatial(STUDENT.mean(dim=1, keepdim=True))[:, 0]).norm(),
        7e-5 * (layers.teacher_block(TEACHER) - layers.relation(layers.student_block(STUDENT))).norm(),
    ]
    torch.testing.assert_close(loss(STUDENT, TEACHER), torch.stack(parts).sum())


@pytest.mark.parametrize("affinity", ["dot_product", "embedded_gaussian"])
@pytest.mark.parametrize("pool", [1, 2])
def test_a_block_takes_from_all_positions(affinity: Any, pool: int) -> None:
    torch.manual_seed(0)
    block: Any = _NonLocal(4, 2, pool, affinity).double()
    maps = logits(2, 4, 4, 4)
    torch.testing.assert_close(block(maps), maps)  # as it starts
    nn.init.ones_(block.out[1].weight)
    value, key, query = (layer(maps[0]) for layer in (block.value, block.key, block.query))
    value, key = (F.max_pool2d(x, pool) for x in (value, key))
    scores = torch.stack([(q[:, None] * key.flatten(1)).sum(dim=0) for q in query.flatten(1).T])
    weights = scores / scores.shape[1] if affinity == "dot_product" else (scores / 2**0.5).softmax(dim=1)
    taken = (weights @ value.flatten(1).T).T.reshape(2, 4, 4)
    block.eval()
    torch.testing.assert_close(block(maps)[0], maps[0] + block.out(taken[None])[0])


def test_the_module_holds_to_the_checks() -> None:
    example = Example(STUDENT, TEACHER)
    loss = built(FBKDLoss, example)
    loss(STUDENT, TEACHER).backward()
    assert all(parameter.grad is not None for parameter in loss.parameters())
    check_gradcheck(fresh(lambda: FBKDLoss(mask_weight=0.0)), STUDENT, TEACHER)  # activity is a constant
    check_half_precision(fresh(FBKDLoss), STUDENT, TEACHER)
    check_finite_or_error(fresh(FBKDLoss), STUDENT, TEACHER)
    check_nan_raises(fresh(FBKDLoss), STUDENT, TEACHER)
    check_permutation_invariant(fresh(FBKDLoss), STUDENT, TEACHER, rtol=1e-8)
    check_build_is_idempotent(FBKDLoss, example)
    check_state_dict_round_trip(FBKDLoss, example, lambda loss: loss(STUDENT, TEACHER))


def test_a_masked_sample_does_not_count_and_it_compiles_whole() -> None:
    loss = built(FBKDLoss, Example(STUDENT, TEACHER)).eval()
    mask = torch.tensor([True, False, True])
    broken = STUDENT.masked_fill(~mask[:, None, None, None], torch.nan)
    kept = loss(STUDENT[mask], TEACHER[mask])
    torch.testing.assert_close(loss(broken, TEACHER, mask=mask), kept)
    compiled: Any = torch.compile(loss, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(broken, TEACHER, mask=mask), kept)
    assert loss(broken, TEACHER, mask=torch.zeros(3)) == 0


def test_says_what_is_wrong() -> None:
    check_shapes_named(lambda s, t: fbkd_loss(s, t, t), STUDENT, TEACHER[..., :2])
