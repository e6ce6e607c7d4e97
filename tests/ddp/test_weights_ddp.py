"""Terms of weight 0 and batches of different sizes on two ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import processes
from ddp.weights_program import module, samples


def test_means_weigh_ranks_by_their_samples_and_a_late_peer_hangs_nobody(tmp_path: Path) -> None:
    processes.run_ranks(2, ["-m", "ddp.weights_program", tmp_path], cwd=Path(__file__).parents[1])
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    models = module().models
    x, y = (torch.cat([samples(rank).tensors[part] for rank in range(2)]) for part in range(2))
    with torch.no_grad():
        student, peer, teacher = (models[name](x) for name in ("Student", "Peer", "Teacher"))
    known = y >= 0
    wanted = {
        "ce": F.cross_entropy(student[known], y[known]).item(),
        "mse": F.mse_loss(student, teacher).item(),
        "late": F.mse_loss(peer, student).item(),
    }
    for figures in found:
        for stage in ("train", "val"):
            for name, value in wanted.items():
                assert figures[f"{stage}/{name}"] == pytest.approx(value, rel=1e-4), (stage, name)
