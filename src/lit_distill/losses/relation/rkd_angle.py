"""Relational knowledge distillation, angles between triples (Park et al., CVPR 2019)."""

from __future__ import annotations

from torch import Tensor

from lit_distill.losses._hyperparameters import Count
from lit_distill.losses._numerics import full_precision
from lit_distill.losses.base import Loss, hyperparameters
from lit_distill.losses.relation._angles import angle_huber
from lit_distill.losses.relation._gram import Convention, both_squared_distances

__all__ = ["RKDAngleLoss", "rkd_angle_loss"]


@full_precision
def rkd_angle_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    convention: Convention = "paper",
    target_size: Count | None = None,
    gather: bool = False,
) -> Tensor:
    """Huber loss between the cosines of all triples; see :class:`RKDAngleLoss`."""
    name = "rkd_angle_loss"
    pair = both_squared_distances(name, student, teacher, convention=convention, target_size=target_size, gather=gather)
    return angle_huber(*pair).to(student.dtype)


@hyperparameters
class RKDAngleLoss(Loss):
    r"""The student's samples span the same angles with each other as the teacher's.

    Signals: student embeddings (N, D_s) and teacher embeddings (N, D_t) of the same N samples, taken before the
    classifier; more dimensions are flattened, one row a sample. The scalar is a mean over all N³ triples, degenerate
    ones included with cosine 0, as published. It does not change when the embeddings are moved, rotated, scaled or put
    in another order. Batches of one and two span no angles and give 0. No gradient reaches the teacher.

    The N x N x D tensor of the published form is never built, nor one of N³: cosines follow from the squared distances
    by the law of cosines, and value and gradient from products of N x N matrices, in float64 and O(N²) extra memory.
    Angles at two samples that coincide (up to 1e-12) are constant, where the published form divides by
    1e-12 and gives gradients of 1e9. The gradient can not be differentiated again.

    On an accelerator and under torch.compile all N³ cosines are formed, 2^24 at once, so that nothing depends on
    values: in float64, with a gradient right to 1e-6 of float32 embeddings and, where two differ by 1e-6, to 1e-4. A
    device without float64 (MPS) computes in float32, to 1e-5; to 1e-4 where two samples are a hundredth apart.

    ``convention="paddleclas"`` gives the same value, and gradients to the teacher too, as PaddleClas does (in a
    LossTerm the teacher is then not detached).

    Formula:
        a_ijk = cos ∠(e_i, e_j, e_k) = <e_i - e_j, e_k - e_j> / (|e_i - e_j| |e_k - e_j|)
        L = 1/N³ Σ_ijk huber(a_ijk(student) - a_ijk(teacher)),   huber(x) = x²/2 for |x| <= 1, else |x| - 1/2

    Paper: Park et al., "Relational Knowledge Distillation", CVPR 2019, arXiv:1904.05068. Matches the authors' code and
        its copies in mdistiller, RepDistiller, torchdistill and PaddleClas. mdistiller and RepDistiller weigh it with
        50.

    Use when: as RKDDistanceLoss, and where scales within the batch differ too much between the networks: angles ignore
        scale. Usually both at once by RKDLoss. Thousands of samples (with ``gather=True`` of all processes) are fine.

    Args:
        convention: "paper" or "paddleclas".
        target_size: average-pool feature maps (N, C, H, W) to this height and width first; None takes them whole.
        gather: relate the samples of all processes; each must then take the same number of steps.

    Raises:
        ValueError: a bad hyperparameter, signals of different N, NaN or infinite embeddings.

    Example:
        >>> import torch
        >>> student = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
        >>> loss = RKDAngleLoss()
        >>> round(loss(student, torch.eye(3)).item(), 4)
        0.0124
        >>> round(loss(student, 5 * student).item(), 12)
        0.0
    """

    convention: Convention = "paper"
    target_size: Count | None = None
    gather: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        self.teaches_both = self.convention == "paddleclas"

    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of student embeddings against teacher embeddings: a scalar."""
        return rkd_angle_loss(student, teacher, **self.hyperparameters)
