"""`resume=auto`: which run the same command resumes, and what it refuses to resume."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, ListConfig, OmegaConf

from lit_distill._command.command import command_config
from lit_distill._command.launch import STARTED
from lit_distill._command.overrides import arguments_of, given_values
from lit_distill._files import write_text
from lit_distill._screen import Screen
from lit_distill.checkpoints import read_checkpoint
from lit_distill.runs.artifacts import is_finished, stage_folders
from lit_distill.runs.names import CONFIG_FILE, LAST_CHECKPOINT, STAGES
from lit_distill.runs.secrets import is_secret, redacted, takes_secret
from lit_distill.untrusted.plain import parse_yaml, read_plain

RUN_VARIABLE = "LIT_DISTILL_RUN"
_PATIENCE = 30.0  # seconds
MAY_DIFFER = (
    "run_dir", "ckpt_path", "resume", "doctor", "checkpoint_every_n_steps", "replaced_frozen", "allow", "checkpoint_io",
    "allow_random_teacher",
    "data.num_workers", "data.prefetch", "preset.weights", "logger", "student_from", "callbacks.progress",
    "callbacks.last.every_n_steps",
    "teacher_cache.folder", "teacher_cache.max_gb",
)  # fmt: skip
"""Keys that change where and how a run is made, not what it computes."""


@dataclass(frozen=True)
class ResumePoint:
    """Where training begins: the checkpoint to resume from, if any, and the stages that are done."""

    folder: Path
    checkpoint: Path | None
    finished: bool
    message: str
    stage: int = 0


def locate_run(config: DictConfig) -> ResumePoint:
    """Find where the run of a composed config begins, and set its ``run_dir`` and ``ckpt_path`` to that.

    Raises:
        ValueError: ``resume`` is neither null nor auto, or given beside ``ckpt_path``; the run has another config.
    """
    if config.resume not in (None, "auto"):
        raise ValueError(f"resume is auto or null, got {config.resume!r}; a file is given by ckpt_path=<file>")
    if config.resume and config.ckpt_path:
        raise ValueError("resume=auto finds its checkpoint itself: leave out resume or ckpt_path")
    given = Path(config.run_dir).absolute()
    point = inherited_point()
    if point is None:
        point = ResumePoint(given, None, False, "")
        if config.resume:
            hydra = HydraConfig.get() if HydraConfig.initialized() else None
            named = hydra is None or hydra.mode != RunMode.RUN or any("run.dir=" in o for o in hydra.overrides.hydra)
            point = find_resume_point(config, given, siblings=not named)
            print_on_rank_zero(point.message)
        export_run_environment(point)
    if given != point.folder and given.is_dir() and not any(given.iterdir()):
        with suppress(OSError):  # another process of the job may have removed it
            given.rmdir()
    config.run_dir = str(point.folder)
    if point.checkpoint is not None and point.checkpoint.parents[1] == point.folder:
        config.ckpt_path = str(point.checkpoint)
    return point


def resolve_environment(config: DictConfig, typed: Sequence[str]) -> None:
    """Write the values that overrides take from the environment into a config, such as a seed of the job's number.

    They are part of what is trained: another value is another run, and ``config.yaml`` has it. Secrets are not, by the
    names of :func:`lit_distill.runs.secrets.is_secret`.
    """
    for place, value in given_values(typed):
        if not is_secret(place):
            _resolve(config, place, value)


def _resolve(config: DictConfig, place: str, given: Any) -> None:
    if isinstance(given, Mapping):
        for name, part in given.items():
            if not is_secret(str(name)):
                _resolve(config, f"{place}.{name}", part)
    elif "${oc.env:" in str(given) and not takes_secret(str(given)):
        value = OmegaConf.select(config, place)
        if isinstance(value, ListConfig):
            value = OmegaConf.to_container(value, resolve=True)
        if not isinstance(value, DictConfig):  # which is what a choice from a group has put there
            OmegaConf.update(config, place, value)


def find_resume_point(config: DictConfig, folder: str | os.PathLike[str], *, siblings: bool) -> ResumePoint:
    """Where the run of a config resumes.

    In ``folder`` if a run has begun there, whose config must be the same. Otherwise, with ``siblings``, in the newest
    unfinished run beside it that has the same config; runs of other configs are not touched, the message names the
    newest. If there is none a new run begins in ``folder``. Runs beside it that another user has put there, and those
    that cannot be read, are passed over.

    Raises:
        ValueError: a run in ``folder`` has another config; the differing keys are named.
    """
    folder = Path(folder).absolute()
    if (folder / CONFIG_FILE).is_file():
        if keys := differing_keys(folder, config):
            raise ValueError(
                f"resume=auto: the run in {folder} has another config, it differs in {', '.join(keys)}: "
                "give the same command, another hydra.run.dir, or "
                f"ckpt_path=<its {LAST_CHECKPOINT.name}> to resume with these changes"
            )
        return _point(folder)
    other = ""
    for run in _unfinished(folder.parent) if siblings else ():
        if run == folder:
            continue
        try:
            keys = differing_keys(run, config)
        except ValueError:
            keys = [CONFIG_FILE]
        if not keys:
            return _point(run)
        other = other or f" (the newest unfinished one, {run.name}, differs in {', '.join(keys[:5])})"
    place = f"in {folder.parent}" if siblings else f"at {folder}"
    return ResumePoint(folder, None, False, f"resume=auto: no unfinished run of this config {place}{other}: a new run")


def write_config(folder: Path, config: DictConfig) -> None:
    """Write ``config.yaml`` as it was composed, its interpolations as they stand: what a later start is compared to.

    Secrets are left out of it.
    """
    write_text(folder / CONFIG_FILE, _as_written(config))


def _as_written(config: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(redacted(OmegaConf.to_container(config, resolve=False))), resolve=False)


def differing_keys(run: Path, config: DictConfig) -> list[str]:
    """The keys in which a run folder's config differs from one composed now, by their dotted names.

    A key that ``train.yaml`` has got since the run began is at its default there.
    """
    there, here = read_plain(run / CONFIG_FILE), parse_yaml(_as_written(config))
    if isinstance(there, dict):
        there = {key: value for key, value in command_config("train").items() if key in here} | there
    begun = {path.name.partition("_")[2] for path in stage_folders(run) if (path / LAST_CHECKPOINT).is_file()}
    return [
        key
        for key in sorted(differing(there, here))
        if not any(key == free or key.startswith(f"{free}.") for free in MAY_DIFFER)
        and not (key.startswith(f"{STAGES}.") and key.split(".")[1] not in begun)  # it may still be changed
    ]


def export_run_environment(point: ResumePoint) -> None:
    """Set the variable that says where the run is, for the processes that Lightning will start from this one."""
    checkpoint = None if point.checkpoint is None else str(point.checkpoint)
    stored = {"pid": os.getpid(), "folder": str(point.folder), "checkpoint": checkpoint, "stage": point.stage}
    os.environ[RUN_VARIABLE] = json.dumps(stored)


def clear_run_environment() -> None:
    """Remove that variable: the run is over, and programs that this process starts from now on are others."""
    os.environ.pop(RUN_VARIABLE, None)


def environment_of_other_run() -> dict[str, str]:
    """This process's environment without what it says of its own run, for a process that is another run."""
    return {name: value for name, value in os.environ.items() if name not in (RUN_VARIABLE, STARTED)}


def inherited_point() -> ResumePoint | None:
    """What the process that started this one exported; None if it was no training."""
    stored = json.loads(os.environ.get(RUN_VARIABLE, "{}"))
    if stored.get("pid") != os.getppid():
        return None
    checkpoint = Path(stored["checkpoint"]) if stored["checkpoint"] else None
    return ResumePoint(Path(stored["folder"]), checkpoint, False, "", stored["stage"])


def wait_for_first_process() -> None:
    """Let the process that started this one end before: Lightning's watcher there kills it otherwise, for our code."""
    if inherited_point() is not None:
        first, deadline = os.getppid(), time.monotonic() + _PATIENCE
        while os.getppid() == first and time.monotonic() < deadline:
            time.sleep(0.02)


@rank_zero_only
def print_on_rank_zero(text: str) -> None:
    """Print a line, in the first process of the job alone."""
    Screen().print(text, highlight=False, soft_wrap=True)


def _point(folder: Path) -> ResumePoint:
    if is_finished(folder):
        return ResumePoint(folder, None, True, f"resume=auto: the run in {folder} is finished, nothing is to be done")
    stages = stage_folders(folder)
    done = next((number for number, stage in enumerate(stages) if not is_finished(stage)), len(stages))
    checkpoint = (stages[done] if done < len(stages) else folder) / LAST_CHECKPOINT
    if not checkpoint.is_file():
        if done:
            return ResumePoint(folder, None, False, f"resume=auto: resuming {folder} after stage {done}", done)
        return ResumePoint(folder, None, False, f"resume=auto: {folder} has no checkpoint yet: it starts from scratch")
    stored = read_checkpoint(checkpoint)
    stage = f", stage {done + 1}," if stages else ""
    text = f"resume=auto: resuming {folder}{stage} from step {stored['global_step']}, epoch {stored['epoch'] + 1}"
    return ResumePoint(folder, checkpoint, False, text, done)


def _unfinished(folder: Path) -> Iterator[Path]:
    """Run folders with a checkpoint and without a result, newest first; named by time, so by name."""
    runs = [path.parent for path in folder.glob(f"*/{CONFIG_FILE}")] if folder.is_dir() else []
    for run in sorted(runs, reverse=True):
        checkpoints = [place / LAST_CHECKPOINT for place in (run, *stage_folders(run))]
        found = [file for file in checkpoints if file.is_file()]
        within = {path for file in found for path in (file, *file.parents) if path.is_relative_to(run)}
        if not found or not all(_is_ours(path, folder) for path in (run / CONFIG_FILE, *within)):
            continue
        with suppress(ValueError):
            if not is_finished(run):
                yield run


def _is_ours(path: Path, among: Path) -> bool:
    """Whether it is of this user, or of whoever owns the folder of all runs, and nothing that only points elsewhere."""
    if not hasattr(os, "getuid"):
        return not path.is_symlink()
    return not path.is_symlink() and path.stat().st_uid in (os.getuid(), among.stat().st_uid)


def differing(one: Any, other: Any, place: str = "") -> set[str]:
    """The dotted names, below ``place``, in which two trees of plain values differ.

    A key that only one of them has differs unless it is an argument of what both build, at its default. Nor does
    one of ``preset``: what reads it differs itself where that matters.

    Example:
        >>> sorted(differing({"a": {"b": 1}}, {"a": {"b": 2}, "c": 3}))
        ['a.b', 'c']
    """
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        found: set[str] = set()
        left_out = _defaults(one, other)
        for key in {**one, **other}:
            name = f"{place}.{key}" if place else str(key)
            if all(key in tree or key in left_out for tree in (one, other)):
                found |= differing(one.get(key, left_out.get(key)), other.get(key, left_out.get(key)), name)
            elif place != "preset":
                found.add(name)
        return found
    return set() if _plain(one) == _plain(other) else {place}


def _defaults(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of what both build, where one leaves a key out that the other has."""
    target = one.get("_target_")
    if target is None or target != other.get("_target_") or set(one) == set(other):
        return {}
    try:
        return arguments_of(target)
    except (ImportError, AttributeError, ValueError):  # ValueError: what has no signature
        return {}


def _plain(value: Any) -> Any:
    """A value as YAML has it; a mapping that sets nothing is none."""
    if isinstance(value, Mapping) and all(part is None for part in value.values()):
        return None
    return list(value) if isinstance(value, tuple) else value
