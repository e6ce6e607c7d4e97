from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("evaluate_on_two_processes.py")


def test_unequal_evaluation_steps_neither_hang_nor_count_twice(videos: Path, tmp_path: Path) -> None:
    """7 videos in batches of 3, dense views: two steps on one process, one on the other."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, str(PROGRAM), str(videos), str(tmp_path / "report")],
        check=True,
        timeout=120,
        env=environment,
        cwd=tmp_path,
    )
    ranks = [json.loads((tmp_path / f"report.{rank}").read_text()) for rank in (0, 1)]
    assert [told["steps"][1:] for told in ranks] == [[2, 2], [1, 1]]
    for epoch in (1, 2):
        assert sorted(ranks[0]["seen"][epoch] + ranks[1]["seen"][epoch]) == list(range(7))
    for half in (slice(0, 6), slice(6, 12)):
        assert sorted(ranks[0]["trained"][half] + ranks[1]["trained"][half]) == list(range(12))
    assert ranks[0]["weights"] == ranks[1]["weights"]
