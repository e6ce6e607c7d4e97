"""Runs that take no time: what `train` and `test` would have left, written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lit_distill.compare import main
from lit_distill.comparison.plan import PlannedRun, make_plan, plain
from lit_distill.comparison.pool import Job
from run_folders import composed

TINY = ["data=moving_digits_tiny", "trainer=cpu"]


def config(folder: Path, *overrides: str, train: Sequence[str] = TINY) -> DictConfig:
    return composed("compare", *main.overrides([f"folder={folder}", *train, *overrides]), "command=''")


def quiet() -> Console:
    return Console(file=StringIO(), width=200)


def text(console: Console) -> str:
    assert isinstance(console.file, StringIO)
    return console.file.getvalue()


def leave(run: PlannedRun, top1: float, **account: Any) -> None:
    """All that a finished run of that accuracy leaves and a comparison reads."""
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "config.yaml").write_text(OmegaConf.to_yaml(plain(run.config), resolve=False))
    figures = {"epoch": 2, "val/Student/top1": top1 / 100}
    for name, content in {
        "results.json": {"interrupted": False, "best": figures},
        "student.json": {"sha256": f"{run.name}{run.seed}"},
        "test.json": {"sha256": f"{run.name}{run.seed}", "top1": top1 / 100, "top5": 1.0, "samples": 600},
        "account.json": {
            "steps": 40, "epochs": 2, "order": f"o{run.seed}", "pixels": f"p{run.seed}", "seconds": 90.0,
            "cpu_seconds": 60.0, "peak_mib": 512.0, "peak_cuda_mib": None, **account,
        },
    }.items():  # fmt: skip
        (run.folder / name).write_text(json.dumps(content))
    (run.folder / "metrics.csv").write_text("step,epoch,val/Student/top1\n10,,\n20,0,0.25\n40,1,0.5\n")


class FakePool:
    """Stands in for the pool: finishes each job at once, or lets it fail, or is interrupted before it."""

    def __init__(self, config: DictConfig, top1: Callable[[str, int], float], *, stop: int = 99) -> None:
        plan = make_plan(config)
        runs = [*plan.runs, *([plan.teacher] if plan.teacher else [])]
        self.runs = {run.folder.with_name(f"{run.folder.name}.log"): run for run in runs}
        self.top1, self.stop = top1, stop
        self.begun: list[tuple[str, int]] = []
        self.faults: dict[tuple[str, int], str] = {}
        self.accounts: dict[tuple[str, int], dict[str, Any]] = {}

    def __call__(self, *arguments: Any) -> FakePool:
        return self

    def run(self, jobs: Sequence[Job], *, done: Callable[[Job, str], None]) -> None:
        for job in jobs:
            run = self.runs[job.log]
            key = (run.name, run.seed)
            if len(self.begun) == self.stop:
                raise KeyboardInterrupt
            self.begun.append(key)
            fault = self.faults.get(key, "")
            if not fault:
                leave(run, self.top1(*key), **self.accounts.get(key, {}))
            done(job, fault)
