from __future__ import annotations

import json
from pathlib import Path

import processes

PROGRAM = Path(__file__).with_name("evaluate_on_two_processes.py")


def test_unequal_evaluation_steps_neither_hang_nor_count_twice(videos: Path, tmp_path: Path) -> None:
    """7 videos in batches of 3, dense views: two steps on one process, one on the other."""
    processes.run_ranks(2, [PROGRAM, videos, tmp_path / "report"], cwd=tmp_path)
    ranks = [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in (0, 1)]
    assert [told["steps"][1:] for told in ranks] == [[2, 2], [1, 1]]
    for epoch in (1, 2):
        assert sorted(ranks[0]["seen"][epoch] + ranks[1]["seen"][epoch]) == list(range(7))
    for half in (slice(0, 6), slice(6, 12)):
        assert sorted(ranks[0]["trained"][half] + ranks[1]["trained"][half]) == list(range(12))
    assert ranks[0]["weights"] == ranks[1]["weights"]
