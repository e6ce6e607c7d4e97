"""DistillModule over two gloo processes: equal to one process on the whole batch, frozen models left alone, no hang."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import processes

PROGRAM = Path(__file__).with_name("module_program.py")


def run(folder: Path, ranks: int, norm: str, frozen: str) -> list[dict[str, Any]]:
    folder.mkdir()
    processes.run_ranks(ranks, [str(PROGRAM), str(folder), str(ranks), norm, frozen])
    return [torch.load(folder / f"rank{rank}.pt", weights_only=True) for rank in range(ranks)]


@pytest.fixture(scope="module")
def one_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("ddp") / "one", 1, "plain", "peers")[0]


def test_two_processes_equal_one_on_the_whole_batch(one_process: dict[str, Any], tmp_path: Path) -> None:
    ranks = run(tmp_path / "two", 2, "plain", "peers")
    for rank in ranks:
        for name, value in one_process["state"].items():
            torch.testing.assert_close(rank["state"][name], value, rtol=0, atol=1e-10)
        # Every validation sample counts once, though the ranks have 8 and 7 batches.
        for name in ("val/loss", "val/Student/top1", "val/Teacher/top1"):
            assert rank["metrics"][name] == pytest.approx(one_process["metrics"][name], rel=1e-6), name
        assert rank["metrics"]["train/loss"] == pytest.approx(one_process["metrics"]["train/loss"], rel=1e-6)


def test_frozen_models_are_left_alone_and_uneven_validation_does_not_hang(tmp_path: Path) -> None:
    # With BatchNorm, DDP would broadcast buffers in every validation forward, and wait for ever on the shorter rank.
    first, second = run(tmp_path / "frozen", 2, "norm", "frozen")
    difference = second["state"]["models.Teacher.2.bias"] - first["state"]["models.Teacher.2.bias"]
    torch.testing.assert_close(difference, torch.ones(3, dtype=torch.float64))
    for name in ("models.Student.0.weight", "models.Student.2.bias"):
        torch.testing.assert_close(first["state"][name], second["state"][name])
    assert first["metrics"]["val/loss"] == pytest.approx(second["metrics"]["val/loss"], rel=1e-9)
