"""What `compare` does: it trains strategies with paired seeds, and says which helps, by how much, by luck or not."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from lit_distill._command.arguments import literal
from lit_distill._files import write_text
from lit_distill._screen import Screen
from lit_distill.comparison.plan import Plan, PlannedRun, make_plan, network_name
from lit_distill.comparison.plots import write_plots
from lit_distill.comparison.pool import Job, Pool, places
from lit_distill.comparison.record import collect, is_done, require_its_own, run_record
from lit_distill.comparison.table import head, markdown, notes, rows
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import BEST_CHECKPOINT, COMPARE_FILE, COMPARE_TABLE
from lit_distill.runs.processes import alone_in
from lit_distill.runs.secrets import redacted_text


def run(config: DictConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Train and test what a composed `compare.yaml` still lacks, and write `compare.json`, `compare.md` and the plots.

    Returns:
        the content of `compare.json`.

    Raises:
        ValueError: the runs could not be compared, or the folder holds others. No run has begun then.
        KeyboardInterrupt: a signal was received; the runs are saved and what is done is written.
    """
    console = console or Screen()
    jobs, threads, devices = places(config.jobs)
    plan = make_plan(config)
    folder = Path(config.folder).expanduser().absolute()
    output = folder if config.output is None else Path(config.output).expanduser().absolute()
    about = {"command": redacted_text(str(config.command)), "date": str(date.today())}
    faults: dict[Path, str] = {}
    with alone_in(folder) as lock:
        pool = Pool(jobs, threads, devices, lock)
        first = [] if plan.teacher is None else [plan.teacher]
        for planned in (*first, *plan.runs):
            require_its_own(planned)
        left = [planned for planned in (*first, *plan.runs) if not is_done(planned)]
        _announce(console, plan, left, jobs, threads)
        if left:
            _prepare(plan)
        try:
            for group in (first, plan.runs):
                if not any(run in faults for run in (planned.folder for planned in first)):
                    _train(console, pool, [planned for planned in group if planned in left], folder, faults)
        finally:
            record = collect(plan, folder, faults, about)
            _write(console, record, output, plots=config.plots)
    if looked := _report_command(plan):
        console.print("look: the curves of two runs in one chart, and the clips on which they differ", highlight=False)
        console.print(f"  {looked}", highlight=False, soft_wrap=True)
    if command := _next_command(plan, config):
        console.print("next: distill from the Teacher that learned along, now frozen", highlight=False)
        console.print(f"  {command}", highlight=False, soft_wrap=True)
    return record


def _report_command(plan: Plan) -> str:
    """The report on the reference and the first other strategy, of the first seed; empty where one is not done."""
    reference = next(strategy for strategy in plan.strategies if strategy.name == plan.reference)
    other = next(strategy for strategy in plan.strategies if strategy is not reference)
    runs = (reference.runs[0], other.runs[0])
    if not all(map(is_done, runs)):
        return ""
    return " ".join(["python -m lit_distill.report", *(shlex.quote(str(_shown(run.folder))) for run in runs)])


def _shown(path: Path) -> Path:
    """A path as it is typed from here."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _next_command(plan: Plan, config: DictConfig) -> str:
    """KD from the Teacher of the first strategy that trained one as a peer; empty where there is none."""
    for strategy in plan.strategies:
        run = strategy.runs[0]
        learns = "Teacher" in run.config.models and "Teacher" not in run.config.frozen
        if strategy.name == plan.reference or not learns or not is_done(run):
            continue
        network = network_name(run.config, "Teacher")
        usual = strategy.experiment == f"dml_{config.suffix}"  # whose Teacher is KD's network
        shown = _shown(run.folder / BEST_CHECKPOINT)
        words = [
            f"experiment=kd_{config.suffix}",
            *([] if usual else [f"model@models.Teacher={network}"]),
            *config.train,
        ]
        given = " ".join(shlex.quote(str(word)) for word in words)
        return f"python -m lit_distill.train {given} models.Teacher.pretrained='{shown}#Teacher'"
    return ""


def _prepare(plan: Plan) -> None:
    """Let the data be made or looked through once, before several runs at a time would want to."""
    configs = [planned.config for planned in (*([plan.teacher] if plan.teacher else []), plan.runs[0])]
    for config in configs:
        instantiate(config.data, _convert_="all").prepare_data()


def _train(console: Console, pool: Pool, runs: Sequence[PlannedRun], folder: Path, faults: dict[Path, str]) -> None:
    jobs = {_job(planned): planned for planned in runs}
    count = 0

    def done(job: Job, fault: str) -> None:
        nonlocal count
        count += 1
        planned = jobs[job]
        if fault:
            faults[planned.folder] = f"{fault} (all of it: {job.log})"
            outcome = f"failed: {fault}; {job.log} has all of it"
        else:
            record = run_record(planned, folder)
            outcome = f"{record['top1']:.2f} % in {record['seconds'] / 60:.1f} min"
        style = "red" if fault else ""
        console.print(f"{count}/{len(jobs)}  {job.name}: {outcome}", style=style, soft_wrap=True, highlight=False)

    pool.run(list(jobs), done=done)


def _job(planned: PlannedRun) -> Job:
    commands = [("lit_distill.train", *planned.arguments)] if not is_done(planned, tested=False) else []
    on = ("trainer=cpu",) if planned.config.trainer.accelerator == "cpu" else ()
    evaluate = ("lit_distill.test", f"run={literal(str(planned.folder))}", *on)
    name = "teacher" if planned.name == "teacher" else f"{planned.name}, seed {planned.seed}"
    return Job(name, (*commands, evaluate), planned.folder.with_name(f"{planned.folder.name}.log"))


def _announce(console: Console, plan: Plan, left: Sequence[PlannedRun], jobs: int, threads: int) -> None:
    total = len(plan.runs) + (plan.teacher is not None)
    what = f"{len(plan.strategies)} strategies, {len(plan.seeds)} seeds" + (", one teacher" if plan.teacher else "")
    done = f", {total - len(left)} done before" if len(left) < total else ""
    announced = f"{total} runs ({what}){done}; {jobs} at a time, threads of each: {threads}"
    console.print(announced, highlight=False, soft_wrap=True)


def _write(console: Console, record: dict[str, Any], output: Path, *, plots: bool) -> None:
    write_json(output / COMPARE_FILE, record)
    pictures = write_plots(record, output) if plots else []
    write_text(output / COMPARE_TABLE, markdown(record, pictures))
    shown = Table()
    for name in head(record):
        shown.add_column(name, overflow="fold", justify="left" if name in ("strategy", "teacher") else "right")
    for row in rows(record):
        shown.add_row(*(cell.replace("**", "") for cell in row))
    console.print(shown)
    for note in notes(record):
        console.print(note.replace("**", ""), highlight=False, soft_wrap=True)
    for line in closing(record):
        console.print(line, highlight=False, soft_wrap=True)
    console.print(f"written to {output / COMPARE_TABLE}", highlight=False, soft_wrap=True)


def closing(record: Mapping[str, Any]) -> list[str]:
    """The gains in words, a line each; of one seed, that it shows none; and how to build on a peer's Teacher.

    Example:
        >>> record = {
        ...     "reference": "baseline",
        ...     "seeds": [0],
        ...     "strategies": {"baseline": {"mean": 50.1, "gain": None}, "kd": {"mean": 54.9, "gain": 4.8}},
        ... }
        >>> closing(record)
        ['baseline 50.1 %, with kd 54.9 %: +4.8 points (one seed, which may be luck: seeds=5 says more)']
    """
    plain = record["strategies"][record["reference"]]
    luck = " (one seed, which may be luck: seeds=5 says more)" if len(record["seeds"]) == 1 else ""
    return [
        f"{record['reference']} {plain['mean']:.1f} %, with {name} {strategy['mean']:.1f} %: "
        f"{strategy['gain']:+.1f} points{luck}"
        for name, strategy in record["strategies"].items()
        if strategy.get("gain") is not None
    ]


def is_whole(record: dict[str, Any]) -> bool:
    """Whether every run is done and every pair is one."""
    strategies = record["strategies"].values()
    return not any(strategy.get("unpaired") or any(run["fault"] for run in strategy["runs"]) for strategy in strategies)


def main(config: DictConfig) -> None:
    """Compare; exit code 3 where a run failed or a pair is none."""
    try:
        record = run(config)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        sys.exit(130)
    if not is_whole(record):
        sys.exit(3)
