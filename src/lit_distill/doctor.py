"""`python -m lit_distill.doctor experiment=<name>`: what a training would do, before it is paid for."""

from __future__ import annotations

import copy
import itertools
import json
import math
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from hydra.utils import instantiate
from lightning import LightningDataModule, seed_everything
from lightning.pytorch.utilities.seed import isolate_rng
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lit_distill._cli import command, quiet_lightning
from lit_distill.diagnosis import Diagnosis, diagnose
from lit_distill.module import DistillModule
from lit_distill.running import build_module
from lit_distill.stages import stages_of

FINDINGS = 3
"""Exit code where there is something to look at."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Where the time and memory of a training go.

    Attributes:
        seconds: medians of a step's parts: ``data`` (of a batch, with the configured workers), ``forward``,
            ``backward``, ``optimizer``.
        step_seconds: of a step; data that workers make meanwhile counts only where it takes longer than the rest.
        steps: of the whole training.
        hours: of all steps, without validation.
        bytes: of ``parameters``, ``gradients``, ``optimizer`` state, and ``activations`` kept for the backward pass.
        checkpoint_bytes: of one checkpoint.
    """

    seconds: dict[str, float]
    step_seconds: float
    steps: int
    hours: float
    bytes: dict[str, int]
    checkpoint_bytes: int


def measure(module: DistillModule, data: LightningDataModule, *, steps: int, epochs: int, accumulate: int = 1) -> Cost:
    """Time a few training steps on a copy of a module, and work out what all of them take.

    Args:
        module: before training.
        data: where its batches come from, with its own workers.
        steps: timed ones, after one to warm up.
        epochs: of the training.
        accumulate: batches an optimizer step.

    Raises:
        ValueError: a number is below 1.
    """
    if min(steps, epochs, accumulate) < 1:
        raise ValueError(f"steps, epochs and accumulate must be at least 1, came {steps}, {epochs}, {accumulate}")
    with isolate_rng():
        data.prepare_data()
        data.setup("fit")
        loader = cast("DataLoader[Any]", data.train_dataloader())
        tried = copy.deepcopy(module)
        taken: dict[str, list[float]] = {"data": [], "forward": [], "backward": [], "optimizer": []}
        kept = 0
        optimizer: Optimizer | None = None
        batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))
        try:
            for turn in range(steps + 1):
                start = time.perf_counter()
                batch = data.on_after_batch_transfer(next(batches), 0)
                marks = [time.perf_counter()]
                if optimizer is None:
                    tried.build(batch, dataset_size=len(loader.dataset))  # type: ignore[arg-type]
                    optimizer = tried.make_optimizer()
                    tried.train()
                    start = marks[0] = time.perf_counter()
                with _Kept() as saved:
                    inputs, target, index = tried.unpack(batch)
                    with tried.composer.capture(tried.named) as signals:
                        for name in tried.models:
                            if name in tried.composer.model_names:
                                tried._run_frozen_or_not(name, inputs)
                    total = tried.composer(signals, target, index=index).total
                marks.append(time.perf_counter())
                torch.autograd.backward(total)
                marks.append(time.perf_counter())
                optimizer.step()
                optimizer.zero_grad()
                marks.append(time.perf_counter())
                kept = max(kept, saved.bytes)
                if turn:
                    for part, (a, b) in zip(taken, itertools.pairwise([start, *marks]), strict=True):
                        taken[part].append(b - a)
        finally:
            del batches  # ends the workers
        assert optimizer is not None
        state = sum(
            value.numel() * value.element_size()
            for held in optimizer.state.values()
            for value in held.values()
            if isinstance(value, Tensor)
        )
    seconds = {part: statistics.median(values) for part, values in taken.items()}
    compute = seconds["forward"] + seconds["backward"] + seconds["optimizer"]
    beside = bool(loader.num_workers)
    step = max(compute, seconds["data"]) if beside else compute + seconds["data"]
    count = math.ceil(len(loader) / accumulate) * epochs
    size: dict[bool, int] = {True: 0, False: 0}
    for name, model in module.models.items():
        size[name in module.frozen] += sum(p.numel() * p.element_size() for p in model.parameters())
    return Cost(
        seconds=seconds,
        step_seconds=step * accumulate,
        steps=count,
        hours=step * accumulate * count / 3600,
        bytes={
            "parameters": size[True] + size[False],
            "gradients": size[False],
            "optimizer": state,
            "activations": kept,
        },
        checkpoint_bytes=size[False] + state,
    )


class _Kept:
    """Counts the bytes that autograd keeps for the backward pass, each storage once."""

    def __init__(self) -> None:
        self.bytes = 0
        self._storages: set[int] = set()
        self._hooks = saved_tensors_hooks(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._storages:
            self._storages.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor

    def __enter__(self) -> _Kept:
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)


def run(config: DictConfig) -> tuple[Diagnosis, Cost | None]:
    """Look at what a composed ``doctor.yaml`` describes, and print it.

    Raises:
        ValueError: what training would refuse.
        FileNotFoundError: the data or weights are not there.
    """
    if config.steps < 0:
        raise ValueError(f"steps must be at least 0, came {config.steps}")
    stages = stages_of(config)
    if stages:
        config = stages[0].config
        if not config.as_json:
            print(f"stage 1 of {len(stages)}, {stages[0].name}: the others begin as it ends, and are not looked at")
    seed_everything(config.seed, workers=True, verbose=False)
    data: LightningDataModule = instantiate(config.data, _convert_="all")
    module = build_module(config)
    diagnosis = diagnose(module, data)
    cost = None
    if config.steps:
        accumulate = int(config.trainer.get("accumulate_grad_batches") or 1)
        cost = measure(module, data, steps=config.steps, epochs=int(config.trainer.max_epochs), accumulate=accumulate)
    if config.as_json:
        print(json.dumps({**diagnosis.as_dict(), "cost": None if cost is None else asdict(cost)}, indent=2))
    else:
        show(Console(), diagnosis, cost)
    return diagnosis, cost


def show(console: Console, diagnosis: Diagnosis, cost: Cost | None = None) -> None:
    """Print tables of the models and terms, the cost, and the findings last."""
    table = Table(title=f"models, on a batch of {diagnosis.batch_size}")
    for column in ("model", "class", "role"):
        table.add_column(column)
    for column in ("parameters", "trainable", "output", "forward"):
        table.add_column(column, justify="right")
    for name, model in diagnosis.models.items():
        table.add_row(
            name, model.kind, "frozen" if model.frozen else "learns", f"{model.parameters:,}", f"{model.trainable:,}",
            " x ".join(map(str, model.output_shape)), f"{1e3 * model.forward_seconds:.0f} ms",
        )  # fmt: skip
    console.print(table)
    table = Table(title="terms, at the start of training")
    for column in ("term", "loss", "on"):
        table.add_column(column)
    for column in ("value", "weight", "gradient norm"):
        table.add_column(column, justify="right")
    for name, term in diagnosis.terms.items():
        on = "\n".join(f"{text} {' x '.join(map(str, shape))}" for text, shape in term.shapes.items())
        norms = "\n".join(f"{model} {norm:.3g}" for model, norm in term.gradient_norms.items() if norm)
        table.add_row(name, term.loss, on, f"{term.value:.4g}", f"{term.weight:g}", norms)
    console.print(table)
    if diagnosis.accuracy is not None:
        shown = ", ".join(f"{name} {100 * top1:.1f} %" for name, top1 in diagnosis.accuracy.top1.items())
        console.print(f"top-1 before training on {diagnosis.accuracy.samples} validation samples: {shown}")
    if cost is not None:
        parts = ", ".join(f"{part} {1e3 * value:.0f} ms" for part, value in cost.seconds.items())
        sizes = ", ".join(f"{part} {_size(value)}" for part, value in cost.bytes.items())
        console.print(f"a step: {1e3 * cost.step_seconds:.0f} ms ({parts})")
        console.print(f"memory: {sizes}")
        console.print(
            f"the run: {cost.steps:,} steps, {cost.hours:.2f} hours without validation, checkpoints of "
            f"{_size(cost.checkpoint_bytes)}"
        )
    if not diagnosis.findings:
        console.print("nothing found that needs a look")
    for finding in diagnosis.findings:
        console.print(f"[yellow]look:[/yellow] {finding}", soft_wrap=True, highlight=False)


def _size(count: int) -> str:
    return f"{count / 2**30:.2f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


@command("doctor")
def _main(config: DictConfig) -> None:
    quiet_lightning()
    diagnosis, _ = run(config)
    if diagnosis.findings:
        sys.exit(FINDINGS)


def main() -> None:
    """Look at an experiment before it is trained; see ``--help``."""
    sys.argv[1:] = ["as_json=true" if argument == "--json" else argument for argument in sys.argv[1:]]
    _main()


if __name__ == "__main__":
    main()
