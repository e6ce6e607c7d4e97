"""What `report` does: it shows what runs learned, and where they differ, as one page."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import Trainer
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.console import Console

from lit_distill._files import expand_home, write_text
from lit_distill._screen import Screen
from lit_distill.callbacks import Progress, Quarantine
from lit_distill.data.decoding.decode import VideoError
from lit_distill.diagnosis.cost import Cost
from lit_distill.reporting.evidence import gather, pairs_of
from lit_distill.reporting.history import histories
from lit_distill.reporting.page import page
from lit_distill.reporting.sections import Material, sections
from lit_distill.reporting.training_cost import training_cost
from lit_distill.runs.names import REPORT_FILE
from lit_distill.runs.opened import load_run
from lit_distill.runs.run import Run
from lit_distill.untrusted.naming import inside

_TIME = re.compile(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d(-\d{6})?(_\d+)?")  # of older runs without microseconds


def run(config: DictConfig, *, console: Console | None = None) -> dict[str, Any]:
    """Look at every model of the runs of a composed ``report.yaml``, and write a page that needs nothing else.

    Returns:
        ``file``, the page; ``models``, by their labels the figures of
        :meth:`lit_distill.inference.evaluation.ClassificationReport.compute`;
        ``pairs``, by theirs ``agreement`` and ``kl``.

    Raises:
        ValueError: the config asks for what there is not.
        FileNotFoundError: a run, its student or its data are not there.
    """
    console = console or Screen()
    opened = _opened(config)
    overrides: dict[str, Any] = OmegaConf.to_container(config.data, resolve=True)  # type: ignore[assignment]
    layers: dict[str, Any] = {} if config.layers is None else OmegaConf.to_container(config.layers)  # type: ignore[assignment]
    evidence, logged, costs = [], [], {}
    for label, one in opened.items():
        console.print(f"looking at {label}", highlight=False, markup=False, soft_wrap=True)
        trainer: Trainer = instantiate(config.trainer, callbacks=[Progress(), Quarantine()])
        evidence.append(
            gather(
                one, label, trainer=trainer, split=config.split, checkpoint=config.checkpoint, data=overrides,
                layers={name: chosen for name, chosen in layers.items() if name in one.models},
                cka_samples=config.cka_samples,
            )
        )  # fmt: skip
        logged += histories(one, label)
        if config.cost_steps:
            costs[label] = _cost(one, config.cost_steps, overrides)
    known = {name for one in opened.values() for name in one.models}
    if unknown := set(layers) - known:
        raise ValueError(f"layers of {sorted(unknown)}: the runs have the models {', '.join(sorted(known))}")
    pairs, notes = pairs_of(evidence)
    material = Material(runs=evidence, logged=logged, pairs=pairs, notes=notes, costs=costs, clips=config.clips)
    samples = evidence[0].student.figures["samples"]
    lead = (
        f"On {samples:,} samples of {'validation' if config.split == 'val' else 'test'}, {config.checkpoint} weights."
    )
    file = _file(config, opened)
    write_text(file, page(" and ".join(opened) if len(opened) < 4 else f"{len(opened)} runs", lead, sections(material)))
    for said in [
        f"{e.label} · {name} is left out: {why}" for e in evidence for name, why in e.left_out.items()
    ] + notes:
        console.print(said, highlight=False, markup=False, soft_wrap=True)
    console.print(f"written {file}", highlight=False, markup=False, soft_wrap=True)
    return {
        "file": str(file),
        "models": {judged.label: dict(judged.figures) for judged in material.judged},
        "pairs": {
            f"{pair.b.label} after {pair.a.label}": {"agreement": pair.agreement, "kl": pair.kl} for pair in pairs
        },
    }


def _opened(config: DictConfig) -> dict[str, Run]:
    """The runs by labels that distinguish them: the ends of their paths, as long as it takes."""
    if config.split not in ("val", "test"):
        raise ValueError(f"split is val or test, got {config.split!r}")
    for name in ("clips", "cka_samples", "cost_steps"):
        if isinstance(config[name], bool) or not isinstance(config[name], int) or config[name] < 0:
            raise ValueError(f"{name} is a number from 0, got {config[name]!r}")
    if bool(config.run) == bool(config.runs):
        raise ValueError("give one run folder as run=<folder>, or several as runs=[<folder>,<folder>]")
    given = config.run or config.runs
    folders = [expand_home(str(folder)) for folder in (given if isinstance(given, ListConfig) else [given])]
    places = [folder.resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError(f"the same run folder twice: {', '.join(map(str, folders))}")
    if file := next((folder for folder in folders if folder.is_file()), None):
        raise ValueError(f"{file} is a file: a report is of run folders, runs/<experiment>/<time>")
    opened = [load_run(folder, allow=tuple(config.allow)) for folder in folders]
    return dict(zip(labels_of(places), opened, strict=True))


def labels_of(folders: Sequence[Path]) -> list[str]:
    """A short, different name for each of several absolute paths: without its time where that is enough.

    Example:
        >>> labels_of([Path("/runs/kd/2026-11-24_10-00-00-512034"), Path("/runs/dml/2026-11-24_11-00-00")])
        ['kd', 'dml']
        >>> labels_of([Path("/runs/kd/2026-11-24_10-00-00"), Path("/runs/kd/2026-11-24_11-00-00")])
        ['2026-11-24_10-00-00', '2026-11-24_11-00-00']
    """
    named = [folder.parent if _TIME.fullmatch(folder.name) else folder for folder in folders]
    for paths, depth in ((named, 1), *((folders, depth) for depth in range(1, 99))):
        labels = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(labels)) == len(labels):
            return labels
    return [str(folder) for folder in folders]


def _cost(one: Run, steps: int, data: dict[str, Any]) -> Cost | str:
    """The cost of a training step, or why there is none: training data need not be there to look at a run."""
    try:
        return training_cost(one, steps=steps, data=data)
    except (ValueError, OSError, VideoError) as error:
        return str(error)


def _file(config: DictConfig, opened: dict[str, Run]) -> Path:
    if config.output:
        return expand_home(config.output)
    return inside(next(iter(opened.values())).folder, REPORT_FILE) if len(opened) == 1 else Path(REPORT_FILE)
