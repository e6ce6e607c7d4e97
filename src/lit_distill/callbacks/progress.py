"""What a run shows while it trains: a bar with speed, data wait and the terms, and a line an epoch."""

from __future__ import annotations

import time
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from lit_distill._module.step import batch_size
from lit_distill._screen import Screen

_SECONDS_BETWEEN_LINES = 15.0
_WIDTH = 80  # of a line where there is no terminal
_BAR = 10


class Progress(ProgressBar):
    """A rich progress bar with speed, the share of time spent waiting for data and the loss terms.

    Where the output is no terminal (a log file, CI) it prints a line instead, at most every 15 seconds, so that there
    is always something to see. Each epoch ends with a line that stays.

    Args:
        console: where to print; the standard output by default.
    """

    ignores_outputs = True
    """Models need not be evaluated for it."""

    def __init__(self, *, console: Console | None = None) -> None:
        super().__init__()
        self._console = console or Screen()
        self._enabled = True
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None
        self._waited = self._worked = 0.0
        self._mark = self._epoch_start = self._last_line = 0.0
        self._samples = 0
        self._compiled = 0.0

    def disable(self) -> None:
        """Show nothing (ranks above 0)."""
        self._enabled = False

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    @property
    def is_live(self) -> bool:
        """Whether a moving bar can be shown."""
        return self._enabled and self._console.is_terminal

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._console.print(*args)

    # ---------------------------------------------------------------- training

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's bar and clock."""
        self._waited = self._worked = 0.0
        self._samples = 0
        self._compiled = _seconds_compiled(pl_module)
        self._mark = self._epoch_start = self._last_line = time.perf_counter()
        self._open(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", self.total_train_batches)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The wait for this batch is over."""
        now = time.perf_counter()
        self._waited, self._mark = self._waited + now - self._mark, now

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step is done: move the bar or print a line."""
        now = time.perf_counter()
        self._worked, self._mark = self._worked + now - self._mark, now
        inputs, target = batch[:2] if isinstance(batch, (tuple, list)) and len(batch) > 1 else (batch, None)
        self._samples += batch_size(target, inputs)
        self._show(f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}", batch_idx + 1, self.total_train_batches,
                   self._status(pl_module))  # fmt: skip

    def _status(self, pl_module: LightningModule) -> list[str]:
        total = self._waited + self._worked
        speed = [f"{self._samples / total:.1f} samples/s", f"wait {100 * self._waited / total:.0f} %"] if total else []
        compiling = _seconds_compiled(pl_module) - self._compiled
        if compiling:
            speed.append(f"compiling {compiling:.1f} s")
        terms = getattr(pl_module, "last_terms", {})
        return [*speed, *(f"{name.removeprefix('train/')} {value:.3f}" for name, value in terms.items())]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the epoch's line."""
        self._close()
        if not self._enabled:
            return
        seconds = time.perf_counter() - self._epoch_start
        metrics = {**getattr(pl_module, "last_terms", {}), **trainer.callback_metrics}
        shown = [f"{name} {float(metrics[name]):.4f}" for name in sorted(metrics) if _is_headline(name)]
        line = f"epoch {trainer.current_epoch + 1}/{trainer.max_epochs}  {'  '.join(shown)}  ({seconds:.1f} s)"
        self._console.print(line, highlight=False, soft_wrap=True)

    # ---------------------------------------------------------------- validation and test

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar of its own."""
        self._close()
        if not trainer.sanity_checking:
            self._open("validation", sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Move the bar."""
        self._show("validation", batch_idx + 1, sum(trainer.num_val_batches), [])

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A bar of its own."""
        self._open("test", sum(trainer.num_test_batches))

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: Any
    ) -> None:
        """Move the bar."""
        self._show("test", batch_idx + 1, sum(trainer.num_test_batches), [])

    def on_validation_end(self, *args: Any, **kwargs: Any) -> None:
        """Take the bar away: an error's text finds the terminal clean."""
        self._close()

    on_test_end = on_exception = on_validation_end

    # ---------------------------------------------------------------- showing

    def _open(self, name: str, total: int | float) -> None:
        self._close()
        if not self.is_live:
            return
        columns = (
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=_BAR), MofNCompleteColumn(),
            TimeRemainingColumn(), TextColumn("{task.fields[status]}", markup=False),
        )  # fmt: skip
        self._bar = RichProgress(*columns, console=self._console, transient=True)
        self._bar.start()
        self._task = self._bar.add_task(name, total=None if total == float("inf") else total, status="")

    def _show(self, name: str, done: int, total: int | float, status: list[str]) -> None:
        counts = f"{name}  {done}/{total}  "
        if self._bar is not None and self._task is not None:
            # beside them a bar, the time that is left, and a space between two columns
            room = self._console.width - len(name) - 2 * len(str(total)) - 1 - _BAR - len("0:00:00") - 4
            self._bar.update(self._task, completed=done, status=_fitting(status, room))
        elif self._enabled and not self.is_live and time.perf_counter() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._last_line = time.perf_counter()
            status_text = _fitting(status, _WIDTH - len(counts))
            self._console.print(f"{counts}{status_text}".rstrip(), highlight=False, soft_wrap=True)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


def _fitting(parts: list[str], width: int) -> str:
    """As many of the parts as fit, the first ones; an ellipsis stands for the others.

    Example:
        >>> _fitting(["9.1 samples/s", "loss 0.218", "kd 0.1"], 28), _fitting(["loss 0.2", "kd 0.1"], 20)
        ('9.1 samples/s · loss 0.218 …', 'loss 0.2 · kd 0.1')
    """
    for count in range(len(parts), 0, -1):
        text = " · ".join(parts[:count]) + (" …" if count < len(parts) else "")
        if len(text) <= width:
            return text
    return ""


def _seconds_compiled(pl_module: LightningModule) -> float:
    """What ``compile`` of a DistillModule took so far."""
    return float(getattr(pl_module, "compile_seconds", 0.0))


def _is_headline(name: str) -> bool:
    return name in ("train/loss", "val/loss") or name.endswith("/top1")
