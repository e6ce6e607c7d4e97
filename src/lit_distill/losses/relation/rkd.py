"""Relational knowledge distillation, distances and angles from one Gram matrix (Park et al., CVPR 2019)."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._hyperparameters import Count, NonNegative, Positive
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._angles import angle_huber
from lit_distill.losses.relation._gram import Convention, both_squared_distances
from lit_distill.losses.relation.rkd_distance import distance_huber

__all__ = ["RKDLoss", "rkd_loss"]


@full_precision
def rkd_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    distance: NonNegative = 25.0,
    angle: NonNegative = 50.0,
    squared: bool = False,
    eps: Positive = 1e-12,
    convention: Convention = "paper",
    target_size: Count | None = None,
    gather: bool = False,
) -> Tensor:
    """Weighted sum of the distance and the angle loss; see :class:`RKDLoss`."""
    name = "rkd_loss"
    pair = both_squared_distances(name, student, teacher, convention=convention, target_size=target_size, gather=gather)
    loss = distance * distance_huber(*pair, squared=squared, eps=eps, convention=convention)
    if angle:
        loss = loss + angle * angle_huber(*pair)
    return loss.to(student.dtype)


@hyperparameters
class RKDLoss(Loss):
    r"""Both relations of RKD at once: the student's batch has the teacher's distances and angles.

    Signals, invariances, precision and ``convention`` are those of RKDDistanceLoss and RKDAngleLoss; distances and
    angles come from one Gram matrix a network, so that the distances cost next to nothing beside the angles.

    Formula:
        L = distance * RKDDistanceLoss + angle * RKDAngleLoss

    Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Matches the sum in mdistiller
        and RepDistiller, whose weights are the defaults, and torchdistill's class.

    Use when: the geometry of the batch should be taught whatever the embeddings' dimensions, usually beside
        cross-entropy and KDLoss. Wants batches of 32 samples and more; ``gather=True`` relates those of all processes.

    Args:
        distance: weight of the distances, at least 0.
        angle: weight of the angles, at least 0; 0 skips their computation.
        squared: compare squared distances.
        eps: lower bound of the squared distances, above 0.
        convention: "paper" or "paddleclas".
        target_size: average-pool feature maps (N, C, H, W) to this height and width first; None takes them whole.
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: a bad hyperparameter, signals of different N, NaN or infinite embeddings.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = RKDLoss(distance=25, angle=50)
        >>> round(loss(student, torch.eye(3)).item(), 4)
        0.8671
    """

    distance: NonNegative = 25.0
    angle: NonNegative = 50.0
    squared: bool = False
    eps: Positive = 1e-12
    convention: Convention = "paper"
    target_size: Count | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teaches_both = self.convention == "paddleclas"

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student embeddings against teacher embeddings: a scalar."""
        return rkd_loss(student, teacher, **self.hyperparameters)
