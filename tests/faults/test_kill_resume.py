"""Killed equals uninterrupted, bit for bit: SIGKILL anywhere, the same command again, the same weights and figures."""

from __future__ import annotations

from pathlib import Path

import pytest

from .killing import Server, differences, kill_until_done
from .report import report
from .resume_program import SCENARIOS

# One of each kind of state: of the optimizer and the random streams, of a callback on two ranks, of a loss within an
# epoch's validation, of accumulated gradients, of a cache, of weights between losses. The long test has them all.
KINDS = (
    "DML, Adam, dropout", "EMA teacher on two ranks", "CRD memory bank, validation twice an epoch",
    "Mixup, gradients accumulated over 3 batches", "cached teacher, Mixup",
    "learned uncertainties, gradients watched",
)  # fmt: skip


@pytest.mark.parametrize(
    "scenario", [name if name in KINDS else pytest.param(name, marks=pytest.mark.slow) for name in SCENARIOS]
)
def test_killed_twice_equals_uninterrupted(
    server: Server, references: dict[str, Path], tmp_path: Path, scenario: str
) -> None:
    outcome = kill_until_done(server, tmp_path / "run", references[scenario], scenario, kills=2, workers=(0, 2), seed=1)
    assert outcome.differences == [], outcome.places
    assert (outcome.lost, outcome.repeated) == (0, 0)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_at_ten_random_points_equals_uninterrupted(
    server: Server, references: dict[str, Path], tmp_path: Path, scenario: str
) -> None:
    tried = equal = lost = repeated = 0
    found: list[str] = []
    for seed in range(2, 100):
        outcome = kill_until_done(
            server, tmp_path / f"run{seed}", references[scenario], scenario, kills=2, workers=(0, 2, 4), seed=seed
        )
        tried += len(outcome.places)
        equal += 0 if outcome.differences else len(outcome.places)
        lost, repeated = lost + outcome.lost, repeated + outcome.repeated
        found += [f"{difference} after kills at {outcome.places}" for difference in outcome.differences]
        if tried >= 10:
            break
    report(
        f"killed equals uninterrupted: {scenario}", tried=tried, survived=equal, lost=lost + repeated,
        samples_lost=lost, samples_repeated=repeated,
    )  # fmt: skip
    assert (found, lost, repeated) == ([], 0, 0)


@pytest.mark.parametrize(
    "event",
    [
        "written",
        "validation",
        "backward",
        # just before these, and where the random kills above fall too
        pytest.param("write", marks=pytest.mark.slow),
        pytest.param("validated", marks=pytest.mark.slow),
        pytest.param("epoch end", marks=pytest.mark.slow),
    ],
)
def test_killed_at_a_named_place_equals_uninterrupted(
    server: Server, references: dict[str, Path], tmp_path: Path, event: str
) -> None:
    scenario = "DML, Adam, dropout"
    answer = server.run(tmp_path, scenario, event=event, at=5 if event == "backward" else 2, signal="SIGKILL")
    assert answer["codes"] == [-9]
    assert server.run(tmp_path, scenario)["codes"] == [0]
    assert differences(references[scenario], tmp_path) == []


@pytest.mark.parametrize("scenario", ["DML on two ranks", "EMA teacher on two ranks"])
def test_ranks_keep_what_is_their_own(
    server: Server, references: dict[str, Path], tmp_path: Path, scenario: str
) -> None:
    answer = server.run(tmp_path, scenario, event="backward", at=2, signal="SIGKILL")
    assert answer["codes"] == [-9, -9]
    assert server.run(tmp_path, scenario)["codes"] == [0, 0]
    assert differences(references[scenario], tmp_path) == []


def test_the_comparison_sees_another_seed(server: Server, references: dict[str, Path]) -> None:
    assert differences(references["DML, Adam, dropout"], references["checkpoints of epochs alone"])
