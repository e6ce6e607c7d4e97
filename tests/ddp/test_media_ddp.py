"""MediaLogger over two gloo processes: the pictures of one process on all samples, drawn by the first alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("media_program.py")


def pictures(folder: Path, processes: int, *more: str) -> dict[str, bytes]:
    folder.mkdir()
    result = subprocess.run(
        [sys.executable, str(PROGRAM), str(folder), str(processes), *more],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    files = (folder / "media").rglob("*.*")
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def test_two_processes_draw_what_one_draws_of_all_samples(tmp_path: Path) -> None:
    one, two = pictures(tmp_path / "one", 1), pictures(tmp_path / "two", 2)
    assert len(one) == 2 * (1 + 1 + 4)
    assert two == one
    first = json.loads((tmp_path / "two" / "rank0.json").read_text())
    assert all({place % 2 for place in places} == {0, 1} for places in first), "clips of both processes"
    assert json.loads((tmp_path / "two" / "rank1.json").read_text()) == [], "the second draws nothing"


def test_a_failure_of_the_first_process_leaves_none_waiting(tmp_path: Path) -> None:
    assert pictures(tmp_path / "fails", 2, "fails") == {}
    assert (tmp_path / "fails" / "rank1.json").is_file(), "both have come to the end"
