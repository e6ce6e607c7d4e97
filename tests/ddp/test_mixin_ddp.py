"""DistillMixin over two gloo processes: equal to one process on the whole batch, teachers left alone."""

from __future__ import annotations

from pathlib import Path

import torch

import processes
from ddp.mixin_program import main

PROGRAM = Path(__file__).with_name("mixin_program.py")


def test_two_processes_equal_one_on_the_whole_batch(tmp_path: Path) -> None:
    for folder in ("1", "2"):
        (tmp_path / folder).mkdir()
    main(tmp_path / "1", 1)
    processes.run_ranks(2, [PROGRAM, tmp_path / "2", "2"])
    one, *two = (torch.load(tmp_path / name, weights_only=True) for name in ("1/rank0.pt", "2/rank0.pt", "2/rank1.pt"))
    for rank in two:
        assert (
            rank["state"].keys() == one["state"].keys() == {f"net.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
        )
        for part in ("state", "teacher"):
            for name, value in one[part].items():
                torch.testing.assert_close(rank[part][name], value, rtol=0, atol=1e-10)
