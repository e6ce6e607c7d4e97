"""Trains the stages of a run one after the other, and puts together what they leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig
from torch import Tensor

from lit_distill._files import write_bytes
from lit_distill._screen import Screen
from lit_distill._version import versions
from lit_distill.callbacks import Interrupted
from lit_distill.callbacks.preemption import end_behind
from lit_distill.runs import artifacts
from lit_distill.runs.metrics_csv import ordered, read_rows, write_rows
from lit_distill.runs.names import (
    BEST_CHECKPOINT,
    CARD_FILE,
    CONFIG_FILE,
    LAST_CHECKPOINT,
    METRICS_FILE,
    RESULTS_FILE,
    STUDENT_FILE,
)
from lit_distill.runs.resume import ResumePoint, print_on_rank_zero, write_config
from lit_distill.training.fit import build_data, build_module, fit
from lit_distill.training.stages import Stage
from lit_distill.training.summary import show_stages
from lit_distill.untrusted.budgets import WEIGHTS_BYTES
from lit_distill.untrusted.opening import read_untrusted

_OF_STAGE = ("student", "final", "best", "epochs", "steps", "seconds", "seed")


def run_stages(config: DictConfig, stages: Sequence[Stage], point: ResumePoint) -> dict[str, Any]:
    """Train what is left of a run's stages, each in its own folder, and write what stands at the top.

    Whether stages follow each other in one process or in several makes no difference: a stage reads what the earlier
    ones left in their folders, and nothing else of them.

    Returns:
        The content of ``results.json``; nothing on ranks other than the first.

    Raises:
        ValueError: a stage cannot be trained.
        Interrupted: a signal ended it, with a checkpoint; ``results.json`` says so.
    """
    check_stages(stages)
    for stage in stages[: point.stage]:
        if not stage.folder.is_dir():
            raise ValueError(f"{point.folder} has other stages than this: there is no {stage.folder.name} in it")
    folder, started_at = point.folder, datetime.now(UTC)
    first = rank_zero_only.rank == 0  # type: ignore[attr-defined]
    if first:
        (folder / RESULTS_FILE).unlink(missing_ok=True)
        write_config(folder, config)
        _forget(folder, stages[point.stage :], keep=point.checkpoint)
    head = {
        "experiment": "",
        "started": started_at.isoformat(timespec="seconds"),
        "seed": config.seed,
        "versions": versions(),
        "interrupted": False,
    }
    done: dict[str, dict[str, Any]] = {}
    for stage in stages:
        if stage.number <= point.stage:
            done[stage.name] = artifacts.read_results(stage.folder)
            continue
        print_on_rank_zero(f"stage {stage.number} of {len(stages)}: {stage.name}")
        if stage.number == point.stage + 1 and point.checkpoint is not None:
            stage.config.ckpt_path = str(point.checkpoint)
        try:
            fitted = fit(stage.config)
            done[stage.name] = fitted.results
            trainer = fitted.module.trainer
            trainer.strategy.barrier()  # what the first rank has written, the next stage of all begins from
            if stage is not stages[-1]:
                end_behind(trainer, stage.folder / LAST_CHECKPOINT)
        except Interrupted as end:
            if first:
                done[stage.name] = artifacts.read_results(stage.folder)
                reached = _together(head, stages, done, done[stage.name])
                artifacts.write_results(folder, reached | {"interrupted": end.signal.name})
                _write_metrics(folder, stages, done)
            raise
    if not first:
        return {}
    chosen = _chosen(config, stages, done)
    results = _together(head, stages, done, done[chosen.name]) | {
        "student": done[chosen.name]["student"],
        "student_stage": chosen.folder.name,
    }
    _write_metrics(folder, stages, done)
    _copy_student(chosen, folder)
    artifacts.write_results(folder, results)  # the last file: it says that the run is finished
    show_stages(Screen(), results, folder)
    return results


def check_stages(stages: Sequence[Stage]) -> None:
    """Build all stages before the first is trained: an error found later would cost all that comes before it.

    Raises:
        ValueError: a stage whose models, terms, data or optimizer can't be made, or do not fit what they begin from.
    """
    expected: dict[str, dict[str, Tensor]] = {}
    for stage in stages:
        try:
            build_data(stage.config)
            module = build_module(stage.config, expected=expected)
            module.make_optimizer()
        except ValueError as error:
            raise ValueError(f"stage {stage.number}, {stage.name}: {error}") from error
        for name, model in module.models.items():
            state = {key: value.to("meta") for key, value in model.state_dict().items()}
            for file in (f"{LAST_CHECKPOINT}#{name}", f"{BEST_CHECKPOINT}#{name}", STUDENT_FILE):
                if "#" in file or name == stage.config.student:
                    expected[f"../{stage.folder.name}/{file}"] = state


def _forget(folder: Path, stages: Sequence[Stage], keep: Path | None) -> None:
    """Leave nothing of stages that are trained now, or are none of this run, to be taken for theirs later."""
    known = {stage.folder for stage in stages}
    ahead = min((stage.number for stage in stages), default=None)
    for found in artifacts.stage_folders(folder):
        number = int(found.name.partition("_")[0])
        if ahead is None or (number < ahead and found not in known):
            continue
        (found / RESULTS_FILE).unlink(missing_ok=True)
        if found / LAST_CHECKPOINT != keep:
            (found / LAST_CHECKPOINT).unlink(missing_ok=True)
        if found not in known:
            (found / CONFIG_FILE).unlink(missing_ok=True)


def _chosen(config: DictConfig, stages: Sequence[Stage], done: Mapping[str, Mapping[str, Any]]) -> Stage:
    """The stage whose student is the run's: the last, or the best by validation, the later of equal ones."""
    if config.student_from == "last":
        return stages[-1]

    def figure(stage: Stage) -> float:
        return float(done[stage.name]["best"].get(f"val/{done[stage.name]['student']}/top1", float("-inf")))

    return max(
        (stage for stage in stages if stage.config.student == config.student),
        key=lambda stage: (figure(stage), stage.number),
        default=stages[-1],
    )


def _together(
    head: Mapping[str, Any], stages: Sequence[Stage], done: Mapping[str, Mapping[str, Any]], chosen: Mapping[str, Any]
) -> dict[str, Any]:
    """The run's results: the metrics of the chosen stage, sums of all, and a section a stage."""
    sections = {
        stage.name: {
            "folder": f"{stage.folder.parent.name}/{stage.folder.name}",
            **{key: done[stage.name][key] for key in _OF_STAGE if key in done[stage.name]},
        }
        for stage in stages
        if stage.name in done
    }
    return {
        **head,
        "experiment": chosen["experiment"],
        "final": chosen["final"],
        "best": chosen["best"],
        **{key: sum(section[key] for section in sections.values()) for key in ("epochs", "steps")},
        "seconds": round(sum(section["seconds"] for section in sections.values()), 1),
        "stages": sections,
    }


def _write_metrics(folder: Path, stages: Sequence[Stage], done: Mapping[str, Mapping[str, Any]]) -> None:
    """The rows of all stages: their numbers in the column ``stage``, steps and epochs counted through the run."""
    rows: list[dict[str, str]] = []
    steps = epochs = 0
    for stage in stages:
        if stage.name not in done:
            continue
        for row in read_rows(stage.folder / METRICS_FILE):
            place = {"stage": str(stage.number), "step": str(int(row["step"]) + steps)}
            if row.get("epoch"):
                place["epoch"] = str(int(row["epoch"]) + epochs)
            rows.append({**row, **place})
        steps, epochs = steps + done[stage.name]["steps"], epochs + done[stage.name]["epochs"]
    if rows:
        write_rows(folder / METRICS_FILE, ordered(name for row in rows for name in row), rows)


def _copy_student(stage: Stage, folder: Path) -> None:
    card = artifacts.read_json(stage.folder / CARD_FILE)
    student = read_untrusted(stage.folder / STUDENT_FILE, what="the weights of a student", limit=WEIGHTS_BYTES)
    write_bytes(folder / STUDENT_FILE, student)
    artifacts.write_json(folder / CARD_FILE, {**card, "stage": stage.name})
