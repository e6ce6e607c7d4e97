"""SIGTERM, SIGINT and SIGUSR1 end a run with a checkpoint, on all ranks at the same step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning import LightningModule, Trainer
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import Callback

from lit_distill._lightning import cluster_environment, is_between_steps, signal_started_processes
from lit_distill.callbacks.last_checkpoint import LastCheckpoint


class Interrupted(SystemExit):
    """Ends the process with 128 + the signal's number, as a shell reports it: 143 for SIGTERM, 130 for SIGINT.

    Attributes:
        signal: what ended the run.
        checkpoint: the file to resume from.
    """

    def __init__(self, number: int, checkpoint: Path) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number)
        self.checkpoint = checkpoint


class Preemption(Callback):
    """On a signal saves :class:`LastCheckpoint`'s file at the end of the optimizer step, raises :class:`Interrupted`.

    In validation it does so before the next batch; the resumed run repeats that validation. A signal to one rank ends
    all of them at the same step: each step they exchange one number, asynchronously, so that the ranks act on it one
    step later. A second signal ends the process at once. Where SLURM's automatic requeueing is on in Lightning, the job
    is put back into the queue after the checkpoint.

    While training runs this takes the place of Lightning's own handlers, which act in the middle of a step.

    Args:
        signals: names of the signals.

    Raises:
        ValueError: an unknown signal; at the start of training, no :class:`LastCheckpoint` among the callbacks.
    """

    def __init__(self, signals: Sequence[str] = ("SIGTERM", "SIGINT", "SIGUSR1")) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown or isinstance(signals, str):
            raise ValueError(f"signals is a list of names such as SIGTERM, got {signals!r}")
        self.signals = tuple(signal.Signals[name] for name in signals)
        self._received = 0
        self._agreed = 0
        self.left = 0
        """The signal that arrived when no step was left to end at, the same on all ranks; 0 for none."""
        self._installed = False
        self._trainer: Trainer | None = None
        self._before: dict[signal.Signals, Any] = {}
        self._group: dist.ProcessGroup | None = None
        self._pending: tuple[dist.Work, torch.Tensor] | None = None
        self._shared_batches = 0

    # ---------------------------------------------------------------- signals

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals; Lightning puts back what it found, or on_train_end does."""
        self._last(trainer)
        self._received = self._agreed = self.left = 0
        self._pending, self._trainer = None, trainer
        if trainer.world_size > 1:
            group = dist.new_group(backend="gloo")  # beside the gradients' group, and for numbers on the CPU
            assert isinstance(group, dist.ProcessGroup)
            self._group = group
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in self.signals}
        self._installed = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Training is complete: signals are what they were."""
        self._installed = False
        if self._group is not None:
            latest = torch.tensor([self._received])
            dist.all_reduce(latest, op=dist.ReduceOp.MAX, group=self._group)
            self._received = int(latest)
        self.left = self._received
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
        self._drop_group()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the exchange; the handlers go with Lightning's teardown."""
        self._installed = False
        self._pending = self._group = None

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._received:  # the second: at once, for the other processes that Lightning started as well
            if self._trainer is not None:
                signal_started_processes(self._trainer, number)
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self._received = number
        name = signal.Signals(number).name
        text = f"{name}: a checkpoint is saved after this step, then this ends; a second signal ends it at once\n"
        os.write(2, text.encode())  # print is not safe within a handler

    # ---------------------------------------------------------------- steps

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save and end, if the ranks agree on a signal and no gradients are accumulated."""
        if self._signal() and is_between_steps(trainer):
            self._end(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ranks may have different numbers of batches: they exchange signals in those that all have."""
        if self._installed:
            first = trainer.num_val_batches[0] if trainer.num_val_batches else 0  # signals are exchanged in its batches
            batches = min(float(first), 2.0**52)
            self._shared_batches = int(batches)
            if self._group is not None:
                fewest = torch.tensor([int(batches)])
                dist.all_reduce(fewest, op=dist.ReduceOp.MIN, group=self._group)
                self._shared_batches = int(fewest)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """As in training."""
        exchanges = self._installed and dataloader_idx == 0 and batch_idx < self._shared_batches
        if exchanges and self._signal() and is_between_steps(trainer):
            self._end(trainer)

    def _signal(self) -> int:
        """The number of the signal that the ranks agree on, 0 for none."""
        if self._group is None:
            self._agreed = self._received
            return self._agreed
        if self._pending is not None:
            work, number = self._pending
            work.wait()
            self._agreed = max(self._agreed, int(number))
        number = torch.tensor([self._received])
        work = dist.all_reduce(number, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = work, number
        return self._agreed

    def _end(self, trainer: Trainer) -> None:
        last = self._last(trainer)
        path = last.save(trainer)
        self._drop_group()
        if trainer.is_global_zero:
            name, step = signal.Signals(self._agreed).name, trainer.global_step
            told = f"step {step} is saved in {path}"
            if not last.is_saved:
                stands = f"{path} is of an earlier step" if path.exists() else f"there is no {path}"
                told = f"step {step} COULD NOT BE SAVED, {stands}"
            print(f"{name}: {told}", file=sys.stderr, flush=True)
            _requeue(trainer)
        raise Interrupted(self._agreed, path)

    def _drop_group(self) -> None:
        if self._pending is not None:
            self._pending[0].wait()
        self._pending = self._group = None

    @staticmethod
    def _last(trainer: Trainer) -> LastCheckpoint:
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, LastCheckpoint):
                return callback
        raise ValueError("Preemption saves by LastCheckpoint: add one to the trainer's callbacks")


def end_behind(trainer: Trainer, checkpoint: Path) -> None:
    """End here, after a training that left ``checkpoint``, if a signal arrived when it had no step left to end at.

    Raises:
        Interrupted: one arrived.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    left = max((each.left for each in callbacks if isinstance(each, Preemption)), default=0)
    if left:
        if trainer.is_global_zero:
            _requeue(trainer)
        raise Interrupted(left, checkpoint)


def _requeue(trainer: Trainer) -> None:
    """What Lightning's own handler does once it has saved."""
    environment = cluster_environment(trainer)
    if not (isinstance(environment, SLURMEnvironment) and environment.auto_requeue):
        return
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID", "")
    try:
        subprocess.run(["scontrol", "requeue", job], check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"the SLURM job {job} could not be put back into the queue: {error}", file=sys.stderr, flush=True)
