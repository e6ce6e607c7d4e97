"""MediaLogger over two gloo processes: the pictures of one process on all samples, drawn by the first alone."""

from __future__ import annotations

import json
from pathlib import Path

import processes

PROGRAM = Path(__file__).with_name("media_program.py")


def pictures(folder: Path, ranks: int, *more: str) -> dict[str, bytes]:
    folder.mkdir()
    processes.run_ranks(ranks, [str(PROGRAM), str(folder), str(ranks), *more])
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
