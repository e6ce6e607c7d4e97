"""What a comparison has to know of a run: which samples it was shown, and what it took."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import ACCOUNT_FILE

_MIB = 1 << 20


class Account(Callback):
    """Writes ``account.json`` when training is done, so that two runs can be held to be a pair.

    ``order`` is a SHA-256 over the samples of every training batch, in order (their index; their target where a batch
    has no index); ``pixels`` one over the inputs of each epoch's first batch, as the models got them: equal ones mean
    the same augmentation. ``seconds`` and ``cpu_seconds`` are those of training and validation, workers included in the
    latter once they have ended; ``peak_mib`` is the most resident memory of this process, ``peak_cuda_mib`` the most
    that torch allocated on its GPU (null without). A resumed run adds up; under DDP all is of the first process.

    Args:
        folder: that the file is written into.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[Account(folder="runs/x")], accelerator="cpu", logger=False)
    """

    def __init__(self, *, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._state: dict[str, Any] = {
            "order": "", "pixels": "", "batches": 0, "seconds": 0.0, "cpu_seconds": 0.0, "peak_mib": 0.0,
            "peak_cuda_mib": None,
        }  # fmt: skip
        self._pending: dict[str, Any] = {}
        self._began = (0.0, 0.0)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clocks."""
        self._began = (time.perf_counter(), cpu_seconds())

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at which samples these are. A run may yet end before their step, and take them again when it resumes."""
        unpack = getattr(pl_module, "unpack", None)
        inputs, target, index = (*(unpack(batch) if callable(unpack) else batch), None, None)[:3]
        named = target if index is None else index
        self._pending = {"order": _chain(self._state["order"], named), "batches": self._state["batches"] + 1}
        if batch_idx == 0:
            self._pending["pixels"] = _chain(self._state["pixels"], inputs)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Count the batch: checkpoints of its end are to have it, whichever callback writes them."""
        self._count()

    def on_train_batch_end(self, *_: Any) -> None:
        """Count a batch without a backward pass, too."""
        self._count()

    def _count(self) -> None:
        self._state |= self._pending
        self._pending = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            content = {**self._now(), "steps": trainer.global_step, "epochs": trainer.current_epoch}
            write_json(self.folder / ACCOUNT_FILE, content)

    def state_dict(self) -> dict[str, Any]:
        """All that was counted so far."""
        return self._now()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from there."""
        self._state, self._pending = dict(state_dict), {}

    def _now(self) -> dict[str, Any]:
        cuda = torch.cuda.max_memory_allocated() / _MIB if torch.cuda.is_available() else None
        stored = self._state["peak_cuda_mib"]
        return {
            **self._state,
            "seconds": self._state["seconds"] + time.perf_counter() - self._began[0],
            "cpu_seconds": self._state["cpu_seconds"] + cpu_seconds() - self._began[1],
            "peak_mib": max(self._state["peak_mib"], peak_mib()),
            "peak_cuda_mib": stored if cuda is None else max(stored or 0.0, cuda),
        }


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended, in seconds."""
    spent = os.times()  # in hundredths of a second; this process's own is measured finer
    return time.process_time() + spent.children_user + spent.children_system


def peak_mib() -> float:
    """The most resident memory that this process has had, in MiB; 0 where the system does not tell."""
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / _MIB if sys.platform == "darwin" else most / 1024


def _chain(so_far: str, value: Any) -> str:
    """A hash over what came before and a tensor's (or nested tensors') values."""
    digest = sha256(so_far.encode())
    for tensor in _tensors(value):
        digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = [value[key] for key in sorted(value)]
    return [tensor for part in value for tensor in _tensors(part)] if isinstance(value, (list, tuple)) else []
