"""What checkpoints of a DistillModule hold: what is trained, and hashes of what is frozen; how they are read back.

All state of a run, with who holds it, is listed in :mod:`lit_distill.callbacks.exact_resume`.
"""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, cast

from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn

from lit_distill._lightning import trainer_of
from lit_distill._module.averaging import complete_averaged
from lit_distill._module.frozen import FrozenRecord, changed_error, check_keys
from lit_distill._module.hyperparameters import Composers, Settings, keep_settings, loss_settings, settings_that_held
from lit_distill._module.named import NamedModels
from lit_distill._module.step import RunningTerms
from lit_distill._version import versions
from lit_distill.checkpoints import CheckpointError, read_checkpoint

FORMAT = 1
"""What ``checkpoint["lit_distill"]["format"]`` says; raised when older releases could not read it."""


class CheckpointedModule(NamedModels):
    """The part of :class:`lit_distill.DistillModule` that saves and loads; frozen models are held to their hashes."""

    def _keep(self, replaced_frozen: Collection[str]) -> None:
        """Set what checkpoints need: the frozen models that may be others than those of a loaded checkpoint."""
        if unknown := set(replaced_frozen) - set(self.frozen):
            raise ValueError(f"replaced_frozen names {sorted(unknown)}, which are not in frozen={list(self.frozen)}")
        self._replaced_frozen = tuple(replaced_frozen)
        self._frozen_record: FrozenRecord | None = None
        self._changed: list[str] = []  # frozen models whose values have changed, by a checkpoint of this training
        self._looked = False
        self._settings: Settings = {}
        self._train_terms = RunningTerms()
        self._stored_terms: dict[str, Any] = {}
        self.last_terms: dict[str, float] = {}
        """The training terms as they were last logged, for progress bars."""

    def _is_frozen_key(self, key: str) -> bool:
        return any(key.startswith(f"models.{name}.") for name in self.frozen)

    def _unmoved(self) -> dict[str, nn.Module]:
        """The frozen models that nothing may change."""
        return {name: self.models[name] for name in self.frozen if name not in self.moving}

    def _gather_ranks(self, tensor: Tensor) -> Tensor:
        if self.trainer.world_size == 1:
            return tensor
        return cast("Tensor", self.all_gather(tensor)).flatten(0, 1)

    def _is_unmoved_key(self, key: str) -> bool:
        return any(key.startswith(f"models.{name}.") for name in self.frozen if name not in self.moving)

    def _record_frozen(self) -> FrozenRecord:
        unmoved = self._unmoved()
        if self._frozen_record is None or not self._frozen_record.is_of(unmoved):
            self._frozen_record = FrozenRecord(unmoved)
        return self._frozen_record

    @abstractmethod
    def _composers(self) -> Composers:
        """The composers whose losses a checkpoint describes; the classes that make them say which."""

    def _record_settings(self) -> Settings:
        """Take what the losses are set to now for their hyperparameters."""
        self._settings = loss_settings(self._composers())
        return self._settings

    def on_train_start(self) -> None:
        """Take the frozen models as they stand now, on their device, for what they must stay; go on with the sums."""
        stored, self._stored_terms = self._stored_terms, {}
        self._train_terms.load_state_dict(stored, self.global_rank, self.trainer.world_size, self.device)
        if self._frozen_record is not None:
            self._frozen_record.moved(self._unmoved())
        self._changed, self._looked = [], False

    def _look_at_frozen_once(self) -> None:
        """After the first batch: what writes to a frozen model in every step need not train for epochs first."""
        if not self._looked and self._frozen_record is not None:
            self._looked = True
            self._frozen_record.require_unchanged(self._unmoved())

    def on_train_epoch_start(self) -> None:
        """Hold that the frozen models were not changed in the epoch before, whose checkpoints are written by now."""
        if self._changed or (self.current_epoch and self._frozen_record is not None):
            self._require_unchanged(thorough=False)

    def on_train_end(self) -> None:
        """Hold that the frozen models are what they were, every byte; checkpoints are written by now."""
        self._require_unchanged(thorough=True)

    def _require_unchanged(self, *, thorough: bool) -> None:
        if self._changed:
            raise changed_error(self._changed)
        if self._frozen_record is not None:
            self._frozen_record.require_unchanged(self._unmoved(), thorough=thorough)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen models out, which come from their own weights files, and record their hashes.

        A checkpoint within training is written even where one of them has changed, and says so: the student is not to
        be lost. Training then ends with the epoch.
        """
        record, unmoved = self._frozen_record or self._record_frozen(), self._unmoved()
        if not self.trainer.training and not self.trainer.validating:
            record.require_unchanged(unmoved)
        elif changed := record.changed(unmoved):
            self._changed = changed
        for key in ("state_dict", "current_model_state"):  # the second of Lightning's WeightAveraging
            if key in checkpoint:
                state = checkpoint[key]
                checkpoint[key] = {name: value for name, value in state.items() if not self._is_unmoved_key(name)}
        complete_averaged(checkpoint)
        figures = {name: float(value) for name, value in self.trainer.callback_metrics.items() if "/" in name}
        checkpoint["lit_distill"] = {
            "format": FORMAT,
            "version": versions()["lit_distill"],
            "models": list(self.models),
            "frozen": list(self.frozen),
            "frozen_records": {name: record.stored[name] for name in unmoved},
            "student": self.student,
            "losses": settings_that_held(self._composers(), self._settings or self._record_settings()),
            "figures": {name: value for name, value in figures.items() if name.startswith("val/")},
            "train_terms": self._train_terms.state_dict(self._gather_ranks),
            "last_terms": dict(self.last_terms),
            **({"changed_frozen": self._changed} if self._changed else {}),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Put the frozen models' present tensors beside the stored ones, so that loading stays strict.

        Raises:
            ValueError: the checkpoint is of a newer release or another module; a frozen model is another one than it
                was trained with; a tensor is missing, unexpected or of another shape.
        """
        stored = check_record(checkpoint, self.frozen)
        self._stored_terms = dict(stored.get("train_terms", {}))
        self.last_terms = dict(stored.get("last_terms", {}))
        if stored.get("student") in self.candidates:
            self.student = stored["student"]
        (self._frozen_record or self._record_frozen()).compare(
            stored.get("frozen_records", {}), self._replaced_frozen, admit="replaced_frozen=[{}]"
        )
        state = self.state_dict()
        moved = sorted({key.split(".")[1] for key in checkpoint["state_dict"] if self._is_unmoved_key(key)})
        trainer = trainer_of(self)
        if moved and trainer is not None and trainer.training:
            raise ValueError(
                f"the checkpoint was trained with a callback that moves {moved}, such as EMATeacher: add it"
            )
        if changed := stored.get("changed_frozen"):
            rank_zero_warn(
                f"the checkpoint was written after something had changed {', '.join(map(str, changed))}, which is "
                "frozen: its student learned from a wrong teacher"
            )
        present = {key: value for key, value in state.items() if self._is_unmoved_key(key)}
        for key in ("state_dict", "current_model_state"):
            if key in checkpoint:
                checkpoint[key] = {**present, **checkpoint[key]}
                keep_settings(
                    self._composers(), self._settings or self._record_settings(), stored.get("losses", {}),
                    checkpoint[key], warn=key == "state_dict",
                )  # fmt: skip
        if self.strict_loading:
            check_keys(state, checkpoint["state_dict"])

    @classmethod
    def load_from_checkpoint(cls, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's, but verified, always under ``weights_only``, and with nothing that the file says to call.

        Raises:
            ValueError: the file is damaged or refused.
        """
        if isinstance(checkpoint_path, (str, os.PathLike)):
            refuse_instantiator(read_checkpoint(checkpoint_path), checkpoint_path)
        if kwargs.setdefault("weights_only", True) is not True:
            raise ValueError("checkpoints are read with weights_only=True alone")
        return super().load_from_checkpoint(checkpoint_path, *args, **kwargs)


def check_record(checkpoint: Mapping[str, Any], frozen: Collection[str]) -> Mapping[str, Any]:
    """What a checkpoint of :class:`DistillModule` tells of itself.

    Raises:
        CheckpointError: it is of a newer release, of another kind of module, or other models were frozen.
    """
    record = checkpoint.get("lit_distill")
    if not isinstance(record, Mapping):
        raise CheckpointError(
            "the checkpoint was not written by DistillModule: training cannot resume from it; "
            "its weights can be loaded by models.<Name>.pretrained=<file>#<Name>"
        )
    if record.get("format", 0) > FORMAT:
        raise CheckpointError(
            f"the checkpoint was written by lit_distill {record.get('version')} in format {record['format']}, and this "
            f"release reads formats up to {FORMAT}: upgrade lit_distill"
        )
    if set(record["frozen"]) != set(frozen):
        raise CheckpointError(
            f"the checkpoint was trained with frozen={sorted(record['frozen'])}, here it is frozen={sorted(frozen)}"
        )
    return record


def refuse_instantiator(checkpoint: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Raise a CheckpointError where a checkpoint names something to call in place of the module's own class."""
    arguments = checkpoint.get("hyper_parameters")
    if isinstance(arguments, Mapping) and any(str(key).startswith("_") for key in arguments):
        raise CheckpointError(f"{path} is refused: it says what to call to build the module")
