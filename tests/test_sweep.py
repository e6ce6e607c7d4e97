"""Sweeps: one run folder a job, whichever launcher of Hydra's starts them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import processes

JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param([], id="basic"),  # all jobs in one process: nothing of one may be left in the next
        pytest.param(JOBLIB, id="joblib", marks=pytest.mark.slow),
        pytest.param(["hydra/launcher=submitit_local"], id="submitit", marks=pytest.mark.slow),
    ],
)
def test_a_sweep_leaves_a_run_folder_a_job(launcher: list[str], tmp_path: Path) -> None:
    result = processes.run(
        ["-m", "lit_distill.train", "-m", *launcher, "experiment=baseline_pptsmv2", "trainer=cpu",
         "data=moving_digits_tiny", "trainer.max_epochs=1", "seed=0,1"],
        cwd=tmp_path, env={**os.environ, "LIT_DISTILL_CACHE": str(tmp_path / "cache")},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (sweep,) = (tmp_path / "runs").iterdir()
    assert sweep.name.startswith("sweep_")
    for job in range(2):
        results = json.loads((sweep / "baseline_pptsmv2" / str(job) / "results.json").read_text())
        assert results["seed"] == job
        assert results["steps"] == 4


@pytest.mark.slow
def test_a_job_of_several_processes_is_refused(tmp_path: Path) -> None:
    result = processes.run(
        ["-m", "lit_distill.train", "-m", "experiment=baseline_pptsmv2", "trainer=ddp", "seed=0,1",
         "trainer.accelerator=cpu", "trainer.devices=2", "data=moving_digits_tiny", "trainer.max_epochs=1"],
        cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 1
    assert "a job of this sweep trains in 2 processes" in result.stderr
    assert "Traceback" not in result.stderr
