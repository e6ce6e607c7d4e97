"""Batch-wise response losses see the global batch: two ranks with unequal batches against one process."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from ddp.launch import run_on_ranks
from lit_distill.losses import DISTLoss, MLLDLoss
from losses.checks import gradients, logits

STUDENT, TEACHER = logits(7, 5, seed=1), logits(7, 5, seed=2)
ROWS = (slice(0, 4), slice(4, 7))
LOSSES: dict[str, nn.Module] = {
    "dist": DISTLoss(gather=True),
    "mlld": MLLDLoss(gather=True),
    "mlld of the least confident": MLLDLoss(gather=True, confidence_quantile=0.5),
}


def on_rank(rank: int) -> dict[str, tuple[Tensor, list[Tensor | None]]]:
    rows = ROWS[rank]
    return {name: gradients(loss, STUDENT[rows], TEACHER[rows]) for name, loss in LOSSES.items()}


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, tuple[Tensor, list[Tensor | None]]]]:
    return run_on_ranks(on_rank)


@pytest.mark.parametrize("name", LOSSES)
def test_two_ranks_equal_one_process(name: str, ranks: list[dict[str, tuple[Tensor, list[Tensor | None]]]]) -> None:
    value, given = gradients(LOSSES[name], STUDENT, TEACHER)
    for rank, rows in enumerate(ROWS):
        of_rank, gradients_of_rank = ranks[rank][name]
        torch.testing.assert_close(of_rank, value, rtol=1e-10, atol=1e-12)
        for ours, whole in zip(gradients_of_rank, given, strict=True):
            assert ours is not None
            assert whole is not None
            # DistributedDataParallel averages over the ranks, so each carries the world size.
            torch.testing.assert_close(ours / len(ROWS), whole[rows], rtol=1e-10, atol=1e-12)
