"""The batches of an optimizer step, and what to say of those whose loss was not finite."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lit_distill._module.step import StepRecord


@dataclass
class BatchOfStep:
    """One backward pass of a window."""

    batch_idx: int
    loss: Tensor
    record: StepRecord | None
    faults: list[str] | None = None

    def lines(self, trainer: Trainer) -> list[str]:
        said = self.faults
        if said is None and self.record is not None:
            said = self.record.faults(SampleNames(trainer))
        return [f"the loss of batch {self.batch_idx} is {float(self.loss)}", *(said or [])]


@dataclass
class StepWindow:
    """The batches of an optimizer step, and where it stands in the training."""

    batches: list[BatchOfStep]
    text: str

    @classmethod
    def of(cls, trainer: Trainer, window: list[BatchOfStep]) -> StepWindow:
        first, last = window[0].batch_idx, window[-1].batch_idx
        where = f"batch {last}" if first == last else f"batches {first} to {last}"
        return cls(window, f"step {trainer.global_step + 1} (epoch {trainer.current_epoch}, {where})")


class DecidedStep:
    """A step of which the device knows whether it was finite, and the CPU will once its copy has arrived."""

    def __init__(self, step: StepWindow, trainer: Trainer, pl_module: LightningModule, bad: Tensor) -> None:
        self.step, self.trainer, self.pl_module = step, trainer, pl_module
        self._bad = bad.to("cpu", non_blocking=True)
        self._copied = None if bad.device.type == "cpu" else torch.Event(bad.device)
        if self._copied is not None:
            self._copied.record()

    def is_bad(self) -> bool:
        if self._copied is not None:
            self._copied.synchronize()  # of a step ago: it has long been there
        return bool(self._bad)


class SampleNames:
    """Samples as text, given their positions: with their paths where the data set knows them."""

    def __init__(self, trainer: Trainer) -> None:
        loader = trainer.train_dataloader
        self._samples = getattr(loader.dataset, "samples", None) if isinstance(loader, DataLoader) else None

    def __call__(self, positions: Sequence[int]) -> list[str]:
        return [self._name(position) for position in positions]

    def _name(self, position: int) -> str:
        if self._samples is None or not 0 <= position < len(self._samples):
            return str(position)
        sample = self._samples[position]
        path = getattr(sample, "path", None) or (sample[0] if isinstance(sample, tuple) else None)
        return str(position) if path is None else f"{position} ({path})"
