"""`resume=auto`: which run the same command goes on with, and what it refuses to go on with."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from lit_distill._command.arguments import given_values
from lit_distill.checkpoints import read_checkpoint
from lit_distill.runs.artifacts import RESULTS_FILE

_VARIABLE = "LIT_DISTILL_RUN"
_PATIENCE = 30.0  # seconds
LAST = Path("checkpoints") / "last.ckpt"
CONFIG_FILE = "config.yaml"
STAGES = "stages"
"""Folder of the stages in a run folder."""
MAY_DIFFER = (
    "run_dir", "ckpt_path", "resume", "doctor", "checkpoint_every_n_steps", "replaced_frozen", "allow", "checkpoint_io",
    "data.num_workers", "data.prefetch", "preset.weights", "logger", "student_from", "callbacks.progress",
    "callbacks.last.every_n_steps",
    "teacher_cache.folder", "teacher_cache.max_gb",
)  # fmt: skip
"""Keys that change where and how a run is made, not what it computes."""


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins.

    Attributes:
        folder: the run folder.
        checkpoint: what to go on from; None to begin.
        finished: the run there is complete, so there is nothing to do.
        message: what to tell the user.
        stage: how many stages are done, in a run of stages.
    """

    folder: Path
    checkpoint: Path | None
    finished: bool
    message: str
    stage: int = 0


def begin(config: DictConfig) -> ResumePoint:
    """Where the run of a composed config begins; its ``run_dir`` and ``ckpt_path`` say so from here on.

    Raises:
        ValueError: ``resume`` is neither null nor auto, or given beside ``ckpt_path``; the run has another config.
    """
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume is auto or null, came {config.resume!r}; a file is given by ckpt_path=<file>")
    if config.resume and config.ckpt_path:
        raise ValueError("resume=auto finds its checkpoint itself: leave out resume or ckpt_path")
    begun = Path(config.run_dir).absolute()
    point = handed_on()
    if point is None:
        point = ResumePoint(begun, None, False, "")
        if config.resume:
            hydra = HydraConfig.get() if HydraConfig.initialized() else None
            named = hydra is None or hydra.mode != RunMode.RUN or any("run.dir=" in o for o in hydra.overrides.hydra)
            point = find_resume_point(config, begun, siblings=not named)
            tell(point.message)
        hand_on(point)
    if begun != point.folder and begun.is_dir() and not any(begun.iterdir()):
        with suppress(OSError):  # another process of the job may have removed it
            begun.rmdir()
    config.run_dir = str(point.folder)
    if point.checkpoint is not None and point.checkpoint.parents[1] == point.folder:
        config.ckpt_path = str(point.checkpoint)
    return point


def take_environment(config: DictConfig, typed: Sequence[str]) -> None:
    """Write the values that overrides take from the environment into a config, such as a seed of the job's number.

    They are part of what is trained: another value is another run, and ``config.yaml`` tells it.

    Args:
        config: as composed.
        typed: the overrides that it was composed with.
    """
    for place, value in given_values(typed):
        _take(config, place, value)


def _take(config: DictConfig, place: str, given: Any) -> None:
    if isinstance(given, Mapping):
        for name, part in given.items():
            _take(config, f"{place}.{name}", part)
    elif "${oc.env:" in str(given):
        value = OmegaConf.select(config, place)
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
        if not isinstance(value, DictConfig):  # which is what a choice from a group has put there
            OmegaConf.update(config, place, value)


def find_resume_point(config: DictConfig, folder: str | os.PathLike[str], *, siblings: bool) -> ResumePoint:
    """Where the run of a config goes on.

    In ``folder`` if a run has begun there, whose config must be the same. Otherwise, with ``siblings``, in the newest
    unfinished run beside it that has the same config; runs of other configs are not touched, the newest is told of. If
    there is none a new run begins in ``folder``.

    Args:
        config: as composed now.
        folder: the run folder of this start.
        siblings: whether runs beside it are looked at: those of the same experiment, in folders named by time.

    Raises:
        ValueError: a run in ``folder`` has another config; the differing keys are named.
    """
    folder = Path(folder).absolute()
    if (folder / CONFIG_FILE).is_file():
        if keys := differing_keys(folder, config):
            raise ValueError(
                f"resume=auto: the run in {folder} has another config, it differs in {', '.join(keys)}: "
                "give the same command, another hydra.run.dir, or ckpt_path=<its last.ckpt> to go on with these changes"
            )
        return _point(folder)
    other = ""
    for run in _unfinished(folder.parent) if siblings else ():
        if run == folder:
            continue
        keys = differing_keys(run, config)
        if not keys:
            return _point(run)
        other = other or f" (the newest unfinished one, {run.name}, differs in {', '.join(keys[:5])})"
    place = f"in {folder.parent}" if siblings else f"at {folder}"
    return ResumePoint(folder, None, False, f"resume=auto: no unfinished run of this config {place}{other}: a new run")


def differing_keys(run: Path, config: DictConfig) -> list[str]:
    """The keys in which a run folder's config differs from one composed now, by their dotted names."""
    there = yaml.safe_load((run / CONFIG_FILE).read_text())
    here = yaml.safe_load(OmegaConf.to_yaml(config, resolve=False))
    begun = {path.name.partition("_")[2] for path in stage_folders(run) if (path / LAST).is_file()}
    return [
        key
        for key in sorted(differing(there, here))
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)
        and not (key.startswith(f"{STAGES}.") and key.split(".")[1] not in begun)  # it may still be changed
    ]


def hand_on(point: ResumePoint) -> None:
    """Tell the processes that Lightning will start of this one where the run is."""
    checkpoint = None if point.checkpoint is None else str(point.checkpoint)
    told = {"pid": os.getpid(), "folder": str(point.folder), "checkpoint": checkpoint, "stage": point.stage}
    os.environ[_VARIABLE] = json.dumps(told)


def let_go() -> None:
    """The run is over: programs that this process starts from now on are others."""
    os.environ.pop(_VARIABLE, None)


def handed_on() -> ResumePoint | None:
    """What the process that started this one said; None if it was no training."""
    told = json.loads(os.environ.get(_VARIABLE, "{}"))
    if told.get("pid") != os.getppid():
        return None
    checkpoint = Path(told["checkpoint"]) if told["checkpoint"] else None
    return ResumePoint(Path(told["folder"]), checkpoint, False, "", told["stage"])


def wait_for_first_process() -> None:
    """Let the process that started this one end before: Lightning's watcher there kills it otherwise, for our code."""
    if handed_on() is not None:
        first, deadline = os.getppid(), time.monotonic() + _PATIENCE
        while os.getppid() == first and time.monotonic() < deadline:
            time.sleep(0.02)


@rank_zero_only
def tell(text: str) -> None:
    """Print a line, in the first process of the job alone."""
    Console().print(text, highlight=False, soft_wrap=True)


def _point(folder: Path) -> ResumePoint:
    if _is_finished(folder):
        return ResumePoint(folder, None, True, f"resume=auto: the run in {folder} is finished, nothing is to be done")
    stages = stage_folders(folder)
    done = next((number for number, stage in enumerate(stages) if not _is_finished(stage)), len(stages))
    checkpoint = (stages[done] if done < len(stages) else folder) / LAST
    if not checkpoint.is_file():
        if done:
            return ResumePoint(folder, None, False, f"resume=auto: going on in {folder} behind stage {done}", done)
        return ResumePoint(folder, None, False, f"resume=auto: {folder} has no checkpoint yet: it begins anew there")
    stored = read_checkpoint(checkpoint)
    stage = f", stage {done + 1}," if stages else ""
    text = f"resume=auto: going on in {folder}{stage} from step {stored['global_step']}, epoch {stored['epoch'] + 1}"
    return ResumePoint(folder, checkpoint, False, text, done)


def stage_folders(run: Path) -> list[Path]:
    """The folders of a run's stages that have begun, in their order."""
    found = [path.parent for path in (run / STAGES).glob(f"*/{CONFIG_FILE}")]
    numbered = {int(path.name.partition("_")[0]): path for path in found if path.name.partition("_")[0].isdecimal()}
    return [numbered[number] for number in sorted(numbered)]


def _unfinished(folder: Path) -> Iterator[Path]:
    """Run folders with a checkpoint and without a result, newest first; named by time, so by name."""
    runs = [path.parent for path in folder.glob(f"*/{CONFIG_FILE}")] if folder.is_dir() else []
    for run in sorted(runs, reverse=True):
        if not _is_finished(run) and any((place / LAST).is_file() for place in (run, *stage_folders(run))):
            yield run


def _is_finished(run: Path) -> bool:
    path = run / RESULTS_FILE
    return path.is_file() and not json.loads(path.read_text()).get("interrupted")


def differing(one: Any, other: Any, place: str = "") -> set[str]:
    """The dotted names, below ``place``, in which two trees of plain values differ.

    Example:
        >>> sorted(differing({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}))
        ['a.b', 'c']
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found: set[str] = set()
        for key in {**one, **other}:
            name = f"{place}.{key}" if place else str(key)
            if key in one and key in other:
                found |= differing(one[key], other[key], name)
            else:
                found.add(name)
        return found
    return set() if one == other else {place}
