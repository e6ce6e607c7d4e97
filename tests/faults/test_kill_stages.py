"""Killed in the middle of a stage, of a generation, and between them, equals uninterrupted, bit for bit."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

import processes
from lit_distill.checkpoints import read_checkpoint

from .killing import _differing
from .report import report
from .stage_program import SCENARIOS

PROGRAM = Path(__file__).with_name("stage_program.py")


@pytest.fixture(scope="module", params=["generations", pytest.param("stages", marks=pytest.mark.slow)])
def outcome(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path, dict[str, Any]]:
    """Scenario, folder and what the program told; its processes run one after the other."""
    folder = tmp_path_factory.mktemp("stages")
    result = processes.run([PROGRAM, request.param, folder], timeout=500)
    assert result.returncode == 0, result.stderr[-3000:]
    return request.param, folder, json.loads(result.stdout)


def test_every_process_ended_where_it_was_meant_to(outcome: tuple[str, Path, dict[str, Any]]) -> None:
    scenario, folder, told = outcome
    wanted = [-9 if name == "SIGKILL" else 128 + signal.Signals[name] for _, name in SCENARIOS[scenario][1]]
    assert told["whole"] == 0, (folder / "whole.txt").read_text()[-3000:]
    assert told["codes"] == [*wanted, 0], (folder / "parts.txt").read_text()[-3000:]


def test_weights_figures_and_optimizers_are_those_of_the_uninterrupted_run(
    outcome: tuple[str, Path, dict[str, Any]],
) -> None:
    scenario, folder, _ = outcome
    whole, parts = folder / "whole", folder / "parts"
    files, others = (  # but for TensorBoard's, which have the time in their names
        sorted(p.relative_to(run) for p in run.rglob("*") if p.is_file() and "tfevents" not in p.name)
        for run in (whole, parts)
    )
    assert files == others
    for file in files:
        if file.name in ("metrics.csv", "student.safetensors"):
            assert (whole / file).read_bytes() == (parts / file).read_bytes(), file
        elif file.suffix == ".ckpt":
            one, other = (read_checkpoint(place / file) for place in (whole, parts))
            for part in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
                assert _differing(one[part], other[part]) == [], (file, part)
    results = [_without_times(json.loads((place / "results.json").read_text())) for place in (whole, parts)]
    assert results[0] == results[1]
    assert len(results[0]["stages"]) == 2
    killed = len(SCENARIOS[scenario][1])
    report(f"killed equals uninterrupted: {scenario}", tried=killed, survived=killed)


def test_what_a_stage_has_finished_is_not_made_again(outcome: tuple[str, Path, dict[str, Any]]) -> None:
    _, _, told = outcome
    assert told["made again"] == [{} for _ in told["codes"]]


def test_a_killed_stage_goes_on_from_its_last_checkpoint(outcome: tuple[str, Path, dict[str, Any]]) -> None:
    scenario, folder, _ = outcome
    whole, parts = ((folder / f"{name}.steps").read_text().splitlines() for name in ("whole", "parts"))
    assert set(whole) == set(parts)
    in_steps = sum(isinstance(what, tuple) for (_, what), _ in SCENARIOS[scenario][1])
    assert len(whole) == len(set(whole))
    assert len(parts) - len(whole) <= 3 * in_steps, "a checkpoint every two steps, and the step that was begun"


def _without_times(results: dict[str, Any]) -> dict[str, Any]:
    return {
        name: {stage: _without_times(section) for stage, section in value.items()} if name == "stages" else value
        for name, value in results.items()
        if name not in ("started", "seconds")
    }
