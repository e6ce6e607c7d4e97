"""An Optuna study whose trials are processes: started, pruned, recorded, plotted."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from omegaconf import DictConfig, OmegaConf

from lit_distill._command.arguments import literal, shell_word
from lit_distill._files import expand_home, open_log
from lit_distill.reporting.charts import Line, dot_chart, line_chart, svg_file
from lit_distill.runs.artifacts import read_results
from lit_distill.runs.metrics_csv import read_metric
from lit_distill.runs.names import METRICS_FILE, RESULTS_FILE, STUDY_JOURNAL, TRIALS
from lit_distill.runs.processes import fault_of, start_process, terminated_as_interrupted
from lit_distill.runs.secrets import redacted_text
from lit_distill.untrusted.budgets import TABLE_BYTES
from lit_distill.untrusted.opening import open_untrusted
from lit_distill.untrusted.showing import printable

_SHOWN = 300  # characters of an error
POLL = 0.5  # seconds between two looks at a trial's metrics


def open_study(config: DictConfig) -> Any:
    """The study of a search's folder, new or resumed.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: the folder holds another search.
    """
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"search needs Optuna: pip install 'lit-distill[search]' ({error})") from error
    if config.direction not in ("maximize", "minimize"):
        raise ValueError(f"direction is maximize or minimize, got {config.direction!r}")
    folder = expand_home(config.folder).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = folder / STUDY_JOURNAL
    if os.path.lexists(journal):
        open_untrusted(journal, what="the journal of a search", limit=TABLE_BYTES).close()
    pruner = optuna.pruners.MedianPruner(
        n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs + 1
    )
    try:
        storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
        study = optuna.create_study(
            storage=storage, study_name="search", direction=config.direction, load_if_exists=True, pruner=pruner
        )
        known = study.user_attrs
    except Exception as error:  # Optuna trusts what it reads there, and raises nearly anything
        said = printable(f"{type(error).__name__}: {error}")[:_SHOWN]
        raise ValueError(f"{journal} is no journal of a search ({said}): give another folder=") from error
    what = {
        "space": OmegaConf.to_container(config.space, resolve=True),
        "train": [redacted_text(str(override)) for override in config.train],
        "metric": config.metric,
        "direction": config.direction,
    }
    before = known.get("what", what)
    if before != what:
        held: Mapping[str, Any] = before if isinstance(before, Mapping) else {}
        other = sorted(key for key in what if held.get(key) != what[key])
        raise ValueError(f"{folder} holds another search ({', '.join(other)} differ): give another folder=")
    study.set_user_attr("what", what)
    # With one seed a resumed search would draw its first trials again.
    study.sampler = optuna.samplers.TPESampler(
        seed=config.sampler_seed + len(study.trials), n_startup_trials=config.startup_trials
    )
    return study


def trials_of(study: Any, count: int) -> Iterator[Any]:
    """First the trial that an interrupted search left, then new ones."""
    import optuna

    for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        yield optuna.trial.Trial(study, left._trial_id)
    while len(study.get_trials(deepcopy=False)) < count:
        yield study.ask()


def train_trial(
    trial: Any, arguments: Sequence[str], config: DictConfig, folder: Path, *, keep_open: int | None = None
) -> tuple[str, float | None, str]:
    """Train one trial and report its validations; gives its end, its value and what went wrong.

    Raises:
        KeyboardInterrupt: a signal was received; the training has ended with a checkpoint.
    """
    place = folder / TRIALS / str(trial.number)
    log = place.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    given = [str(override) for override in config.train]
    words = ["doctor=false", *given, *arguments, f"hydra.run.dir={literal(str(place))}", "resume=auto"]
    with open_log(log) as file:
        start = file.tell()
        with terminated_as_interrupted() as received, _running(["lit_distill.train", *words], file, keep_open) as job:
            while job.poll() is None:
                if received:  # and its exception was lost
                    raise KeyboardInterrupt
                time.sleep(POLL)
                if _report(trial, place, config.metric) and config.prune and trial.should_prune():
                    return "PRUNED", None, ""
        _report(trial, place, config.metric)
    if job.returncode:
        return "FAIL", None, fault_of(log, start, job.returncode)
    best = read_results(place).get("best")
    value = best.get(config.metric) if isinstance(best, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "FAIL", None, f"{config.metric} is no number in its {RESULTS_FILE}"
    return "COMPLETE", float(value), ""


@contextmanager
def _running(command: Sequence[str], log: IO[bytes], keep_open: int | None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends, saved, with the block."""
    job = start_process(command, log, keep_open=keep_open)
    try:
        yield job
    finally:
        if job.poll() is None:
            with suppress(ProcessLookupError):
                job.terminate()
            job.wait()


def _report(trial: Any, place: Path, metric: str) -> bool:
    """Tell Optuna of the validations that are new; whether there are any."""
    values = read_metric(place / METRICS_FILE, metric)
    known = len(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    for epoch in range(known, len(values)):
        trial.report(values[epoch], step=epoch + 1)
    return len(values) > known


def record_of(study: Any, config: DictConfig, folder: Path) -> dict[str, Any]:
    """The content of ``study.json``."""
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state.name == "COMPLETE" else None,  # Optuna's is the last one reported
            "settings": dict(trial.params),
            "validations": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            "folder": str(Path(TRIALS) / str(trial.number)),
        }
        for trial in study.get_trials(deepcopy=False)
    ]
    done = [trial for trial in trials if trial["state"] == "complete"]
    choose = max if config.direction == "maximize" else min
    best = choose(done, key=lambda trial: trial["value"])["number"] if done else None
    return {**study.user_attrs["what"], "best": best, "trials": trials}


def markdown(record: Mapping[str, Any]) -> str:
    """The study as a table, the best trial first."""
    keys = list(record["space"])
    sign = -1.0 if record["direction"] == "maximize" else 1.0
    order = sorted(record["trials"], key=lambda t: (t["value"] is None, sign * (t["value"] or 0.0), t["number"]))
    lines = [
        "# Study",
        "",
        f"`python -m lit_distill.train {' '.join(map(shell_word, record['train']))}`, {len(record['trials'])} trials, "
        f"{record['metric']} at the best epoch, {record['direction']}d. Chosen on validation: report the best one on "
        "test data.",
        "",
        f"| trial | {record['metric']} | epochs | end | {' | '.join(f'`{key}`' for key in keys)} |",
        "|---|---|---|---|" + "---|" * len(keys),
    ]
    for trial in order:
        value = "" if trial["value"] is None else f"{trial['value']:.4f}"
        settings = [_short(trial["settings"].get(key)) for key in keys]
        cells = [str(trial["number"]), value, str(len(trial["validations"])), trial["state"], *settings]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else "" if value is None else str(value)


def finished(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The trials that have a value."""
    return [trial for trial in record["trials"] if trial["value"] is not None]


def plot(record: Mapping[str, Any]) -> str:
    """Every trial's validations, and the value over each setting, as an SVG file."""
    lines = [
        Line(str(trial["number"]), list(enumerate(trial["validations"], 1)), heavy=trial["number"] == record["best"])
        for trial in record["trials"]
    ]
    charts = [replace(line_chart(lines, title=record["metric"], x_label="validation"), legend=())]
    for key, given in record["space"].items():
        points = [(trial["settings"][key], trial["value"]) for trial in finished(record)]
        is_log = isinstance(given, Mapping) and bool(given.get("log"))
        is_number = all(isinstance(x, (int, float)) and not isinstance(x, bool) for x, _ in points)
        shown = [(x if is_number else _short(x), value) for x, value in points]
        charts.append(dot_chart(shown, title=f"{record['metric']} by {key}", x_label=key, log=is_log))
    return svg_file(charts)
