"""Plain distances between equally shaped signals, one-sided or between peers."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_distill.losses._hyperparameters import Positive
from lit_distill.losses._numerics import full_precision, require_same_shape
from lit_distill.losses.base import Loss, Signal, hyperparameters, tensors_of
from lit_distill.losses.feature._maps import shapes_of

__all__ = ["DistanceLoss", "distance_loss"]

Mode = Literal["l1", "l2", "smooth_l1"]
Activation = Literal["softmax", "sigmoid"]


@full_precision
def distance_loss(
    student: Signal, teacher: Signal, *, mode: Mode = "l2", activation: Activation | None = None, delta: Positive = 1.0
) -> Tensor:
    """Mean distance between the elements of student and teacher, summed over layers; see :class:`DistanceLoss`."""
    ours, theirs = tensors_of(student), tensors_of(teacher)
    if len(ours) != len(theirs) or not ours:
        raise ValueError(
            f"distance_loss expects as many student layers as teacher layers, {shapes_of(student, teacher)}"
        )
    distances = []
    for s, t in zip(ours, theirs, strict=True):
        require_same_shape("distance_loss", s, t)
        distances.append(_between(_activated(s, activation), _activated(t, activation), mode, delta))
    return torch.stack(distances).sum()


def _between(student: Tensor, teacher: Tensor, mode: Mode, delta: float) -> Tensor:
    if mode == "l1":
        return F.l1_loss(student, teacher)
    return F.mse_loss(student, teacher) if mode == "l2" else F.huber_loss(student, teacher, delta=delta)


def _activated(signal: Tensor, activation: Activation | None) -> Tensor:
    if activation is None:
        return signal
    return signal.softmax(dim=-1) if activation == "softmax" else signal.sigmoid()


@hyperparameters
class DistanceLoss(Loss):
    r"""Mean L1, squared L2 or Huber distance between signals of the same shape: feature maps, embeddings or logits.

    Signals: tensors of any shape, one a network or a list of equal length; layers are summed, elements averaged.

    With ``mutual`` both networks learn: each is drawn to the other's features through the same term, as in mutual
    learning of equally built peers, whose feature maps need no transform. A LossComposer then leaves the second signal
    attached (it reads the attribute ``teaches_both``).

    Formula:
        l1:         L = mean |s - t|
        l2:         L = mean (s - t)²
        smooth_l1:  L = mean of d²/2 where |d| < δ, δ|d| - δ²/2 elsewhere, d = s - t

    Paper: Huber's function is from Huber, "Robust Estimation of a Location Parameter", 1964. Matches PaddleClas'
        DistillationDistanceLoss; between two learning peers it is the feature part of PaddlePaddle's mutual learning
        (Zhang et al., "Deep Mutual Learning", CVPR 2018, arXiv:1706.00384, for the responses).

    Use when: both networks give the same shape at the tap: two peers of one architecture, or a student with the
        teacher's width. For other widths take FitNetLoss, which learns a regressor.

    Args:
        mode: ``"l1"``, ``"l2"`` or ``"smooth_l1"``.
        activation: ``"softmax"`` (last dimension) or ``"sigmoid"`` of both signals first.
        delta: δ, where ``"smooth_l1"`` goes from square to straight.
        mutual: whether the second signal learns too.

    Raises:
        ValueError: an unknown option, a δ that is not positive, or shapes that differ.

    Example:
        >>> student, teacher = torch.tensor([[1.0, 4.0]]), torch.tensor([[1.0, 1.0]])
        >>> [DistanceLoss(mode=mode)(student, teacher).item() for mode in ("l1", "l2", "smooth_l1")]
        [1.5, 4.5, 1.25]
        >>> DistanceLoss(mutual=True).teaches_both
        True
    """

    mode: Mode = "l2"
    activation: Activation | None = None
    delta: Positive = 1.0
    mutual: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teaches_both = self.mutual

    def forward(self, student: Signal, teacher: Signal) -> Tensor:
        """The loss of one batch, of signals as the class has them: a scalar."""
        return distance_loss(student, teacher, mode=self.mode, activation=self.activation, delta=self.delta)
