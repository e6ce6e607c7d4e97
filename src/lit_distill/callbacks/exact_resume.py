"""The home of exact resume: all that makes a resumed run equal the uninterrupted one, bit for bit, and who holds it.

State is in the checkpoint, or follows from the seed and the place in the run alone and has no key ("-"). Whoever adds
state adds its row: a test compares the keys with those of a real checkpoint.

====================================  ==================  =======================================  ==================
what                                  held by             key of the checkpoint                    restored
====================================  ==================  =======================================  ==================
what trains: weights and buffers      CheckpointedModule  state_dict                               setup
parameters and banks of losses        LossComposer        state_dict                               setup
averaged teachers                     EMATeacher          state_dict                               setup
frozen models, as hashes              FrozenRecord        lit_distill.frozen_records               setup, compared
names of all models and frozen ones   CheckpointedModule  lit_distill.models, lit_distill.frozen   setup, compared
release and format of the file        CheckpointedModule  lit_distill.version, lit_distill.format  setup, compared
the student, of several candidates    CheckpointedModule  lit_distill.student                      setup
settings of losses, to compare        CheckpointedModule  lit_distill.losses                       setup, compared
terms as last logged, for the screen  CheckpointedModule  lit_distill.last_terms                   setup
sums of terms since then              RunningTerms        lit_distill.train_terms                  on_train_start
metrics of the last validation        CheckpointedModule  lit_distill.figures                      not restored
skipped steps                         NonFinite           callbacks.NonFinite                      setup
unreadable videos                     Quarantine          callbacks.Quarantine                     setup
number of validations                 MediaLogger         callbacks.MediaLogger                    setup
hashes of batches, time, memory       Account             callbacks.Account                        setup
best checkpoint so far                Lightning           callbacks.ModelCheckpoint                setup
metrics for callbacks and loggers     ExactResume         callbacks.ExactResume                    on_fit_start
a logger's unwritten row              MetricsCSV          callbacks.ExactResume                    on_fit_start
optimizers                            Lightning           optimizer_states                         before training
learning rate schedules               Lightning           lr_schedulers                            before training
loss scale of fp16                    Lightning           MixedPrecision                           before training
progress, corrected                   ExactResume         loops                                    on_train_start
epoch and step, as in loops           Lightning           epoch, global_step                       not restored
release of Lightning                  Lightning           pytorch-lightning_version                setup, migrated
batches of the epoch that are done    ResumableLoader     -                                        first batch
order of samples                      EpochSampler        -                                        each epoch
augmentations, mixing                 SampleDataModule    -                                        each sample, batch
draws of a step                       StepSeed            -                                        each batch
signals of frozen models              TeacherCache        -                                        from its folder
====================================  ==================  =======================================  ==================

``setup`` is where Lightning restores modules and callbacks, between their ``setup`` and ``on_fit_start``; "before
training" is between ``on_fit_start`` and ``on_train_start``. A checkpoint is of a moment between two optimizer steps,
which :class:`lit_distill.callbacks.LastCheckpoint` chooses: no gradients wait, and all of the step is logged.
"""

from __future__ import annotations

import random
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lit_distill._lightning import correct_restored_progress, correct_saved_progress, train_loaders
from lit_distill.data.resumable import ResumableLoader


class ExactResume(Callback):
    """Adds logged metrics, loggers and the exact position to every checkpoint, and restores them.

    Loggers are those with a ``state_dict``. A checkpoint from within a validation resumes at the start of that
    validation. Loaders of the class :class:`lit_distill.data.ResumableLoader` begin behind the batches that are done.

    A run equals the uninterrupted one bit for bit if it resumes from :class:`lit_distill.callbacks.LastCheckpoint`,
    with :class:`lit_distill.callbacks.StepSeed` and a sampler that is a function of the epoch. Means that a module's
    own ``self.log(on_epoch=True)`` collects over a training epoch are Lightning's, and start from zero.
    """

    def __init__(self) -> None:
        self._state: dict[str, Any] = {}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the metrics and the loggers' state, and correct the progress."""
        checkpoint["callbacks"][self.state_key] = {
            "callback_metrics": _plain(trainer.callback_metrics),
            "logged_metrics": _plain(trainer.logged_metrics),
            "loggers": [logger.state_dict() if hasattr(logger, "state_dict") else {} for logger in trainer.loggers],
        }
        correct_saved_progress(trainer, checkpoint)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the metrics until the trainer is ready for them."""
        self._state = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the metrics, also where the run turns out to be finished."""
        state, self._state = self._state, {}
        if state:
            trainer.callback_metrics.update(state["callback_metrics"])
            trainer.logged_metrics.update(state["logged_metrics"])
            for logger, stored in zip(trainer.loggers, state["loggers"], strict=False):
                if stored and hasattr(logger, "load_state_dict"):
                    logger.load_state_dict(stored)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Correct the progress, and have the loaders begin where it is."""
        correct_restored_progress(trainer)
        for loader in _loaders(trainer):
            loader.follow(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Have the loaders begin at their beginning: whoever iterates next wants all batches."""
        for loader in _loaders(trainer):
            loader.position = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """As at the end of training."""
        self.on_train_end(trainer, pl_module)


class StepSeed(Callback):
    """Seeds torch, numpy and random before every batch from (seed, stage, epoch, batch, rank).

    So a resumed run draws what the uninterrupted one would have drawn, though no generator's state is stored.

    Args:
        seed: of the run.

    Example:
        >>> from lightning import Trainer
        >>> trainer = Trainer(callbacks=[StepSeed(seed=7)], accelerator="cpu", logger=False)
    """

    def __init__(self, *, seed: int = 0) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Seed a training step."""
        self._seed("train", trainer, batch_idx)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Seed a validation step."""
        self._seed(f"val{dataloader_idx}", trainer, batch_idx)

    def _seed(self, stage: str, trainer: Trainer, batch: int) -> None:
        seed = seed_of(self.seed, stage, trainer.current_epoch, batch, trainer.global_rank)
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002 - the generator that users' code draws from
        random.seed(seed)


def seed_of(*parts: object) -> int:
    """A number below 2^63, the same on every machine for the same parts.

    Example:
        >>> seed_of(0, "train", 3, 17, 0) == seed_of(0, "train", 3, 17, 0) != seed_of(0, "train", 3, 17, 1)
        True
    """
    return int.from_bytes(blake2b("/".join(map(str, parts)).encode(), digest_size=8).digest(), "big") >> 1


def _loaders(trainer: Trainer) -> list[ResumableLoader[Any]]:
    return [loader for loader in train_loaders(trainer) if isinstance(loader, ResumableLoader)]


def _plain(metrics: dict[str, Any]) -> dict[str, Any]:
    return {n: v.detach().cpu().clone() if isinstance(v, Tensor) else v for n, v in metrics.items()}
