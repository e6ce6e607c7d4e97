"""CRD over two processes: loss and gradients of one process on the whole batch, and equal banks on both."""

from __future__ import annotations

import torch
from torch import Tensor

from ddp.launch import run_on_ranks
from lit_distill.losses import CRDLoss, Example

SIZE, CLASSES = 12, 4
STEPS = [([0, 3, 5, 7, 9], 3), ([1, 2, 5, 5, 11], 2), ([3, 4, 5, 6, 7], 4)]  # the whole batch, and rank 0's share of it


def steps(rank: int | None) -> dict[str, Tensor]:
    torch.manual_seed(0)
    loss = CRDLoss(embedding_dim=6, negatives=4, dataset_size=SIZE)
    loss.build(Example(torch.zeros(1, 5), torch.zeros(1, 7)))
    loss.double()
    result: dict[str, Tensor] = {}
    for number, (batch, first) in enumerate(STEPS):
        torch.manual_seed(number)
        index = torch.tensor(batch)
        student, teacher = torch.randn(len(index), 5).double(), torch.randn(len(index), 7).double()
        contrast = torch.cat([index[:, None], torch.randint(SIZE, (len(index), 4))], dim=1)
        mine = slice(None) if rank is None else (slice(0, first), slice(first, None))[rank]
        value = loss(student[mine], teacher[mine], [index[mine], index[mine] % CLASSES], contrast[mine])
        loss.zero_grad()
        value.backward()
        result[f"{number}/loss"] = value.detach()
        result |= {f"{number}/{name}": p.grad.clone() for name, p in loss.named_parameters() if p.grad is not None}
    return result | {f"state/{name}": value for name, value in loss.state_dict().items()}


def test_two_processes_equal_one_on_the_whole_batch() -> None:
    one, ranks = steps(None), run_on_ranks(steps)
    for name, value in one.items():
        parts = [rank[name] for rank in ranks]
        # DDP averages gradients, and the logged loss is averaged likewise; banks are equal on both.
        for given in parts if name.startswith("state/") else [torch.stack(parts).mean(dim=0)]:
            assert (given - value).abs().max() <= 1e-10, name
    assert torch.equal(ranks[0]["state/student_bank"], ranks[1]["state/student_bank"])
