"""What a training costs: where a step's time and memory go, and how long all of them take."""

from __future__ import annotations

import copy
import itertools
import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from lightning import LightningDataModule
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lit_distill._views import ViewsBatch
from lit_distill.composer import LossComposer
from lit_distill.module import DistillModule


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Where the time and memory of a training go, on one device.

    Attributes:
        seconds: medians of a batch's parts, means where steps are of several phases: ``data wait`` (with the configured
            workers, once what they had made beforehand is used up), ``forward <Model>`` of each, ``losses``,
            ``backward``, ``optimizer``.
        step_seconds: of an optimizer step, all its batches together.
        steps: of the whole training.
        hours: of all steps, without validation.
        validation_hours: of all validations; 0 where there is no validation data.
        bytes: of ``parameters``, ``gradients``, ``optimizer`` state, and ``activations`` kept for the backward pass.
        kept_bytes: those of the activations by part, ``forward <Model>`` and ``losses``.
        checkpoint_bytes: of one checkpoint.
        folder_bytes: of what the run leaves: the best and the last checkpoint and the student.
    """

    seconds: dict[str, float]
    step_seconds: float
    steps: int
    hours: float
    validation_hours: float
    bytes: dict[str, int]
    kept_bytes: dict[str, int]
    checkpoint_bytes: int
    folder_bytes: int


def measure(module: DistillModule, data: LightningDataModule, *, steps: int, epochs: int, accumulate: int = 1) -> Cost:
    """Time a few training steps and a batch of validation on a copy of a module, and work out what all of them take.

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
        raise ValueError(f"steps, epochs and accumulate must be at least 1, got {steps}, {epochs}, {accumulate}")
    with isolate_rng():
        data.prepare_data()
        data.setup("fit")
        loader = cast("DataLoader[Any]", data.train_dataloader())
        tried = copy.deepcopy(module)
        tried.expect_labels_of(data)
        parts = _Parts()
        optimizer: Optimizer | None = None
        batches = iter(itertools.chain.from_iterable(itertools.repeat(loader)))
        try:
            steps = math.ceil(steps / module.turn) * module.turn  # a generator's steps cost other than a student's
            for number in range(module.turn + steps):
                if optimizer is None:
                    batch = data.on_after_batch_transfer(next(batches), 0)
                    tried.build(batch, dataset_size=len(loader.dataset))  # type: ignore[arg-type]
                    optimizer = tried.make_optimizer()
                    tried.train()
                    for _ in range(loader.num_workers * (loader.prefetch_factor or 0)):
                        next(batches)  # made while the model was built: a training has no such store
                with tried.phase(number) as (composer, _):
                    _step(tried, composer, data, batches, optimizer, parts)
                if number < module.turn:
                    parts.seconds.clear()
        finally:
            del batches  # ends the workers
        assert optimizer is not None
        state = sum(
            value.numel() * value.element_size()
            for held in optimizer.state.values()
            for value in held.values()
            if isinstance(value, Tensor)
        )
        validation = _validation_seconds(tried, data)
    average = statistics.median if module.turn == 1 else statistics.fmean
    seconds = {part: average(values) for part, values in parts.seconds.items()}
    step = sum(seconds.values()) * accumulate
    count = math.ceil(len(loader) / accumulate) * epochs
    size: dict[bool, int] = {True: 0, False: 0}
    for name, model in module.models.items():
        size[name in module.frozen] += sum(p.numel() * p.element_size() for p in model.parameters())
    student = sum(p.numel() * p.element_size() for p in module.models[module.student].parameters())
    return Cost(
        seconds=seconds,
        step_seconds=step,
        steps=count,
        hours=step * count / 3600,
        validation_hours=validation * epochs / 3600,
        bytes={
            "parameters": size[True] + size[False],
            "gradients": size[False],
            "optimizer": state,
            "activations": sum(parts.kept.values()),
        },
        kept_bytes=parts.kept,
        checkpoint_bytes=size[False] + state,
        folder_bytes=2 * (size[False] + state) + student,
    )


class _Parts:
    """Seconds of each part, one a step, and the bytes that autograd keeps of each, every storage once a step."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}
        self.kept: dict[str, int] = {}
        self._storages: set[int] = set()

    def begin(self) -> None:
        """A new step."""
        self._storages.clear()

    @contextmanager
    def part(self, name: str, *, keeps: bool = False) -> Iterator[None]:
        """Time what is done within, and count what is kept of it where it may keep something."""
        total = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal total
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self._storages:
                self._storages.add(storage.data_ptr())
                total += storage.nbytes()
            return tensor

        start = time.perf_counter()
        if keeps:
            with saved_tensors_hooks(pack, lambda tensor: tensor):
                yield
            self.kept[name] = max(self.kept.get(name, 0), total)
        else:
            yield
        self.seconds.setdefault(name, []).append(time.perf_counter() - start)


def _step(
    module: DistillModule,
    composer: LossComposer,
    data: LightningDataModule,
    batches: Iterator[Any],
    optimizer: Optimizer,
    parts: _Parts,
) -> None:
    parts.begin()
    with parts.part("data wait"):
        inputs, target, index, entries = module.unpacked(data.on_after_batch_transfer(next(batches), 0))
    with composer.capture(module.named) as signals:
        module.run_models(inputs, signals, around=lambda name: parts.part(f"forward {name}", keeps=True))
    with parts.part("losses", keeps=True):
        total = composer(signals, target, index=index, batch=entries).total
    with parts.part("backward"):
        torch.autograd.backward(total)
    with parts.part("optimizer"):
        optimizer.step()
        optimizer.zero_grad()


@torch.no_grad()
def _validation_seconds(module: DistillModule, data: LightningDataModule) -> float:
    """Of one validation: the second batch is timed, or the first where there is no other, for all of them."""
    loader = data.val_dataloader()
    if not isinstance(loader, DataLoader) or not len(loader):
        return 0.0
    module.eval()
    batches = iter(loader)
    taken = 0.0
    for _ in range(min(2, len(loader))):
        start = time.perf_counter()
        batch = data.on_after_batch_transfer(next(batches), 0)
        module.run_models(module.unpack(batch)[0], evaluate=True, views=isinstance(batch, ViewsBatch))
        taken = time.perf_counter() - start
    return taken * len(loader)
