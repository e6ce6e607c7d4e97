"""Brings the processes' lists of unreadable videos together, keeps them in checkpoints, and tells of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from rich.console import Console

from lit_distill._lightning import shorten_epoch
from lit_distill._screen import Screen
from lit_distill.data.catalogue.quarantine import Quarantined, QuarantineError, QuarantineList, from_json
from lit_distill.runs.artifacts import write_json
from lit_distill.runs.names import QUARANTINE_FILE


class Quarantine(Callback):
    """Keeps one list of unreadable videos in all processes, for data modules with ``on_bad="quarantine"``.

    At the end of each epoch and evaluation all processes agree on the list; later epochs leave its videos out before
    they are sampled. ``train/left_out``, ``val/left_out`` and ``test/left_out`` are logged: samples of the split that
    are on the list. Checkpoints hold it, with what the epoch under way found, so that a resumed run has the same.
    Without such a data module this does nothing.

    Args:
        folder: where ``quarantine.json`` is written (path, reason, split, epoch first seen); none for nowhere.
        console: where new entries are printed; the progress bar's, or standard output, by default.

    Raises:
        QuarantineError: (while running) more videos are unreadable than ``max_bad``, in all processes together.

    Example:
        >>> trainer = Trainer(callbacks=[Quarantine(folder="run")], logger=False, enable_checkpointing=False)
    """

    def __init__(self, *, folder: str | os.PathLike[str] | None = None, console: Console | None = None) -> None:
        super().__init__()
        self._file = None if folder is None else Path(folder) / QUARANTINE_FILE
        self._console = console
        self._list: QuarantineList | None = None
        self._distributed = False
        self._told: set[str] = set()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find the data module's list."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        self._list = getattr(datamodule, "quarantine", None)
        self._distributed = trainer.world_size > 1
        if self._list is not None:
            self._list.collected = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the trainer of the batches of the first epoch, for which a resumed run has no other hook."""
        sampler: Any = getattr(trainer.train_dataloader, "sampler", None)
        if self._list is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(trainer.current_epoch)
            self._shorten(trainer)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell the trainer of the epoch's batches, where there are fewer: it validates after the last one."""
        self._shorten(trainer)

    def _shorten(self, trainer: Trainer) -> None:
        loader: Any = trainer.train_dataloader
        if self._list is None or not self._list.agreed or not hasattr(loader, "__len__"):
            return
        batches = len(loader)
        if batches < 1:
            raise QuarantineError(f"what {len(self._list.agreed)} unreadable videos leave gives no training batch")
        if not shorten_epoch(trainer, batches):
            return
        interval = trainer.val_check_interval
        if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
            raise QuarantineError(
                f"trainer.val_check_interval={interval} is more than the {batches} batches that unreadable videos leave"
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on what the epoch found."""
        self._agree(trainer, pl_module, "train")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on what the validation found."""
        self._agree(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on what the test found."""
        self._agree(trainer, pl_module, "test")

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Agree on what the prediction found."""
        self._agree(trainer, pl_module, None)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the list of what stopped the run."""
        if self._list is not None and isinstance(exception, QuarantineError):
            self._list.merge([self._list.found])
            self._write(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The list of all processes; every process must ask for it at the same time, as for any checkpoint."""
        if self._list is None:
            return {}
        union = QuarantineList(max_bad=self._list.max_bad, root=self._list.root)
        union.merge([self._list.entries, *self._gathered(self._list.found)])
        return {"quarantine": union.to_json()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over the list of a checkpoint.

        Raises:
            ValueError: it is malformed.
        """
        if self._list is not None and state_dict:
            self._list.merge([from_json(state_dict)])

    def _agree(self, trainer: Trainer, pl_module: LightningModule, split: str | None) -> None:
        if self._list is None:
            return
        self._list.merge(self._gathered(self._list.found))
        self._write(trainer)
        self._list.check()
        self._tell(trainer)
        admission = trainer.datamodule.admissions.get(split)  # type: ignore[attr-defined]
        if admission is not None and not trainer.sanity_checking:
            pl_module.log(f"{split}/left_out", float(admission.left_out()), on_epoch=True)

    def _gathered(self, found: list[Quarantined]) -> list[list[Quarantined]]:
        if not self._distributed:
            return [found]
        lists: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(lists, [tuple(entry) for entry in found])
        return lists

    def _write(self, trainer: Trainer) -> None:
        if self._file is not None and trainer.is_global_zero and self._list is not None and self._list.agreed:
            write_json(self._file, {"videos": self._list.to_json()})

    def _tell(self, trainer: Trainer) -> None:
        assert self._list is not None
        new = [entry for entry in self._list.entries if entry.path not in self._told]
        self._told.update(entry.path for entry in new)
        if not new or not trainer.is_global_zero:
            return
        bar = trainer.progress_bar_callback
        say = self._console.print if self._console is not None else bar.print if bar is not None else Screen().print
        splits = trainer.datamodule.admissions.items()  # type: ignore[attr-defined]
        shares = ", ".join(f"{admission.left_out()} of {split}" for split, admission in splits)
        count = len(self._list.agreed)
        say(f"quarantine: {count} of at most {self._list.max_bad} videos can't be read; left out: {shares}")
        for entry in new:
            say(f"  {entry.path}: {entry.reason}")
