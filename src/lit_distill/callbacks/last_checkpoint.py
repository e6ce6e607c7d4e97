"""last.ckpt, saved between two steps: nothing of the step before is pending, nothing of the next has begun."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from weakref import proxy

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lit_distill._lightning import batches_done, is_between_steps
from lit_distill.runs.names import LAST


class LastCheckpoint(ModelCheckpoint):
    """Saves ``last.ckpt`` after every epoch, and every ``every_n_steps`` optimizer steps.

    Lightning's ModelCheckpoint saves while a step's figures are still to be logged, and an epoch's end before its row
    is. This one saves right before the next step: after logging, validation and the epoch's end, with no gradients
    accumulated. Where training ends it saves once more.

    Args:
        dirpath: the folder; by default as in ModelCheckpoint.
        every_n_steps: additionally every so many optimizer steps; None for epochs alone.

    Raises:
        ValueError: ``every_n_steps`` is below 1.

    Example:
        >>> LastCheckpoint("checkpoints", every_n_steps=500).every_n_steps
        500
    """

    def __init__(self, dirpath: str | os.PathLike[str] | None = None, *, every_n_steps: int | None = None) -> None:
        if every_n_steps is not None and (isinstance(every_n_steps, bool) or every_n_steps < 1):
            raise ValueError(f"every_n_steps is a number of optimizer steps from 1, or None, got {every_n_steps!r}")
        super().__init__(None if dirpath is None else os.fspath(dirpath), filename=LAST, enable_version_counter=False)
        self.every_n_steps = every_n_steps
        self._place: tuple[int, int, int] | None = None
        self.is_saved = False
        """On the first rank, whether the last :meth:`save` has written a file: a CheckpointIO may only warn."""

    @property
    def state_key(self) -> str:
        """The same for any ``every_n_steps``, which may be changed between runs."""
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is last needs no memory."""
        return {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What training starts from is not saved again."""
        super().on_train_start(trainer, pl_module)
        self._place = _place(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Save what the steps so far have made, where it is due."""
        step = trainer.global_step
        due = batch_idx == 0 or (self.every_n_steps is not None and step % self.every_n_steps == 0)
        if step and due and is_between_steps(trainer) and _place(trainer) != self._place:
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save what training has made."""
        if trainer.global_step:
            self.save(trainer)

    def save(self, trainer: Trainer) -> Path:
        """Save now; on all ranks together, and only between two optimizer steps.

        Returns:
            the file.
        """
        path = Path(self.format_checkpoint_name({}))
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            before = _stamp(path)
            trainer.save_checkpoint(path)
            self.is_saved = _stamp(path) not in (None, before)
            self.last_model_path = self.best_model_path = str(path)
            self._place = _place(trainer)
            for logger in trainer.loggers if trainer.is_global_zero else []:
                logger.after_save_checkpoint(proxy(self))
        return path

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        """Nothing: metrics are not logged yet, and other callbacks may still act on a validation."""

    on_validation_end = on_train_epoch_end = on_train_batch_end


def _stamp(path: Path) -> tuple[int, int] | None:
    """Tells a file from the one that stood there before: a checkpoint is renamed to its place."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _place(trainer: Trainer) -> tuple[int, int, int]:
    return trainer.global_step, trainer.current_epoch, batches_done(trainer)
