"""What a comparison found, as plain data: compare.json's content, from the folders of its runs."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, overload

import torch
from omegaconf import DictConfig, OmegaConf

from lit_distill._version import versions
from lit_distill.comparison.paired import LEVEL, PairedGain, holm, paired_gain, verdict
from lit_distill.comparison.plan import Plan, PlannedRun, network_name, plain, student_of
from lit_distill.runs.artifacts import is_finished, read_json, read_results
from lit_distill.runs.metrics_csv import read_metric
from lit_distill.runs.names import ACCOUNT_FILE, CARD_FILE, CONFIG_FILE, METRICS_FILE, RESULTS_FILE, TEST_FILE
from lit_distill.runs.resume import differing_keys
from lit_distill.runs.secrets import redacted_text
from lit_distill.training.plain import settings_of

FORMAT = 1
_LARGEST = 1e100


def require_its_own(run: PlannedRun) -> None:
    """Hold that no other run than the planned one has begun in its folder.

    Raises:
        ValueError: one has; the keys that differ are named.
    """
    if (run.folder / CONFIG_FILE).is_file() and (keys := differing_keys(run.folder, plain(run.config))):
        raise ValueError(
            f"{run.folder} holds another run, it differs in {', '.join(keys[:5])}: give the same command, or "
            "folder=<another>"
        )


def is_done(run: PlannedRun, *, tested: bool = True) -> bool:
    """Whether a run has been trained and, with ``tested``, the weights that it left have been tested."""
    return (
        is_finished(run.folder)
        and (run.folder / ACCOUNT_FILE).is_file()
        and (not tested or _tests_these_weights(run.folder))
    )


def _tests_these_weights(folder: Path) -> bool:
    report, card = read_json(folder / TEST_FILE), read_json(folder / CARD_FILE)
    return report.get("sha256") is not None and report["sha256"] == card.get("sha256")


def collect(plan: Plan, folder: Path, faults: Mapping[Path, str], about: Mapping[str, Any]) -> dict[str, Any]:
    """All that the table is made of: percent (points), seconds, MiB; ``faults`` are by run folder."""
    strategies: dict[str, dict[str, Any]] = {
        strategy.name: {
            "experiment": strategy.experiment,
            "overrides": [redacted_text(override) for override in strategy.own],
            "teacher": strategy.teacher,
            "weights": _weights(strategy.runs[0].config),
            "runs": [run_record(run, folder, faults.get(run.folder, "")) for run in strategy.runs],
        }
        for strategy in plan.strategies
    }
    reference = strategies[plan.reference]["runs"]
    for name, record in strategies.items():
        done = [run for run in record["runs"] if run["top1"] is not None]
        record |= summary(done)
        if name != plan.reference:
            record |= against(record["runs"], reference)
    judge(strategies, plan.reference)
    teacher = None if plan.weights is None else _teacher(plan, folder, faults)
    for strategy in plan.strategies:
        if strategy.name != plan.reference and _learns_from(strategy.runs[0].config, plan.weights):
            mean = strategies[plan.reference]["mean"]
            strategies[strategy.name]["gap_closed"] = gap_closed(strategies[strategy.name]["gain"], mean, teacher)
    config = plan.strategies[0].runs[0].config
    return {
        "format": FORMAT,
        **about,
        "machine": machine(),
        "versions": versions(),
        "figure": "top-1 in percent on the test split, of the weights of the epoch with the best validation top-1",
        "student": network_name(config, student_of(config)),
        "data": OmegaConf.to_container(config.data, resolve=True),
        "preset_weights": OmegaConf.to_container(config.preset.weights, resolve=True),
        "epochs": config.trainer.max_epochs,
        "settings": settings_of(_reference(plan)),
        "seeds": list(plan.seeds),
        "reference": plan.reference,
        "statistics": {
            "gain": "test top-1 less the reference's of the same seed, in points",
            "interval": "95 %, paired t over seeds",
            "p": "two-sided paired t-test",
            "p_adjusted": "Holm's, over all strategies of this table",
            "verdict": f"better or worse where p_adjusted is below {LEVEL}, else not shown",
        },
        "teacher": teacher,
        "strategies": strategies,
    }


def _reference(plan: Plan) -> DictConfig:
    return next(strategy for strategy in plan.strategies if strategy.name == plan.reference).runs[0].config


def run_record(run: PlannedRun, folder: Path, fault: str = "") -> dict[str, Any]:
    """The raw metrics of one run, its folder relative to ``folder``; None for what there is not yet."""
    place = run.folder.relative_to(folder).as_posix()
    if fault or not is_done(run):
        return {"seed": run.seed, "folder": place, "top1": None, "fault": fault or "not done yet"}
    results, account = read_results(run.folder), read_json(run.folder / ACCOUNT_FILE)
    report = read_json(run.folder / TEST_FILE)
    tested, cost = _Numbers(run.folder / TEST_FILE, report), _Numbers(run.folder / ACCOUNT_FILE, account)
    metric = f"val/{student_of(run.config)}/top1"
    best = _Numbers(run.folder / RESULTS_FILE, results.get("best"))
    validation = best.of(metric, optional=True)
    return {
        "seed": run.seed,
        "folder": place,
        "top1": 100 * tested.of("top1"),
        "top5": 100 * tested.of("top5"),
        "val_top1": None if validation is None else 100 * validation,
        "val_curve": [100 * value for value in read_metric(run.folder / METRICS_FILE, metric)],
        "best_epoch": best.of("epoch", optional=True),
        "test_samples": tested.of("samples"),
        **{name: account.get(name) for name in ("order", "pixels")},
        **{name: cost.of(name) for name in ("steps", "epochs", "seconds", "cpu_seconds")},
        **{name: cost.of(name, optional=True) for name in ("peak_mib", "peak_cuda_mib")},
        "fault": "",
    }


class _Numbers:
    """The numbers that a file of a run says: they are finite, so that means and charts can be made of them."""

    def __init__(self, file: Path, content: Any) -> None:
        if not isinstance(content, Mapping):
            raise ValueError(f"{file}: expected metrics by name, got {type(content).__name__}: run it again")
        self._file, self._content = file, content

    @overload
    def of(self, name: str, *, optional: Literal[False] = False) -> float: ...

    @overload
    def of(self, name: str, *, optional: bool) -> float | None: ...

    def of(self, name: str, *, optional: bool = False) -> float | None:
        value: object = self._content.get(name)
        if optional and value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < _LARGEST:
            raise ValueError(f"{self._file}: expected a finite number as {name}, got {value!r:.80}: run it again")
        return value


def summary(done: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and spread over the runs that are done."""
    tops = [run["top1"] for run in done]
    gpu = [run["peak_cuda_mib"] for run in done if run["peak_cuda_mib"] is not None]
    return {
        "mean": statistics.fmean(tops) if tops else None,
        "std": statistics.stdev(tops) if len(tops) > 1 else None,
        **{
            name: statistics.median(run[name] for run in done) if done else None
            for name in ("seconds", "cpu_seconds", "peak_mib")
        },
        "peak_cuda_mib": statistics.median(gpu) if gpu else None,
    }


def against(runs: Sequence[Mapping[str, Any]], reference: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The paired gain over the seeds that both have, and why others are none.

    A pair has had the same samples in the same order, the same pixels at the start of each epoch, and the same number
    of updates; one that has not is left out and named.
    """
    others = {run["seed"]: run for run in reference}
    gains, unpaired = {}, []
    for run in runs:
        other = others[run["seed"]]
        if run["top1"] is None or other["top1"] is None:
            continue
        wrong = [
            f"{what} differ"
            for key, what in (("steps", "updates"), ("order", "samples"), ("pixels", "pixels"))
            if run[key] != other[key]
        ]
        if wrong:
            unpaired.append(f"seed {run['seed']}: {', '.join(wrong)}")
        else:
            gains[run["seed"]] = run["top1"] - other["top1"]
    found = paired_gain(list(gains.values())) if gains else PairedGain((), 0.0, None, None)
    return {
        "gains": {str(seed): gain for seed, gain in gains.items()},
        "gain": found.mean if gains else None,
        "interval": found.interval,
        "p": found.p,
        "unpaired": unpaired,
    }


def judge(strategies: Mapping[str, dict[str, Any]], reference: str) -> None:
    """Set ``p_adjusted`` and ``verdict`` of all but the reference."""
    tested = [record for name, record in strategies.items() if name != reference and record["p"] is not None]
    adjusted = holm([record["p"] for record in tested])
    for name, record in strategies.items():
        if name != reference:
            record |= {"p_adjusted": None, "verdict": "not shown"}
    for record, p in zip(tested, adjusted, strict=True):
        record |= {"p_adjusted": p, "verdict": verdict(record["gain"], p)}


def gap_closed(gain: float | None, reference: float | None, teacher: Mapping[str, Any] | None) -> float | None:
    """The gain as a share of the way from the reference's mean to the trained Teacher's accuracy.

    Returns:
        None where one of them is not there yet, or the Teacher is no better than the reference.

    Example:
        >>> gap_closed(12.0, 60.0, {"top1": 84.0})
        0.5
    """
    top1 = None if teacher is None else teacher.get("top1")
    if gain is None or reference is None or top1 is None or top1 <= reference:
        return None
    return float(gain / (top1 - reference))


def _learns_from(config: DictConfig, weights: str | None) -> bool:
    teacher = config.models.get("Teacher")
    return weights is not None and teacher is not None and teacher.get("pretrained") == weights


def _weights(config: DictConfig) -> dict[str, Any]:
    """The weight of every training term: a number, or what a schedule is made of."""
    losses = OmegaConf.to_container(config.losses, resolve=True)
    assert isinstance(losses, dict)
    return {str(name): term.get("weight", 1.0) for name, term in losses.items()}


def _teacher(plan: Plan, folder: Path, faults: Mapping[Path, str]) -> dict[str, Any]:
    if plan.teacher is None:
        return {"weights": Path(str(plan.weights)).name}
    config = plan.teacher.config
    return {
        "network": network_name(config, student_of(config)),
        "epochs_planned": config.trainer.max_epochs,
        "labelled_share": config.data.get("labelled_share", 1.0),
        "overrides": [redacted_text(override) for override in plan.teacher.overrides],
        **run_record(plan.teacher, folder, faults.get(plan.teacher.folder, "")),
    }


def machine() -> dict[str, Any]:
    """What the times and memories belong to."""
    gpus = [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]
    return {"cores": os.cpu_count(), "processor": _processor(), "gpus": gpus, "system": platform.system()}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
