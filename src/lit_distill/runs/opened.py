"""Where a run is found: a run folder, a folder of stages, or a weights file with its card."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch import nn

from lit_distill._files import expand_home
from lit_distill.checkpoints import read_checkpoint
from lit_distill.data.preprocess import Views
from lit_distill.runs.artifacts import stage_folders
from lit_distill.runs.contents import IN_CARD, IN_CONFIG, IN_RESULTS, contents_of, read_content, read_optional
from lit_distill.runs.names import (
    BEST,
    BEST_CHECKPOINT,
    CARD_FILE,
    CONFIG_FILE,
    RESULTS_FILE,
    STAGES,
    card_of,
)
from lit_distill.runs.run import Run, count_of
from lit_distill.untrusted.check import check_allow
from lit_distill.untrusted.plain import read_plain


def load_run(path: str | os.PathLike[str], *, allow: Collection[str] = ()) -> Run:
    """Read a run folder, or a weights file with its card beside it; nothing is built yet.

    The configs are untrusted: what is built of them later, the models and the data, goes through the allow-list.

    Args:
        path: a run folder; or a file such as ``student.safetensors``, with ``student.json`` beside it.
        allow: packages or full names that the configs may build from besides, see
            :func:`lit_distill.untrusted.check.check_targets`.

    Raises:
        FileNotFoundError: there is no such folder or file, or it is none of a run.
        ValueError: what it holds is malformed.

    Example:
        >>> load_run("/nowhere")
        Traceback (most recent call last):
        ...
        FileNotFoundError: no run folder /nowhere; a run leaves one in runs/<experiment>/<time>/
    """
    check_allow(allow)
    path = expand_home(path)
    if path.is_file():
        return _of_card(path, tuple(allow))
    if not path.is_dir():
        kind = "weights file" if path.suffix else "run folder"
        raise FileNotFoundError(f"no {kind} {path}; a run leaves one in runs/<experiment>/<time>/")
    if not (path / CONFIG_FILE).is_file():
        inner = sorted(str(file.parent) for file in path.glob(f"*/{CONFIG_FILE}"))
        hint = f": did you mean {inner[-1]}?" if inner else f": it has no {CONFIG_FILE}"
        raise FileNotFoundError(f"{path} is no run folder{hint}")
    file, stage = path / CONFIG_FILE, None
    card, results = read_optional(path / CARD_FILE, IN_CARD), read_optional(path / RESULTS_FILE, IN_RESULTS)
    content = read_plain(file)
    if isinstance(content, Mapping) and (content.get("stages") or content.get("generations")):
        stage = _stage(path, results)
        file = stage / CONFIG_FILE
        content = read_plain(file)
    config = contents_of(file, content, IN_CONFIG)
    if not config.get("models") or config.get("data") is None:
        raise ValueError(f"{file} is no config of a run: it names no models or no data")
    if config.get("student") == BEST and BEST not in config["models"]:
        config["student"] = _best_peer(path if stage is None else stage, results)
    run = Run(folder=path, config=config, card=card, results=results, allow=tuple(allow), stage=stage)
    _check_classes(run)
    return run


def open_run(config: DictConfig) -> Run:
    """The run that ``run`` or ``weights`` of a command's config names, opened with the packages of ``allow``.

    Raises:
        ValueError: neither is given, or both; what is there is malformed.
        FileNotFoundError: it is not there.
    """
    if bool(config.run) == bool(config.weights):
        raise ValueError("give run=<folder>, or weights=<file> with its card beside it: one of the two")
    if config.weights and Path(config.weights).is_dir():
        raise ValueError(f"weights={config.weights} is a folder: give it as run={config.weights}")
    return load_run(config.weights or config.run, allow=tuple(config.allow))


def load_student(path: str | os.PathLike[str], *, allow: Collection[str] = (), views: Views = "center") -> nn.Module:
    """The trained student, a bare network in eval mode, with its preprocessing attached; works offline.

    The weights are verified against the sha256 of the card before anything is built of them.

    Args:
        path: a run folder, or a ``student.safetensors`` with its card ``student.json`` beside it.
        allow: packages or full names that the card's configs may build from besides the allow-list's.
        views: what ``preprocess`` gives: the centre of a video, or dense views.

    Returns:
        The network. Its attribute ``preprocess`` is a
        :class:`lit_distill.data.preprocess.Preprocess`, which turns a path
        or uint8 frames (T, H, W, 3) into the input tensor, and knows ``class_names``, ``frames``, ``size``, ``mean``
        and ``std``.

    Raises:
        FileNotFoundError: there is no such run, weights file or card.
        ValueError: the weights are not those of the card, do not fit, or something in the card is not admitted.

    Example:
        >>> student = load_student("runs/dml_pptsmv2/2026-11-24_10-00-00")  # doctest: +SKIP
        >>> probabilities = student(student.preprocess("clip.mp4")).softmax(1)  # doctest: +SKIP
        >>> student.preprocess.class_names[probabilities.argmax()]  # doctest: +SKIP
        'jumping'
    """
    run = load_run(path, allow=allow)
    student = run.model()
    student.preprocess = run.preprocess(views=views)  # type: ignore[assignment]
    return student


def _stage(run: Path, results: Mapping[str, Any]) -> Path:
    """The folder of the stage whose student is the run's."""
    name = str(results.get("student_stage", ""))
    if not re.fullmatch(r"\d+_[A-Za-z][\w-]*", name):
        begun = ", ".join(str(stage) for stage in stage_folders(run))
        hint = f"open one of its stages: run=<one of {begun}>" if begun else "none of its stages has begun"
        raise ValueError(f"{run} is a run of several stages that is not finished: resume it, or {hint}")
    stage = run / STAGES / name
    if not (stage / CONFIG_FILE).is_file():
        raise FileNotFoundError(f"{run} says that its student is of the stage {name}, but there is no {stage}")
    return stage


def _of_card(file: Path, allow: tuple[str, ...]) -> Run:
    beside = card_of(file)
    if not beside.is_file():
        raise FileNotFoundError(f"no card {beside}: {file.name} needs it beside it, a run leaves both")
    card = read_content(beside, IN_CARD)
    if card.get("model") is None or card.get("data") is None:
        raise ValueError(f"{beside} is no card of a student: it names no model or no data")
    config = {"models": {"Student": card["model"]}, "data": card["data"], "student": "Student"}
    if card.get("input") is not None:
        config["inputs"] = {"Student": card["input"]}
    run = Run(folder=file.parent, config=config, card=card, weights=file, allow=allow)
    _check_classes(run)
    return run


def _best_peer(folder: Path, results: Mapping[str, Any]) -> str:
    """Which of several candidates became the student of a run: as it says itself, or its best checkpoint."""
    if "student" in results:
        return str(results["student"])
    file = folder / BEST_CHECKPOINT
    if not file.is_file():
        raise FileNotFoundError(
            f"{folder} was trained with student=best, and has neither finished nor a {file.name} that says which "
            "peer is the best so far"
        )
    return str(read_checkpoint(file)["lit_distill"]["student"])


def _check_classes(run: Run) -> None:
    """Raise where class names, the data's number of classes and the student's disagree."""
    names, data = len(run.class_names), run.num_classes
    node = run.config["models"].get(run.student)
    if not isinstance(node, Mapping):
        raise ValueError(f"{run.folder} has no model {run.student!r:.80}: it has {', '.join(run.models)}")
    network = count_of(node.get("num_classes"))
    numbers = {number for number in (names or None, data, network) if number is not None}
    if len(numbers) > 1:
        raise ValueError(
            f"{run.folder} contradicts itself: {network} classes of {run.student}, {data} of the data, "
            f"{names} class names"
        )
