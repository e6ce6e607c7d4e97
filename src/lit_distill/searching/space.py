"""The settings that a search draws from, checked against the experiment's config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from omegaconf import DictConfig, OmegaConf

from lit_distill._command.arguments import as_hydra, literal

OWN_KEYS = ("hydra.run.dir", "run_dir", "resume", "ckpt_path")


@dataclass(frozen=True)
class Axis:
    """One setting that is searched: choices as Hydra writes them, or a range with both ends."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    step: float | None = None

    @classmethod
    def parse(cls, key: str, given: Any) -> Axis:
        """Read a list of choices, or a mapping of low, high, log, step.

        Raises:
            ValueError: it is neither, or a range is none.

        Example:
            >>> Axis.parse("losses.kd.loss.temperature", [1, 4]).choices
            ('1', '4')
            >>> Axis.parse("preset.lr", {"low": 0.001, "high": 0.1, "log": True}).high
            0.1
        """
        if isinstance(given, Sequence) and not isinstance(given, str):
            if not given:
                raise ValueError(f"space: {key} has no choices")
            return cls(key, tuple(_as_override(choice) for choice in given))
        if not isinstance(given, Mapping) or not {"low", "high"} <= set(given) <= {"low", "high", "log", "step"}:
            raise ValueError(f"space: {key} is a list of choices, or low and high with log or step; got {given!r}")
        low, high, log, step = given["low"], given["high"], bool(given.get("log", False)), given.get("step")
        if not low < high or (log and (low <= 0 or step is not None)):
            raise ValueError(
                f"space: {key} goes from low to high, above 0 and without a step if log; got {dict(given)}"
            )
        return cls(key, (), low, high, log, step)

    def draw(self, trial: Any) -> str:
        """The value of an Optuna trial, as Hydra writes it."""
        if self.choices:
            return str(trial.suggest_categorical(self.key, self.choices))
        if isinstance(self.low, int) and isinstance(self.high, int):
            return str(trial.suggest_int(self.key, self.low, self.high, log=self.log, step=int(self.step or 1)))
        return repr(float(trial.suggest_float(self.key, self.low, self.high, log=self.log, step=self.step)))


def _as_override(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_as_override(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ",".join(map(_as_override, value)) + "]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return literal(value) if isinstance(value, str) else str(value)


def axes_of(config: DictConfig) -> list[Axis]:
    """What is searched; every key is one of the experiment's, or an argument that something of it takes.

    Raises:
        ValueError: nothing is searched, or a key is none.
    """
    space: Any = OmegaConf.to_container(config.space, resolve=True)
    if not space:
        raise ValueError("search needs sweep=<name>, or a space of its own: space='{preset.lr: [0.001,0.01]}'")
    for override in config.train:
        key = str(override).lstrip("+~").partition("=")[0]
        if key in OWN_KEYS:
            raise ValueError(f"{key} is what search sets itself, for each trial; leave out {override}")
    composed = compose("train", as_hydra([*map(str, config.train), "run_dir=."]))
    axes = [Axis.parse(str(key), given) for key, given in space.items()]
    for axis in axes:
        parent, _, name = axis.key.rpartition(".")
        holder = OmegaConf.select(composed, parent) if parent else composed
        is_term = parent.rpartition(".")[0] in ("losses", "val_losses")
        known = isinstance(holder, DictConfig) and (name in holder or "_target_" in holder or is_term)
        if not known:
            raise ValueError(f"space: {axis.key} is no setting of this experiment (see train … --cfg job)")
    return axes
