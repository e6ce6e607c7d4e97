"""Relational losses over the whole global batch: two processes give what one process gives."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ddp.launch import run_on_ranks
from lit_distill.losses import CorrelationLoss, PKTLoss, RKDAngleLoss, RKDDistanceLoss, RKDLoss, SimilarityLoss
from lit_distill.losses._distributed import gather_with_gradients

LOSSES: dict[str, Callable[..., nn.Module]] = {
    "rkd_distance": RKDDistanceLoss,
    "rkd_angle": RKDAngleLoss,
    "rkd": RKDLoss,
    "rkd_paddleclas": lambda **kwargs: RKDLoss(convention="paddleclas", **kwargs),
    "similarity": SimilarityLoss,
    "similarity_l1": lambda **kwargs: SimilarityLoss(row_norm="l1", **kwargs),
    "correlation": CorrelationLoss,
    "correlation_unsquared": lambda **kwargs: CorrelationLoss(squared=False, normalize=False, **kwargs),
    "correlation_consecutive": lambda **kwargs: CorrelationLoss(kernel="consecutive", **kwargs),
    "pkt": PKTLoss,
}
BATCHES = {"equal": (4, 4), "unequal": (5, 2), "one and many": (1, 40)}


class Pair(nn.Module):
    """Two peers with parameters: the gradients that DDP averages are theirs."""

    def __init__(self) -> None:
        super().__init__()
        self.student, self.teacher = (nn.Linear(6, 5, dtype=torch.float64) for _ in range(2))

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.student(inputs).tanh(), self.teacher(inputs).tanh()


def step(model: nn.Module, loss: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    """The loss and the gradients of one step."""
    model.zero_grad()
    student, teacher = model(inputs)
    value = loss(student, teacher)
    value.backward()
    found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": value.detach(), **{name: gradient.clone() for name, gradient in found.items()}}


def seeded() -> tuple[Pair, dict[str, Tensor]]:
    torch.manual_seed(0)
    return Pair(), {name: torch.randn(sum(sizes), 6, dtype=torch.float64) for name, sizes in BATCHES.items()}


def on_rank(rank: int) -> dict[str, Any]:
    """Every loss on this rank's part of every batch, and what the gathering itself gives."""
    pair, batches = seeded()
    model = DistributedDataParallel(pair, find_unused_parameters=True)
    results: dict[str, Any] = {}
    for name, sizes in BATCHES.items():
        mine = batches[name].split(sizes)[rank]  # type: ignore[no-untyped-call]
        for method, make in LOSSES.items():
            results[f"{method}, {name}"] = step(model, make(gather=True), mine)
    return results | {"gathering": gathering(rank)}


def gathering(rank: int) -> dict[str, Any]:
    rows = (torch.arange(6, dtype=torch.float64).view(3, 2) + 10 * rank)[: 3 - 3 * rank].requires_grad_()
    gathered = gather_with_gradients(rows)
    (gathered.square().sum() * (rank + 1)).backward()  # type: ignore[no-untyped-call]
    half = torch.ones(2 - rank, 3, dtype=torch.bfloat16, requires_grad=True)
    gather_with_gradients(half).sum().backward()  # type: ignore[no-untyped-call]
    refusal = ""
    try:
        gather_with_gradients(torch.zeros(2, 2 + rank))
    except ValueError as error:
        refusal = str(error)
    return {
        "gathered": gathered.detach(),
        "slope": rows.grad,
        "half": half.grad,
        "labels": gather_with_gradients(torch.full((2 + rank,), rank)),
        "refusal": refusal,
    }


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, Any]]:
    return run_on_ranks(on_rank)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("method", LOSSES)
def test_two_processes_give_what_one_gives(method: str, batch: str, ranks: list[dict[str, Any]]) -> None:
    pair, batches = seeded()
    expected = step(pair, LOSSES[method](), batches[batch])
    assert expected["loss"] > 0
    assert expected["student.weight"].norm() > 0
    for rank in ranks:
        found = rank[f"{method}, {batch}"]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=name)


def test_rows_come_in_the_order_of_the_ranks_and_gradients_return_summed(ranks: list[dict[str, Any]]) -> None:
    rows = torch.arange(6, dtype=torch.float64).view(3, 2)
    for rank in ranks:
        assert torch.equal(rank["gathering"]["gathered"], rows)  # the other rank had none
        assert rank["gathering"]["labels"].tolist() == [0, 0, 1, 1, 1]
    assert torch.equal(ranks[0]["gathering"]["slope"], 2 * rows * 3)
    assert ranks[1]["gathering"]["slope"].shape == (0, 2)
    assert ranks[0]["gathering"]["half"].tolist() == [[2.0] * 3] * 2
    assert ranks[1]["gathering"]["half"].dtype == torch.bfloat16


def test_other_shapes_are_refused_on_every_rank(ranks: list[dict[str, Any]]) -> None:
    for rank in ranks:
        assert "rank 0: (2, 2); rank 1: (2, 3)" in rank["gathering"]["refusal"]


def test_without_processes_it_is_the_identity() -> None:
    rows = torch.eye(3)
    assert gather_with_gradients(rows) is rows
    student, teacher = torch.randn(4, 3), torch.randn(4, 5)
    assert RKDLoss(gather=True)(student, teacher) == RKDLoss()(student, teacher)
