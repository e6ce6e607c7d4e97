"""Numbers that change with the epoch: learning-rate multipliers and weights of loss terms.

A schedule is any callable of the fractional epoch (2.5: halfway through the third), giving a float. Those below are
frozen dataclasses: they compare by value, pickle, and are written in YAML by their class name.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass


class Schedule(ABC):
    """A callable of the fractional epoch; DistillModule steps one given as ``scheduler`` every optimizer step."""

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """The scheduled value at ``epoch``, counted from 0."""


@dataclass(frozen=True)
class Constant(Schedule):
    """The same value at every epoch.

    Args:
        value: that value.

    Example:
        >>> Constant(0.5)(7.25)
        0.5
    """

    value: float

    def __call__(self, epoch: float) -> float:
        """``value``."""
        return self.value


@dataclass(frozen=True, kw_only=True)
class Linear(Schedule):
    r"""A straight line: :math:`start + (end - start)\, p` with :math:`p = \min(\max((e - delay) / epochs, 0), 1)`.

    Args:
        start: value up to epoch ``delay``.
        end: value from epoch ``delay + epochs`` on.
        epochs: length of the way, above 0; may be fractional.
        delay: where the way begins, at least 0.

    Raises:
        ValueError: ``epochs`` is not above 0, or ``delay`` below 0.

    Example:
        >>> warm_up = Linear(start=0.0, end=1.0, epochs=20)
        >>> warm_up(0), warm_up(5), warm_up(100)
        (0.0, 0.25, 1.0)
    """

    start: float
    end: float
    epochs: float
    delay: float = 0.0

    def __post_init__(self) -> None:
        _require_way(self.epochs, self.delay, "Linear")

    def __call__(self, epoch: float) -> float:
        """Value at the fractional ``epoch``."""
        return self.start + (self.end - self.start) * _progress(epoch - self.delay, self.epochs)


@dataclass(frozen=True, kw_only=True)
class Cosine(Schedule):
    r"""Half a cosine wave: :math:`end + (start - end) \cdot (1 + \cos \pi p) / 2`, with p as in :class:`Linear`.

    Args:
        start: value up to epoch ``delay``.
        end: value from epoch ``delay + epochs`` on.
        epochs: length of the way, above 0; may be fractional.
        delay: where the way begins, at least 0.

    Raises:
        ValueError: ``epochs`` is not above 0, or ``delay`` below 0.

    Example:
        >>> decay = Cosine(start=1.0, end=0.0, epochs=100)
        >>> decay(0), round(decay(50), 12), decay(100)
        (1.0, 0.5, 0.0)
    """

    start: float
    end: float
    epochs: float
    delay: float = 0.0

    def __post_init__(self) -> None:
        _require_way(self.epochs, self.delay, "Cosine")

    def __call__(self, epoch: float) -> float:
        """Value at the fractional ``epoch``."""
        wave = (1.0 + math.cos(math.pi * _progress(epoch - self.delay, self.epochs))) / 2.0
        return self.end + (self.start - self.end) * wave


@dataclass(frozen=True, kw_only=True)
class RampUp(Schedule):
    r"""The warm-up of a term that must not speak before the networks know something.

    .. math:: w(e) = end \cdot \exp(-5 (1 - p)^2), \qquad p = \min(\max((e - delay) / epochs, 0), 1)

    and 0 before ``delay``. The ramp-up of consistency weights in temporal ensembling (Laine & Aila, ICLR 2017) and mean
    teachers (Tarvainen & Valpola, NeurIPS 2017): it begins at 0.7 % of ``end``, and is at 29 % halfway.

    Args:
        epochs: length of the ramp, above 0; may be fractional.
        end: value from epoch ``delay + epochs`` on.
        delay: up to here the value is 0, at least 0.

    Raises:
        ValueError: ``epochs`` is not above 0, or ``delay`` below 0.

    Example:
        >>> ramp = RampUp(epochs=10, delay=2)
        >>> [round(ramp(epoch), 4) for epoch in (1.9, 2, 7, 12, 100)]
        [0.0, 0.0067, 0.2865, 1.0, 1.0]
    """

    epochs: float
    end: float = 1.0
    delay: float = 0.0

    def __post_init__(self) -> None:
        _require_way(self.epochs, self.delay, "RampUp")

    def __call__(self, epoch: float) -> float:
        """Value at the fractional ``epoch``."""
        if epoch < self.delay:
            return 0.0
        return self.end * math.exp(-5.0 * (1.0 - _progress(epoch - self.delay, self.epochs)) ** 2)


@dataclass(frozen=True, kw_only=True)
class Relative(Schedule):
    """Another schedule whose epochs are shares of the whole training: :math:`s(e / total)`.

    Args:
        schedule: of the share done, 0 at the start and 1 at the end of training.
        total: epochs of the training, above 0; in YAML ``${trainer.max_epochs}``.

    Raises:
        ValueError: ``total`` is not above 0.

    Example:
        >>> first_fifth = Relative(schedule=Linear(start=0.0, end=1.0, epochs=0.2), total=50)
        >>> first_fifth(0), first_fifth(5), first_fifth(10)
        (0.0, 0.5, 1.0)
    """

    schedule: Callable[[float], float]
    total: float

    def __post_init__(self) -> None:
        if not isinstance(self.total, (int, float)) or not 0 < self.total < math.inf:
            raise ValueError(
                f"Relative expects total above 0, the epochs of the training, got {self.total}: "
                "set trainer.max_epochs, or write the schedule in epochs"
            )

    def __call__(self, epoch: float) -> float:
        """Value at the fractional ``epoch``."""
        return self.schedule(epoch / self.total)


@dataclass(frozen=True, kw_only=True)
class Step(Schedule):
    r"""A staircase: :math:`start \cdot factor^{k}` with k the number of milestones at or before the epoch.

    Args:
        milestones: epochs of the steps, ascending.
        factor: what each step multiplies by.
        start: value before the first milestone.

    Raises:
        ValueError: the milestones do not ascend.

    Example:
        >>> stairs = Step(milestones=(30, 60), factor=0.1)
        >>> stairs(29.9), stairs(30), round(stairs(75), 12)
        (1.0, 0.1, 0.01)
    """

    milestones: Sequence[float]
    factor: float
    start: float = 1.0

    def __post_init__(self) -> None:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(
                f"Step expects ascending milestones, got {list(self.milestones)}: sort them, drop duplicates"
            )

    def __call__(self, epoch: float) -> float:
        """Value at the fractional ``epoch``."""
        return float(self.start * self.factor ** sum(epoch >= milestone for milestone in self.milestones))


@dataclass(frozen=True, kw_only=True)
class WarmupCosine(Schedule):
    r"""A linear warm-up into a cosine that has been running since epoch 0 (unshifted), as multiplier of a base value.

    .. math::
        c(e) = \tfrac12 (1 + \cos(\pi e / E)), \qquad
        m(e) = \begin{cases} s + (c(w) - s)\, e / w & e < w \\ c(e) & e \ge w \end{cases}

    Matches PaddleVideo's ``CustomWarmupCosineDecay``: the warm-up ends on the cosine at epoch w, not on the base value,
    and nothing is shifted. Its ``warmup_start_lr`` is here the ratio to its ``cosine_base_lr``. Unlike there, epochs
    past the end stay at 0 instead of climbing the next half wave, and a warm-up longer than all epochs is cut to them.

    Args:
        epochs: E, where the value reaches 0; above 0.
        warmup_epochs: w, length of the warm-up, at least 0; 0 is none.
        warmup_start: s, multiplier at epoch 0, at least 0. The published recipes all start at half.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> schedule = WarmupCosine(epochs=120, warmup_epochs=10)
        >>> [round(0.005 * schedule(epoch), 7) for epoch in (0, 10, 60, 120)]
        [0.0025, 0.0049148, 0.0025, 0.0]
    """

    epochs: float
    warmup_epochs: float
    warmup_start: float = 0.5

    def __post_init__(self) -> None:
        _require_positive(self.epochs, "WarmupCosine")
        for name in ("warmup_epochs", "warmup_start"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"WarmupCosine expects {name} of at least 0, got {getattr(self, name)}")

    def __call__(self, epoch: float) -> float:
        """Multiplier at the fractional ``epoch``."""
        warmup = min(self.warmup_epochs, self.epochs)
        if epoch < warmup:
            return self.warmup_start + (self._cosine(warmup) - self.warmup_start) / warmup * epoch
        return self._cosine(epoch)

    def _cosine(self, epoch: float) -> float:
        return (math.cos(math.pi * min(epoch, self.epochs) / self.epochs) + 1.0) * 0.5


def _progress(epoch: float, epochs: float) -> float:
    return min(max(epoch / epochs, 0.0), 1.0)


def _require_way(epochs: float, delay: float, name: str) -> None:
    _require_positive(epochs, name)
    if not 0 <= delay < math.inf:
        raise ValueError(f"{name} expects a delay of at least 0, got {delay}")


def _require_positive(epochs: float, name: str) -> None:
    if not epochs > 0:  # also NaN
        raise ValueError(f"{name} expects epochs above 0, got {epochs}: say over how many the value changes")
