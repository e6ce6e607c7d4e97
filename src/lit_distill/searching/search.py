"""What `search` does: it finds the best settings by Optuna, pruned by validation."""

from __future__ import annotations

import sys
from typing import Any

from omegaconf import DictConfig
from rich.console import Console

from lit_distill._files import expand_home, write_text
from lit_distill._screen import Screen
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import STUDY_FILE, STUDY_PLOT, STUDY_TABLE
from lit_distill.runs.processes import alone_in
from lit_distill.searching.space import axes_of
from lit_distill.searching.study import finished, markdown, open_study, plot, record_of, train_trial, trials_of

_FAILURES = 3  # in a row end the search


def run(config: DictConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Train what trials of a composed ``search.yaml`` are left, and write ``study.json``, ``study.md`` and the plot.

    Returns:
        the content of ``study.json``.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: the space or a setting is malformed, a key is none of the experiment's, or trials fail.
        KeyboardInterrupt: a signal was received; the trial under way is saved, and the same command resumes.
    """
    console = console or Screen()
    axes = axes_of(config)
    study = open_study(config)
    import optuna

    folder = expand_home(config.folder).absolute()
    failures = 0
    with alone_in(folder) as lock:
        try:
            for trial in trials_of(study, int(config.trials)):
                arguments = [f"++{axis.key}={axis.draw(trial)}" for axis in axes]
                end, value, fault = train_trial(trial, arguments, config, folder, keep_open=lock)
                study.tell(trial.number, value, state=getattr(optuna.trial.TrialState, end))
                failures = failures + 1 if end == "FAIL" else 0
                shown = fault if end == "FAIL" else f"{config.metric} {value:.4f}" if value is not None else ""
                console.print(f"trial {trial.number}: {end.lower()}  {shown}  {' '.join(arguments)}", highlight=False,
                              soft_wrap=True, markup=False)  # fmt: skip
                if failures == _FAILURES:
                    raise ValueError(f"{_FAILURES} trials in a row failed, the last one by: {fault}")
        finally:
            record = record_of(study, config, folder)
            write_json(folder / STUDY_FILE, record)
            write_text(folder / STUDY_TABLE, markdown(record))
            if config.plots and finished(record):
                write_text(folder / STUDY_PLOT, plot(record))
    console.print(f"{folder / STUDY_TABLE}", highlight=False, soft_wrap=True)
    return record


def main(config: DictConfig) -> None:
    """Search; exit code 130 where it was interrupted."""
    try:
        run(config)
    except KeyboardInterrupt:
        print("interrupted: the same command resumes", file=sys.stderr)
        sys.exit(130)
