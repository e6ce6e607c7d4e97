"""A loss around another one between logits: what it hands on."""

from __future__ import annotations

from torch import Tensor, nn

from lit_distill.losses.base import Loss, takes
from lit_distill.losses.response._logits import LogitRows, label_rows
from lit_distill.losses.response.kd import KDLoss


class WrappedLoss(Loss):
    """A loss that prepares logits for another, its field ``loss``, and is otherwise that one."""

    loss: nn.Module | None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.loss is None:
            self.loss = KDLoss()
        if list(self.loss.state_dict()):
            raise ValueError(f"{type(self).__name__}: loss must have no parameters, got {type(self.loss).__name__}")
        self.teaches_both = bool(getattr(self.loss, "teaches_both", False))

    def set_epoch(self, epoch: float) -> None:
        """Hand the fractional epoch on."""
        set_epoch = getattr(self.loss, "set_epoch", None)
        if set_epoch is not None:
            set_epoch(epoch)


def call(loss: nn.Module, rows: LogitRows, target: Tensor | None, class_dim: int | None) -> Tensor:
    """A loss of rows of logits, of the target if it takes one, and of their mask if they have one.

    Args:
        loss: any between logits; rows stand alike for whatever ``class_dim`` it has.
        rows: the logits.
        target: as for :func:`label_rows`.
        class_dim: where the classes of the target stand.
    """
    given = [rows.student, rows.teacher]
    if takes(loss, "target"):
        if target is None:
            raise ValueError(f"{type(loss).__name__} needs the labels: name the target GroundTruth in its term")
        given.append(label_rows(type(loss).__name__, rows, target, class_dim))
    value: Tensor = loss(*given) if rows.mask is None else loss(*given, mask=rows.mask)
    return value
