"""Balanced weights and measured gradients over two gloo processes: all ranks agree, and equal one process's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import processes

PROGRAM = Path(__file__).with_name("balance_program.py")


def run(folder: Path, ranks: int) -> list[dict[str, Any]]:
    folder.mkdir()
    processes.run_ranks(ranks, [str(PROGRAM), str(folder), str(ranks)])
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return run(tmp_path_factory.mktemp("ddp") / "two", 2)


def test_two_processes_equal_one_on_the_whole_batch(two: list[dict[str, Any]], tmp_path: Path) -> None:
    one = run(tmp_path / "one", 1)[0]["uncertainty"]
    for rank in (found["uncertainty"] for found in two):
        for name, value in one["state"].items():
            torch.testing.assert_close(rank["state"][name], value, rtol=0, atol=1e-10)
        assert set(rank["gradients"]) == {"grad/ce", "grad/mse", "grad_cos/ce/mse"}
        # of the gradients' mean over the ranks, not the mean of their norms
        assert rank["gradients"] == pytest.approx(one["gradients"], rel=1e-6)


def test_ranks_agree_on_the_gradient_norms_though_their_batches_differ(two: list[dict[str, Any]]) -> None:
    first, second = (found["gradnorm"] for found in two)
    assert first["gradients"] == second["gradients"]
    for name, value in first["state"].items():
        assert torch.equal(value, second["state"][name]), name
    assert (first["state"]["composer.balance.log_norm"] != 0).all()
