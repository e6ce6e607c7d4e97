"""What Lightning's checkpoints leave out or get wrong, so that a resumed run equals the uninterrupted one."""

from __future__ import annotations

from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distill._lightning import correct_restored_progress, correct_saved_progress, train_loaders
from lit_distill.data.resumable import ResumableLoader


class ExactResume(Callback):
    """Keeps the logged figures and the exact position in every checkpoint, and goes on from there.

    In the checkpoint, besides Lightning's own: the metrics logged so far, the state of loggers that have a
    ``state_dict``, and the loops' progress without the half-begun batch that a checkpoint between two steps counts. A
    checkpoint taken in validation goes on with the whole validation. Loaders of the class
    :class:`lit_distill.data.ResumableLoader` are made to begin behind the batches that are done.

    Bit for bit are resumes from :class:`lit_distill.callbacks.LastCheckpoint`, which saves between two steps, given
    :class:`lit_distill.callbacks.StepSeed` and a sampler that is a function of the epoch. Means that a module's own
    ``self.log(on_epoch=True)`` collects over a training epoch are Lightning's, and begin anew.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the figures, set the progress right."""
        checkpoint["callbacks"][self.state_key] = {
            "callback_metrics": _plain(trainer.callback_metrics),
            "logged_metrics": _plain(trainer.logged_metrics),
            "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else {} for logger in trainer.loggers],
        }
        correct_saved_progress(trainer, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the figures until the trainer is ready for them."""
        self._state = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the figures back, also where the run turns out to be finished."""
        state, self._state = self._state, {}
        if state:
            trainer.callback_metrics.update(state["callback_metrics"])
            trainer.logged_metrics.update(state["logged_metrics"])
            for logger, stored in zip(trainer.loggers, state["loggers"], strict=False):
                if stored and hasattr(logger, "load_state_dict"):
                    logger.load_state_dict(stored)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the half-begun batch in the totals, and let the loaders follow."""
        correct_restored_progress(trainer)
        for loader in _loaders(trainer):
            loader.follow(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the loaders be the user's again."""
        self._let_go(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let the loaders be the user's again."""
        self._let_go(trainer)

    @staticmethod
    def _let_go(trainer: Trainer) -> None:
        for loader in _loaders(trainer):
            loader.let_go()


def _loaders(trainer: Trainer) -> list[ResumableLoader[Any]]:
    return [loader for loader in train_loaders(trainer) if isinstance(loader, ResumableLoader)]


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {n: v.detach().cpu().clone() if isinstance(v, Tensor) else v for n, v in metrics.items()}
