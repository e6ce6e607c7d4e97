"""A bad video is an error within limits: damaged files, read in child processes, never crash, hang or fall short."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from . import mutants
from .report import report

BATCH = 100
TIME = 240  # seconds for a batch, far above what the limits of its reads add up to in practice


def read_batch(folder: Path, first: int, count: int) -> list[dict[str, Any]]:
    """The records of a batch; a mutant that ends its process is a record too, and the rest goes on after it."""
    records: list[dict[str, Any]] = []
    end = first + count
    while first < end:
        command = [sys.executable, mutants.__file__, str(folder), str(first), str(end - first)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=TIME, env=environment, check=False)
            output, status, errors = done.stdout, str(done.returncode), done.stderr
        except subprocess.TimeoutExpired as late:
            raw = late.stdout or b""
            output, status, errors = raw.decode() if isinstance(raw, bytes) else raw, "hang", ""
        lines = [json.loads(line) for line in output.splitlines()]
        read = [line for line in lines if "outcome" in line]
        records += read
        if len(read) == end - first:
            break
        assert lines, f"the process ended before its first mutant: {errors}"
        assert "begun" in lines[-1], f"the process ended between mutants: {errors}"
        last = lines[-1]["begun"]
        outcome = "hang" if status == "hang" else "crash"
        records.append({"number": last, "kind": "?", "outcome": outcome, "error": f"{status}: {errors[-500:]}"})
        first = last + 1
    return records


def check(records: list[dict[str, Any]], count: int) -> None:
    outcomes = Counter(record["outcome"] for record in records)
    bad = [record for record in records if record["outcome"] in ("crash", "hang", "short", "swapped")]
    greedy = [record for record in records if record.get("memory", 0) > mutants.MEMORY]
    slow = [record for record in records if record.get("seconds", 0) > 8 * mutants.LIMITS.seconds]
    print(
        f"mutants: {len(records)}, crashes {outcomes['crash']}, hangs {outcomes['hang']},"
        f" silently short {outcomes['short']}, swapped {outcomes['swapped']}; {dict(outcomes)}"
    )
    wrong = outcomes["short"] + outcomes["swapped"]
    report(
        "damaged videos are errors",
        tried=len(records),
        survived=len(records) - len(bad),
        lost=wrong,
        crashes=outcomes["crash"],
        hangs=outcomes["hang"],
        short=wrong,
    )
    assert len(records) == count
    assert bad == []
    assert greedy == []
    assert slow == []
    assert outcomes["error"] >= count // 4
    assert outcomes["same"] + outcomes["changed"] >= count // 10


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mutants")
    mutants.write_bases(folder)
    return folder


def test_forty_mutants(bases: Path) -> None:
    check(read_batch(bases, 0, 40), 40)


@pytest.mark.slow
def test_a_thousand_mutants(bases: Path) -> None:
    records = [record for batch in range(10) for record in read_batch(bases, batch * BATCH, BATCH)]
    check(records, 1000)
    assert {record["kind"] for record in records} == set(mutants.KINDS)
