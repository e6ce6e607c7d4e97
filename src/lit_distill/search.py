"""`python -m lit_distill.search experiment=<name> sweep=<name>`: the best settings by Optuna, pruned by validation."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from lit_distill import artifacts
from lit_distill._arguments import literal
from lit_distill._cli import command, conf_dir
from lit_distill._files import write_text
from lit_distill.comparison.pool import alone_in

_OWN = ("hydra.run.dir", "run_dir", "resume", "ckpt_path")
_POLL = 0.5  # seconds between two looks at a trial's figures
_FAILURES = 3  # in a row end the search


@dataclass(frozen=True)
class Axis:
    """One setting that is searched.

    Attributes:
        key: of train's config.
        choices: as Hydra writes them; empty for a range.
        low: of a range, included.
        high: of a range, included.
        log: whether it is drawn on a logarithmic scale.
        step: between two values, None for all.
    """

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @classmethod
    def parse(cls, key: str, given: Any) -> Axis:
        """Read a list of choices, or a mapping of low, high, log, step.

        Raises:
            ValueError: it is neither, or a range is none.

        Example:
            >>> Axis.parse("losses.kd.loss.temperature", [1, 4]).choices
            ('1', '4')
            >>> Axis.parse("preset.lr", {"low": 0.001, "high": 0.1, "log": True}).high
            0.1
        """
        if isinstance(given, Sequence) and not isinstance(given, str):
            if not given:
                raise ValueError(f"space: {key} has no choices")
            return cls(key, tuple(_as_override(choice) for choice in given))
        if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}:
            raise ValueError(f"space: {key} is a list of choices, or low and high with log or step; came {given!r}")
        low, high, log, step = given["low"], given["high"], bool(given.get("log", False)), given.get("step")
        if not low < high or (log and (low <= 0 or step is not None)):
            raise ValueError(
                f"space: {key} goes from low to high, above 0 and without a step if log; came {dict(given)}"
            )
        return cls(key, (), low, high, log, step)

    def draw(self, trial: Any) -> str:
        """The value of an Optuna trial, as Hydra writes it."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1)))
        return repr(float(trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)))


def _as_override(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_as_override, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return literal(value) if isinstance(value, str) else str(value)


def run(config: DictConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Train what trials are left, and write ``study.json``, ``study.md`` and the plot.

    Args:
        config: the composed ``search.yaml``.
        console: where a line a trial is shown; standard output by default.

    Returns:
        the content of ``study.json``.

    Raises:
        ModuleNotFoundError: Optuna is not installed.
        ValueError: the space or a setting is malformed, a key is none of the experiment's, or trials fail.
        KeyboardInterrupt: a signal came; the trial under way is saved, and the same command goes on.
    """
    console = console or Console()
    axes = axes_of(config)
    study = _open(config)
    import optuna

    folder = Path(config.folder).expanduser().absolute()
    failures = 0
    with alone_in(folder):
        try:
            for trial in _trials(study, int(config.trials)):
                arguments = [f"++{axis.key}={axis.draw(trial)}" for axis in axes]
                end, value, fault = _train(trial, arguments, config, folder, prune=config.prune)
                study.tell(trial.number, value, state=getattr(optuna.trial.TrialState, end))
                failures = failures + 1 if end == "FAIL" else 0
                shown = fault if end == "FAIL" else f"{config.metric} {value:.4f}" if value is not None else ""
                console.print(f"trial {trial.number}: {end.lower()}  {shown}  {' '.join(arguments)}", highlight=False,
                              soft_wrap=True, markup=False)  # fmt: skip
                if failures == _FAILURES:
                    raise ValueError(f"{_FAILURES} trials in a row failed, the last one by: {fault}")
        finally:
            record = _record(study, config, folder)
            artifacts.write_json(folder / "study.json", record)
            write_text(folder / "study.md", markdown(record))
            if config.plots and find_spec("matplotlib") is not None and any(_finished(record)):
                _plot(record, folder / "study.png")
    console.print(f"{folder / 'study.md'}", highlight=False, soft_wrap=True)
    return record


def axes_of(config: DictConfig) -> list[Axis]:
    """What is searched; every key is one of the experiment's, or an argument that something of it takes.

    Raises:
        ValueError: nothing is searched, or a key is none.
    """
    space: Any = OmegaConf.to_container(config.space, resolve=True)
    if not space:
        raise ValueError("search needs sweep=<name>, or a space of its own: space='{preset.lr: [0.001,0.01]}'")
    for override in config.train:
        key = str(override).lstrip("+~").partition("=")[0]
        if key in _OWN:
            raise ValueError(f"{key} is what search sets itself, for each trial; leave out {override}")
    composed = compose("train", [*map(str, config.train), "run_dir=."])
    axes = [Axis.parse(str(key), given) for key, given in space.items()]
    for axis in axes:
        parent, _, name = axis.key.rpartition(".")
        holder = OmegaConf.select(composed, parent) if parent else composed
        is_term = parent.rpartition(".")[0] in ("losses", "val_losses")
        known = isinstance(holder, DictConfig) and (name in holder or "_target_" in holder or is_term)
        if not known:
            raise ValueError(f"space: {axis.key} is no setting of this experiment (see train … --cfg job)")
    return axes


def _open(config: DictConfig) -> Any:
    try:
        import optuna
        from optuna.storages.journal import JournalFileBackend
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"search needs Optuna: pip install 'lit-distill[search]' ({error})") from error
    if config.direction not in ("maximize", "minimize"):
        raise ValueError(f"direction is maximize or minimize, came {config.direction!r}")
    folder = Path(config.folder).expanduser().absolute()
    folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    study = optuna.create_study(
        storage=storage, study_name="search", direction=config.direction, load_if_exists=True,
        pruner=optuna.pruners.MedianPruner(
            n_startup_trials=config.startup_trials, n_warmup_steps=config.warmup_epochs + 1
        ),
    )  # fmt: skip
    what = {
        "space": OmegaConf.to_container(config.space, resolve=True),
        "train": [str(override) for override in config.train],
        "metric": config.metric,
        "direction": config.direction,
    }
    before = study.user_attrs.get("what", what)
    if before != what:
        other = sorted(key for key in what if before[key] != what[key])
        raise ValueError(f"{folder} holds another search ({', '.join(other)} differ): give another folder=")
    study.set_user_attr("what", what)
    # With one seed a search that goes on would draw its first trials once more.
    study.sampler = optuna.samplers.TPESampler(
        seed=config.sampler_seed + len(study.trials), n_startup_trials=config.startup_trials
    )
    return study


def _trials(study: Any, count: int) -> Iterator[Any]:
    """First the trial that an interrupted search left, then new ones."""
    import optuna

    for left in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        yield optuna.trial.Trial(study, left._trial_id)
    while len(study.get_trials(deepcopy=False)) < count:
        yield study.ask()


def _train(
    trial: Any, arguments: Sequence[str], config: DictConfig, folder: Path, *, prune: bool
) -> tuple[str, float | None, str]:
    """Train one trial and report its validations; gives its end, its value and what went wrong."""
    place = folder / "trials" / str(trial.number)
    log = place.with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    given = [str(override) for override in config.train]
    words = ["doctor=false", *given, *arguments, f"hydra.run.dir={literal(str(place))}", "resume=auto"]
    environment = {k: v for k, v in os.environ.items() if k not in ("LIT_DISTILL_RUN", "LIT_DISTILL_STARTED")}
    with (
        log.open("ab") as file,
        _running([sys.executable, "-m", "lit_distill.train", *words], file, environment) as job,
    ):
        while job.poll() is None:
            time.sleep(_POLL)
            if _report(trial, place, config.metric) and prune and trial.should_prune():
                job.terminate()
                job.wait()
                return "PRUNED", None, ""
        _report(trial, place, config.metric)
    if job.returncode:
        lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return "FAIL", None, (errors or lines or [f"exit code {job.returncode}"])[-1]
    value = json.loads((place / artifacts.RESULTS_FILE).read_text())["best"].get(config.metric)
    if value is None:
        return "FAIL", None, f"{config.metric} is not in its results.json"
    return "COMPLETE", float(value), ""


@contextmanager
def _running(words: Sequence[str], log: Any, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends, saved, with the block; SIGTERM is what Ctrl-C is as long as it lasts."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    job = subprocess.Popen(
        words, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
    )
    try:
        yield job
    finally:
        signal.signal(signal.SIGTERM, before)
        if job.poll() is None:
            with suppress(ProcessLookupError):
                job.terminate()
            job.wait()


def _report(trial: Any, place: Path, metric: str) -> bool:
    """Tell Optuna of the validations that are new; whether there are any."""
    file = place / "metrics.csv"
    if not file.is_file():
        return False
    # A row without an end is still being written.
    rows = csv.DictReader(line for line in file.read_text().splitlines(True) if line.endswith("\n"))
    values = [float(row[metric]) for row in rows if row.get(metric)]
    known = len(trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values)
    for epoch in range(known, len(values)):
        trial.report(values[epoch], step=epoch + 1)
    return len(values) > known


def _record(study: Any, config: DictConfig, folder: Path) -> dict[str, Any]:
    trials = [
        {
            "number": trial.number,
            "state": trial.state.name.lower(),
            "value": trial.value if trial.state.name == "COMPLETE" else None,  # Optuna's is the last one reported
            "settings": dict(trial.params),
            "validations": [trial.intermediate_values[step] for step in sorted(trial.intermediate_values)],
            "folder": str(Path("trials") / str(trial.number)),
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
        f"`python -m lit_distill.train {' '.join(record['train'])}`, {len(record['trials'])} trials, "
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


def _finished(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [trial for trial in record["trials"] if trial["value"] is not None]


def _plot(record: Mapping[str, Any], file: Path) -> None:
    """Every trial's validations, and the value over each setting."""
    from matplotlib.figure import Figure

    keys, done = list(record["space"]), _finished(record)
    figure = Figure(figsize=(4 * (1 + len(keys)), 3.5), layout="constrained")
    curves, *others = figure.subplots(1, 1 + len(keys), squeeze=False)[0]
    for trial in record["trials"]:
        is_best = trial["number"] == record["best"]
        curves.plot(
            range(1, len(trial["validations"]) + 1), trial["validations"], marker=".", zorder=3 if is_best else 2,
            color="C1" if is_best else "C0", alpha=1.0 if is_best else 0.4,
        )  # fmt: skip
    curves.set(xlabel="validation", ylabel=record["metric"])
    for key, axes in zip(keys, others, strict=True):
        values = [trial["settings"][key] for trial in done]
        axes.scatter([str(v) if isinstance(v, str) else v for v in values], [trial["value"] for trial in done], s=14)
        given = record["space"][key]
        if isinstance(given, Mapping) and given.get("log"):
            axes.set_xscale("log")
        axes.set_xlabel(key)
        axes.tick_params(axis="x", labelrotation=30)
    figure.savefig(file, dpi=120, metadata={"Software": None})


def own_arguments(arguments: Sequence[str]) -> list[str]:
    """The arguments of `search` as Hydra takes them: those of `train` become one list, ``train``.

    Args:
        arguments: as they were typed, without the command's name.

    Raises:
        ValueError: a sweep of Hydra's.

    Example:
        >>> own_arguments(["sweep=kd", "experiment=kd_image", "space={seed: [0,1]}"])
        ['sweep=kd', '++space={seed: [0,1]}', "train=['experiment=kd_image']"]
    """
    keys = {*OmegaConf.load(conf_dir() / "search.yaml").keys(), "sweep"} - {"defaults"}
    own: list[str] = []
    passed: list[str] = []
    for argument in arguments:
        key = argument.lstrip("+~").partition("=")[0].partition(".")[0]
        if argument in ("-m", "--multirun"):
            raise ValueError("search is a sweep itself: give sweep=<name> or space={…}")
        if key == "space":  # Hydra would want the plus: its keys are the user's
            own.append(f"++{argument.lstrip('+')}")
        elif argument.startswith("-") or key in keys - {"hydra"}:
            own.append(argument)
        else:
            passed.append(argument)
    return [*own, f"train=[{','.join(map(literal, passed))}]"] if passed else own


@command("search")
def main(config: DictConfig) -> None:
    """Search; exit code 130 where it was interrupted."""
    try:
        run(config)
    except KeyboardInterrupt:
        print("interrupted: the same command goes on", file=sys.stderr)
        sys.exit(130)


def start() -> None:
    """The command line."""
    try:
        sys.argv[1:] = own_arguments(sys.argv[1:])
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    main()


if __name__ == "__main__":
    start()
