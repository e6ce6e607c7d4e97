"""Whether a torch scheduler moves with every step or with every epoch, which the scheduler itself does not say."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from lightning.pytorch.utilities import rank_zero_warn
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    ConstantLR,
    CosineAnnealingLR,
    CosineAnnealingWarmRestarts,
    CyclicLR,
    ExponentialLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    PolynomialLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.optim.swa_utils import SWALR

_LENGTHS = {
    CosineAnnealingLR: "T_max", CosineAnnealingWarmRestarts: "T_0", LinearLR: "total_iters",
    PolynomialLR: "total_iters", ConstantLR: "total_iters", StepLR: "step_size", SWALR: "anneal_epochs",
}  # fmt: skip
_ASK = (
    'if it counts steps, have the factory give {"scheduler": …, "interval": "step"}; with "interval": "epoch" this is '
    "not asked"
)
_KEYS = ("scheduler", "interval", "frequency", "monitor", "strict", "name", "reduce_on_plateau")


def scheduler_config(made: Any, *, steps: float, epochs: float, student: str) -> Any:
    """What ``configure_optimizers`` gives for what a scheduler factory made.

    A dict (``{"scheduler": …, "interval": "step"}``) says itself how often it moves. A scheduler moves with every
    epoch, except one that is, or holds, ``OneCycleLR``, ``CyclicLR`` or a schedule of transformers: these count
    optimizer steps, unless they have as many as the training has epochs. A warning asks about others whose length fits
    steps, or is not known. ``ReduceLROnPlateau`` watches the validation loss, or with ``mode="max"`` the student's
    top-1, unless a dict names a ``monitor``.

    Args:
        made: the scheduler, or a dict with it.
        steps: optimizer steps of the training; infinite where that is not known.
        epochs: of the training; infinite where that is not known.
        student: name of the student.

    Raises:
        ValueError: it is neither, a dict has an unknown key, or a ``OneCycleLR`` ends before the training does.
    """
    given = dict(made) if isinstance(made, Mapping) else {"scheduler": made}
    if unknown := [key for key in given if key not in _KEYS]:
        near = difflib.get_close_matches(str(unknown[0]), _KEYS, n=1)
        meant = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"scheduler: the factory's dict has {unknown}, expected keys of {', '.join(_KEYS)}{meant}")
    scheduler = given.get("scheduler")
    if not (callable(getattr(scheduler, "step", None)) and callable(getattr(scheduler, "state_dict", None))):
        got = f"a dict with {type(scheduler).__name__}" if isinstance(made, Mapping) else type(made).__name__
        raise ValueError(
            "scheduler: the factory takes the optimizer and makes a torch scheduler, or a dict such as "
            f'{{"scheduler": …, "interval": "step", "monitor": "val/loss"}}, got {got}'
        )
    if isinstance(scheduler, ReduceLROnPlateau):
        given.setdefault("monitor", "val/loss" if scheduler.mode == "min" else f"val/{student}/top1")
    said = "interval" in given
    if not said:
        given["interval"] = _interval(scheduler, steps, epochs)
    _check(scheduler, given["interval"], steps, epochs, said=said)
    return given


def _parts(scheduler: Any) -> Iterator[LRScheduler]:
    """A scheduler, or those that it is made of."""
    if isinstance(scheduler, (SequentialLR, ChainedScheduler)):
        for part in scheduler._schedulers:
            yield from _parts(part)
    else:
        yield scheduler


def _interval(scheduler: Any, steps: float, epochs: float) -> Literal["step", "epoch"]:
    parts = list(_parts(scheduler))
    if any(isinstance(part, CyclicLR) for part in parts):
        return "step"
    counted = [total for part in parts if (total := _total_steps(part)) is not None]
    if counted:
        return "epoch" if all(total == epochs for total in counted) else "step"
    unknown = (type(part) for part in parts if _is_of_unknown_length(part))
    if (kind := next(unknown, None)) is not None:
        rank_zero_warn(f"{kind.__name__} as a scheduler factory moves with every epoch: {_ASK}")
    return "epoch"


def _is_of_unknown_length(part: Any) -> bool:
    """Whether a scheduler goes by a function or a class that torch does not know, of steps or epochs."""
    known = (*_LENGTHS, MultiStepLR, ExponentialLR, ReduceLROnPlateau)
    return not isinstance(part, known)


def _total_steps(part: LRScheduler) -> int | None:
    """The steps that a scheduler counts: of ``OneCycleLR``, and of the schedules of Hugging Face's transformers."""
    if isinstance(part, OneCycleLR):
        return int(part.total_steps)
    functions = getattr(part, "lr_lambdas", ())
    given = (getattr(function, "keywords", {}).get("num_training_steps") for function in functions)
    return next((int(number) for number in given if number is not None), None)


def _check(scheduler: Any, interval: str, steps: float, epochs: float, *, said: bool) -> None:
    moves = steps if interval == "step" else epochs
    training = f"training has {_number(steps)} optimizer steps in {_number(epochs)} epochs"
    parts = list(_parts(scheduler))
    sequence = isinstance(scheduler, SequentialLR)
    for part in parts:
        name, total, length = type(part).__name__, _total_steps(part), _length(part)
        if total is not None and math.isfinite(moves) and (not sequence or part is parts[-1]):
            wanted = int(moves) - (scheduler._milestones[-1] if sequence else 0)
            text = f"{name} has {total} steps, but {training} and it moves with every {interval}"
            if total < wanted and isinstance(part, OneCycleLR):
                raise ValueError(f"{text}, so that it would fail after its last one: give total_steps={wanted}")
            if total != wanted:
                rank_zero_warn(f"{text}, so that it ends at another learning rate than its last: give it {wanted}")
        if length is not None and not said and interval == "epoch" and epochs < length <= steps < math.inf:
            text = f"{name} has a length of {length}, but {training} and it moves with every epoch"
            rank_zero_warn(f"{text}, so that it does not reach its end: {_ASK}")
        if length is not None and interval == "step" and length == epochs < steps:
            rank_zero_warn(
                f"{name} has a length of {length}, as many as the epochs, but moves with every step, as a scheduler "
                "beside it does: give it a length in steps"
            )


def _length(part: LRScheduler) -> int | None:
    """How many moves it is made for, where it says so."""
    if isinstance(part, MultiStepLR):
        return max(part.milestones, default=None)
    name = next((name for kind, name in _LENGTHS.items() if isinstance(part, kind)), None)
    if name is not None:
        return int(getattr(part, name, 0)) or None
    return None


def _number(value: float) -> str:
    return str(int(value)) if math.isfinite(value) else "an unknown number of"
