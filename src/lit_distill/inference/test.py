"""What `test` does: it measures how good a trained model is on data that it has not seen."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from lightning import LightningDataModule, Trainer
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from rich.table import Table

from lit_distill._files import write_text
from lit_distill._screen import Screen, numeric, percent
from lit_distill._version import versions
from lit_distill.callbacks import Progress, Quarantine
from lit_distill.inference.evaluation import Evaluation, class_rows
from lit_distill.models.state_files import file_sha256
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import BEST, CONFUSION_FILE, TEST_FILE
from lit_distill.runs.opened import open_run
from lit_distill.runs.run import Run
from lit_distill.untrusted.naming import file_name, inside
from lit_distill.untrusted.showing import cell

_SHOWN_CLASSES = 20


def run(config: DictConfig) -> dict[str, Any]:
    """Evaluate what a composed ``test.yaml`` describes, and write ``test.json`` and ``confusion.csv``.

    Returns:
        The content of ``test.json``; empty in processes other than the first.

    Raises:
        ValueError: the config asks for what there is not.
        FileNotFoundError: the run, its weights or the data are not there.
    """
    started = time.perf_counter()
    if config.split not in ("test", "val"):
        raise ValueError(f"split is test or val, got {config.split!r}")
    opened = open_run(config)
    model = config.named or opened.student
    network = opened.model(model, checkpoint=config.checkpoint)
    overrides = OmegaConf.to_container(config.data, resolve=True)
    assert isinstance(overrides, dict)
    data = opened.data(views=config.views, **{str(name): value for name, value in overrides.items()})
    evaluation = Evaluation(network, num_classes=data.num_classes, view=opened.view(model))  # type: ignore[attr-defined]
    trainer: Trainer = instantiate(config.trainer, callbacks=[Progress(), Quarantine()])
    evaluate = trainer.test if config.split == "test" else trainer.validate
    evaluate(evaluation, datamodule=data, verbose=False)
    if not trainer.is_global_zero:
        return {}

    names = class_names_of(opened, data)
    figures = dict(evaluation.figures)
    confusion = figures.pop("confusion")
    views = getattr(data, "views", "center")
    file = Path(config.output) if config.output else inside(opened.folder, _file_name(opened, config, model))
    weights = opened.weights_file(model, config.checkpoint)
    listed = len(data.datasets[config.split])  # type: ignore[attr-defined]
    report = {
        "model": model,
        "weights": str(weights.relative_to(opened.folder) if weights.is_relative_to(opened.folder) else weights),
        "sha256": file_sha256(weights),
        "split": config.split,
        "views": views,
        "samples": figures["samples"],
        "left_out": listed - figures["samples"],
        "top1": figures["top1"],
        "top5": figures["top5"],
        "loss": figures["loss"],
        "calibration": {"ece": figures["ece"], "nll": figures["loss"], "bins": figures["bins"]},
        "classes": class_rows(confusion, names),
        "confusion": _confusion_file(file).name,
        "data": {"class": f"{type(data).__module__}.{type(data).__qualname__}", "root": str(data.root)},  # type: ignore[attr-defined]
        "seconds": round(time.perf_counter() - started, 1),
        "versions": versions(),
    }
    write_text(_confusion_file(file), confusion_csv(confusion, names))
    write_json(file, report)
    show(Screen(), report, file)
    return report


def confusion_csv(confusion: Sequence[Sequence[int]], class_names: Sequence[str]) -> str:
    """The confusion matrix as CSV: a row a true class, a column a predicted one.

    Example:
        >>> print(confusion_csv([[3, 1], [0, 2]], ["run", "jump"]).replace("\\r", ""), end="")
        true\\predicted,run,jump
        run,3,1
        jump,0,2
    """
    names = [cell(name) for name in class_names] or [str(number) for number in range(len(confusion))]
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["true\\predicted", *names])
    writer.writerows([name, *row] for name, row in zip(names, confusion, strict=True))
    return text.getvalue()


def show(console: Console, report: Mapping[str, Any], file: Path) -> None:
    """Print the figures, the classes (the worst where there are many), and where they were written."""
    title = f"{report['model']} on {report['samples']} {report['split']} samples, {report['views']} views"
    table = Table(*numeric("top-1", "top-5", "loss", "ECE"), title=title)
    table.add_row(
        percent(report["top1"]), percent(report["top5"]), f"{report['loss']:.6g}",
        percent(report["calibration"]["ece"]),
    )  # fmt: skip
    console.print(table)
    rows = [row for row in report["classes"] if row["samples"]]
    few = len(rows) <= _SHOWN_CLASSES
    worst = rows if few else sorted(rows, key=lambda row: row["top1"])[:_SHOWN_CLASSES]
    heading = None if few else f"the {_SHOWN_CLASSES} worst of {len(rows)} classes"
    classes = Table("class", *numeric("samples", "top-1"), "most often taken for", title=heading)
    for row in worst:
        other = f"{row['confused_with']} ({row['confused']}x)" if row["confused"] else ""
        classes.add_row(row["name"], str(row["samples"]), percent(row["top1"]), other)
    console.print(classes)
    if report["left_out"]:
        console.print(f"{report['left_out']} samples that can't be read are left out of these figures", soft_wrap=True)
    console.print(f"written {file} and {_confusion_file(file).name}", soft_wrap=True, highlight=False, markup=False)


def class_names_of(opened: Run, data: LightningDataModule) -> tuple[str, ...]:
    """The data's names, which must be those that the run was trained on, in that order."""
    found = tuple(getattr(data, "class_names", None) or ())
    known = opened.class_names
    if found and known and found != known:
        where = next(place for place, (a, b) in enumerate(zip(found, known, strict=False)) if a != b)
        raise ValueError(
            f"the data's classes are not those of the run: class {where} is {found[where]!r} here and {known[where]!r} "
            "in training; labels would mean other things"
        )
    return found or known


def _file_name(opened: Run, config: DictConfig, model: str) -> str:
    plain = Path(TEST_FILE)
    checkpoint = "" if config.checkpoint == BEST else Path(config.checkpoint).stem
    split = config.split if config.split != "test" else ""
    parts = [plain.stem, file_name(model) if model != opened.student else "", checkpoint, split, config.views]
    return "_".join(filter(None, parts)) + plain.suffix


def _confusion_file(file: Path) -> Path:
    ours, confusion = Path(TEST_FILE).stem, Path(CONFUSION_FILE)
    rest = file.stem.removeprefix(ours)
    name = f"{file.stem}_{confusion.stem}" if rest == file.stem else f"{confusion.stem}{rest}"
    return file.with_name(f"{name}{confusion.suffix}")
