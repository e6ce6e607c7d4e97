"""What `doctor` does: it shows what a training would do, before it is paid for."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from lightning import seed_everything
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from lit_distill._command.overrides import typed_overrides
from lit_distill._screen import Screen, numeric
from lit_distill.diagnosis.cost import Cost, measure
from lit_distill.diagnosis.diagnose import Diagnosis, diagnose
from lit_distill.training.fit import build_data, build_module
from lit_distill.training.preset import set_preset_start, set_preset_weights
from lit_distill.training.stages import stages_of

FINDINGS = 3
"""Exit code where there is something to look at."""


def run(config: DictConfig) -> tuple[Diagnosis, Cost | None]:
    """Look at what a composed ``doctor.yaml`` describes, and print it.

    Raises:
        ValueError: what training would refuse.
        FileNotFoundError: the data or weights are not there.
    """
    if config.steps < 0:
        raise ValueError(f"steps must be at least 0, got {config.steps}")
    stages = stages_of(config)
    if stages:
        config = stages[0].config
        if not config.as_json:
            print(f"stage 1 of {len(stages)}, {stages[0].name}: the others begin as it ends, and are not looked at")
    seed_everything(config.seed, workers=True, verbose=False)
    cost = None
    with contextlib.redirect_stdout(sys.stderr) if config.as_json else contextlib.nullcontext():
        for line in set_preset_start(config):
            print(line)
        data = build_data(config)
        module = build_module(config)
        diagnosis = diagnose(module, data)
        if config.steps:
            accumulate, epochs = int(config.trainer.get("accumulate_grad_batches") or 1), int(config.trainer.max_epochs)
            cost = measure(module, data, steps=config.steps, epochs=epochs, accumulate=accumulate)
    if config.as_json:
        print(json.dumps({**diagnosis.as_dict(), "cost": None if cost is None else asdict(cost)}, indent=2))
    else:
        show(Screen(), diagnosis, cost)
    return diagnosis, cost


def show(console: Console, diagnosis: Diagnosis, cost: Cost | None = None) -> None:
    """Print the verdict with all findings, then tables of the models and terms, and the cost."""
    count = len(diagnosis.findings)
    said = "nothing needs a look" if not count else f"{count} {'thing needs' if count == 1 else 'things need'} a look"
    console.print(Text.assemble(("verdict:", "yellow" if count else "green"), f" {said}"), highlight=False)
    for finding in diagnosis.findings:
        console.print(Text.assemble(("look:", "yellow"), f" {finding}"), soft_wrap=True, highlight=False)
    texts = (Column(header, overflow="fold") for header in ("model", "class", "role"))
    numbers = numeric("parameters", "input", "output", "forward", overflow="fold")
    table = Table(*texts, *numbers, title=f"models, on a batch of {diagnosis.batch_size}")
    for name, model in diagnosis.models.items():
        whole = model.trainable == model.parameters
        role = "frozen" if model.frozen else ("learns" if whole else f"learns {model.trainable:,} of them")
        table.add_row(
            name, model.kind, role, f"{model.parameters:,}", _shape(model.input_shape), _shape(model.output_shape),
            f"{1e3 * model.forward_seconds:.0f} ms",
        )  # fmt: skip
    console.print(table)
    texts = (Column(header, overflow="fold") for header in ("term", "loss", "on"))
    table = Table(*texts, *numeric("value", "weight", "gradient norm"), title="terms, at the start of training")
    for name, term in diagnosis.terms.items():
        on = "\n".join(f"{text} {_shape(shape)}" for text, shape in term.shapes.items())
        norms = "\n".join(f"{model} {norm:.3g}" for model, norm in term.gradient_norms.items() if norm)
        table.add_row(name, term.loss, on, f"{term.value:.4g}", f"{term.weight:g}", norms)
    console.print(table)
    if diagnosis.accuracy is not None:
        shown = ", ".join(f"{name} {100 * top1:.1f} %" for name, top1 in diagnosis.accuracy.top1.items())
        console.print(
            f"top-1 before training on {diagnosis.accuracy.samples} validation samples: {shown}; "
            f"chance {100 * diagnosis.accuracy.chance:.1f} %", soft_wrap=True
        )  # fmt: skip
    if cost is not None:
        _show_cost(console, cost)


def _show_cost(console: Console, cost: Cost) -> None:
    title = f"where a step's {1e3 * cost.step_seconds:.0f} ms and its memory go"
    table = Table("part", *numeric("time", "kept for the backward pass"), title=title)
    for part, seconds in cost.seconds.items():
        kept = cost.kept_bytes.get(part)
        table.add_row(part, f"{1e3 * seconds:.1f} ms", "" if kept is None else _size(kept))
    console.print(table)
    sizes = ", ".join(f"{part} {_size(value)}" for part, value in cost.bytes.items())
    console.print(f"memory: {sizes}", soft_wrap=True, highlight=False)
    console.print(
        f"the run: {cost.steps:,} steps in {_time(cost.hours)}, {_time(cost.validation_hours)} of validation, "
        f"{_size(cost.folder_bytes)} in its folder (a checkpoint: {_size(cost.checkpoint_bytes)})",
        soft_wrap=True, highlight=False,
    )  # fmt: skip


def _shape(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


def _time(hours: float) -> str:
    """A duration in the unit that fits.

    Example:
        >>> _time(30.25), _time(0.2), _time(0.001)
        ('30.2 hours', '12.0 minutes', '3.6 seconds')
    """
    if hours >= 1:
        return f"{hours:.1f} hours"
    return f"{60 * hours:.1f} minutes" if hours * 60 >= 1 else f"{3600 * hours:.1f} seconds"


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def main(config: DictConfig) -> None:
    """Look at an experiment; exit code 3 where there is something to look at."""
    set_preset_weights(config, typed_overrides())
    diagnosis, _ = run(config)
    if diagnosis.findings:
        sys.exit(FINDINGS)
