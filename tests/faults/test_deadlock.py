"""What would leave one rank waiting for another is an error on both, and no process stays behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

import processes
from faults.report import report

LIMIT = 90  # seconds of the whole program, start included; a hang is killed then, and counted
PROMISE = "a rank that fails or differs does not leave others waiting"
slow = pytest.mark.slow

SCENARIOS = {
    "uneven batches": "rank 0: 8, rank 1: 7",
    "uneven streams 1": "different numbers of training batches (rank 0: 8, rank 1: more)",
    "uneven streams alone 0": "different numbers of training batches (rank 1: 8, rank 0: more)",
    "uneven streams accumulated 1": "different numbers of training batches (rank 0: 8, rank 1: more)",
    "uneven streams empty 1": "different numbers of training batches (rank 0: 0, rank 1: more)",
    "uneven gathering streams validation 1": "different numbers of validation batches (rank 0: 8, rank 1: more)",
    "no valid element": "rank 1: term 'ce'",
    "unused parameter": "no gradient reached models.Student.unused.weight, models.Student.unused.bias",
    "unused on one rank": "rank 1 failed with ValueError: no gradient reached models.Student.unused.weight",
    "unequal relational widths": "rank 0: (4, 8); rank 1: (4, 7)",
    "raise 0 on_train_batch_start": "rank 1 stops, because rank 0 failed with RuntimeError: a fault on one rank",
    "raise 1 on_train_batch_start": "rank 0 stops, because rank 1 failed with RuntimeError: a fault on one rank",
    "raise 0 on_validation_batch_start": "rank 1 stops, because rank 0 failed with RuntimeError",
    "raise 1 on_validation_batch_start": "rank 0 stops, because rank 1 failed with RuntimeError",
    "raise 1 on_train_epoch_end": "rank 0 stops, because rank 1 failed with RuntimeError",
    "raise 1 on_before_backward caught": "rank 0 was still waiting and is ended",
    "raise 0 on_before_backward caught": "rank 1 was still waiting and is ended",
    "loading": "rank 1 failed with OSError: sample can't be read",
    "loading in a worker": "rank 1 failed with OSError: Caught OSError in DataLoader worker process",
    "saving": "rank 1 stops, because rank 0 failed with RuntimeError: a fault on one rank",
}
QUICK = ("uneven batches", "uneven streams 1", "unused on one rank", "raise 1 on_before_backward caught")


def run(scenario: str, folder: Path) -> tuple[int | None, str, list[int]]:
    """Exit code of rank 0 (None for a hang), what was told, and the processes that stayed behind."""
    given = ["-m", "faults.deadlocks", scenario, str(folder)]
    tests, end = Path(__file__).parents[1], time.monotonic() + LIMIT
    by_launcher = scenario.endswith("caught")  # Lightning starts the second rank; the others are two as torchrun's are
    started = [processes.start(given, cwd=tests)] if by_launcher else processes.start_ranks(2, given, cwd=tests)
    codes = [process.poll(max(0.0, end - time.monotonic())) for process in started]
    while None not in codes and pids_alive(folder) and time.monotonic() < end:
        time.sleep(0.2)
    hung = sorted({*pids_alive(folder), *(process.pid for process in started if process.returncode is None)})
    for pid in hung:
        os.kill(pid, signal.SIGKILL)
    told = "".join(text for process in started for text in process.communicate(10))
    return codes[0], told, hung


def pids(folder: Path) -> list[int]:
    return [int(path.read_text()) for path in folder.glob("pid*")]


def pids_alive(folder: Path) -> list[int]:
    return [pid for pid in pids(folder) if alive(pid)]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("scenario", [pytest.param(s, marks=() if s in QUICK else slow) for s in SCENARIOS])
def test_both_ranks_end_and_say_why(scenario: str, tmp_path: Path) -> None:
    code, told, hung = run(scenario, tmp_path)
    survived = not hung and code not in (None, 0) and SCENARIOS[scenario] in told
    report(PROMISE, tried=1, survived=int(survived), hangs=len(hung))
    assert not hung, f"a hang: {told[-3000:]}"
    assert code != 0
    assert SCENARIOS[scenario] in told, told[-4000:]
    if "caught" not in scenario:  # one cause, told to both: by their own exceptions or by the guard
        assert told.count("Traceback") + told.count(" stops, because ") >= 2, told[-4000:]


@pytest.mark.parametrize(
    "scenario",
    [
        "unequal relational batches",
        "uneven validation streams 1",
        pytest.param("even streams", marks=slow),
        pytest.param("slow validation streams 1", marks=slow),
    ],
)
def test_unequal_batches_that_nobody_waits_for_are_no_fault(scenario: str, tmp_path: Path) -> None:
    code, told, hung = run(scenario, tmp_path)
    assert (code, hung) == (0, []), told[-3000:]
    report(PROMISE, tried=1, survived=1, hangs=0)
