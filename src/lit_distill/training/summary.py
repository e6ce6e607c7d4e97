"""What training says at its end: how good the models are, where their files are, what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from lit_distill._command.arguments import path_argument
from lit_distill._screen import numeric
from lit_distill.data import DigitsImages, ImageFolderDataModule
from lit_distill.data_free import DataFreeModule
from lit_distill.models import PPTSMv2
from lit_distill.module import DistillModule
from lit_distill.runs.names import BEST_CHECKPOINT


def show_summary(
    console: Console, module: DistillModule, results: dict[str, Any], folder: Path, gains: Sequence[str] = ()
) -> None:
    """Print every model's accuracy, what the student gains, where the run's files are and what to do next."""
    title = f"{results['experiment'] or 'run'}: validation at the best epoch of {results['epochs']}"
    table = Table("model", "role", *numeric("parameters", "top-1", "top-5"), title=title)
    for name, model in module.models.items():
        role = _role(module, name)
        parameters = f"{sum(p.numel() for p in model.parameters()):,}"
        table.add_row(name, role, parameters, *_accuracy(results["best"], name))
    console.print(table)
    for line in gains:
        console.print(line, soft_wrap=True, highlight=False)
    shown_folder = _shown(folder)
    console.print(f"trained {results['steps']} steps in {results['seconds']:.0f} s; the run folder is", soft_wrap=True)
    console.print(f"  {shown_folder}", soft_wrap=True, highlight=False)
    what = "look at it on the test data" if isinstance(module, DataFreeModule) else "distill from what was trained here"
    console.print(f"next: {what}, for example")
    console.print(f"  {next_command(module, shown_folder)}", soft_wrap=True, highlight=False)


def _role(module: DistillModule, name: str) -> str:
    if name in module.frozen:
        return "frozen teacher"
    if name == module.student:
        return f"student, best of {count}" if (count := len(module.candidates)) > 1 else "student"
    return "generator" if isinstance(module, DataFreeModule) and name == module.generator else "peer"


def next_command(module: DistillModule, folder: str) -> str:
    """A command that builds on this run: its test, or to distil from its best teacher or as peers."""
    data = module.trainer.datamodule  # type: ignore[attr-defined]
    kind = "image" if isinstance(data, ImageFolderDataModule) else "pptsmv2"
    kind = "digits_images" if isinstance(data, DigitsImages) else kind
    if isinstance(module, DataFreeModule):
        return f"python -m lit_distill.test {path_argument('run', folder)}"
    peers = [name for name in module.models if name != module.student and name not in module.frozen]
    if peers:
        peer = "Teacher" if "Teacher" in peers else peers[0]
        network = " model@models.Teacher=pptsmv2" if isinstance(module.models[peer], PPTSMv2) else ""
        pretrained = path_argument("models.Teacher.pretrained", f"{folder}/{BEST_CHECKPOINT}#{peer}")
        return f"python -m lit_distill.train experiment=kd_{kind}{network} {pretrained}"
    return f"python -m lit_distill.train experiment=dml_{kind}"


def show_stages(console: Console, results: dict[str, Any], folder: Path) -> None:
    """Print a row a stage, where the run's files are and what to do next."""
    title = f"{results['experiment'] or 'run'}: validation at the best epoch of each stage"
    table = Table("stage", "student", *numeric("top-1", "top-5", "epoch", "steps", "seconds"), title=title)
    for name, section in results["stages"].items():
        mark = " *" if section["folder"].endswith(f"/{results['student_stage']}") else ""
        epoch = f"{section['best'].get('epoch', section['epochs'])} of {section['epochs']}"
        table.add_row(
            name + mark, section["student"], *_accuracy(section["best"], section["student"]), epoch,
            f"{section['steps']:,}", f"{section['seconds']:.0f}",
        )  # fmt: skip
    console.print(table)
    shown = _shown(folder)
    console.print("the student of the stage with * is the run's; the run folder is", soft_wrap=True, highlight=False)
    console.print(f"  {shown}", soft_wrap=True, highlight=False)
    console.print("next: look at it on the test data")
    console.print(f"  python -m lit_distill.test {path_argument('run', shown)}", soft_wrap=True, highlight=False)


def _accuracy(figures: Mapping[str, float], model: str) -> list[str]:
    found = [figures.get(f"val/{model}/{metric}") for metric in ("top1", "top5")]
    return ["" if value is None else f"{100 * value:.2f} %" for value in found]


def _shown(folder: Path) -> str:
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
